//! From addresses to slices: the step of each variant.

use std::slice;

use half::{bf16, f16};

use crate::rule::StepCoeffs;
use crate::tensor::{Element, RawBuffer, RawTensor, Variant, for_each_variant};

use super::loops::{Master, Streams};

/// The step of a tensor by address.
///
/// # Safety
///
/// - The tensor's formats are those that the step is of.
/// - Each buffer is memory of the tensor's length and its format, aligned, of at most `isize::MAX`
///   bytes, whose provenance is exposed, and which nothing else uses during the call. No two
///   buffers overlap. An empty tensor's addresses may be anything.
type Kernel = unsafe fn(&RawTensor, &StepCoeffs, bool);

/// In the order of the variants.
static KERNELS: [Kernel; Variant::COUNT] = for_each_variant!(step);

/// A tensor that is ready to be stepped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) tensor: RawTensor,
    pub(super) variant: Variant,
    /// Whether the masters are first set from the parameters.
    pub(super) sets_master: bool,
}

impl Job {
    /// One step of the tensor.
    ///
    /// # Safety
    ///
    /// - `variant` is that of the tensor's formats.
    /// - Each buffer is memory of the tensor's length and its format, aligned, of at most
    ///   `isize::MAX` bytes, whose provenance is exposed, and which nothing else uses during the
    ///   call. No two buffers overlap. An empty tensor's addresses may be anything.
    pub(super) unsafe fn run(&self, coeffs: &StepCoeffs) {
        if self.tensor.len > 0 {
            // SAFETY: the kernel is the variant's, and the buffers are as this function's second
            // requirement says.
            unsafe { KERNELS[self.variant.index()](&self.tensor, coeffs, self.sets_master) };
        }
    }
}

/// # Safety
///
/// As for [`Kernel`], for these types; the tensor is not empty.
unsafe fn step<P: Element, G: Element, M: Element, V: Element, W: Master>(
    tensor: &RawTensor,
    coeffs: &StepCoeffs,
    sets_master: bool,
) {
    let len = tensor.len as usize;
    // SAFETY: each buffer is exposed memory of this length and type that nothing else uses, and no
    // two overlap (the requirements of `Kernel`).
    let mut streams = unsafe {
        Streams {
            param: slice_mut::<P>(tensor.param, len),
            grad: slice::from_raw_parts(std::ptr::with_exposed_provenance::<G>(tensor.grad.address as usize), len),
            exp_avg: slice_mut::<M>(tensor.exp_avg, len),
            exp_avg_sq: slice_mut::<V>(tensor.exp_avg_sq, len),
            // Without masters a slice of `()`, which takes no memory: any aligned address but null
            // will do.
            master: slice_mut::<W>(tensor.master.unwrap_or(tensor.param), len),
        }
    };
    if sets_master {
        streams.set_masters();
    }
    streams.run(coeffs);
}

/// # Safety
///
/// As for [`slice::from_raw_parts_mut`].
unsafe fn slice_mut<'a, T>(buffer: RawBuffer, len: usize) -> &'a mut [T] {
    // SAFETY: the caller keeps to the requirements of `from_raw_parts_mut`.
    unsafe { slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(buffer.address as usize), len) }
}
