//! What is refused before anything is encoded, and what is not.

use dualadam::webgpu::{
    Binding, BindingProblem, DualAdam, Pipelines, Tensor, TensorList, WebGpuError, WgpuProblem, required_limits, wgpu,
};
use dualadam::{ArgumentError, Dtype, DualAdamConfig, Role, TensorProblem};

use crate::gpu::{Device, Gpu, STORAGE};
use crate::host::{COMBINATIONS, Host, Uploaded};
use testkit::data::Inputs;

fn uploaded(device: &Device, len: usize) -> Uploaded {
    Host::new(COMBINATIONS[0], &Inputs::random(1, len), 0).upload(device)
}

fn refused(device: &Device, tensors: &[Tensor<'_>]) -> WebGpuError {
    TensorList::new(&Pipelines::new(&device.device).unwrap(), tensors).unwrap_err()
}

/// The tensor, the buffer and the problem of a binding.
fn binding(error: &WebGpuError) -> (usize, Role, BindingProblem) {
    match error {
        WebGpuError::Binding { tensor, buffer, problem, .. } => (*tensor, *buffer, **problem),
        _ => panic!("{error:?}"),
    }
}

fn tensor_problem(error: &WebGpuError) -> Option<TensorProblem> {
    match error {
        WebGpuError::Argument(ArgumentError::Tensor(error)) => Some(error.problem),
        _ => None,
    }
}

pub(crate) fn buffers_that_cannot_be_bound(gpu: &Gpu) {
    let device = &gpu.device;
    let good = uploaded(device, 64);
    let tensor = good.tensor();
    let short = device.buffer(&[0; 252]);
    let error = refused(device, &[tensor, with(tensor, Role::ExpAvg, (&short, 0))]);
    assert_eq!(
        error.to_string(),
        "exp_avg of tensor 1 must be in a buffer of at least 256 bytes \
         (64 elements of f32 from byte 0 on, up to a multiple of 4 bytes), it has 252"
    );
    let error = refused(device, &[tensor.with_grad(Some(tensor.param.with_offset(4)))]);
    assert_eq!(binding(&error), (0, Role::Grad, BindingProblem::Offset { align: 256, offset: 4 }));
    let usage = wgpu::BufferUsages::COPY_DST;
    let no_storage = wgpu::BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false };
    let no_storage = device.device.create_buffer(&no_storage);
    let error = refused(device, &[with(tensor, Role::ExpAvgSq, (&no_storage, 0))]);
    assert_eq!(binding(&error), (0, Role::ExpAvgSq, BindingProblem::Usage { actual: usage }));
    assert_eq!(
        error.to_string(),
        "exp_avg_sq of tensor 0 must be in a buffer with the usage STORAGE, it has BufferUsages(COPY_DST)"
    );
    let error = refused(device, &[Tensor::new(u64::MAX, tensor.param, tensor.grad, tensor.exp_avg, tensor.exp_avg_sq)]);
    assert!(matches!(binding(&error), (0, Role::Param, BindingProblem::BufferSize { .. })), "{error:?}");
    let mut error = tensor.with_master(tensor.param);
    (error.master, error.len) = (Some(tensor.param), 3);
    let error = refused(device, &[error]);
    assert!(matches!(tensor_problem(&error), Some(TensorProblem::Formats { .. })), "{error:?}");
    let mut tensor = tensor;
    tensor.exp_avg.dtype = Dtype::Bf16;
    let error = refused(device, &[tensor]);
    assert!(matches!(tensor_problem(&error), Some(TensorProblem::Formats { .. })), "{error:?}");
}

/// A slice's end is respected, although the buffer goes on.
pub(crate) fn slices_end_where_they_end(gpu: &Gpu) {
    let device = &gpu.device;
    let good = uploaded(device, 64);
    let large = device.buffer(&[0; 2048]);
    let of = |range, dtype| Binding::from_slice(large.slice(range), dtype);
    let tensor = |param| good.tensor_with(param);
    let error = refused(device, &[tensor(of(256..511, Dtype::F32))]);
    let problem = BindingProblem::SliceEnd { len: 64, dtype: Dtype::F32, offset: 256, end: 511 };
    assert_eq!(binding(&error), (0, Role::Param, problem));
    assert_eq!(
        error.to_string(),
        "param of tensor 0 must end within its slice, at byte 511 of the buffer, got 64 elements of f32 from byte 256 on"
    );
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut list = TensorList::new(&pipelines, &[tensor(of(256..512, Dtype::F32))]).unwrap();
    let moved = of(256..512, Dtype::F32).with_offset(512);
    assert!(matches!(binding(&list.update(&[tensor(moved)]).unwrap_err()), (0, _, BindingProblem::SliceEnd { .. })));
    // Only the end has changed.
    let error = list.update(&[tensor(of(256..508, Dtype::F32))]).unwrap_err();
    assert!(matches!(binding(&error), (0, _, BindingProblem::SliceEnd { end: 508, .. })), "{error:?}");
    list.update(&[tensor(of(512..1024, Dtype::F32))]).unwrap();
    list.update(&[tensor(Binding::new(&large, Dtype::F32).with_offset(512))]).unwrap();
}

