//! Lists of tensors.

use dualadam::cuda::cudarc::driver::result;
use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
use dualadam::cuda::{CudaError, TensorList};
use dualadam::{ArgumentError, DualAdamConfig, ListError, RawBuffer, RawTensor, StepCoeffs};

use crate::common::data::{Inputs, configs};

use super::Body;
use super::buffers::{COMBINATIONS, Device, Host};
use super::gpu::{Gpu, Memory};

pub(crate) const TESTS: &[Body] = bodies!["lists":
    a_list_of_everything_has_the_bits_of_the_cpu,
    lists_of_special_values_have_the_bits_of_the_cpu,
    more_sets_than_fit_in_an_argument,
    changes_travel_in_order_and_late,
    tensors_without_gradients_are_left_alone,
    unchanged_lists_only_launch,
    a_capture_takes_tensors_and_sets_as_they_are,
    gradients_may_share_memory,
    lists_of_thousands_of_tensors_have_the_bits_of_the_cpu,
];

/// Tensors of all combinations, some of them empty, on host and device.
pub(crate) struct Model {
    pub(crate) hosts: Vec<Host>,
    devices: Vec<Device>,
}

impl Model {
    /// One tensor of each size, with types in turns and each with the set that `set` names.
    pub(crate) fn new(gpu: &Gpu, sizes: &[usize], set: impl Fn(usize) -> usize) -> Self {
        let host = |(i, &size): (usize, &usize)| {
            let offsets = [i % 3, i % 4, i % 2, 0, i % 5];
            Host::new(COMBINATIONS[i % COMBINATIONS.len()], &Inputs::random(i as u64, size), offsets, set(i))
        };
        let hosts: Vec<_> = sizes.iter().enumerate().map(host).collect();
        let devices = hosts.iter().map(|host| host.upload(gpu)).collect();
        Self { hosts, devices }
    }

    pub(crate) fn raw(&self) -> Vec<RawTensor> {
        self.devices.iter().zip(&self.hosts).map(|(device, host)| device.raw(host)).collect()
    }

    pub(crate) fn step(&mut self, sets: &[StepCoeffs]) {
        self.hosts.iter_mut().for_each(|host| host.step(sets));
    }

    pub(crate) fn assert_same(&self, gpu: &Gpu, what: &str) {
        for (i, (device, host)) in self.devices.iter().zip(&self.hosts).enumerate() {
            device.assert_same(gpu, host, &format!("{what}, tensor {i}"));
        }
    }
}

pub(crate) fn step(gpu: &Gpu, list: &mut TensorList, sets: &[StepCoeffs]) {
    // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
    unsafe { list.step_raw(sets, gpu.raw_stream()) }.unwrap();
}

pub(crate) fn all_sets() -> Vec<StepCoeffs> {
    configs().iter().map(|(config, step)| config.coeffs(*step).unwrap()).collect()
}

/// Sizes around every edge, several chunks, and empty tensors everywhere.
const SIZES: [usize; 40] = [
    0, 1, 3, 4, 5, 15, 16, 17, 255, 256, 257, 0, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 8193, 0, 0, 12289, 1, 2, 3,
    4, 5, 6, 7, 8, 9, 10, 0, 5000, 100, 0, 33, 64, 0,
];

fn a_list_of_everything_has_the_bits_of_the_cpu(gpu: &Gpu) {
    let sets = all_sets();
    let mut model = Model::new(gpu, &SIZES, |i| i % sets.len());
    let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
    assert_eq!(list.len(), SIZES.len());
    for round in 0..2 {
        step(gpu, &mut list, &sets);
        model.step(&sets);
        model.assert_same(gpu, &format!("round {round}"));
    }
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        let lists = stand_in.launches();
        assert_eq!(lists.len(), 2 * COMBINATIONS.len(), "one launch for each combination: {lists:?}");
    }
}

/// Every combination alone, over sizes, with special values.
fn lists_of_special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let sets = all_sets();
    for types in COMBINATIONS {
        let special = Inputs::special();
        let mut hosts: Vec<_> =
            (0..sets.len()).map(|set| Host::new(types, &special, [set % 4, 0, 0, 0, 1], set)).collect();
        let devices: Vec<_> = hosts.iter().map(|host| host.upload(gpu)).collect();
        let raw: Vec<_> = devices.iter().zip(&hosts).map(|(device, host)| device.raw(host)).collect();
        step(gpu, &mut TensorList::new(&gpu.kernels, &raw).unwrap(), &sets);
        for (device, host) in devices.iter().zip(&mut hosts) {
            host.step(&sets);
            device.assert_same(gpu, host, &format!("{types:?}, set {}", host.set));
        }
    }
}

