//! Launches: the grid for a length, and the arguments in the kernels' order.

use std::ffi::c_void;
use std::ptr;

use bytemuck::Zeroable;
use cudarc::driver::sys;

use crate::rule::StepCoeffs;
use crate::tensor::{ListError, MasterPair, RawTensor};

use super::driver::check;
use super::error::CudaError;
use super::module::{Function, Functions};

// These mirror the constants of the same names in `kernels/`, which say how they were chosen. A
// test below compares them.

/// Threads in a block.
const BLOCK: u32 = 256;
/// Elements in a group, which is one access.
const VEC: u32 = 4;
/// Groups that one thread of a flat step serves.
const FLAT_GROUPS: u32 = 2;
/// Elements in a chunk, which one block of a list's step serves.
pub(super) const CHUNK: u64 = 4096;
/// Chunks that share an entry in a list's table.
pub(super) const SPAN: u32 = 1;
/// The most coefficients that fit into a launch's arguments.
pub(super) const MAX_COEFFS: usize = 96;
/// Threads in a block of the kernel that prepares coefficients.
const CONTROL_BLOCK: u32 = 256;

/// The most blocks that a launch can have.
pub(super) const MAX_BLOCKS: u64 = i32::MAX as u64;

/// Coefficients as a kernel argument.
#[repr(C)]
struct StepCoeffsArray([StepCoeffs; MAX_COEFFS]);

/// The number of blocks of a flat launch: a thread for each [`FLAT_GROUPS`] groups, and one more
/// block for the elements before the first and after the last aligned group.
pub(super) fn flat_blocks(len: u64) -> Result<u32, ListError> {
    let per_block = u64::from(BLOCK * VEC * FLAT_GROUPS);
    let limit = (MAX_BLOCKS - 1) * per_block;
    if len > limit {
        return Err(ListError::TooMany { list: "the elements of a flat step", limit, actual: len });
    }
    Ok((len.div_ceil(per_block) + 1) as u32)
}

/// Launches the flat kernel: plain Adam's if the coefficients allow it, else DualAdam's.
///
/// # Safety
///
/// - The kernels' context is current, and `functions` are those of the tensor's formats.
/// - `stream` is null or a live stream of that context.
/// - Each buffer of the tensor is memory of its length and format when the kernel runs.
pub(super) unsafe fn launch_flat(
    functions: &Functions,
    blocks: u32,
    tensor: &RawTensor,
    coeffs: &StepCoeffs,
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let function = if coeffs.is_adam() { functions.adam } else { functions.dual_adam };
    let (mut addresses, mut len, mut coeffs) = (tensor.addresses(), tensor.len, *coeffs);
    let [param, grad, exp_avg, exp_avg_sq, master] = addresses.each_mut().map(argument);
    let mut arguments = [param, grad, exp_avg, exp_avg_sq, master, argument(&mut len), argument(&mut coeffs)];
    // SAFETY: the context is current and the stream live (this function's first two requirements).
    // The arguments have the types of a flat kernel's, and the buffers have the tensor's length and
    // formats (this function's third requirement).
    unsafe { launch(function, blocks, BLOCK, &mut arguments, stream) }
}

/// Launches the kernel that brings the masters of one tensor up to date. `masters` is the address
/// of a word of the control that says whether the masters are set, or 0 if they are.
///
/// # Safety
///
/// - The kernels' context is current, and `function` is the kernel `sync_master` of the pair's
///   formats.
/// - `stream` is null or a live stream of that context.
/// - Each buffer of the pair is memory of its length and format when the kernel runs, and `masters`
///   is 0 or the address of a `u32`.
pub(super) unsafe fn launch_sync_master(
    function: Function,
    blocks: u32,
    &MasterPair { mut len, param, master }: &MasterPair,
    mut masters: u64,
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let mut addresses = [param.address, master.address];
    let [param, master] = addresses.each_mut().map(argument);
    let mut arguments = [param, master, argument(&mut len), argument(&mut masters)];
    // SAFETY: the context is current and the stream live (this function's first two requirements).
    // The arguments have the types of the kernel's, and the memory is there (this function's third
    // requirement).
    unsafe { launch(function, blocks, BLOCK, &mut arguments, stream) }
}

/// The address of a table, and the number of its tensors.
pub(super) type TableArguments = (u64, u32);