pub(crate) fn odd_counts_need_the_whole_word(gpu: &Gpu) {
    let device = &gpu.device;
    let good = uploaded(device, 3);
    // wgpu takes any size for a buffer, but binds whole words.
    let descriptor = wgpu::BufferDescriptor { label: None, size: 6, usage: STORAGE, mapped_at_creation: false };
    let odd = device.device.create_buffer(&descriptor);
    let error = refused(device, &[good.tensor_with(Binding::new(&odd, Dtype::Bf16))]);
    assert!(
        matches!(binding(&error), (0, Role::Param, BindingProblem::BufferSize { required: 8, actual: 6, .. })),
        "{error:?}"
    );
}

/// The tensor with another place for one of its five buffers.
fn with<'a>(mut tensor: Tensor<'a>, role: Role, (buffer, offset): (&'a wgpu::Buffer, u64)) -> Tensor<'a> {
    let binding = match role {
        Role::Param => Some(&mut tensor.param),
        Role::Grad => tensor.grad.as_mut(),
        Role::ExpAvg => Some(&mut tensor.exp_avg),
        Role::ExpAvgSq => Some(&mut tensor.exp_avg_sq),
        _ => tensor.master.as_mut(),
    };
    if let Some(binding) = binding {
        *binding = Binding::new(buffer, binding.dtype).with_offset(offset);
    }
    tensor
}

pub(crate) fn every_buffer_is_checked(gpu: &Gpu) {
    let device = &gpu.device;
    let masters = |seed| Host::new(COMBINATIONS[8], &Inputs::random(seed, 257), 0).upload(device);
    let (good, other) = (masters(1), masters(2));
    let make = |size, usage| {
        device.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let (large, no_storage) = (make(1 << 16, STORAGE), make(1 << 16, wgpu::BufferUsages::COPY_DST));
    for name in Role::ALL {
        let size = if matches!(name, Role::Grad | Role::Param) { 516 } else { 1028 };
        let short = make(size - 4, STORAGE);
        let error = refused(device, &[other.tensor(), with(good.tensor(), name, (&short, 0))]);
        let is_expected = matches!(binding(&error), (1, buffer, BindingProblem::BufferSize { required, actual, .. })
            if buffer == name && required == u128::from(size) && actual == size - 4);
        assert!(is_expected, "{error:?}");
        // Long enough, but for the offset.
        let error = refused(device, &[with(good.tensor(), name, (&large, (1 << 16) - 256))]);
        assert!(
            matches!(binding(&error), (0, buffer, BindingProblem::BufferSize { .. }) if buffer == name),
            "{error:?}"
        );
        let error = refused(device, &[with(good.tensor(), name, (&large, 128))]);
        assert!(
            matches!(binding(&error), (0, buffer, BindingProblem::Offset { offset: 128, .. }) if buffer == name),
            "{error:?}"
        );
        let error = refused(device, &[with(good.tensor(), name, (&no_storage, 0))]);
        assert!(matches!(binding(&error), (0, buffer, BindingProblem::Usage { .. }) if buffer == name), "{error:?}");
    }
}

pub(crate) fn overlaps_are_refused(gpu: &Gpu) {
    let device = &gpu.device;
    let masters = |seed| Host::new(COMBINATIONS[8], &Inputs::random(seed, 257), 0).upload(device);
    let (a, b) = (masters(1), masters(2));
    let arena = device.buffer(&[0; 8192]);
    let pipelines = Pipelines::new(&device.device).unwrap();
    for one in Role::ALL {
        for other in Role::ALL {
            let bytes = if matches!(one, Role::Grad | Role::Param) { 516 } else { 1028 };
            // The other begins with the one, in it, at its last byte, and where it is free again.
            for (offset, overlaps) in [(2048, true), (2304, true), (2048 + bytes / 256 * 256, true), (3328, false)] {
                let moved = with(a.tensor(), one, (&arena, 2048));
                let of_two = [moved, with(b.tensor(), other, (&arena, offset))];
                let both_grads = (one, other) == (Role::Grad, Role::Grad);
                let check = |tensors: &[Tensor<'_>], expected: bool| {
                    let made = TensorList::new(&pipelines, tensors);
                    let refused =
                        matches!(made.as_ref().map_err(tensor_problem), Err(Some(TensorProblem::Overlap { .. })));
                    let what = format!("{one} and {other} at {offset}");
                    assert!(if expected { refused } else { made.is_ok() }, "{what}: {made:?}");
                };
                check(&of_two, overlaps && !both_grads);
                if one != other {
                    check(&[with(moved, other, (&arena, offset))], overlaps);
                }
            }
        }
    }
}

/// Of a list that has one wrong set, not even the other tensors are stepped.
pub(crate) fn sets_out_of_range(gpu: &Gpu) {
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 67), 0);
        let buffers = [0; 2].map(|_| host.upload(device));
        let tensors = [buffers[0].tensor(), buffers[1].tensor().with_coeffs_index(1)];
        let list = TensorList::new(&Pipelines::new(&device.device).unwrap(), &tensors).unwrap();
        device.submit(|pass| {
            let error = list.encode(pass, &[coeffs]).unwrap_err();
            assert_eq!(error.to_string(), "tensor 1 must have a coeffs_index below 1, got 1");
        });
        for buffers in &buffers {
            assert_eq!(buffers.download(device, &host).contents(), host.contents());
        }
    }
}

