//! Controlled steps through the C library, on the stand-in driver.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use dualadam::capi::*;
use dualadam::cuda::cudarc::driver::{CudaContext, result, sys};

use crate::calls::*;
use crate::cuda::{OnDevice, kernels, start};

const NONE: *mut c_void = ptr::null_mut();

fn group(config: &dualadam_config) -> dualadam_cuda_control_group {
    let mut group = MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    let group = unsafe {
        ok(dualadam_cuda_control_group_init(group.as_mut_ptr(), size_of::<dualadam_cuda_control_group>()));
        group.assume_init()
    };
    dualadam_cuda_control_group { config, ..group }
}

fn set(group: usize) -> dualadam_cuda_control_set {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    let set = unsafe {
        ok(dualadam_cuda_control_set_init(set.as_mut_ptr(), size_of::<dualadam_cuda_control_set>()));
        set.assume_init()
    };
    dualadam_cuda_control_set { group, ..set }
}

fn no_scalars() -> dualadam_cuda_scalars {
    let mut scalars = MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_cuda_scalars_init(scalars.as_mut_ptr(), size_of::<dualadam_cuda_scalars>()));
        scalars.assume_init()
    }
}

fn reports<const N: usize>(control: dualadam_cuda_control) -> [dualadam_cuda_set_report; N] {
    let mut reports = [dualadam_cuda_set_report { size: 0, step: 9, skipped: 9, last_skip: 9, reserved: 9 }; N];
    let size = size_of::<dualadam_cuda_set_report>();
    // SAFETY: there is a place for each.
    ok(unsafe { dualadam_cuda_control_report(control, reports.as_mut_ptr(), size, N, NONE) });
    assert!(reports.iter().all(|report| report.size == size));
    reports
}

/// A value in device memory. A context must be current.
struct Scalar<T>(*mut T);

impl<T> Scalar<T> {
    fn new(value: T) -> Self {
        // SAFETY: a context is current.
        let scalar =
            Self(ptr::without_provenance_mut(unsafe { result::malloc_sync(size_of::<T>()) }.unwrap() as usize));
        scalar.set(value);
        scalar
    }

    fn address(&self) -> u64 {
        self.0.addr() as u64
    }

    fn set(&self, value: T) {
        // SAFETY: the memory is as long, and nothing is under way.
        unsafe {
            sys::cuCtxSynchronize().result().unwrap();
            result::memcpy_htod_sync(self.address(), &[value]).unwrap();
            sys::cuCtxSynchronize().result().unwrap();
        }
    }
}

impl<T> Drop for Scalar<T> {
    fn drop(&mut self) {
        // SAFETY: a context is current, and all work has run.
        unsafe { result::free_sync(self.address()) }.unwrap();
    }
}