/// Where the launches of a list find their coefficients.
#[derive(Debug, Clone, Copy)]
pub(super) struct CoeffsArguments<'a> {
    /// The address of the coefficients in device memory, or 0 if they are passed by value; these
    /// are at most [`MAX_COEFFS`].
    pub(super) on_device: u64,
    pub(super) by_value: &'a [StepCoeffs],
    /// The address of a `u32` for each coefficient set, which says whether to skip its tensors, or
    /// 0 to skip none.
    pub(super) skips: u64,
}

/// Launches the list kernel: a block for each chunk in the table.
///
/// # Safety
///
/// - The kernels' context is current, and `function` is the list kernel of the formats of the
///   table's tensors.
/// - `stream` is null or a live stream of that context.
/// - `table` and the buffers that it names are as the kernel expects them when it runs.
/// - The addresses in `coeffs` that are not 0 are those of the coefficients, and of a `u32` for
///   each.
pub(super) unsafe fn launch_list(
    function: Function,
    chunks: u32,
    (mut table, mut tensors): TableArguments,
    mut coeffs: CoeffsArguments<'_>,
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let mut by_value = StepCoeffsArray([StepCoeffs::zeroed(); MAX_COEFFS]);
    if coeffs.on_device == 0 {
        by_value.0[..coeffs.by_value.len()].copy_from_slice(coeffs.by_value);
    }
    let mut arguments = [
        argument(&mut table),
        argument(&mut tensors),
        argument(&mut coeffs.on_device),
        argument(&mut coeffs.skips),
        argument(&mut by_value),
    ];
    // SAFETY: the context is current and the stream live (this function's first two requirements).
    // The arguments have the types of a list kernel's, and the memory is as it expects it (this
    // function's other requirements).
    unsafe { launch(function, chunks, BLOCK, &mut arguments, stream) }
}

/// Launches the kernel that prepares the coefficients of a controlled step: a thread for each of
/// `count` sets.
///
/// `memory` has the addresses of the groups, the sets, and the sets' states, coefficients and skip
/// words. `scalars` has those of the loss scale, the clip factor and the found-inf flag, or 0.
///
/// # Safety
///
/// - The kernels' context is current, and `function` is the kernel `prepare_sets`.
/// - `stream` is null or a live stream of that context.
/// - The memory is as the kernel expects it when it runs.
pub(super) unsafe fn launch_prepare_sets(
    function: Function,
    mut memory: [u64; 5],
    mut count: u32,
    mut scalars: [u64; 3],
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let [groups, sets, states, coeffs, skips] = memory.each_mut().map(argument);
    let [loss_scale, clip_factor, found_inf] = scalars.each_mut().map(argument);
    let blocks = count.div_ceil(CONTROL_BLOCK);
    let mut arguments = [groups, sets, states, coeffs, skips, argument(&mut count), loss_scale, clip_factor, found_inf];
    // SAFETY: the context is current and the stream live (this function's first two requirements).
    // The arguments have the types of the kernel's, and the memory is as it expects it (this
    // function's third requirement).
    unsafe { launch(function, blocks, CONTROL_BLOCK, &mut arguments, stream) }
}

fn argument<T>(value: &mut T) -> *mut c_void {
    ptr::from_mut(value).cast()
}

/// Launches a one-dimensional grid.
///
/// # Safety
///
/// - The function's context is current, and `stream` is null or a live stream of it.
/// - The arguments point to values of the types that the kernel takes, and the kernel is safe to
///   run with them.
unsafe fn launch(
    function: Function,
    blocks: u32,
    threads: u32,
    arguments: &mut [*mut c_void],
    stream: *mut c_void,
) -> Result<(), CudaError> {
    // SAFETY: `function` is loaded in the current context, and `stream` is of it (this function's
    // first requirement). The kernel is safe to run with these arguments (its second requirement).
    // The driver copies the arguments during the call.
    let answer = unsafe {
        let (arguments, no_extra) = (arguments.as_mut_ptr(), ptr::null_mut());
        sys::cuLaunchKernel(function.handle(), blocks, 1, 1, threads, 1, 1, 0, stream.cast(), arguments, no_extra)
    };
    check("cuLaunchKernel", answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels and the host must agree on these numbers.
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
            assert_eq!(found.next(), None, "{name} is defined twice");
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
        assert!(matches!(flat_blocks(most + 1), Err(ListError::TooMany { .. })));
    }
}
