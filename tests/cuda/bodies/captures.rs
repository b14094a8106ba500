//! Captures as PyTorch's users make them: a whole iteration in one graph, whose gradients are at addresses that did not exist before; and
//! captures beside other threads that make, step and drop what they like.

use std::sync::Arc;
use std::thread;

use dualadam::cuda::cudarc::driver::sys::{self, CUstreamCaptureMode};
use dualadam::cuda::cudarc::driver::{CudaGraph, CudaStream, result};
use dualadam::cuda::{CudaError, DualAdam, Kernels, RawScalars, TensorList};
use dualadam::{
    ArgumentError, Dtype, DualAdamConfig, Formats, ListError, RawBuffer, RawTensor, StepCoeffs, TensorProblem,
    TensorSpec, cpu,
};

use CUstreamCaptureMode::{
    CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
};

use crate::common::data::Inputs;

use super::Body;
use super::buffers::{Buffer, COMBINATIONS, Device, Host};
use super::control::{Run, switching};
use super::gpu::{Gpu, Memory};
use super::graphs::{Optimizer, capture, step_on};

pub(crate) const TESTS: &[Body] = bodies!["captures":
    whole_iterations_with_control,
    whole_iterations_without_control,
    whole_iterations_of_an_optimizer,
    a_first_step_in_a_capture_allocates_nothing,
    another_number_of_tensors_is_refused_and_the_capture_goes_on,
    other_threads_make_step_and_drop_during_a_capture,
];

const MODES: [CUstreamCaptureMode; 3] =
    [CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED];

/// Device memory of undefined content, as PyTorch's allocator gets it while a stream is being captured.
fn allocate_in_capture(bytes: usize) -> Memory {
    let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    let exchange = |mode: &mut CUstreamCaptureMode| {
        // SAFETY: a mode, where the driver may write another.
        let answer = unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) };
        assert_eq!(answer, sys::CUresult::CUDA_SUCCESS);
    };
    exchange(&mut mode);
    // SAFETY: a context is current.
    let address = unsafe { result::malloc_sync(bytes.max(1)) }.unwrap();
    exchange(&mut mode);
    Memory { address }
}

/// Gradients of a list's tensors that differ in each round, with the filling around them.
fn new_grads(host: &Host, seed: u64) -> Buffer {
    let values = Inputs::random(seed, host.len).grad;
    Buffer::padded(host.buffers[1].dtype(), host.offsets[1], &values)
}

/// What a training program captures: gradients in memory of the graph's own, which a backward pass, here a copy of the batch,
/// writes; and the step.
struct Iteration {
    graph: CudaGraph,
    batch: Vec<Memory>,
    _grads: Vec<Memory>,
}

impl Iteration {
    fn capture(
        gpu: &Gpu,
        mode: CUstreamCaptureMode,
        hosts: &[Host],
        mut raw: Vec<RawTensor>,
        missing: &[usize],
        step: impl FnOnce(&[RawTensor]),
    ) -> Self {
        let batch: Vec<_> = hosts.iter().map(|host| gpu.memory(host.buffers[1].bytes())).collect();
        let mut grads = vec![];
        let graph = capture(&gpu.stream, mode, || {
            for (i, (host, batch)) in hosts.iter().zip(&batch).enumerate() {
                let memory = allocate_in_capture(host.buffers[1].bytes().len());
                if let Some(stand_in) = &gpu.stand_in {
                    assert!(stand_in.set_private(memory.address));
                }
                let (offset, bytes) = (host.offsets[1] * host.buffers[1].dtype().size(), host.buffers[1].bytes().len());
                raw[i].grad.address = if missing.contains(&i) { 0 } else { memory.address + offset as u64 };
                // SAFETY: both are as long, and the stream lives.
                unsafe { result::memcpy_dtod_async(memory.address, batch.address, bytes, gpu.stream.cu_stream()) }
                    .unwrap();
                grads.push(memory);
            }
            step(&raw);
        });
        Self { graph, batch, _grads: grads }
    }