#[test]
fn controlled_steps_have_the_bits_of_the_cpu() {
    let stand_in = start();
    let context = CudaContext::new(0).unwrap();
    context.bind_to_thread().unwrap();
    let kernels = kernels();
    let mut host = [Buffers::new(0, 1000), Buffers::new(1, 37)];
    let device = host.each_ref().map(OnDevice::new);
    let host_tensors = host.each_mut().map(Buffers::tensor);
    let mut tensors = device.each_ref().map(OnDevice::tensor);
    tensors[1].set = 1;
    let (lr, step) = (Scalar::new(1e-2_f64), Scalar::new(7_u64));
    let [loss_scale, clip_factor, found_inf] = [4.0, 0.5, 0.0].map(Scalar::<f32>::new);
    let configs = [config(), dualadam_config { maximize: 1, switching_rate: 0.3, ..config() }];
    let groups = [group(&configs[0]), dualadam_cuda_control_group { lr_f64: lr.0.cast_const(), ..group(&configs[1]) }];
    let sets = [set(0), dualadam_cuda_control_set { step: step.0, ..set(1) }];
    let scalars = dualadam_cuda_scalars {
        loss_scale: loss_scale.0,
        clip_factor: clip_factor.0,
        found_inf: found_inf.0,
        ..no_scalars()
    };
    let (mut list, mut control) = (0, 0);
    let cpu = |of: [(dualadam_config, u64); 2], multiplier: f64| {
        for (tensor, (config, step)) in host_tensors.iter().zip(of) {
            // SAFETY: the structs and the buffers are there.
            ok(unsafe { dualadam_cpu_step(tensor, &coeffs(&config, step, multiplier)) });
        }
    };
    let with_lr = |config: dualadam_config, lr| dualadam_config { lr, ..config };
    // SAFETY: the structs and all that is on the device are there until all has run.
    unsafe {
        ok(dualadam_cuda_list_new(kernels, tensors.as_ptr(), 2, &mut list));
        ok(dualadam_cuda_control_new(kernels, groups.as_ptr(), 2, sets.as_ptr(), 2, &mut control));
        let step = || dualadam_cuda_list_step_controlled(list, control, &scalars, NONE);
        ok(step());
        cpu([(configs[0], 1), (with_lr(configs[1], 1e-2), 8)], 0.125);
        // Null is no scalar at all.
        ok(dualadam_cuda_list_step_controlled(list, control, ptr::null(), NONE));
        cpu([(configs[0], 2), (with_lr(configs[1], 1e-2), 9)], 1.0);
        found_inf.set(f32::NAN);
        ok(step());
        let reports = reports::<2>(control);
        assert_eq!(
            reports.map(|set| (set.step, set.skipped, set.last_skip)),
            [(2, 1, DUALADAM_SKIP_FOUND_INF), (9, 1, DUALADAM_SKIP_FOUND_INF)]
        );
        found_inf.set(0.0);
        lr.set(5e-3);
        ok(dualadam_cuda_control_set_lr(control, 0, 2e-3, NONE));
        ok(step());
        cpu([(with_lr(configs[0], 2e-3), 3), (with_lr(configs[1], 5e-3), 10)], 0.125);
        let size = size_of::<dualadam_coeffs>();
        let mut made = [coeffs(&config(), 1, 1.0); 2];
        ok(dualadam_cuda_control_coeffs(control, made.as_mut_ptr(), size, 2, NONE));
        let expected = [coeffs(&with_lr(configs[0], 2e-3), 3, 0.125), coeffs(&with_lr(configs[1], 5e-3), 10, 0.125)];
        assert_eq!(
            made.map(|c| (c.size, c.adam_scale, c.grad_scale)),
            expected.map(|c| (c.size, c.adam_scale, c.grad_scale))
        );
        // Another config, and counters as the host says.
        let other = dualadam_config { weight_decay_kind: DUALADAM_DECAY_L2, weight_decay: 0.1, ..config() };
        ok(dualadam_cuda_control_set_config(control, 0, &other, NONE));
        ok(dualadam_cuda_control_set_steps(control, [40_u64, 50].as_ptr(), 2, NONE));
        ok(step());
        cpu([(other, 41), (with_lr(configs[1], 5e-3), 51)], 0.125);
        let mut steps = [0; 2];
        ok(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, NONE));
        assert_eq!(steps, [41, 51]);
    }
    assert_eq!(device.each_ref().map(OnDevice::read), host);
    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(kernels));
    drop((device, lr, step, loss_scale, clip_factor, found_inf, context));
    assert_eq!((stand_in.live("module"), stand_in.live("memory"), stand_in.live("pinned")), (0, 0, 0));
    assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
}