/// As many sets as a uniform buffer holds, and one more.
pub(crate) fn sets_beyond_a_buffer(gpu: &Gpu) {
    let limits = wgpu::Limits {
        max_buffer_size: 1 << 14,
        max_storage_buffer_binding_size: 1 << 12,
        max_uniform_buffer_binding_size: 1 << 12,
        ..wgpu::Limits::default()
    };
    let device = gpu.open(wgpu::Features::empty(), limits);
    let pipelines = Pipelines::new(&device.device).unwrap();
    let limit = (1 << 14) / u64::from(device.device.limits().min_uniform_buffer_offset_alignment);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 67), limit as usize - 1);
    let buffers = host.upload(&device);
    let list = TensorList::new(&pipelines, &[buffers.tensor()]).unwrap();
    device.submit(|pass| {
        let error = list.encode(pass, &vec![coeffs; limit as usize + 1]).unwrap_err();
        assert_eq!(error.to_string(), format!("coeffs must number at most {limit}, got {}", limit + 1));
    });
    assert_eq!(buffers.download(&device, &host).contents(), host.contents());
    device.submit(|pass| list.encode(pass, &vec![coeffs; limit as usize]).unwrap());
    let expected = host.stepped(&device, &pipelines, &coeffs);
    assert_eq!(buffers.download(&device, &host).contents(), expected.contents());
}

pub(crate) fn what_wgpu_refuses(gpu: &Gpu) {
    let device = &gpu.device;
    let (good, other) = (uploaded(device, 64), gpu.open(wgpu::Features::empty(), required_limits()));
    let foreign = uploaded(&other, 64);
    let check = |wrong: &Uploaded, reason: &str| {
        let error = refused(device, &[good.tensor(), wrong.tensor()]);
        let problem = match &error {
            WebGpuError::Wgpu { call: "create_bind_group", tensor: Some(1), problem } => match &**problem {
                WgpuProblem::Validation(problem) => problem,
                _ => panic!("{error:?}"),
            },
            _ => panic!("{error:?}"),
        };
        assert!(problem.contains(reason), "{problem}");
    };
    check(&foreign, "match Device");
    let destroyed = uploaded(device, 64);
    destroyed.grads.0.destroy();
    check(&destroyed, "destroyed");
}

pub(crate) fn a_lost_device(gpu: &Gpu) {
    let is_lost = |error: &WebGpuError| matches!(error, WebGpuError::Wgpu { problem, .. } if **problem == WgpuProblem::DeviceLost);
    let device = gpu.open(wgpu::Features::empty(), required_limits());
    let (buffers, others) = (uploaded(&device, 64), uploaded(&device, 64));
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut list = TensorList::new(&pipelines, &[buffers.tensor()]).unwrap();
    device.device.destroy();
    let error = Pipelines::new(&device.device).unwrap_err();
    assert!(is_lost(&error), "{error:?}");
    let error = TensorList::new(&pipelines, &[buffers.tensor()]).unwrap_err();
    assert!(is_lost(&error), "{error:?}");
    let error = list.update(&[others.tensor()]).unwrap_err();
    assert!(is_lost(&error), "{error:?}");
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let error = list.encode(&mut pass, &[DualAdamConfig::default().coeffs(1).unwrap()]).unwrap_err();
    assert!(is_lost(&error), "{error:?}");
}

