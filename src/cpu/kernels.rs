//! The step of each variant, from addresses to slices.

use std::ops::Range;
use std::slice;

use half::{bf16, f16};

use crate::rule::StepCoeffs;
use crate::tensor::{Element, RawBuffer, RawTensor, Variant, for_each_variant};

use super::loops::{Master, Streams};
use super::parts::{aligned, count_of, range_of};
use super::threads::for_each;

/// The step of a range of a tensor's elements, by address.
///
/// # Safety
///
/// - The tensor has the formats that the function is for. The range is within its length, and not
///   empty.
/// - Each buffer is initialised memory of the tensor's length and its format, aligned, of at most
///   `isize::MAX` bytes, with exposed provenance, valid for reads and, apart from `grad`, for
///   writes.
/// - No two buffers overlap, and nothing else uses the range of them during the call.
type Kernel = unsafe fn(&RawTensor, Range<usize>, &StepCoeffs, bool);

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
    /// One step of the tensor, on the current rayon pool. Does nothing if the tensor is empty.
    ///
    /// # Safety
    ///
    /// - `variant` is that of the tensor's formats.
    /// - Unless the tensor is empty, its buffers meet the second and third requirement of
    ///   [`Kernel`], for all elements.
    pub(super) unsafe fn run(&self, coeffs: &StepCoeffs) {
        let len = self.tensor.len;
        for_each(count_of(len), |part| {
            // SAFETY: as this function's requirements. Ranges of different parts do not overlap.
            unsafe { self.run_range(range_of(part, len), coeffs) };
        });
    }

    /// One step of a range of the tensor's elements, on this thread. The range that is stepped is
    /// that of [`aligned`].
    ///
    /// # Safety
    ///
    /// - `variant` is that of the tensor's formats.
    /// - The range is within the tensor's length. Unless it is empty, the buffers meet the second
    ///   and third requirement of [`Kernel`] for the range that is stepped.
    pub(super) unsafe fn run_range(&self, range: Range<u64>, coeffs: &StepCoeffs) {
        let range = aligned(range, &self.tensor);
        if range.is_empty() {
            return;
        }
        let range = range.start as usize..range.end as usize;
        // SAFETY: the kernel is the variant's, whose formats the tensor has (this function's first
        // requirement). The range is not empty, so the buffers are as `Kernel` requires (the second
        // requirement).
        unsafe { KERNELS[self.variant.index()](&self.tensor, range, coeffs, self.sets_master) };
    }
}

/// The [`Kernel`] for these types.
///
/// # Safety
///
/// - As for [`Kernel`].
unsafe fn step<P: Element, G: Element, M: Element, V: Element, W: Master>(
    tensor: &RawTensor,
    range: Range<usize>,
    coeffs: &StepCoeffs,
    sets_master: bool,
) {
    let grad = std::ptr::with_exposed_provenance::<G>(tensor.grad.address as usize);
    // SAFETY: each buffer is initialised, aligned, exposed memory of the tensor's length and this
    // type that is valid for the accesses, no two overlap, and nothing else uses the range of them
    // (the requirements of `Kernel`).
    let mut streams = unsafe {
        Streams {
            param: slice_mut::<P>(tensor.param, &range),
            grad: slice::from_raw_parts(grad.add(range.start), range.len()),
            exp_avg: slice_mut::<M>(tensor.exp_avg, &range),
            exp_avg_sq: slice_mut::<V>(tensor.exp_avg_sq, &range),
            // Without masters this is a slice of `()`, which takes no memory: any address but 0 is
            // valid for it.
            master: slice_mut::<W>(tensor.master.unwrap_or(tensor.param), &range),
        }
    };
    if sets_master {
        streams.set_masters();
    }
    streams.run(coeffs);
}

/// The slice of a range of a buffer's elements.
///
/// # Safety
///
/// - As for [`slice::from_raw_parts_mut`], with the address of the range's first element.
/// - The provenance of the buffer's memory is exposed.
unsafe fn slice_mut<'a, T>(buffer: RawBuffer, range: &Range<usize>) -> &'a mut [T] {
    let first = std::ptr::with_exposed_provenance_mut::<T>(buffer.address as usize);
    // SAFETY: the memory is exposed (this function's second requirement) and as
    // `from_raw_parts_mut` requires (the first).
    unsafe { slice::from_raw_parts_mut(first.add(range.start), range.len()) }
}
