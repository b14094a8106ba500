//! Bringing masters up to date with parameters that other code has written.

use std::ops::Range;
use std::slice;

use half::{bf16, f16};

use crate::rule::FloatEnv;
use crate::tensor::{
    Element, HalfElement, MasterPair, RawBuffer, Role, TensorError, Variant, check_len, for_each_variant,
};

use super::buffer::{raw, raw_mut};
use super::list::check_total;
use super::loops::{Level, Master};
use super::parts::{count_of, range_of};
use super::threads::for_each;

/// The number of elements that are compared before any of them is written. Where nothing changed,
/// nothing is written; elsewhere a block is written as a whole.
const BLOCK: usize = 64;

/// Takes over into the masters what other code wrote into their 16-bit parameters.
///
/// A step with masters overwrites the parameters. So a parameter that was changed since the last
/// step, such as by a clamp or by loaded weights, would get its old value back. Call this function
/// between the change and the next step.
///
/// For each element:
///
/// - If the parameter has the bits of the rounded master, it was not changed. The master stays as
///   it is, with its low bits. The rounding is that of a step: to nearest even.
/// - Otherwise the master becomes the parameter's value, which is exact.
///
/// Bits are compared, so -0 in place of 0 is a change. A NaN may count as changed where it was not;
/// its master is a NaN before and after.
///
/// `param` is only read. A call with many elements runs on the current rayon pool, as a step does.
/// It does not allocate.
///
/// # Errors
///
/// - [`TensorProblem::Length`](crate::TensorProblem::Length) if `master` has another length than
///   `param`. Nothing is written.
///
/// # Examples
///
/// ```
/// use dualadam::{cpu, half::bf16};
///
/// let mut master = [0.4999_f32, 0.7501]; // as a step left them
/// let mut param = master.map(bf16::from_f32);
/// assert_eq!(param.map(bf16::to_f32), [0.5, 0.75]);
/// param[1] = bf16::from_f32(0.625); // such as by a clamp
/// cpu::sync_master(&param, &mut master)?;
/// assert_eq!(master, [0.4999, 0.625]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn sync_master<P: HalfElement>(param: &[P], master: &mut [f32]) -> Result<(), TensorError> {
    check_len(0, Role::Master, param.len(), master.len())?;
    let pair = MasterPair { len: param.len() as u64, param: raw(param), master: raw_mut(master) };
    // SAFETY: the buffers are slices of this length and their formats, which this call borrows.
    unsafe { sync_master_raw(pair.len, pair.param, pair.master) }
}

/// [`sync_master`] of parameters and masters by address, with formats that are known at run time.
///
/// `len` is the number of elements of each. The addresses of an empty tensor are not checked.
///
/// # Errors
///
/// Nothing is written.
///
/// - [`TensorProblem::MasterFormats`](crate::TensorProblem::MasterFormats) unless `param` is bf16
///   or f16 and `master` f32.
/// - [`TensorProblem::Null`](crate::TensorProblem::Null) if an address is 0.
/// - [`TensorProblem::Misaligned`](crate::TensorProblem::Misaligned) if an address is not a
///   multiple of the element's size.
/// - [`TensorProblem::Extent`](crate::TensorProblem::Extent) or
///   [`TensorProblem::TooLong`](crate::TensorProblem::TooLong) if a buffer would not fit into the
///   address space.
/// - [`TensorProblem::Overlap`](crate::TensorProblem::Overlap) if the buffers overlap.
///
/// # Safety
///
/// Unless `len` is 0:
///
/// - Each buffer is initialised memory of `len` elements of its format, valid for reads and, for
///   `master`, for writes.
/// - Nothing else writes this memory, or uses `master`, during the call.
/// - The provenance of a pointer to this memory was exposed, if Rust allocated it
///   ([`expose_provenance`](pointer#method.expose_provenance)).
///
/// # Examples
///
/// ```
/// use dualadam::{Dtype, RawBuffer, cpu, half::bf16};
///
/// let (param, mut master) = ([bf16::ONE; 3], [1.001_f32, 2.0, 1.0]);
/// let param = RawBuffer::new(param.as_ptr().expose_provenance() as u64, Dtype::Bf16);
/// let address = master.as_mut_ptr().expose_provenance() as u64;
/// // SAFETY: the addresses are those of live arrays of 3 elements, exposed above, which nothing else
/// // uses.
/// unsafe { cpu::sync_master_raw(3, param, RawBuffer::f32(address))? };
/// assert_eq!(master, [1.001, 1.0, 1.0]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn sync_master_raw(len: u64, param: RawBuffer, master: RawBuffer) -> Result<(), TensorError> {
    // SAFETY: the buffers are as required (this function's three requirements), and `for_each`
    // calls the function once with each number.
    unsafe { sync_master_raw_with(len, param, master, |parts, sync_part| for_each(parts, sync_part)) }
}