pub(crate) fn small_devices(gpu: &Gpu) {
    let device = gpu.open(wgpu::Features::empty(), required_limits());
    assert_eq!(device.device.limits().max_storage_buffers_per_shader_stage, 4);
    let pipelines = Pipelines::new(&device.device).unwrap();
    for types in COMBINATIONS.into_iter().filter(|(.., copy)| copy.is_none()) {
        let host = Host::new(types, &Inputs::random(1, 1027), 0);
        let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
        let expected = host.stepped(&gpu.device, &Pipelines::new(&gpu.device.device).unwrap(), &coeffs);
        assert_eq!(host.stepped(&device, &pipelines, &coeffs).contents(), expected.contents(), "{types:?}");
    }
    let masters = Host::new(COMBINATIONS[7], &Inputs::random(1, 100), 0).upload(&device);
    let error = TensorList::new(&pipelines, &[uploaded(&device, 64).tensor(), masters.tensor()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a step with masters needs a device with max_storage_buffers_per_shader_stage of at least 5, it has 4"
    );
    let limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 3, ..required_limits() };
    let error = Pipelines::new(&gpu.open(wgpu::Features::empty(), limits).device).unwrap_err();
    assert!(matches!(error, WebGpuError::Limit { required: 4, actual: 3, .. }), "{error:?}");
}

/// Windows of 128 elements, and workgroups of 256 threads in rows of at most one or four: at their edges, and beside them.
pub(crate) fn windows_and_rows(gpu: &Gpu) {
    let of = |binding, workgroups| {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: binding,
            max_compute_workgroups_per_dimension: workgroups,
            ..wgpu::Limits::default()
        };
        gpu.open(wgpu::Features::empty(), limits)
    };
    let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
    let cases = [
        (of(512, 65535), vec![127, 128, 129, 255, 256, 257, 9 * 1024 + 131]),
        (of(1 << 20, 4), vec![4095, 4096, 4097, 16_384, 9 * 1024 + 131]),
        (of(128 << 20, 1), vec![1023, 1024, 1025, 9 * 1024 + 131]),
    ];
    let whole_pipelines = Pipelines::new(&gpu.device.device).unwrap();
    for (device, sizes) in cases {
        let pipelines = Pipelines::new(&device.device).unwrap();
        for types in COMBINATIONS {
            for &size in &sizes {
                let host = Host::new(types, &Inputs::random(3, size), 0);
                let whole = host.stepped(&gpu.device, &whole_pipelines, &coeffs);
                let parts = host.stepped(&device, &pipelines, &coeffs);
                assert_eq!(parts.contents(), whole.contents(), "{types:?}, {size} elements");
                assert_ne!(parts.m, host.m);
            }
        }
    }
}

/// Set in a process that has little memory.
const LITTLE_MEMORY: &str = "DUALADAM_TEST_LITTLE_MEMORY";

/// Takes memory until there is no more. What a software adapter takes is the machine's, so that it gets a process with a limit.
pub(crate) fn out_of_memory(gpu: &Gpu) {
    if gpu.is_software() && std::env::var_os(LITTLE_MEMORY).is_none() {
        let program = std::env::current_exe().unwrap();
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", "ulimit -v 8000000 && exec \"$0\" --exact out_of_memory"]).arg(program);
        let output = limited.env(LITTLE_MEMORY, "1").env("DUALADAM_REQUIRE", "webgpu").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let max_buffer_size = gpu.limits().max_buffer_size;
    let device = gpu.open(wgpu::Features::empty(), wgpu::Limits { max_buffer_size, ..Default::default() });
    let pipelines = Pipelines::new(&device.device).unwrap();
    let len = (max_buffer_size / 4) as usize;
    let mut optimizers = vec![];
    let error = loop {
        match DualAdam::new(&pipelines, DualAdamConfig::default(), &[len]) {
            Ok(optimizer) => optimizers.push(optimizer),
            Err(error) => break error,
        }
    };
    let is_expected = matches!(&error, WebGpuError::Wgpu { call: "create_buffer", problem, .. } if **problem == WgpuProblem::OutOfMemory);
    assert!(is_expected, "{error:?}");
    // The device goes on.
    drop(optimizers);
    DualAdam::new(&pipelines, DualAdamConfig::default(), &[1000]).unwrap();
}
