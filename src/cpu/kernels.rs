//! The step of each variant, from addresses to slices.

use std::slice;

use half::{bf16, f16};

use crate::rule::StepCoeffs;
use crate::tensor::{Element, RawBuffer, RawTensor, Variant, for_each_variant};

use super::loops::{Master, Streams};

/// The step of a tensor by address.
///
/// # Safety
///
/// - The tensor has the formats that the function is for, and is not empty.
/// - Each buffer is initialised memory of the tensor's length and its format, aligned, of at most
///   `isize::MAX` bytes, with exposed provenance, valid for reads and, apart from `grad`, for
///   writes.
/// - No two buffers overlap, and nothing else uses them during the call.
type Kernel = unsafe fn(&RawTensor, &StepCoeffs, bool);

/// The steps, in the order of the variants.
static KERNELS: [Kernel; Variant::COUNT] = for_each_variant!(step);

/// A tensor with all that its step needs, apart from the coefficients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) tensor: RawTensor,
    pub(super) variant: Variant,
    /// Whether the step first sets the masters from the parameters.
    pub(super) sets_master: bool,
}

impl Job {
    /// One step of the tensor. Does nothing if the tensor is empty.
    ///
    /// # Safety
    ///
    /// - `variant` is that of the tensor's formats.
    /// - Unless the tensor is empty, its buffers meet the second and third requirement of
    ///   [`Kernel`].
    pub(super) unsafe fn run(&self, coeffs: &StepCoeffs) {
        if self.tensor.len > 0 {
            // SAFETY: the kernel is the variant's, whose formats the tensor has (this function's
            // first requirement). The tensor is not empty, so its buffers are as `Kernel` requires
            // (the second requirement).
            unsafe { KERNELS[self.variant.index()](&self.tensor, coeffs, self.sets_master) };
        }
    }
}

/// The [`Kernel`] for these types.
///
/// # Safety
///
/// - As for [`Kernel`].
unsafe fn step<P: Element, G: Element, M: Element, V: Element, W: Master>(
    tensor: &RawTensor,
    coeffs: &StepCoeffs,
    sets_master: bool,
) {
    let len = tensor.len as usize;
    // SAFETY: each buffer is initialised, aligned, exposed memory of this length and type that is
    // valid for the accesses, no two overlap, and nothing else uses them (the requirements of
    // `Kernel`).
    let mut streams = unsafe {
        Streams {
            param: slice_mut::<P>(tensor.param, len),
            grad: slice::from_raw_parts(std::ptr::with_exposed_provenance::<G>(tensor.grad.address as usize), len),
            exp_avg: slice_mut::<M>(tensor.exp_avg, len),
            exp_avg_sq: slice_mut::<V>(tensor.exp_avg_sq, len),
            // Without masters this is a slice of `()`, which takes no memory: any address but 0 is
            // valid for it.
            master: slice_mut::<W>(tensor.master.unwrap_or(tensor.param), len),
        }
    };
    if sets_master {
        streams.set_masters();
    }
    streams.run(coeffs);
}

/// The slice of a buffer's first `len` elements.
///
/// # Safety
///
/// - As for [`slice::from_raw_parts_mut`], with the buffer's address.
/// - The provenance of that memory is exposed.
unsafe fn slice_mut<'a, T>(buffer: RawBuffer, len: usize) -> &'a mut [T] {
    // SAFETY: the memory is exposed (this function's second requirement) and as
    // `from_raw_parts_mut` requires (the first).
    unsafe { slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(buffer.address as usize), len) }
}