fn more_sets_than_fit_in_an_argument(gpu: &Gpu) {
    for count in [95, 96, 97, 200] {
        let sizes: Vec<_> = (0..count).map(|i| i % 7).collect();
        let mut model = Model::new(gpu, &sizes, |i| count - 1 - i);
        let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
        for round in 1..=6 {
            let config = |i: usize| DualAdamConfig::default().with_lr(1e-3 * (i + 1) as f64);
            let sets: Vec<_> = (0..count).map(|i| config(i).coeffs(round).unwrap()).collect();
            step(gpu, &mut list, &sets);
            model.step(&sets);
        }
        model.assert_same(gpu, &format!("{count} sets"));
    }
}

/// New gradients, new parameters and new sets in each step, while none of the steps before has run.
fn changes_travel_in_order_and_late(gpu: &Gpu) {
    let sets = all_sets();
    let mut model = Model::new(gpu, &SIZES, |_| 0);
    let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
    let mut retired = vec![];
    for round in 0..12_usize {
        // Every third tensor gets a gradient elsewhere, every fifth a set.
        for i in 0..model.hosts.len() {
            let host = &mut model.hosts[i];
            if (i + round) % 3 == 0 {
                let fresh = Inputs::random((1000 * round + i) as u64, host.len);
                let types = COMBINATIONS[i % COMBINATIONS.len()];
                let gradient = Host::new(types, &fresh, host.offsets, 0).buffers[1].clone();
                let moved = Memory { address: late_memory(gpu, gradient.bytes()) };
                retired.push(std::mem::replace(&mut model.devices[i].memory[1], moved));
                host.buffers[1] = gradient;
            }
            if (i + round) % 5 == 0 {
                host.set = round % sets.len();
            }
        }
        list.update(&model.raw()).unwrap();
        step(gpu, &mut list, &sets);
        model.step(&sets);
    }
    if let Some(stand_in) = &gpu.stand_in {
        assert!(stand_in.pending() > 3 * COMBINATIONS.len() as u64, "steps were enqueued, and have not run");
    }
    model.assert_same(gpu, "changing");
}

/// Memory filled in the order of the stream, without a wait that would let earlier steps run.
fn late_memory(gpu: &Gpu, content: &[u8]) -> u64 {
    // SAFETY: a context is current, and the memory is as long as the content.
    unsafe {
        let address = result::malloc_sync(content.len().max(1)).unwrap();
        if !content.is_empty() {
            result::memcpy_htod_async(address, content, gpu.stream.cu_stream()).unwrap();
        }
        address
    }
}

fn tensors_without_gradients_are_left_alone(gpu: &Gpu) {
    let sets = all_sets();
    let mut model = Model::new(gpu, &SIZES, |i| i % 3);
    let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
    for round in 0..5 {
        let mut raw = model.raw();
        for (i, tensor) in raw.iter_mut().enumerate() {
            if (i + round) % 2 == 0 {
                tensor.grad.address = 0;
            } else {
                model.hosts[i].step(&sets);
            }
        }
        list.update(&raw).unwrap();
        step(gpu, &mut list, &sets);
    }
    model.assert_same(gpu, "partly");
}

fn unchanged_lists_only_launch(gpu: &Gpu) {
    let sets = all_sets();
    let mut model = Model::new(gpu, &[5000, 0, 17], |i| i);
    let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
    // A change is sent once.
    model.hosts[2].set = 5;
    let raw = model.raw();
    list.update(&raw).unwrap();
    step(gpu, &mut list, &sets);
    model.step(&sets);
    gpu.context.synchronize().unwrap();
    // Of three combinations one has an empty tensor only.
    let expected = [
        ("cuCtxGetCurrent", 3),
        ("cuEventRecord", 3),
        ("cuLaunchKernel", 6),
        ("cuStreamGetCtx", 3),
        ("cuStreamIsCapturing", 3),
        ("cuThreadExchangeStreamCaptureMode", 6),
    ];
    gpu.calling_only(&expected, || {
        for _ in 0..3 {
            list.update(&raw).unwrap();
            step(gpu, &mut list, &sets);
            model.step(&sets);
        }
    });
    if let Some(stand_in) = &gpu.stand_in {
        // Two launches of each step, and the event after them.
        assert_eq!(stand_in.pending(), 9);
    }
    model.assert_same(gpu, "unchanged");
}

