//! The CUDA functions on the stand-in driver.

use std::ffi::c_void;
use std::ptr;

use dualadam::cuda::cudarc::driver::{CudaContext, result, sys};
use dualadam_capi::*;
use stand_in_cuda::client::StandIn;

use crate::calls::*;
use crate::control::{World, assert_clean};

pub(crate) fn start() -> StandIn {
    StandIn::start().unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn kernels() -> dualadam_cuda_kernels {
    let mut kernels = 0;
    // SAFETY: the pointer is to a local variable.
    ok(unsafe { dualadam_cuda_kernels_new(0, &mut kernels) });
    kernels
}

/// Values in device memory. A context must be current.
pub(crate) struct Memory(u64);

impl Memory {
    pub(crate) fn new<T: bytemuck::Pod>(content: &[T]) -> Self {
        // SAFETY: a context is current.
        let made = Self(unsafe { result::malloc_sync(size_of_val(content)) }.unwrap());
        made.write(content);
        made
    }

    /// Waits for everything before.
    pub(crate) fn write<T: bytemuck::Pod>(&self, content: &[T]) {
        // SAFETY: a context is current; the memory is as long as the content.
        unsafe {
            sys::cuCtxSynchronize().result().unwrap();
            result::memcpy_htod_sync(self.0, content).unwrap();
            sys::cuCtxSynchronize().result().unwrap();
        }
    }

    /// Waits for everything and reads.
    pub(crate) fn read<T: bytemuck::Pod>(&self, len: usize) -> Vec<T> {
        let mut content = vec![T::zeroed(); len];
        // SAFETY: a context is current; the memory is as long as the content.
        unsafe {
            sys::cuCtxSynchronize().result().unwrap();
            result::memcpy_dtoh_sync(&mut content, self.0).unwrap();
        }
        content
    }

    pub(crate) fn pointer<T>(&self) -> *mut T {
        ptr::without_provenance_mut(self.0 as usize)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a context is current, and nothing uses the memory any more.
        unsafe { result::free_sync(self.0) }.unwrap();
    }
}

/// A tensor's buffers in device memory.
pub(crate) struct OnDevice {
    memory: [Memory; 4],
    pub(crate) len: usize,
}

impl OnDevice {
    pub(crate) fn new(Buffers { p, g, m, v }: &Buffers) -> Self {
        Self { memory: [p, g, m, v].map(|values| Memory::new(values)), len: p.len() }
    }

    pub(crate) fn addresses(&self) -> [u64; 4] {
        self.memory.each_ref().map(|memory| memory.0)
    }

    pub(crate) fn tensor(&self) -> dualadam_tensor {
        tensor_at(self.addresses(), self.len)
    }

    pub(crate) fn read(&self) -> Buffers {
        let [p, g, m, v] = self.memory.each_ref().map(|memory| memory.read(self.len));
        Buffers { p, g, m, v }
    }
}

pub(crate) fn tensor_at(addresses: [u64; 4], len: usize) -> dualadam_tensor {
    let [param, grad, exp_avg, exp_avg_sq]: [*mut c_void; 4] =
        addresses.map(|address| ptr::without_provenance_mut(address as usize));
    dualadam_tensor { param, grad, exp_avg, exp_avg_sq, len: len as u64, ..tensor() }
}

#[test]
fn steps_have_the_bits_of_the_cpu() {
    let mut world = World::new();
    let (mut tensors, kernels, raw) = (world.tensors, world.kernels, world.raw());
    let mut host_tensors = world.host.each_mut().map(Buffers::tensor);
    host_tensors[1].coeffs_index = 1;
    let mut list = 0;
    // SAFETY: the structs, the buffers and the stream live until all work has run.
    unsafe {
        ok(dualadam_cuda_list_new(kernels, tensors.as_ptr(), 2, &mut list));
        ok(dualadam_cuda_kernels_free(kernels)); // the list keeps them
        for step in 1..=3 {
            if step == 2 {
                (tensors[1].grad, host_tensors[1].grad) = (ptr::null(), ptr::null());
                ok(dualadam_cuda_list_update(list, tensors.as_ptr(), 2));
            }
            let sets = [coeffs(&config(), step, 1.0), coeffs(&config(), step + 7, 0.5)];
            ok(dualadam_cuda_list_step(list, sets.as_ptr(), 2, raw));
            ok(dualadam_cpu_step_list(host_tensors.as_ptr(), 2, sets.as_ptr(), 2));
        }
        let kernels = self::kernels();
        let set = coeffs(&config(), 4, 1.0);
        ok(dualadam_cuda_step(kernels, &tensors[0], &set, raw));
        ok(dualadam_cpu_step(&host_tensors[0], &set));
        ok(dualadam_cuda_kernels_free(kernels));
    }
    world.assert_same();
    ok(dualadam_cuda_list_free(list));
    let World { device, stream, context, stand_in, .. } = world;
    drop((device, stream, context));
    assert_eq!((stand_in.live("module"), stand_in.live("memory"), stand_in.live("pinned")), (0, 0, 0));
    assert_clean(&stand_in);
}

#[test]
fn masters_are_brought_up_to_date_as_on_the_cpu() {
    let world = World::new();
    let (kernels, raw) = (world.kernels, world.raw());
    let (mut param, mut master) = ([0x3f80_u16; 100], [1.001_f32; 100]);
    (param[7], master[8]) = (0x4000, 3.0);
    let (on_device, masters) = (Memory::new(&param), Memory::new(&master));
    let host = dualadam_tensor {
        param: param.as_mut_ptr().cast(),
        param_dtype: DUALADAM_DTYPE_BF16,
        master: master.as_mut_ptr().cast(),
        master_dtype: DUALADAM_DTYPE_F32,
        len: 100,
        ..tensor()
    };
    let device = dualadam_tensor { param: on_device.pointer(), master: masters.pointer(), ..host };
    let stream = world.stream.cu_stream();
    let sync = |tensor: dualadam_tensor| {
        // SAFETY: the struct, the buffers and the stream live until all work has run.
        unsafe { dualadam_cuda_sync_master(kernels, &tensor, raw) }
    };
    let without = dualadam_tensor { master: ptr::null_mut(), master_dtype: DUALADAM_DTYPE_NONE, ..device };
    assert_eq!(sync(without), DUALADAM_STATUS_ENUM);
    assert_eq!(sync(dualadam_tensor { param: ptr::null_mut(), ..device }), DUALADAM_STATUS_NULL);
    assert_eq!(sync(dualadam_tensor { param_dtype: DUALADAM_DTYPE_F32, ..device }), DUALADAM_STATUS_TYPES);
    // SAFETY: the stream is live, and the structs and the buffers are too.
    unsafe {
        sys::cuStreamBeginCapture_v2(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        assert_eq!(sync(device), DUALADAM_STATUS_CUDA_CAPTURED);
        let mut graph = ptr::null_mut();
        sys::cuStreamEndCapture(stream, &mut graph).result().unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();
        ok(sync(device));
        ok(dualadam_cpu_sync_master(&host));
    }
    assert_eq!((master[6], master[7], master[8]), (1.001, 2.0, 1.0));
    assert_eq!(masters.read::<f32>(100), master);
    ok(dualadam_cuda_kernels_free(kernels));
}

#[test]
fn bad_input_is_refused() {
    let world = World::new();
    let World { tensors: [good, _], kernels, stream, context, stand_in, .. } = &world;
    let (good, kernels, raw) = (*good, *kernels, world.raw());
    let (set, mut list) = (coeffs(&config(), 1, 1.0), 0);
    // SAFETY: the pointers are to live structs and to local variables; bad ones are refused before
    // they are used.
    unsafe {
        let step = |tensor: dualadam_tensor| dualadam_cuda_step(kernels, &tensor, &set, raw);
        assert_eq!(step(dualadam_tensor { param: ptr::null_mut(), ..good }), DUALADAM_STATUS_NULL);
        let odd = good.exp_avg.wrapping_byte_add(2);
        assert_eq!(step(dualadam_tensor { exp_avg: odd, ..good }), DUALADAM_STATUS_MISALIGNED);
        assert_eq!(step(dualadam_tensor { exp_avg: good.exp_avg_sq, ..good }), DUALADAM_STATUS_OVERLAP);
        assert_eq!(step(dualadam_tensor { len: u64::MAX, ..good }), DUALADAM_STATUS_EXTENT);
        assert_eq!(step(dualadam_tensor { param_dtype: 9, ..good }), DUALADAM_STATUS_ENUM);
        assert_eq!(step(dualadam_tensor { param_dtype: 2, grad_dtype: 3, ..good }), DUALADAM_STATUS_TYPES);
        assert_eq!(step(dualadam_tensor { param_dtype: 2, grad_dtype: 3, ..tensor() }), DUALADAM_STATUS_TYPES);
        ok(step(tensor()));
        assert_eq!(step(dualadam_tensor { coeffs_index: 1, ..good }), DUALADAM_STATUS_INDEX);
        assert_eq!(step(dualadam_tensor { size: 8, ..good }), DUALADAM_STATUS_SIZE);
        assert_eq!(step(dualadam_tensor { grad: ptr::null(), ..good }), DUALADAM_STATUS_NULL);
        assert_eq!(dualadam_cuda_step(kernels, ptr::null(), &set, raw), DUALADAM_STATUS_NULL);
        ok(dualadam_cuda_kernels_prepare(kernels, &good));
        assert_eq!(dualadam_cuda_kernels_prepare(kernels, ptr::null()), DUALADAM_STATUS_NULL);
        let wrong = dualadam_tensor { param_dtype: 2, grad_dtype: 3, ..good };
        assert_eq!(dualadam_cuda_kernels_prepare(kernels, &wrong), DUALADAM_STATUS_TYPES);
        let wrong = dualadam_tensor { param_dtype: 4, ..good };
        assert_eq!(dualadam_cuda_kernels_prepare(kernels, &wrong), DUALADAM_STATUS_ENUM);
        assert_eq!(dualadam_cuda_list_new(kernels, &good, 0, &mut list), DUALADAM_STATUS_EMPTY);
        assert_eq!(dualadam_cuda_list_new(kernels, &good, 1, ptr::null_mut()), DUALADAM_STATUS_NULL);
        ok(dualadam_cuda_list_new(kernels, &good, 1, &mut list));
        let update = |tensor: dualadam_tensor| dualadam_cuda_list_update(list, &tensor, 1);
        assert_eq!(dualadam_cuda_list_update(list, &good, 2), DUALADAM_STATUS_COUNT);
        assert_eq!(update(dualadam_tensor { len: 999, ..good }), DUALADAM_STATUS_FIXED);
        assert_eq!(update(dualadam_tensor { grad: good.param, ..good }), DUALADAM_STATUS_OVERLAP);
        assert_eq!(dualadam_cuda_list_step(list, &set, 0, raw), DUALADAM_STATUS_INDEX);
        assert_eq!(dualadam_cuda_list_step(list, &set, 97, raw), DUALADAM_STATUS_TOO_MANY);
        assert_eq!(dualadam_cuda_list_step(list, ptr::null(), 1, raw), DUALADAM_STATUS_NULL);

        let text = format!("kernels must be a handle of CUDA kernels, got {list:#x}, which is one of a CUDA list");
        fails(dualadam_cuda_step(list, &good, &set, raw), DUALADAM_STATUS_HANDLE_KIND, &text);
        fails(dualadam_cuda_kernels_free(list), DUALADAM_STATUS_HANDLE_KIND, &text);
        assert_eq!(dualadam_cuda_list_free(kernels), DUALADAM_STATUS_HANDLE_KIND);
        assert_eq!(dualadam_state_free(kernels), DUALADAM_STATUS_HANDLE_KIND);
        assert!(last_error().ends_with("which is one of CUDA kernels"), "{}", last_error());

        // A capture cannot load kernels. A list has loaded its own, so a capture takes its steps,
        // changes included.
        let others = dualadam_tensor { grad_dtype: DUALADAM_DTYPE_F16, ..good };
        ok(dualadam_cuda_list_update(list, &dualadam_tensor { grad: ptr::null(), ..good }, 1));
        sys::cuStreamBeginCapture_v2(stream.cu_stream(), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        assert_eq!(dualadam_cuda_step(kernels, &others, &set, raw), DUALADAM_STATUS_CUDA_CAPTURED);
        ok(dualadam_cuda_list_step(list, &set, 1, raw));
        let mut graph = ptr::null_mut();
        sys::cuStreamEndCapture(stream.cu_stream(), &mut graph).result().unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();

        stand_in.set("devices", 2);
        let other = CudaContext::new(1).unwrap().new_stream().unwrap();
        context.bind_to_thread().unwrap();
        let foreign = other.cu_stream().cast();
        let text = "stream must belong to the kernels' CUDA context, it belongs to another";
        fails(dualadam_cuda_step(kernels, &good, &set, foreign), DUALADAM_STATUS_CUDA_CONTEXT, text);
        drop(other);
        context.bind_to_thread().unwrap();

        stand_in.fail("cuLaunchKernel", 1, 719);
        assert_eq!(step(good), DUALADAM_STATUS_CUDA_DRIVER);
        assert_eq!(last_error(), "cuLaunchKernel failed with CUDA_ERROR_LAUNCH_FAILED (719)");
    }
    world.assert_same();
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(kernels));
    assert_eq!(dualadam_cuda_list_free(list), DUALADAM_STATUS_STALE_HANDLE);
    assert_eq!(dualadam_cuda_kernels_free(kernels), DUALADAM_STATUS_STALE_HANDLE);
    // SAFETY: the structs are live; both handles are stale.
    unsafe {
        assert_eq!(dualadam_cuda_step(kernels, &good, &set, raw), DUALADAM_STATUS_STALE_HANDLE);
        assert_eq!(dualadam_cuda_list_new(kernels, &good, 1, &mut list), DUALADAM_STATUS_STALE_HANDLE);
        assert_eq!(dualadam_cuda_list_update(list, &good, 1), DUALADAM_STATUS_STALE_HANDLE);
        assert_eq!(dualadam_cuda_list_step(list, &set, 1, raw), DUALADAM_STATUS_STALE_HANDLE);
    }
}

#[test]
fn unsuitable_drivers_and_devices_are_refused() {
    let stand_in = start();
    stand_in.set("devices", 1);
    let mut handle = 9;
    // SAFETY: the pointer is to a local variable.
    let mut new = |device| unsafe { dualadam_cuda_kernels_new(device, &mut handle) };
    fails(new(7), DUALADAM_STATUS_POSITION, "device must be below 1, got 7");
    stand_in.set_driver_version(11_030);
    fails(new(0), DUALADAM_STATUS_CUDA_OLD_DRIVER, "the CUDA driver must support CUDA 11.4, it supports 11.3");
    stand_in.set_driver_version(12_080);
    ok(new(0));
    let tensor = Buffers::new(0, 100).tensor();
    stand_in.fail("cuModuleLoadDataEx", 1, 218);
    // SAFETY: the struct is live.
    let prepare = || unsafe { dualadam_cuda_kernels_prepare(handle, &tensor) };
    assert_eq!(prepare(), DUALADAM_STATUS_CUDA_PTX);
    assert!(last_error().contains("CUDA_ERROR_INVALID_PTX (218)"), "{}", last_error());
    ok(prepare());
    ok(dualadam_cuda_kernels_free(handle));
    // SAFETY: null and misaligned pointers are refused.
    unsafe {
        assert_eq!(dualadam_cuda_kernels_new(0, ptr::null_mut()), DUALADAM_STATUS_NULL);
        assert_eq!(
            dualadam_cuda_kernels_in_current_context(ptr::without_provenance_mut(9)),
            DUALADAM_STATUS_MISALIGNED
        );
    }
}

/// The kernels are loaded into the current context. They retain it if it is a primary context, and
/// leave any other one alone.
#[test]
fn kernels_in_the_current_context() {
    let stand_in = start();
    let set = coeffs(&config(), 1, 1.0);
    let mut kernels = 9;
    let mut none = ptr::null_mut();
    // SAFETY: the pointers are to local variables; null stands for no context.
    unsafe {
        sys::cuInit(0).result().unwrap();
        sys::cuCtxSetCurrent(ptr::null_mut()).result().unwrap();
        let text = "cuCtxGetDevice failed with CUDA_ERROR_INVALID_CONTEXT (201)";
        fails(dualadam_cuda_kernels_in_current_context(&mut kernels), DUALADAM_STATUS_CUDA_DRIVER, text);
        assert_eq!(kernels, 9);
        sys::cuCtxGetCurrent(&mut none).result().unwrap();
    }
    assert!(none.is_null());
    for primary in [true, false] {
        let context = if primary {
            let context = CudaContext::new(0).unwrap();
            context.bind_to_thread().unwrap();
            (context.cu_ctx(), Some(context))
        } else {
            let mut context = ptr::null_mut();
            // SAFETY: the pointer is to a local variable; the new context becomes current.
            unsafe { sys::cuCtxCreate_v2(&mut context, 0, 0) }.result().unwrap();
            (context, None)
        };
        let live = stand_in.live("context");
        let mut host = Buffers::new(0, 100);
        let device = OnDevice::new(&host);
        let mut current = ptr::null_mut();
        // SAFETY: the structs and the buffers are live.
        unsafe {
            ok(dualadam_cuda_kernels_in_current_context(&mut kernels));
            ok(dualadam_cuda_step(kernels, &device.tensor(), &set, ptr::null_mut()));
            ok(dualadam_cpu_step(&host.tensor(), &set));
            assert_eq!(device.read(), host);
            drop(device);
            ok(dualadam_cuda_kernels_free(kernels));
            sys::cuCtxGetCurrent(&mut current).result().unwrap();
        }
        assert_eq!(current, context.0, "{primary}");
        // The module belongs to the context.
        assert_eq!((stand_in.live("module"), stand_in.live("context")), (1, live), "{primary}");
        if !primary {
            // SAFETY: the context is this test's own.
            unsafe { sys::cuCtxDestroy_v2(context.0) }.result().unwrap();
        }
    }
    assert_clean(&stand_in);
}
