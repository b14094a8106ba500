//! What is refused before anything is encoded, and what is not.

use dualadam::webgpu::{BufferView, DualAdam, Moment, Pipelines, Tensor, TensorList, required_limits, wgpu};
use dualadam::{Dtype, DualAdamConfig, Error, WgpuProblem};
use testkit::data::Inputs;
use testkit::refused::{self, refused};
use testkit::tensor::Tensor as Host;
use testkit::variant::Variant;

use crate::gpu::{Device, Gpu, STORAGE};
use crate::host::{Uploaded, host};

fn uploaded(device: &Device, len: usize) -> Uploaded {
    Uploaded::new(device, &host("f32_f32", len))
}

fn masters(device: &Device) -> Uploaded {
    Uploaded::new(device, &host("bf16_bf16_master", 257))
}

fn list(device: &Device, tensors: &[Tensor<'_>]) -> Result<TensorList, Error> {
    TensorList::new(device.pipelines(), tensors)
}

pub(crate) fn buffers_that_cannot_be_bound(gpu: &Gpu) {
    let device = &gpu.device;
    let good = uploaded(device, 64);
    let tensor = good.tensor();
    let short = device.buffer(&[0; 252]);
    assert_eq!(
        refused(list(device, &[tensor, Tensor { exp_avg: Moment::new(&short), ..tensor }])).to_string(),
        "exp_avg of tensor 1 must be in a buffer of at least 256 bytes \
         (64 elements of f32 from byte 0 on, up to a multiple of 4 bytes), it has 252"
    );
    let grads = Some(BufferView { offset: 4, ..tensor.params });
    refused::offset(list(device, &[Tensor { grads, ..tensor }]), 0, "grads", 256, 4);
    let no_storage = device.empty(256, wgpu::BufferUsages::COPY_DST);
    refused::usage(list(device, &[Tensor { exp_avg_sq: Moment::new(&no_storage), ..tensor }]), 0, "exp_avg_sq");
    let required = 4 * u128::from(u64::MAX);
    refused::buffer_size(list(device, &[Tensor { len: u64::MAX, ..tensor }]), 0, "params", required, 256);
    let params = BufferView { dtype: Dtype::Bf16, ..tensor.params };
    let both = list(device, &[Tensor { params, len: 3, copy: Some(tensor.params), ..tensor }]);
    refused::types(both, 0, Dtype::Bf16, Dtype::F32, Some(Dtype::F32));
}

pub(crate) fn odd_counts_need_the_whole_word(gpu: &Gpu) {
    let device = &gpu.device;
    let good = uploaded(device, 3);
    // wgpu takes any size for a buffer, but binds whole words.
    let odd = device.empty(6, STORAGE);
    let odd = list(device, &[Tensor { params: BufferView::new(&odd, Dtype::Bf16), ..good.tensor() }]);
    refused::buffer_size(odd, 0, "params", 8, 6);
}

const BUFFERS: [&str; 5] = ["params", "grads", "exp_avg", "exp_avg_sq", "copy"];

/// The tensor with another place for one of its five buffers.
fn with<'a>(tensor: Tensor<'a>, name: &str, (buffer, offset): (&'a wgpu::Buffer, u64)) -> Tensor<'a> {
    let view = |old: BufferView<'a>| BufferView { buffer, offset, ..old };
    let moment = Moment { buffer, offset };
    match name {
        "params" => Tensor { params: view(tensor.params), ..tensor },
        "grads" => Tensor { grads: tensor.grads.map(view), ..tensor },
        "exp_avg" => Tensor { exp_avg: moment, ..tensor },
        "exp_avg_sq" => Tensor { exp_avg_sq: moment, ..tensor },
        _ => Tensor { copy: tensor.copy.map(view), ..tensor },
    }
}

pub(crate) fn every_buffer_is_checked(gpu: &Gpu) {
    let device = &gpu.device;
    let (good, other) = (masters(device), masters(device));
    let (large, no_storage) = (device.empty(1 << 16, STORAGE), device.empty(1 << 16, wgpu::BufferUsages::COPY_DST));
    for name in BUFFERS {
        let size = if matches!(name, "grads" | "copy") { 516 } else { 1028 };
        let short = device.empty(size - 4, STORAGE);
        let too_short = list(device, &[other.tensor(), with(good.tensor(), name, (&short, 0))]);
        refused::buffer_size(too_short, 1, name, size.into(), size - 4);
        let with = |place| list(device, &[with(good.tensor(), name, place)]);
        // Long enough, but for the offset.
        let offset = (1 << 16) - 256;
        refused::buffer_size(with((&large, offset)), 0, name, u128::from(offset + size), 1 << 16);
        refused::offset(with((&large, 128)), 0, name, 256, 128);
        refused::usage(with((&no_storage, 0)), 0, name);
    }
}

pub(crate) fn overlaps_are_refused(gpu: &Gpu) {
    let device = &gpu.device;
    let (a, b) = (masters(device), masters(device));
    let arena = device.buffer(&[0; 8192]);
    for one in BUFFERS {
        for other in BUFFERS {
            let bytes = if matches!(one, "grads" | "copy") { 516 } else { 1028 };
            // The other begins with the one, in it, at its last byte, and where it is free again.
            for (offset, overlaps) in [(2048, true), (2304, true), (2048 + bytes / 256 * 256, true), (3328, false)] {
                let moved = with(a.tensor(), one, (&arena, 2048));
                let of_two = [moved, with(b.tensor(), other, (&arena, offset))];
                let both_grads = (one, other) == ("grads", "grads");
                let check = |tensors: &[Tensor<'_>], expected: bool| {
                    let made = list(device, tensors);
                    let refused = matches!(made, Err(Error::Overlap { .. }));
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
        let buffers = [0; 2].map(|_| uploaded(device, 67));
        let list = device.list(&[buffers[0].tensor(), Tensor { set: 1, ..buffers[1].tensor() }]);
        device.submit(|pass| refused::index(list.encode(pass, &[coeffs]), 1, "set", 1, 1));
        buffers.iter().for_each(|buffers| buffers.assert_is(device, &buffers.host));
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
    let limit = (1 << 14) / u64::from(device.device.limits().min_uniform_buffer_offset_alignment);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let host = host("f32_f32", 67).with_set(limit as usize - 1);
    let uploaded = Uploaded::new(&device, &host);
    let list = device.list(&[uploaded.tensor()]);
    let sets = vec![coeffs; limit as usize + 1];
    device.submit(|pass| refused::too_many(list.encode(pass, &sets), "sets", limit, limit + 1));
    uploaded.assert_is(&device, &host);
    device.step(&list, &sets[1..]);
    uploaded.assert_is(&device, &device.stepped(&host, &coeffs));
}

pub(crate) fn what_wgpu_refuses(gpu: &Gpu) {
    let device = &gpu.device;
    let (good, other) = (uploaded(device, 64), gpu.open(wgpu::Features::empty(), required_limits()));
    let foreign = uploaded(&other, 64);
    let check = |wrong: &Uploaded, reason: &str| {
        let error = refused(list(device, &[good.tensor(), wrong.tensor()]));
        let problem = match &error {
            Error::Wgpu { call: "create_bind_group", tensor: Some(1), problem: WgpuProblem::Validation(problem) } => {
                problem
            }
            _ => panic!("{error:?}"),
        };
        assert!(problem.contains(reason), "{problem}");
    };
    check(&foreign, "match Device");
    let destroyed = uploaded(device, 64);
    destroyed.buffers[1].destroy();
    check(&destroyed, "destroyed");
}

pub(crate) fn a_lost_device(gpu: &Gpu) {
    let device = gpu.open(wgpu::Features::empty(), required_limits());
    let (buffers, others) = (uploaded(&device, 64), uploaded(&device, 64));
    let mut made = device.list(&[buffers.tensor()]);
    device.device.destroy();
    refused::lost_device(Pipelines::new(&device.device));
    refused::lost_device(list(&device, &[buffers.tensor()]));
    refused::lost_device(made.update(&[others.tensor()]));
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    refused::lost_device(made.encode(&mut pass, &[DualAdamConfig::default().coeffs(1).unwrap()]));
}

pub(crate) fn small_devices(gpu: &Gpu) {
    let device = gpu.open(wgpu::Features::empty(), required_limits());
    assert_eq!(device.device.limits().max_storage_buffers_per_shader_stage, 4);
    let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
    for variant in Variant::all().filter(|variant| variant.formats().master.is_none()) {
        let host = Host::new(variant.formats(), &Inputs::random(1, 1027));
        let (found, expected) = (device.stepped(&host, &coeffs), gpu.device.stepped(&host, &coeffs));
        assert_eq!(found.contents(), expected.contents(), "{}", host.types());
    }
    let masters = Uploaded::new(&device, &host("bf16_f32_master", 100));
    assert_eq!(
        refused(list(&device, &[uploaded(&device, 64).tensor(), masters.tensor()])).to_string(),
        "masters with a copy needs a device with max_storage_buffers_per_shader_stage of at least 5, it has 4"
    );
    let limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 3, ..required_limits() };
    refused::limit(Pipelines::new(&gpu.open(wgpu::Features::empty(), limits).device), 4, 3);
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
    for (device, sizes) in cases {
        for variant in Variant::all() {
            for &size in &sizes {
                let host = Host::new(variant.formats(), &Inputs::random(3, size));
                let (whole, parts) = (gpu.device.stepped(&host, &coeffs), device.stepped(&host, &coeffs));
                assert_eq!(parts.contents(), whole.contents(), "{}", host.types());
                assert_ne!(parts.exp_avg, host.exp_avg);
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
    let len = (max_buffer_size / 4) as usize;
    let mut optimizers = vec![];
    let error = loop {
        match DualAdam::new(device.pipelines(), DualAdamConfig::default(), &[len]) {
            Ok(optimizer) => optimizers.push(optimizer),
            Err(error) => break error,
        }
    };
    let is_expected = matches!(error, Error::Wgpu { call: "create_buffer", problem: WgpuProblem::OutOfMemory, .. });
    assert!(is_expected, "{error:?}");
    // The device goes on.
    drop(optimizers);
    DualAdam::new(device.pipelines(), DualAdamConfig::default(), &[1000]).unwrap();
}
