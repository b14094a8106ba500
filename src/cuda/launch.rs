//! Launches: the grid for a length, and the arguments in the kernels' order.

use std::ffi::c_void;
use std::ptr;

use bytemuck::Zeroable;
use cudarc::driver::sys;

use crate::{Error, RawTensor, StepCoeffs};

use super::checks::{check_capture, check_one};
use super::driver::check;
use super::kernels::{Function, Kernels};

// These mirror the constants of the same names in `kernels/`, where it stands what they were tuned on.

/// Threads of a block.
const BLOCK: u32 = 256;
/// Elements of a group, which is one access.
const VEC: u32 = 4;
/// Groups that a thread of a flat step takes.
const FLAT_GROUPS: u32 = 2;
/// Elements of a list that one block serves.
pub(super) const CHUNK: u64 = 4096;
/// Chunks that share an entry of a list's table.
pub(super) const SPAN: u32 = 1;
/// The coefficients that fit beside the other arguments.
pub(super) const MAX_COEFFS: usize = 96;
/// Threads of a block that prepares coefficient sets.
const CONTROL_BLOCK: u32 = 256;

/// The most blocks that a launch can have.
pub(super) const MAX_BLOCKS: u64 = i32::MAX as u64;

/// Coefficients as an argument.
#[repr(C)]
struct StepCoeffsArray([StepCoeffs; MAX_COEFFS]);

impl Kernels {
    /// One DualAdam step over one tensor's flat buffers, enqueued on `stream`. Arguments are plain numbers.
    ///
    /// The call does not allocate, wait or log. The first call with a combination of types loads its kernels, unless
    /// [`prepare`](Self::prepare) has. A step can be captured in a CUDA graph, which keeps the coefficients as they are now, once
    /// they are loaded. Where [`StepCoeffs::is_adam`] holds, the specialised kernel runs; the bits are the same.
    ///
    /// `stream` is a `CUstream`, which is the same as a `cudaStream_t`; null is the default stream.
    ///
    /// # Errors
    ///
    /// [`Error::Types`] for element types without a kernel; [`Error::Null`], [`Error::Misaligned`], [`Error::Extent`] or
    /// [`Error::Overlap`] for buffers that cannot be right; [`Error::Index`] if `tensor.set` is not 0; [`Error::TooMany`] for
    /// more elements than a launch can serve; [`Error::Context`] for a stream of another context; [`Error::Captured`] in a capture
    /// where the kernels are not loaded, and [`Error::Ptx`] if the driver refuses them. Nothing is launched then.
    /// [`Error::Driver`] if the driver refuses the launch, or if earlier work on the device failed. It is also the error of a stream whose
    /// capture has failed, and of the null stream while a stream that waits for it is being captured: nothing is launched then.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of `tensor` is device memory of the kernels' context, of `tensor.len`
    ///   elements of its type.
    /// - What else uses that memory, on any stream, is ordered before or after this work.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::{Kernels, RawBuffer, RawTensor};
    /// use dualadam::{DualAdamConfig, Dtype};
    ///
    /// # let (params, grads, exp_avg, exp_avg_sq, stream) = (256, 512, 768, 1024, std::ptr::null_mut());
    /// let kernels = Kernels::new(0)?;
    /// let f32_at = |address| RawBuffer { address, dtype: Dtype::F32 };
    /// let (params, grads) = (f32_at(params), f32_at(grads));
    /// let tensor = RawTensor { params, grads, exp_avg, exp_avg_sq, copy: None, len: 16, set: 0 };
    /// let coeffs = DualAdamConfig::default().coeffs(1)?;
    /// // SAFETY: the addresses are those of live buffers of 16 f32 each, which nothing else uses meanwhile.
    /// unsafe { kernels.step_raw(&tensor, &coeffs, stream)? };
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn step_raw(&self, tensor: &RawTensor, coeffs: &StepCoeffs, stream: *mut c_void) -> Result<(), Error> {
        let variant = tensor.variant(0)?;
        if tensor.set != 0 {
            return Err(Error::Index { tensor: 0, index: "set", len: 1, value: tensor.set });
        }
        check_one(tensor)?;
        let blocks = flat_blocks(tensor.len)?;
        let _current = self.enter()?;
        // Also where the answer does not matter: the driver refuses it where a launch would spoil somebody else's capture.
        // SAFETY: `stream` is live (this function's first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self, stream) }?;
        if tensor.len == 0 {
            return Ok(());
        }
        let functions = match self.loaded(variant) {
            Some(functions) => functions,
            None if is_captured => {
                let what = "the first step with a combination of types, which loads its kernels,";
                return Err(Error::Captured { what });
            }
            None => self.functions(variant)?,
        };
        let function = if coeffs.is_adam() { functions.adam } else { functions.dual_adam };
        let [mut param, mut grad, mut exp_avg, mut exp_avg_sq, mut master] = tensor.addresses();
        let (mut len, mut coeffs) = (tensor.len, *coeffs);
        let mut arguments = [
            argument(&mut param),
            argument(&mut grad),
            argument(&mut exp_avg),
            argument(&mut exp_avg_sq),
            argument(&mut master),
            argument(&mut len),
            argument(&mut coeffs),
        ];
        // SAFETY: the arguments are those of a flat kernel; the caller vouches for the memory behind the addresses.
        unsafe { launch(function, blocks, BLOCK, &mut arguments, stream) }
    }
}

/// The blocks of a flat launch: a thread for so many groups of elements, and one block for what a head and a tail add.
fn flat_blocks(len: u64) -> Result<u32, Error> {
    let per_block = u64::from(BLOCK * VEC * FLAT_GROUPS);
    let limit = (MAX_BLOCKS - 1) * per_block;
    if len > limit {
        return Err(Error::TooMany { list: "the elements of a flat step", limit, actual: len });
    }
    Ok((len.div_ceil(per_block) + 1) as u32)
}

