//! Bad input is refused before anything is encoded. Unusual input that is allowed is not refused.

use std::ops::Range;

use dualadam::webgpu::{
    Binding, BindingProblem, DualAdam, Pipelines, Tensor, TensorList, WebGpuError, WgpuProblem, required_limits, wgpu,
};
use dualadam::{ArgumentError, Dtype, DualAdamConfig, Formats, Role, TensorProblem};
use testkit::{Inputs, Tensor as Host, Variant};

use crate::gpu::{Device, Gpu, STORAGE};
use crate::host::{Uploaded, host};
use crate::refused::{self, refused};

fn uploaded(device: &Device, len: usize) -> Uploaded {
    Uploaded::new(device, &host("f32_f32", len))
}

fn masters(device: &Device) -> Uploaded {
    Uploaded::new(device, &host("bf16_bf16_master", 257))
}

fn list(device: &Device, tensors: &[Tensor<'_>]) -> Result<TensorList, WebGpuError> {
    TensorList::new(device.pipelines(), tensors)
}

pub(crate) fn buffers_that_cannot_be_bound(device: &Device) {
    let good = uploaded(device, 64);
    let tensor = good.tensor();
    let short = device.buffer(&[0; 252]);
    assert_eq!(
        refused(list(device, &[tensor, with(tensor, Role::ExpAvg, (&short, 0))])).to_string(),
        "exp_avg of tensor 1 must be in a buffer of at least 256 bytes \
         (64 elements of f32 from byte 0 on, up to a multiple of 4 bytes), it has 252"
    );
    let inside = tensor.with_grad(Some(tensor.param.with_offset(4)));
    refused::offset(list(device, &[inside]), 0, Role::Grad, 256, 4);
    let no_storage = device.empty(256, wgpu::BufferUsages::COPY_DST);
    let unusable = || list(device, &[with(tensor, Role::ExpAvgSq, (&no_storage, 0))]);
    refused::usage(unusable(), 0, Role::ExpAvgSq, wgpu::BufferUsages::COPY_DST);
    assert_eq!(
        refused(unusable()).to_string(),
        "exp_avg_sq of tensor 0 must be in a buffer with the usage STORAGE, it has BufferUsages(COPY_DST)"
    );
    let mut long = tensor;
    long.len = u64::MAX;
    refused::buffer_size(list(device, &[long]), 0, Role::Param, 4 * u128::from(u64::MAX), 256);
    // wgpu takes any size for a buffer, but binds whole words.
    let (three, odd) = (uploaded(device, 3), device.empty(6, STORAGE));
    let odd = list(device, &[three.tensor_with(Binding::new(&odd, Dtype::Bf16))]);
    refused::buffer_size(odd, 0, Role::Param, 8, 6);
}

/// Masters that are not f32, masters of f32 parameters, and moments that are not f32.
pub(crate) fn formats_without_a_shader(device: &Device) {
    let good = uploaded(device, 64);
    let refuse = |change: fn(&mut Tensor<'_>), formats: Formats| {
        let mut tensor = good.tensor();
        tensor.len = 3;
        change(&mut tensor);
        refused::formats(list(device, &[tensor]), 0, formats);
    };
    let f32_f32 = Formats::new(Dtype::F32, Dtype::F32);
    let bf16_master = f32_f32.with_master(Dtype::Bf16);
    refuse(|tensor| tensor.master = Some(Binding::new(tensor.param.buffer, Dtype::Bf16)), bf16_master);
    refuse(|tensor| tensor.master = Some(tensor.param), f32_f32.with_master(Dtype::F32));
    let (mut bf16_exp_avg, mut f16_exp_avg_sq) = (f32_f32, f32_f32);
    (bf16_exp_avg.exp_avg, f16_exp_avg_sq.exp_avg_sq) = (Dtype::Bf16, Dtype::F16);
    refuse(|tensor| tensor.exp_avg.dtype = Dtype::Bf16, bf16_exp_avg);
    refuse(|tensor| tensor.exp_avg_sq.dtype = Dtype::F16, f16_exp_avg_sq);
}

/// A slice ends where it says, although its buffer goes on.
pub(crate) fn slices_end_where_they_end(device: &Device) {
    let good = uploaded(device, 64);
    let large = device.buffer(&[0; 2048]);
    let of = |range: Range<u64>| Binding::from_slice(large.slice(range), Dtype::F32);
    let outside = |result, range: Range<u64>, offset| {
        let Range { start, end } = range;
        let problem = BindingProblem::Slice { len: 64, dtype: Dtype::F32, offset, start, end };
        refused::binding(result, (0, Role::Param), problem);
    };
    let short = || list(device, &[good.tensor_with(of(256..511))]);
    outside(short().map(drop), 256..511, 256);
    assert_eq!(
        refused(short()).to_string(),
        "param of tensor 0 must lie within its slice, bytes 256 to 511 of the buffer, \
         got 64 elements of f32 from byte 256 on"
    );
    let mut list = device.list(&[good.tensor_with(of(256..512))]);
    outside(list.update(&[good.tensor_with(of(256..512).with_offset(512))]), 256..512, 512);
    outside(list.update(&[good.tensor_with(of(512..1024).with_offset(256))]), 512..1024, 256);
    // Only the end has changed.
    outside(list.update(&[good.tensor_with(of(256..508))]), 256..508, 256);
    list.update(&[good.tensor_with(of(512..1024))]).unwrap();
    list.update(&[good.tensor_with(Binding::new(&large, Dtype::F32).with_offset(512))]).unwrap();
}

/// The tensor with another place for one of its buffers.
fn with<'a>(mut tensor: Tensor<'a>, role: Role, (buffer, offset): (&'a wgpu::Buffer, u64)) -> Tensor<'a> {
    let binding = match role {
        Role::Param => Some(&mut tensor.param),
        Role::Grad => tensor.grad.as_mut(),
        Role::ExpAvg => Some(&mut tensor.exp_avg),
        Role::ExpAvgSq => Some(&mut tensor.exp_avg_sq),
        Role::Master => tensor.master.as_mut(),
        other => panic!("tensors have no {other}"),
    };
    let binding = binding.unwrap_or_else(|| panic!("the tensor has no {role}"));
    *binding = Binding::new(buffer, binding.dtype).with_offset(offset);
    tensor
}

/// Bytes of one of the buffers of [`masters`].
fn bytes(role: Role) -> u64 {
    if matches!(role, Role::Grad | Role::Param) { 516 } else { 1028 }
}

pub(crate) fn every_buffer_is_checked(device: &Device) {
    let (good, other) = (masters(device), masters(device));
    let (large, no_storage) = (device.empty(1 << 16, STORAGE), device.empty(1 << 16, wgpu::BufferUsages::COPY_DST));
    for &role in Role::ALL {
        let size = bytes(role);
        let short = device.empty(size - 4, STORAGE);
        let too_short = list(device, &[other.tensor(), with(good.tensor(), role, (&short, 0))]);
        refused::buffer_size(too_short, 1, role, size.into(), size - 4);
        let with = |place| list(device, &[with(good.tensor(), role, place)]);
        // The buffer would be long enough without the offset.
        let offset = (1 << 16) - 256;
        refused::buffer_size(with((&large, offset)), 0, role, u128::from(offset + size), 1 << 16);
        refused::offset(with((&large, 128)), 0, role, 256, 128);
        refused::usage(with((&no_storage, 0)), 0, role, wgpu::BufferUsages::COPY_DST);
    }
}

pub(crate) fn overlaps_are_refused(device: &Device) {
    let (a, b) = (masters(device), masters(device));
    let arena = device.buffer(&[0; 8192]);
    for &one in Role::ALL {
        for &other in Role::ALL {
            let bytes = bytes(one);
            // `other` begins where `one` begins, within it, at its last multiple of 256 bytes, and
            // behind it.
            for (offset, overlaps) in [(2048, true), (2304, true), (2048 + bytes / 256 * 256, true), (3328, false)] {
                let moved = with(a.tensor(), one, (&arena, 2048));
                let of_two = [moved, with(b.tensor(), other, (&arena, offset))];
                let both_grads = (one, other) == (Role::Grad, Role::Grad);
                let check = |tensors: &[Tensor<'_>], expected: bool| {
                    let made = list(device, tensors);
                    let refused = matches!(&made, Err(WebGpuError::Argument(ArgumentError::Tensor(error)))
                        if matches!(error.problem, TensorProblem::Overlap { .. }));
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

/// A list with one wrong set steps none of its tensors.
pub(crate) fn sets_out_of_range(gpu: &Gpu) {
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let buffers = [0; 2].map(|_| uploaded(device, 67));
        let list = device.list(&[buffers[0].tensor(), buffers[1].tensor().with_coeffs_index(1)]);
        device.submit(|pass| {
            refused::coeffs_index(list.encode(pass, &[coeffs]), 1, 1, 1);
        });
        buffers.iter().for_each(|buffers| buffers.assert_is(device, &buffers.host));
    }
}

/// As many sets as a uniform buffer holds, and one more.
pub(crate) fn sets_beyond_a_buffer(gpu: &Gpu) {
    let device = gpu.open_small();
    let limit = (1 << 14) / u64::from(device.device.limits().min_uniform_buffer_offset_alignment);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let host = host("f32_f32", 67).with_set(limit as usize - 1);
    let uploaded = Uploaded::new(&device, &host);
    let list = device.list(&[uploaded.tensor()]);
    let sets = vec![coeffs; limit as usize + 1];
    device.submit(|pass| {
        refused::too_many(list.encode(pass, &sets), "coeffs", limit, limit + 1);
    });
    uploaded.assert_is(&device, &host);
    device.step(&list, &sets[1..]);
    uploaded.assert_is(&device, &device.stepped(&host, &coeffs));
}

pub(crate) fn what_wgpu_refuses(gpu: &Gpu) {
    let device = &gpu.device;
    let (good, other) = (uploaded(device, 64), gpu.open(wgpu::Features::empty(), required_limits()));
    let foreign = uploaded(&other, 64);
    let check = |wrong: &Uploaded, reason: &str| match refused::by_wgpu(list(device, &[good.tensor(), wrong.tensor()]))
    {
        ("create_bind_group", Some(1), WgpuProblem::Validation(text)) => assert!(text.contains(reason), "{text}"),
        other => panic!("{other:?}"),
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
        "a step with masters needs a device with max_storage_buffers_per_shader_stage of at least 5, it has 4"
    );
    let limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 3, ..required_limits() };
    refused::limit(Pipelines::new(&gpu.open(wgpu::Features::empty(), limits).device), 4, 3);
}

/// Windows of 128 elements, and workgroups of 256 threads in rows of at most one or four: at their
/// edges, and beside them.
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

/// Allocates until memory runs out. A software adapter allocates the machine's memory, so this runs
/// in a process with a limit.
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
    let failed = loop {
        match DualAdam::new(device.pipelines(), DualAdamConfig::default(), &[len]) {
            Ok(optimizer) => optimizers.push(optimizer),
            failed => break failed,
        }
    };
    let (call, _, problem) = refused::by_wgpu(failed);
    assert_eq!((call, problem), ("create_buffer", WgpuProblem::OutOfMemory));
    // The device still works.
    drop(optimizers);
    DualAdam::new(device.pipelines(), DualAdamConfig::default(), &[1000]).unwrap();
}