/// [`sync_master_raw`] on threads of the caller's, which
/// [`TensorList::step_raw_with`](super::TensorList::step_raw_with) describes.
///
/// # Errors
///
/// - As [`sync_master_raw`].
///
/// # Safety
///
/// - As for [`sync_master_raw`].
/// - `share` calls the function with each number at most once, and not after it has returned. A
///   part without a call is not brought up to date.
///
/// # Examples
///
/// ```
/// use dualadam::{Dtype, RawBuffer, cpu, half::bf16};
///
/// let (param, mut master) = ([bf16::ONE; 3], [1.001_f32, 2.0, 1.0]);
/// let param = RawBuffer::new(param.as_ptr().expose_provenance() as u64, Dtype::Bf16);
/// let master_at = RawBuffer::f32(master.as_mut_ptr().expose_provenance() as u64);
/// let share = |parts, sync_part: &(dyn Fn(usize) + Send + Sync)| (0..parts).for_each(sync_part);
/// // SAFETY: the addresses are those of live arrays of 3 elements, exposed above, which nothing else
/// // uses. The function is called once with each number.
/// unsafe { cpu::sync_master_raw_with(3, param, master_at, share)? };
/// assert_eq!(master, [1.001, 1.0, 1.0]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn sync_master_raw_with(
    len: u64,
    param: RawBuffer,
    master: RawBuffer,
    share: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)),
) -> Result<(), TensorError> {
    let job = SyncJob::new(0, MasterPair { len, param, master })?;
    share(count_of(len), &|part| {
        // SAFETY: the buffers are initialised, valid, exposed memory that nothing else writes
        // (`sync_master_raw`'s three requirements). Ranges of different parts do not overlap, and
        // no part is taken twice (this function's second requirement).
        unsafe { job.run_range(range_of(part, len)) };
    });
    Ok(())
}

/// Parameters and masters that were checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncJob {
    pair: MasterPair,
    variant: Variant,
}

impl SyncJob {
    /// Checks the formats, the length, and, unless the tensor is empty, the addresses.
    pub(super) fn new(tensor: usize, pair: MasterPair) -> Result<Self, TensorError> {
        check_total(tensor, pair.len)?;
        Ok(Self { pair, variant: pair.check(tensor)? })
    }

    /// The number of elements.
    pub(super) fn len(&self) -> u64 {
        self.pair.len
    }

    /// Brings a range of the masters up to date, on this thread.
    ///
    /// # Safety
    ///
    /// - The range is within the tensor's length, and not empty. The buffers are as
    ///   [`sync_master_raw`] requires, for this range.
    pub(super) unsafe fn run_range(&self, range: Range<u64>) {
        // SAFETY: the kernel is that of the formats. The buffers were checked and are as `Kernel`
        // requires (this function's requirement).
        unsafe { KERNELS[self.variant.index()](&self.pair, range.start as usize..range.end as usize) };
    }
}

/// Brings a range of masters up to date, by address.
///
/// # Safety
///
/// - The pair has the formats that the function is for. The range is within its length.
/// - Each buffer is initialised memory of the pair's length and its format, aligned, of at most
///   `isize::MAX` bytes, with exposed provenance, valid for reads and, for `master`, for writes.
/// - The buffers do not overlap. Nothing else writes the range of them, or uses that of `master`,
///   during the call.
type Kernel = unsafe fn(&MasterPair, Range<usize>);

/// In the order of the variants. Those of variants without masters do nothing.
static KERNELS: [Kernel; Variant::COUNT] = for_each_variant!(sync_streams);

/// The [`Kernel`] for these types.
///
/// # Safety
///
/// - As for [`Kernel`].
#[expect(clippy::extra_unused_type_parameters, reason = "`for_each_variant!` names the types of all roles")]
unsafe fn sync_streams<P: Element, G: Element, M: Element, V: Element, W: Master>(
    pair: &MasterPair,
    range: Range<usize>,
) {
    // SAFETY: the buffers are initialised, aligned, exposed memory of this length and these types,
    // they do not overlap, and nothing else writes them (the requirements of `Kernel`).
    let (param, master) = unsafe {
        let param = std::ptr::with_exposed_provenance::<P>(pair.param.address as usize);
        let master = std::ptr::with_exposed_provenance_mut::<W>(pair.master.address as usize);
        let param = slice::from_raw_parts(param.add(range.start), range.len());
        (param, slice::from_raw_parts_mut(master.add(range.start), range.len()))
    };
    sync_chunk(param, master, Level::detect());
}

/// Under the standard control word.
fn sync_chunk<P: Element, W: Master>(param: &[P], master: &mut [W], level: Level) {
    let _standard = FloatEnv::standard();
    match level {
        Level::Portable => sync_elements(param, master),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX2 and FMA, since `Level::detect` returned this level.
        Level::Avx2Fma => unsafe { sync_elements_avx2_fma(param, master) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sync_elements_avx2_fma<P: Element, W: Master>(param: &[P], master: &mut [W]) {
    sync_elements(param, master);
}

/// The loops. They vectorise because no branch depends on an element.
#[inline(always)]
fn sync_elements<P: Element, W: Master>(param: &[P], master: &mut [W]) {
    for (param, master) in param.chunks(BLOCK).zip(master.chunks_mut(BLOCK)) {
        let differences = param.iter().zip(&*master).map(|(&param, &master)| difference(param, master));
        if differences.fold(0, |all, one| all | one) != 0 {
            for (&param, master) in param.iter().zip(master) {
                *master = if difference(param, *master) == 0 { *master } else { W::of(param.widen()) };
            }
        }
    }
}

/// The bits in which a parameter differs from the rounding of its master, as f32: widening keeps
/// different bits different.
#[inline(always)]
fn difference<P: Element, W: Master>(param: P, master: W) -> u32 {
    let param = param.widen();
    P::narrow(master.current(param)).widen().to_bits() ^ param.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bits of the masters at one level: changed ones and others, of all of f32.
    fn bits<P: Element>(level: Level) -> Vec<u32> {
        let pattern = |i: u32| f32::from_bits(i.wrapping_mul(4_282_663));
        let mut master: Vec<_> = (0..1003).map(pattern).collect();
        let param: Vec<_> = (0..1003).map(|i| P::narrow(pattern(i + i % 3 / 2))).collect();
        sync_chunk(&param, &mut master, level);
        master.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        assert_eq!(bits::<bf16>(Level::detect()), bits::<bf16>(Level::Portable));
        assert_eq!(bits::<f16>(Level::detect()), bits::<f16>(Level::Portable));
    }
}