fn gradients_may_share_memory(gpu: &Gpu) {
    let sets = all_sets();
    let inputs = Inputs::random(1, 300);
    let mut hosts = [0, 1].map(|set| Host::new(COMBINATIONS[0], &inputs, [0; 5], set));
    let devices = hosts.each_ref().map(|host| host.upload(gpu));
    let mut raw = [0, 1].map(|i| devices[i].raw(&hosts[i]));
    raw[1].grad = raw[0].grad;
    step(gpu, &mut TensorList::new(&gpu.kernels, &raw).unwrap(), &sets);
    for (host, device) in hosts.iter_mut().zip(&devices) {
        host.step(&sets);
        device.assert_same(gpu, host, "shared");
    }
}

/// What copies from memory that is used again must not become part of a graph.
/// The list's and the flat step in one graph, with changes in between; and with more sets than fit in an argument.
fn a_capture_takes_tensors_and_sets_as_they_are(gpu: &Gpu) {
    let mut host = Host::new(COMBINATIONS[0], &Inputs::random(1, 100), [0; 5], 0);
    let device = host.upload(gpu);
    let mut raw = device.raw(&host);
    let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
    let coeffs = |step| DualAdamConfig::default().coeffs(step).unwrap();
    let flat_coeffs = DualAdamConfig::adam().coeffs(2).unwrap();
    let many: Vec<_> = (1..=97).map(coeffs).collect();

    // Loads what the flat step needs.
    // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
    unsafe { gpu.kernels.step_raw(&raw, &flat_coeffs, gpu.raw_stream()) }.unwrap();
    host.step(&[flat_coeffs]);
    gpu.stream.begin_capture(CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    // SAFETY: as above.
    unsafe {
        list.step_raw(&[coeffs(1)], gpu.raw_stream()).unwrap();
        gpu.kernels.step_raw(&raw, &flat_coeffs, gpu.raw_stream()).unwrap();
        raw.coeffs_index = 1;
        list.update(&[raw]).unwrap();
        list.step_raw(&[coeffs(1), coeffs(7)], gpu.raw_stream()).unwrap();
    }
    let graph = gpu
        .stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        graph.launch().unwrap();
        [coeffs(1), flat_coeffs, coeffs(7)].into_iter().for_each(|coeffs| host.step(&[coeffs]));
    }
    device.assert_same(gpu, &host, "replayed");
    assert!(matches!(
        // SAFETY: refused before anything is launched.
        unsafe { list.step_raw(&many, gpu.raw_stream()) },
        Err(CudaError::Argument(ArgumentError::List(ListError::TooMany { list: "coeffs", limit: 96, actual: 97 })))
    ));
}

/// More tensors, and more chunks, than a block looks ahead.
fn lists_of_thousands_of_tensors_have_the_bits_of_the_cpu(gpu: &Gpu) {
    const LEN: usize = 3;
    let count = 4200;
    let coeffs = [DualAdamConfig::default().coeffs(1).unwrap()];
    for types in [COMBINATIONS[0], COMBINATIONS[8]] {
        let mut host = Host::new(types, &Inputs::random(1, LEN * count), [0; 5], 0);
        let device = host.upload(gpu);
        let whole = device.raw(&host);
        let part = |i: usize| {
            let at = |buffer: RawBuffer| {
                RawBuffer::new(buffer.address + (LEN * i * buffer.dtype.size()) as u64, buffer.dtype)
            };
            let mut tensor =
                RawTensor::new(LEN as u64, at(whole.param), at(whole.grad), at(whole.exp_avg), at(whole.exp_avg_sq));
            tensor.master = whole.master.map(at);
            tensor
        };
        let tensors: Vec<_> = (0..count).map(part).collect();
        let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
        // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
        unsafe { list.step_raw(&coeffs, gpu.raw_stream()) }.unwrap();
        host.step(&coeffs);
        device.assert_same(gpu, &host, &format!("{types:?}"));
    }
}