/// The address of a table and how many tensors it has.
pub(super) type TableArguments = (u64, u32);

/// Where a list's launches find their coefficient sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetsArguments<'a> {
    /// The sets in device memory; with 0 they travel as an argument, and may be no more than [`MAX_COEFFS`].
    pub(super) device: u64,
    pub(super) by_value: &'a [StepCoeffs],
    /// The words that say which sets to leave alone, in device memory; 0 for none.
    pub(super) skips: u64,
}

/// Launches the list kernel: a block for each chunk of the table.
///
/// # Safety
///
/// The kernels' context must be current; `table` and the buffers that it names must be as the kernel expects them when it runs, and
/// the sets' addresses, where they are not 0, those of the sets and of a word for each.
pub(super) unsafe fn launch_list(
    function: Function,
    chunks: u32,
    (mut table, mut tensors): TableArguments,
    mut sets: SetsArguments<'_>,
    stream: *mut c_void,
) -> Result<(), Error> {
    let mut by_value = StepCoeffsArray([StepCoeffs::zeroed(); MAX_COEFFS]);
    if sets.device == 0 {
        by_value.0[..sets.by_value.len()].copy_from_slice(sets.by_value);
    }
    let mut arguments = [
        argument(&mut table),
        argument(&mut tensors),
        argument(&mut sets.device),
        argument(&mut sets.skips),
        argument(&mut by_value),
    ];
    // SAFETY: the arguments are those of a list kernel; the caller vouches for the memory behind the addresses.
    unsafe { launch(function, chunks, BLOCK, &mut arguments, stream) }
}

/// Launches the kernel that prepares the coefficient sets: a thread for each. The addresses are in its arguments' order: the groups,
/// the sets, their states, their coefficients, their skip words; then loss scale, clip factor and found-inf, 0 for none.
///
/// # Safety
///
/// The kernels' context must be current, and the memory as the kernel expects it when it runs.
pub(super) unsafe fn launch_prepare_sets(
    function: Function,
    mut memory: [u64; 5],
    mut count: u32,
    mut scalars: [u64; 3],
    stream: *mut c_void,
) -> Result<(), Error> {
    let [groups, sets, states, coeffs, skips] = memory.each_mut().map(argument);
    let [loss_scale, clip_factor, found_inf] = scalars.each_mut().map(argument);
    let blocks = count.div_ceil(CONTROL_BLOCK);
    let mut arguments = [groups, sets, states, coeffs, skips, argument(&mut count), loss_scale, clip_factor, found_inf];
    // SAFETY: the arguments are those of the kernel; the caller vouches for the memory behind the addresses.
    unsafe { launch(function, blocks, CONTROL_BLOCK, &mut arguments, stream) }
}

fn argument<T>(value: &mut T) -> *mut c_void {
    ptr::from_mut(value).cast()
}

/// # Safety
///
/// The arguments must point to values of the types that the kernel takes, and the kernel must be safe to run with them.
unsafe fn launch(
    function: Function,
    blocks: u32,
    threads: u32,
    arguments: &mut [*mut c_void],
    stream: *mut c_void,
) -> Result<(), Error> {
    // SAFETY: the function is loaded in the current context; the driver copies the arguments during the call.
    let answer = unsafe {
        let (arguments, no_extra) = (arguments.as_mut_ptr(), ptr::null_mut());
        sys::cuLaunchKernel(function.handle(), blocks, 1, 1, threads, 1, 1, 0, stream.cast(), arguments, no_extra)
    };
    check("cuLaunchKernel", answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels and the host must agree on these numbers; nothing else would notice but a GPU.
    #[test]
    fn constants_are_those_of_the_kernels() {
        let sources = concat!(
            include_str!("../../kernels/tuning.cuh"),
            include_str!("../../kernels/pack.cuh"),
            include_str!("../../kernels/step.cuh"),
            include_str!("../../kernels/control.cu")
        );
        let value = |name: &str| {
            let starts = [format!(" {name} = "), format!("#define {name} ")];
            let values = starts.iter().flat_map(|start| sources.split(start.as_str()).skip(1));
            let mut found =
                values.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok());
            let first = found.next().unwrap();
            assert_eq!(found.next(), None, "{name} stands twice");
            first
        };
        assert_eq!(value("BLOCK"), u64::from(BLOCK));
        assert_eq!(value("VEC"), u64::from(VEC));
        assert_eq!(value("FLAT_GROUPS"), u64::from(FLAT_GROUPS));
        assert_eq!(value("CHUNK"), CHUNK);
        assert_eq!(value("SPAN"), u64::from(SPAN));
        assert_eq!(value("MAX_COEFFS"), MAX_COEFFS as u64);
        assert_eq!(value("CONTROL_BLOCK"), u64::from(CONTROL_BLOCK));
        assert_eq!(CHUNK % (u64::from(BLOCK * VEC) * value("LIST_GROUPS")), 0);
        assert_eq!(size_of::<StepCoeffsArray>(), 3840);
    }

    #[test]
    fn flat_grids_cover_head_body_and_tail() {
        for (len, blocks) in [(0, 1), (1, 2), (2048, 2), (2049, 3), ((1 << 32) + 5, (1 << 21) + 2)] {
            assert_eq!(flat_blocks(len).unwrap(), blocks);
        }
        let most = (MAX_BLOCKS - 1) * 2048;
        assert_eq!(u64::from(flat_blocks(most).unwrap()), MAX_BLOCKS);
        assert!(matches!(flat_blocks(most + 1), Err(Error::TooMany { .. })));
    }
}