/// A graph goes on counting, also after list and control were freed.
#[test]
fn graphs_outlive_list_and_control() {
    let stand_in = start();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let raw: *mut c_void = stream.cu_stream().cast();
    let kernels = kernels();
    let mut host = Buffers::new(0, 300);
    let device = OnDevice::new(&host);
    let config = dualadam_config { switching_rate: 0.25, ..config() };
    let (mut list, mut control) = (0, 0);
    // SAFETY: the structs and all that is on the device are there until all has run.
    unsafe {
        ok(dualadam_cuda_list_new(kernels, &device.tensor(), 1, &mut list));
        ok(dualadam_cuda_control_new(kernels, &group(&config), 1, &set(0), 1, &mut control));
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        sys::cuStreamBeginCapture_v2(stream.cu_stream(), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .result()
            .unwrap();
        ok(dualadam_cuda_list_step_controlled(list, control, ptr::null(), raw));
        for status in [
            dualadam_cuda_control_set_lr(control, 0, 0.1, raw),
            dualadam_cuda_control_set_config(control, 0, &config, raw),
            dualadam_cuda_control_set_steps(control, [3_u64].as_ptr(), 1, raw),
            dualadam_cuda_control_steps(control, [0_u64].as_mut_ptr(), 1, raw),
        ] {
            assert_eq!(status, DUALADAM_STATUS_CUDA_CAPTURED);
        }
        sys::cuStreamEndCapture(stream.cu_stream(), &mut graph).result().unwrap();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result().unwrap();
        sys::cuGraphLaunch(exec, stream.cu_stream()).result().unwrap();
        sys::cuStreamSynchronize(stream.cu_stream()).result().unwrap();
        assert_eq!(reports::<1>(control)[0].step, 1);
        ok(dualadam_cuda_list_free(list));
        ok(dualadam_cuda_control_free(control));
        for _ in 0..5 {
            sys::cuGraphLaunch(exec, stream.cu_stream()).result().unwrap();
        }
        sys::cuStreamSynchronize(stream.cu_stream()).result().unwrap();
        let tensor = host.tensor();
        (1..=6).for_each(|step| ok(dualadam_cpu_step(&tensor, &coeffs(&config, step, 1.0))));
        sys::cuGraphExecDestroy(exec).result().unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();
    }
    context.bind_to_thread().unwrap();
    assert_eq!(device.read(), host);
    ok(dualadam_cuda_kernels_free(kernels));
    assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
}

#[test]
fn bad_input_is_refused() {
    let stand_in = start();
    let context = CudaContext::new(0).unwrap();
    context.bind_to_thread().unwrap();
    let kernels = kernels();
    let host = Buffers::new(0, 16);
    let device = OnDevice::new(&host);
    let (scalar, step) = (Scalar::new(1.0_f64), Scalar::new(0_u64));
    let (config, wrong) = (config(), dualadam_config { beta1: 1.0, ..config() });
    let (mut list, mut control, mut unused) = (0, 0, 9);
    // SAFETY: the structs and the places are there; everything wrong is refused before it is used.
    unsafe {
        let mut new = |group: dualadam_cuda_control_group, set: dualadam_cuda_control_set| {
            dualadam_cuda_control_new(kernels, &group, 1, &set, 1, &mut unused)
        };
        let (group, set) = (group(&config), set(0));
        let odd_config: *const dualadam_config = ptr::without_provenance(9);
        let odd_step = step.0.wrapping_byte_add(4);
        let lr_f32: *const f32 = scalar.0.cast();
        for (status, expected) in [
            (new(dualadam_cuda_control_group { config: ptr::null(), ..group }, set), DUALADAM_STATUS_NULL),
            (new(dualadam_cuda_control_group { config: odd_config, ..group }, set), DUALADAM_STATUS_MISALIGNED),
            (new(dualadam_cuda_control_group { config: &wrong, ..group }, set), DUALADAM_STATUS_VALUE),
            (new(dualadam_cuda_control_group { size: 16, ..group }, set), DUALADAM_STATUS_SIZE),
            (new(group, dualadam_cuda_control_set { size: 16, ..set }), DUALADAM_STATUS_SIZE),
            (new(group, dualadam_cuda_control_set { group: 1, ..set }), DUALADAM_STATUS_POSITION),
            (new(group, dualadam_cuda_control_set { group: usize::MAX, ..set }), DUALADAM_STATUS_POSITION),
            (new(group, dualadam_cuda_control_set { step: odd_step, ..set }), DUALADAM_STATUS_CUDA_ADDRESS),
            (
                new(
                    dualadam_cuda_control_group { lr_f64: scalar.0, ..group },
                    dualadam_cuda_control_set { step: scalar.0.cast(), ..set },
                ),
                DUALADAM_STATUS_CUDA_ADDRESS,
            ),
        ] {
            assert_eq!(status, expected, "{}", last_error());
        }
        let both = dualadam_cuda_control_group { lr_f32, lr_f64: scalar.0, ..group };
        let text = format!("lr_f64 of groups[0] must be null where lr_f32 is not, got address {:#x}", scalar.address());
        fails(new(both, set), DUALADAM_STATUS_CUDA_ADDRESS, &text);
        assert_eq!(unused, 9);
        let place = &mut unused;
        assert_eq!(dualadam_cuda_control_new(kernels, &group, 1, &set, 0, place), DUALADAM_STATUS_EMPTY);
        assert_eq!(dualadam_cuda_control_new(kernels, &group, 1, &set, usize::MAX, place), DUALADAM_STATUS_TOO_MANY);
        assert_eq!(dualadam_cuda_control_new(kernels, ptr::null(), 1, &set, 1, place), DUALADAM_STATUS_NULL);
        assert_eq!(dualadam_cuda_control_new(kernels, &group, 1, &set, 1, ptr::null_mut()), DUALADAM_STATUS_NULL);

        let callers = dualadam_cuda_control_group { lr_f64: scalar.0, ..group };
        ok(dualadam_cuda_control_new(kernels, &callers, 1, &set, 1, &mut control));
        let tensor = device.tensor();
        ok(dualadam_cuda_list_new(kernels, &tensor, 1, &mut list));
        let text = "the lr of group 0 must not be set here: it is read from the caller's memory, write it there";
        fails(dualadam_cuda_control_set_lr(control, 0, 0.1, NONE), DUALADAM_STATUS_CUDA_CALLERS_LR, text);
        assert_eq!(dualadam_cuda_control_set_lr(control, 1, 0.1, NONE), DUALADAM_STATUS_POSITION);
        assert_eq!(dualadam_cuda_control_set_config(control, 0, &wrong, NONE), DUALADAM_STATUS_VALUE);
        assert_eq!(dualadam_cuda_control_set_config(control, 0, ptr::null(), NONE), DUALADAM_STATUS_NULL);
        let mut steps = [9; 2];
        assert_eq!(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, NONE), DUALADAM_STATUS_COUNT);
        assert_eq!(dualadam_cuda_control_steps(control, ptr::null_mut(), 1, NONE), DUALADAM_STATUS_NULL);
        assert_eq!(dualadam_cuda_control_set_steps(control, steps.as_ptr(), 2, NONE), DUALADAM_STATUS_COUNT);
        assert_eq!(dualadam_cuda_control_report(control, ptr::null_mut(), 32, 1, NONE), DUALADAM_STATUS_NULL);
        let place = steps.as_mut_ptr().cast();
        assert_eq!(dualadam_cuda_control_report(control, place, 31, 1, NONE), DUALADAM_STATUS_SIZE);
        assert_eq!(dualadam_cuda_control_report(control, place, 32, 2, NONE), DUALADAM_STATUS_COUNT);
        assert_eq!(steps, [9; 2]);

        let odd = dualadam_cuda_scalars { found_inf: ptr::without_provenance(6), ..no_scalars() };
        let step = |list, control, scalars| dualadam_cuda_list_step_controlled(list, control, scalars, NONE);
        assert_eq!(step(list, control, &odd), DUALADAM_STATUS_CUDA_ADDRESS);
        assert_eq!(step(list, control, &dualadam_cuda_scalars { size: 8, ..odd }), DUALADAM_STATUS_SIZE);
        assert_eq!(step(control, list, ptr::null()), DUALADAM_STATUS_HANDLE_KIND);
        assert_eq!(
            last_error(),
            format!("list must be a handle of a CUDA list, got {control:#x}, which is one of a CUDA control")
        );
        ok(dualadam_cuda_list_update(list, &dualadam_tensor { set: 1, ..tensor }, 1));
        assert_eq!(step(list, control, ptr::null()), DUALADAM_STATUS_INDEX);
        ok(dualadam_cuda_list_update(list, &tensor, 1));

        // The list's launch fails after the counters have advanced.
        stand_in.fail("cuLaunchKernel", 2, 719);
        assert_eq!(step(list, control, ptr::null()), DUALADAM_STATUS_CUDA_DRIVER);
        assert_eq!(step(list, control, ptr::null()), DUALADAM_STATUS_CUDA_INTERRUPTED);
        ok(dualadam_cuda_control_set_steps(control, [0].as_ptr(), 1, NONE));
        assert_eq!(reports::<1>(control)[0].step, 0);
    }
    assert_eq!(device.read(), host);
    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    // SAFETY: a stale handle.
    let status = unsafe { dualadam_cuda_control_set_lr(control, 0, 0.1, NONE) };
    assert_eq!(
        (status, dualadam_cuda_control_free(control)),
        (DUALADAM_STATUS_STALE_HANDLE, DUALADAM_STATUS_STALE_HANDLE)
    );
    ok(dualadam_cuda_kernels_free(kernels));
}