    /// Launches the graph for another batch, which the hosts' gradients then are.
    fn launch(&self, gpu: &Gpu, hosts: &mut [Host], seed: u64) {
        set_grads(hosts, seed);
        for (host, batch) in hosts.iter().zip(&self.batch) {
            gpu.write(batch, host.buffers[1].bytes());
        }
        self.graph.launch().unwrap();
    }
}

fn set_grads(hosts: &mut [Host], seed: u64) {
    hosts.iter_mut().zip(seed..).for_each(|(host, seed)| host.buffers[1] = new_grads(host, seed));
}

/// The gradients of an ordinary step, in memory that is gone after it, as PyTorch's is.
fn upload_grads(gpu: &Gpu, hosts: &mut [Host], raw: &mut [RawTensor], seed: u64) -> Vec<Memory> {
    set_grads(hosts, seed);
    let grads: Vec<_> = hosts.iter().map(|host| gpu.memory(host.buffers[1].bytes())).collect();
    for ((host, raw), memory) in hosts.iter().zip(raw).zip(&grads) {
        raw.grad.address = memory.address + (host.offsets[1] * host.buffers[1].dtype().size()) as u64;
    }
    grads
}

fn assert_same(gpu: &Gpu, devices: &[Device], hosts: &[Host], what: &str) {
    for (i, (device, host)) in devices.iter().zip(hosts).enumerate() {
        device.assert_same_but_grads(gpu, host, &format!("{what}, tensor {i}"));
    }
}

/// Two captures of one list and its control, with ordinary steps between their launches. One of the captures misses gradients.
fn whole_iterations_with_control(gpu: &Gpu) {
    for mode in MODES {
        let mut run = Run::new(gpu, &[300, 40, 5, 17, 4097, 0, 12, 1, 4096], &switching());
        let missing = [1, 4, 5];
        let step = |run: &mut Run, raw: &[RawTensor]| {
            run.list.update(raw).unwrap();
            step_on(&gpu.stream, run, RawScalars::default());
        };
        let (hosts, raw) = (run.hosts.clone(), run.raw());
        let all = Iteration::capture(gpu, mode, &hosts, raw.clone(), &[], |raw| step(&mut run, raw));
        let some = Iteration::capture(gpu, mode, &hosts, raw, &missing, |raw| step(&mut run, raw));
        for round in 0..3 {
            let what = format!("{mode:?}, round {round}");
            all.launch(gpu, &mut run.hosts, 100 * round);
            run.expect(&[1e-2; 2], 1.0, |_| true);
            assert_same(gpu, &run.devices, &run.hosts, &what);

            let mut raw = run.raw();
            let grads = upload_grads(gpu, &mut run.hosts, &mut raw, 100 * round + 30);
            step(&mut run, &raw);
            run.expect(&[1e-2; 2], 1.0, |_| true);
            assert_same(gpu, &run.devices, &run.hosts, &what);
            drop(grads);

            some.launch(gpu, &mut run.hosts, 100 * round + 60);
            run.expect(&[1e-2; 2], 1.0, |tensor| !missing.contains(&tensor));
            assert_same(gpu, &run.devices, &run.hosts, &what);
        }
    }
}

/// The same with coefficients from the host, which the graphs keep: few that fit in an argument, and more.
fn whole_iterations_without_control(gpu: &Gpu) {
    for sets in [3, 100] {
        let sets: Vec<_> = (1..=sets).map(|step| DualAdamConfig::adamw(0.1).coeffs(step).unwrap()).collect();
        let host =
            |i: usize| Host::new(COMBINATIONS[i % 11], &Inputs::random(i as u64, i % 13), [0; 5], i % sets.len());
        let mut hosts: Vec<_> = (0..100).map(host).collect();
        let devices: Vec<_> = hosts.iter().map(|host| host.upload(gpu)).collect();
        let raw: Vec<_> = devices.iter().zip(&hosts).map(|(device, host)| device.raw(host)).collect();
        let mut list = TensorList::new(&gpu.kernels, &raw).unwrap();
        let mut step = |raw: &[RawTensor], sets: &[StepCoeffs]| {
            list.update(raw).unwrap();
            // SAFETY: the stream lives, and the buffers are as long as the tensors.
            unsafe { list.step_raw(sets, gpu.raw_stream()) }.unwrap();
        };
        let captured = Iteration::capture(gpu, CU_STREAM_CAPTURE_MODE_GLOBAL, &hosts, raw.clone(), &[7], |raw| {
            step(raw, &sets);
        });
        // Ordinary steps have other coefficients.
        let others: Vec<_> = sets.iter().rev().copied().collect();
        for round in 0..2 {
            captured.launch(gpu, &mut hosts, 1000 * round);
            hosts.iter_mut().enumerate().filter(|(i, _)| *i != 7).for_each(|(_, host)| host.step(&sets));
            assert_same(gpu, &devices, &hosts, &format!("{} sets, captured, round {round}", sets.len()));
            let mut raw = raw.clone();
            let grads = upload_grads(gpu, &mut hosts, &mut raw, 1000 * round + 500);
            step(&raw, &others);
            hosts.iter_mut().for_each(|host| host.step(&others));
            assert_same(gpu, &devices, &hosts, &format!("{} sets, ordinary, round {round}", sets.len()));
            drop(grads);
        }
    }
}

