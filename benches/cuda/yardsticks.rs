//! The kernels that the step is measured against, from `triad.cu` and `yardsticks.cu`.

use std::ffi::{CString, c_void};
use std::ptr;

use dualadam::cuda::cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use dualadam::cuda::cudarc::driver::{CudaStream, result};
use dualadam::{StepCoeffs, Variant};

/// Made and compared by `cargo xtask prebuilt`.
const PTX: &str = concat!(include_str!("prebuilt/yardsticks.ptx"), "\0");

const BLOCK: u64 = 256;
/// Elements of a thread; the elements of a last, smaller group have a thread each.
const VEC: u64 = 4;

/// Words of a thread of the copy.
const UNROLLED: u64 = 8;

/// The kernels of the unfused step, in the order in which they make a step.
const PASSES: &str = "exp_avg exp_avg_sq root correct divide blend multiply subtract";

/// Loaded for as long as the program runs.
pub(crate) struct Yardsticks {
    /// For each variant.
    triads: Vec<CUfunction>,
    passes: Vec<CUfunction>,
    copy: CUfunction,
}

impl Yardsticks {
    /// Loads them into the current context.
    pub(crate) fn load() -> Self {
        // SAFETY: the text ends in a zero byte.
        let module = unsafe { result::module::load_data(PTX.as_ptr().cast()) }.expect("the driver takes the PTX");
        let triad = |variant: Variant| function(module, &format!("triad_{}", variant.name()));
        Self {
            triads: Variant::all().map(triad).collect(),
            passes: PASSES.split(' ').map(|name| function(module, &format!("unfused_{name}"))).collect(),
            copy: function(module, "copy_unrolled"),
        }
    }

    /// Enqueues a multiply and an add for each written value of `len` elements; a factor of 0
    /// leaves them all as they are.
    ///
    /// # Safety
    ///
    /// The addresses, by role, are those of the variant's buffers of `len` elements, multiples of
    /// four of them, in use by this stream only.
    pub(crate) unsafe fn triad(
        &self,
        variant: Variant,
        mut addresses: [u64; 5],
        mut len: u64,
        mut factor: f32,
        stream: &CudaStream,
    ) {
        let mut arguments: Vec<_> = addresses.iter_mut().map(argument).collect();
        arguments.extend([argument(&mut len), argument(&mut factor)]);
        // SAFETY: the arguments are the kernel's; the memory is as this function requires.
        unsafe { launch(self.triads[variant.index()], len, &mut arguments, stream) };
    }

    /// Enqueues a copy of whole words of 16 bytes.
    ///
    /// # Safety
    ///
    /// The addresses are multiples of 16, of buffers of `bytes` bytes that do not overlap, in use
    /// by this stream only.
    pub(crate) unsafe fn copy(&self, mut to: u64, mut from: u64, bytes: u64, stream: &CudaStream) {
        let mut words = bytes / 16;
        let blocks = u32::try_from(words.div_ceil(BLOCK * UNROLLED)).expect("the length fits in a launch");
        let mut arguments = [argument(&mut to), argument(&mut from), argument(&mut words)];
        // SAFETY: the arguments are the kernel's; the addresses are as this function requires.
        unsafe { launch_blocks(self.copy, blocks, &mut arguments, stream) };
    }

    /// Enqueues the step as a kernel for each operation: of f32, without decay, and with the
    /// inverse term of the paper.
    ///
    /// # Safety
    ///
    /// The addresses are those of buffers of `len` f32, multiples of 16, in use by this stream
    /// only: parameters, gradients, moments, and two for intermediate results.
    pub(crate) unsafe fn unfused(&self, addresses: [u64; 6], len: u64, c: &StepCoeffs, stream: &CudaStream) {
        let [params, grads, exp_avg, exp_avg_sq, root, factor] = addresses;
        let passes = [
            (exp_avg, grads, c.one_minus_beta1, 0.0),
            (exp_avg_sq, grads, c.one_minus_beta2, 0.0),
            (root, exp_avg_sq, 0.0, 0.0),
            (factor, root, c.inv_sqrt_bc2, 0.0),
            (root, factor, c.adam_scale, c.eps),
            (factor, root, c.inverse_scale, 0.0),
            (factor, exp_avg, 0.0, 0.0),
            (params, factor, 0.0, 0.0),
        ];
        for (&function, (mut to, mut from, mut a, mut b)) in self.passes.iter().zip(passes) {
            let mut len = len;
            let mut arguments =
                [argument(&mut to), argument(&mut from), argument(&mut len), argument(&mut a), argument(&mut b)];
            // SAFETY: as above.
            unsafe { launch(function, len, &mut arguments, stream) };
        }
    }
}

fn function(module: CUmodule, name: &str) -> CUfunction {
    let name = CString::new(name).expect("no name has a zero byte");
    // SAFETY: the module is loaded and stays so.
    unsafe { result::module::get_function(module, name) }.expect("the PTX has this kernel")
}

pub(crate) fn argument<T>(value: &mut T) -> *mut c_void {
    ptr::from_mut(value).cast()
}

/// # Safety
///
/// The arguments must point to values of the types that the kernel takes, and the kernel must be
/// safe to run with them.
unsafe fn launch(function: CUfunction, len: u64, arguments: &mut [*mut c_void], stream: &CudaStream) {
    let units = len / VEC + len % VEC;
    let blocks = u32::try_from(units.div_ceil(BLOCK)).expect("the length fits in a launch");
    // SAFETY: as this function requires.
    unsafe { launch_blocks(function, blocks, arguments, stream) };
}

/// # Safety
///
/// As for [`launch`].
unsafe fn launch_blocks(function: CUfunction, blocks: u32, arguments: &mut [*mut c_void], stream: &CudaStream) {
    let stream: CUstream = stream.cu_stream();
    // SAFETY: as this function requires; the function is loaded in the current context.
    unsafe { result::launch_kernel(function, (blocks, 1, 1), (BLOCK as u32, 1, 1), 0, stream, arguments) }
        .expect("the kernel can be enqueued");
}