/// The owning optimizer over addresses, with masters that the first launch sets.
fn whole_iterations_of_an_optimizer(gpu: &Gpu) {
    let lens = [300, 4170];
    let layout = lens.map(|len| TensorSpec::new(len).with_master());
    let groups = [switching()[0]];
    let optimizer = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &groups, &layout).unwrap();
    let mut on_cpu = cpu::DualAdam::with_groups(&groups, &layout).unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    let types = Formats::new(Dtype::Bf16, Dtype::Bf16);
    let mut hosts = lens.map(|len| Host::new(types, &Inputs::random(len as u64, len), [0; 5], 0));
    let devices = hosts.each_ref().map(|host| host.upload(gpu));
    let raw = [0, 1].map(|i| devices[i].raw(&hosts[i])).to_vec();
    let params: Vec<_> = raw.iter().map(|raw| raw.param).collect();
    let grads = |raw: &[RawTensor]| raw.iter().map(|raw| Some(raw.grad)).collect::<Vec<Option<RawBuffer>>>();
    optimizer.prepare_raw(&params, &grads(&raw)).unwrap();
    let mut step = |raw: &[RawTensor]| {
        // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
        unsafe { optimizer.step_raw(&params, &grads(raw), &RawScalars::default()) }.unwrap();
    };
    let captures = [0, 1]
        .map(|_| Iteration::capture(gpu, CU_STREAM_CAPTURE_MODE_GLOBAL, &hosts, raw.clone(), &[], |raw| step(raw)));
    let mut expect = |hosts: &mut [Host; 2]| {
        let [(a, a_grads), (b, b_grads)] = hosts.each_mut().map(|host| {
            let [params, grads, ..] = &mut host.buffers;
            (params.params(0..host.len), grads.grads(0..host.len))
        });
        on_cpu.step([a, b], [Some(a_grads), Some(b_grads)]).unwrap();
    };
    for round in 0..3 {
        for (number, captured) in captures.iter().enumerate() {
            captured.launch(gpu, &mut hosts, 100 * round + 10 * number as u64);
            expect(&mut hosts);
            assert_same(gpu, &devices, &hosts, &format!("round {round}, capture {number}"));
        }
        let mut raw = raw.clone();
        let grads = upload_grads(gpu, &mut hosts, &mut raw, 100 * round + 50);
        step(&raw);
        expect(&mut hosts);
        assert_same(gpu, &devices, &hosts, &format!("round {round}, ordinary"));
        drop(grads);
    }
    assert_eq!(optimizer.state().unwrap(), *on_cpu.state());
}

/// An optimizer's first step makes its list, which a graph cannot do again for each launch.
fn a_first_step_in_a_capture_allocates_nothing(gpu: &Gpu) {
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 10), [0; 5], 0);
    let device = host.upload(gpu);
    let raw = device.raw(&host);
    let config = DualAdamConfig::default();
    for is_controlled in [false, true] {
        let optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, config, &[10]).unwrap();
        let mut optimizer: Box<dyn Optimizer> =
            if is_controlled { Box::new(optimizer.into_capturable().unwrap()) } else { Box::new(optimizer) };
        let calls = |name| gpu.stand_in.as_ref().map_or(0, |stand_in| stand_in.calls(name));
        let allocations = || ["cuMemAlloc_v2", "cuMemAllocAsync", "cuMemHostAlloc", "cuModuleLoadDataEx"].map(calls);
        let before = allocations();
        let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
            // SAFETY: refused before anything is launched.
            let step = unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)]) };
            let Err(error @ CudaError::Captured { .. }) = step else { panic!("{step:?}") };
            assert!(error.to_string().contains("an optimizer's first step"), "{error}");
        });
        assert_eq!(allocations(), before);
        drop(graph);
        // Nothing is counted, and the step can be made.
        assert_eq!(optimizer.step_of(0), 0);
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)]) }.unwrap();
        assert_eq!(optimizer.step_of(0), 1);
    }
}

fn another_number_of_tensors_is_refused_and_the_capture_goes_on(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5, 17], &switching());
    let raw = run.raw();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        assert!(matches!(
            run.list.update(&raw[..2]),
            Err(ArgumentError::List(ListError::Count { list: "tensors", expected: 3, actual: 2 }))
        ));
        let longer = {
            let mut longer = raw[0];
            longer.len = 301;
            longer
        };
        let Err(ArgumentError::Tensor(error)) = run.list.update(&[longer, raw[1], raw[2]]) else { panic!() };
        assert_eq!(error.problem, TensorProblem::FixedLength { expected: 300, actual: 301 });
        step_on(&gpu.stream, &mut run, RawScalars::default());
    });
    for _ in 0..2 {
        graph.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |_| true);
    }
    run.assert_same(gpu, "replayed");
}

/// What another thread does with its own list, control and optimizer, from their making to their end.
fn live_a_life(kernels: &Kernels, stream: &Arc<CudaStream>, raw: RawTensor) {
    let config = DualAdamConfig::default();
    let sets = [config.coeffs(1).unwrap()];
    let mut list = TensorList::new(kernels, &[raw]).unwrap();
    // SAFETY: the stream lives, and the buffers are as long as the tensor.
    unsafe { list.step_raw(&sets, stream.cu_stream().cast()) }.unwrap();
    drop(list);
    let mut optimizer = DualAdam::new(kernels, stream, config, &[raw.len as usize]).unwrap();
    // SAFETY: as above; the same stream orders it after the list's step.
    unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)], 1.0) }.unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    optimizer.set_lr(0, 0.5).unwrap();
    // SAFETY: as above.
    unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)], &RawScalars::default()) }.unwrap();
    assert_eq!(optimizer.state().unwrap().ledger.step(0).unwrap(), 2);
    assert_eq!(optimizer.report().unwrap().len(), 1);
}

/// The capture, in any mode, ends well and the graph does what it should; and so does the other thread's work. The other thread also
/// frees what had steps before the capture.
fn other_threads_make_step_and_drop_during_a_capture(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    let host = Host::new(COMBINATIONS[3], &Inputs::random(1, 100), [0; 5], 0);
    for mode in MODES {
        let device = host.upload(gpu);
        let raw = device.raw(&host);
        let mut run = Run::new(gpu, &[300, 5, 17, 4096], &switching());
        let mut before = DualAdam::new(&gpu.kernels, &other, DualAdamConfig::default(), &[100]).unwrap();
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        unsafe { before.step_raw(&[raw.param], &[Some(raw.grad)], 1.0) }.unwrap();
        let graph = capture(&gpu.stream, mode, || {
            step_on(&gpu.stream, &mut run, RawScalars::default());
            thread::scope(|scope| {
                let (kernels, other) = (&gpu.kernels, &other);
                scope.spawn(move || {
                    drop(before);
                    live_a_life(kernels, other, raw);
                });
            });
            step_on(&gpu.stream, &mut run, RawScalars::default());
        });
        for round in 0..2 {
            graph.launch().unwrap();
            (0..2).for_each(|_| run.expect(&[1e-2; 2], 1.0, |_| true));
            run.assert_same(gpu, &format!("{mode:?}, launch {round}"));
        }
    }
}
