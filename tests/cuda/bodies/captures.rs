//! Captures as PyTorch's users make them: a whole iteration in one graph, with gradients at new
//! addresses. And captures while other threads make, step and drop their own lists, controls and
//! optimizers.

use std::sync::Arc;
use std::thread;

use dualadam::cuda::cudarc::driver::sys::{self, CUstreamCaptureMode};
use dualadam::cuda::cudarc::driver::{CudaGraph, CudaStream, result};
use dualadam::cuda::{Control, DualAdam, Kernels, RawScalars, TensorList};
use dualadam::{DualAdamConfig, RawBuffer, RawTensor, StepCoeffs, TensorProblem, TensorSpec, cpu};
use testkit::{Inputs, Tensor, formats, laws};

use super::control::try_step;
use super::twin::Optimizer;
use super::{
    Body, GLOBAL, Gpu, Memory, RELAXED, Run, THREAD_LOCAL, Twin, capture, refused, step_owner, switching, twin,
    with_len,
};

pub(crate) const TESTS: &[Body] = bodies!["captures":
    whole_iterations_with_control,
    whole_iterations_without_control,
    whole_iterations_of_an_optimizer,
    a_first_step_in_a_capture_allocates_nothing,
    another_number_of_tensors_is_refused_and_the_capture_goes_on,
    other_threads_make_step_and_drop_during_a_capture,
];

pub(crate) const MODES: [CUstreamCaptureMode; 3] = [GLOBAL, THREAD_LOCAL, RELAXED];

/// Device memory of undefined content, as PyTorch's allocator gets it while a stream is being
/// captured.
fn allocate_in_capture(bytes: usize) -> Memory {
    let mut mode = RELAXED;
    let exchange = |mode: &mut CUstreamCaptureMode| {
        // SAFETY: the pointer is to a mode, which the driver exchanges for another.
        assert_eq!(unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) }, sys::CUresult::CUDA_SUCCESS);
    };
    exchange(&mut mode);
    // SAFETY: a context is current.
    let address = unsafe { result::malloc_sync(bytes.max(1)) }.unwrap();
    exchange(&mut mode);
    Memory { address }
}

/// What a training program captures: a backward pass, here a copy of the batch, that writes
/// gradients into the graph's own memory; and the step.
struct Iteration {
    graph: CudaGraph,
    batch: Vec<Memory>,
    _grads: Vec<Memory>,
}

impl Iteration {
    fn capture(
        gpu: &Gpu,
        mode: CUstreamCaptureMode,
        twins: &[Twin],
        missing: &[usize],
        step: impl FnOnce(&[RawTensor]),
    ) -> Self {
        let batch: Vec<_> = twins.iter().map(|twin| gpu.memory(twin.host.grad.bytes())).collect();
        let (mut raw, mut grads) = (twin::raw(twins), vec![]);
        let graph = capture(&gpu.stream, mode, || {
            for (i, (twin, batch)) in twins.iter().zip(&batch).enumerate() {
                let bytes = twin.host.grad.bytes().len();
                let memory = allocate_in_capture(bytes);
                if let Some(stand_in) = &gpu.stand_in {
                    assert!(stand_in.set_private(memory.address));
                }
                raw[i].grad.address = if missing.contains(&i) { 0 } else { grads_at(twin, &memory) };
                // SAFETY: both memories have `bytes` bytes, and the stream lives.
                unsafe { result::memcpy_dtod_async(memory.address, batch.address, bytes, gpu.stream.cu_stream()) }
                    .unwrap();
                grads.push(memory);
            }
            step(&raw);
        });
        Self { graph, batch, _grads: grads }
    }

    /// Launches the graph for another batch, and sets the hosts' gradients to the same values.
    fn launch(&self, gpu: &Gpu, twins: &mut [Twin], seed: u64) {
        set_grads(twins, seed);
        twins.iter().zip(&self.batch).for_each(|(twin, batch)| gpu.write(batch, twin.host.grad.bytes()));
        self.graph.launch().unwrap();
    }
}

/// The address of the gradient in this memory, behind its filling.
fn grads_at(twin: &Twin, memory: &Memory) -> u64 {
    twin.host.raw_at([memory.address; 5]).grad.address
}

/// Sets gradients on the host that differ for each seed.
fn set_grads(twins: &mut [Twin], seed: u64) {
    for (twin, seed) in twins.iter_mut().zip(seed..) {
        twin.host.set_grads(&Inputs::random(seed, twin.host.len()).grad);
    }
}

/// The tensors with the gradients of an ordinary step, in memory that is freed after it, as in
/// PyTorch.
fn upload_grads(gpu: &Gpu, twins: &mut [Twin], seed: u64) -> (Vec<RawTensor>, Vec<Memory>) {
    set_grads(twins, seed);
    let grads: Vec<_> = twins.iter().map(|twin| gpu.memory(twin.host.grad.bytes())).collect();
    let mut raw = twin::raw(twins);
    for ((twin, raw), memory) in twins.iter().zip(&mut raw).zip(&grads) {
        raw.grad.address = grads_at(twin, memory);
    }
    (raw, grads)
}

fn assert_same(gpu: &Gpu, twins: &[Twin], what: &str) {
    twins.iter().enumerate().for_each(|(i, twin)| twin.assert_same_but_grads(gpu, &format!("{what}, tensor {i}")));
}

/// Two captures of one list and its control, with ordinary steps between their launches. One of the
/// captures misses gradients.
fn whole_iterations_with_control(gpu: &Gpu) {
    for mode in MODES {
        let mut run = Run::new(gpu, &[300, 40, 5, 17, 4097, 0, 12, 1, 4096], &switching());
        let missing = [1, 4, 5];
        let step = |list: &mut TensorList, control: &mut Control, raw: &[RawTensor]| {
            list.update(raw).unwrap();
            try_step(&gpu.stream, list, control, RawScalars::default()).unwrap();
        };
        let Run { list, control, twins, .. } = &mut run;
        let all = Iteration::capture(gpu, mode, twins, &[], |raw| step(list, control, raw));
        let some = Iteration::capture(gpu, mode, twins, &missing, |raw| step(list, control, raw));
        for round in 0..3 {
            let what = format!("{mode:?}, round {round}");
            all.launch(gpu, &mut run.twins, 100 * round);
            run.expect_all();
            assert_same(gpu, &run.twins, &what);

            let (raw, grads) = upload_grads(gpu, &mut run.twins, 100 * round + 30);
            step(&mut run.list, &mut run.control, &raw);
            run.expect_all();
            assert_same(gpu, &run.twins, &what);
            drop(grads);

            some.launch(gpu, &mut run.twins, 100 * round + 60);
            run.expect_of(|tensor| !missing.contains(&tensor));
            assert_same(gpu, &run.twins, &what);
        }
    }
}

/// The same with coefficients from the host, which the graphs keep: few enough to fit in an
/// argument, and more.
fn whole_iterations_without_control(gpu: &Gpu) {
    for sets in [3, 100] {
        let sets: Vec<_> = (1..=sets).map(|step| DualAdamConfig::adamw(0.1).coeffs(step).unwrap()).collect();
        let sizes: Vec<_> = (0..100).map(|i| i % 13).collect();
        let mut twins = Twin::all(gpu, laws::mixed(&sizes, |i| i % sets.len()));
        let mut list = gpu.list(&twins);
        let mut step = |raw: &[RawTensor], sets: &[StepCoeffs]| {
            list.update(raw).unwrap();
            gpu.step_list(&mut list, sets).unwrap();
        };
        let captured = Iteration::capture(gpu, GLOBAL, &twins, &[7], |raw| step(raw, &sets));
        // Ordinary steps have other coefficients.
        let others: Vec<_> = sets.iter().rev().copied().collect();
        for round in 0..2 {
            captured.launch(gpu, &mut twins, 1000 * round);
            twins.iter_mut().enumerate().filter(|(i, _)| *i != 7).for_each(|(_, twin)| twin.expect(&sets));
            assert_same(gpu, &twins, &format!("{} sets, captured, round {round}", sets.len()));
            let (raw, grads) = upload_grads(gpu, &mut twins, 1000 * round + 500);
            step(&raw, &others);
            twins.iter_mut().for_each(|twin| twin.expect(&others));
            assert_same(gpu, &twins, &format!("{} sets, ordinary, round {round}", sets.len()));
            drop(grads);
        }
    }
}

/// The owning optimizer over addresses, with masters that the first launch sets.
fn whole_iterations_of_an_optimizer(gpu: &Gpu) {
    let lens = [300, 4170];
    let specs = lens.map(|len| TensorSpec::new(len).with_master());
    let groups = [switching()[0]];
    let optimizer = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &groups, &specs).unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    let mut on_cpu = cpu::DualAdam::with_groups(&groups, &specs).unwrap();
    let tensor = |len| Tensor::padded(formats("bf16_bf16"), &Inputs::random(len as u64, len), [0; 5]);
    let mut twins = Twin::all(gpu, lens.map(tensor));
    let params: Vec<_> = twin::raw(&twins).iter().map(|raw| raw.param).collect();
    let grads = |raw: &[RawTensor]| raw.iter().map(|raw| Some(raw.grad)).collect::<Vec<Option<RawBuffer>>>();
    optimizer.prepare_raw(&params, &grads(&twin::raw(&twins))).unwrap();
    let mut step = |raw: &[RawTensor]| {
        // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
        unsafe { optimizer.step_raw(&params, &grads(raw), &RawScalars::default()) }.unwrap();
    };
    let captures = [0, 1].map(|_| Iteration::capture(gpu, GLOBAL, &twins, &[], &mut step));
    let mut expect = |twins: &mut [Twin]| {
        let both = twins.iter_mut().map(|twin| twin.host.param_and_grad());
        let (params, grads): (Vec<_>, Vec<_>) = both.map(|(param, grad)| (param, Some(grad))).unzip();
        on_cpu.step(params, grads).unwrap();
    };
    for round in 0..3 {
        for (number, captured) in captures.iter().enumerate() {
            captured.launch(gpu, &mut twins, 100 * round + 10 * number as u64);
            expect(&mut twins);
            assert_same(gpu, &twins, &format!("round {round}, capture {number}"));
        }
        let (raw, grads) = upload_grads(gpu, &mut twins, 100 * round + 50);
        step(&raw);
        expect(&mut twins);
        assert_same(gpu, &twins, &format!("round {round}, ordinary"));
        drop(grads);
    }
    assert_eq!(optimizer.state().unwrap(), *on_cpu.state());
}

/// An optimizer's first step makes its list, which a graph cannot do again for each launch.
fn a_first_step_in_a_capture_allocates_nothing(gpu: &Gpu) {
    let optimizer = || gpu.optimizer(&[TensorSpec::new(10)]).unwrap();
    a_first_step_allocates_nothing(gpu, optimizer());
    a_first_step_allocates_nothing(gpu, optimizer().into_capturable().unwrap());
}

fn a_first_step_allocates_nothing(gpu: &Gpu, mut optimizer: impl Optimizer) {
    let twin = Twin::of(gpu, "f32_f32", 10);
    let raw = twin.raw();
    let calls = |name| gpu.stand_in.as_ref().map_or(0, |stand_in| stand_in.calls(name));
    let allocations = || ["cuMemAlloc_v2", "cuMemAllocAsync", "cuMemHostAlloc", "cuModuleLoadDataEx"].map(calls);
    let before = allocations();
    let graph = capture(&gpu.stream, GLOBAL, || {
        let Err(error) = step_owner(&mut optimizer, &raw) else { panic!("not refused") };
        assert!(error.to_string().contains("an optimizer's first step"), "{error}");
        refused::captured(Err::<(), _>(error));
    });
    assert_eq!(allocations(), before);
    drop(graph);
    // Nothing was counted, and the step can now be made.
    assert_eq!(optimizer.step_of(0), 0);
    step_owner(&mut optimizer, &raw).unwrap();
    assert_eq!(optimizer.step_of(0), 1);
    gpu.context.synchronize().unwrap();
}

fn another_number_of_tensors_is_refused_and_the_capture_goes_on(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5, 17], &switching());
    let raw = run.raw();
    let graph = capture(&gpu.stream, GLOBAL, || {
        refused::count(run.list.update(&raw[..2]), "tensors", 3, 2);
        let longer = with_len(raw[0], 301);
        let expected = TensorProblem::FixedLength { expected: 300, actual: 301 };
        refused::problem(run.list.update(&[longer, raw[1], raw[2]]), 0, None, expected);
        run.launch(&gpu.stream);
    });
    for _ in 0..2 {
        graph.launch().unwrap();
        run.expect_all();
    }
    run.assert_same(gpu, "replayed");
}

/// Another thread's work: it makes, steps and drops a list, a control and an optimizer of its own.
fn use_everything(kernels: &Kernels, stream: &Arc<CudaStream>, raw: RawTensor) {
    let config = DualAdamConfig::default();
    let sets = [config.coeffs(1).unwrap()];
    let mut list = TensorList::new(kernels, &[raw]).unwrap();
    // SAFETY: the stream lives, and the buffers are as long as the tensor.
    unsafe { list.step_raw(&sets, stream.cu_stream().cast()) }.unwrap();
    drop(list);
    let mut optimizer = DualAdam::new(kernels, stream, config, &[raw.len as usize]).unwrap();
    step_owner(&mut optimizer, &raw).unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    optimizer.set_lr(0, 0.5).unwrap();
    step_owner(&mut optimizer, &raw).unwrap();
    assert_eq!(optimizer.state().unwrap().ledger.step(0).unwrap(), 2);
    assert_eq!(optimizer.report().unwrap().len(), 1);
}

/// In any mode, both the capture with its graph and the other thread's work succeed. The other
/// thread also frees objects that made steps before the capture.
fn other_threads_make_step_and_drop_during_a_capture(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    for mode in MODES {
        let twin = Twin::of(gpu, "bf16_bf16", 100);
        let raw = twin.raw();
        let mut run = Run::new(gpu, &[300, 5, 17, 4096], &switching());
        let mut before = DualAdam::new(&gpu.kernels, &other, DualAdamConfig::default(), &[100]).unwrap();
        step_owner(&mut before, &raw).unwrap();
        let graph = capture(&gpu.stream, mode, || {
            run.launch(&gpu.stream);
            thread::scope(|scope| {
                let (kernels, other) = (&gpu.kernels, &other);
                scope.spawn(move || {
                    drop(before);
                    use_everything(kernels, other, raw);
                });
            });
            run.launch(&gpu.stream);
        });
        for round in 0..2 {
            graph.launch().unwrap();
            (0..2).for_each(|_| run.expect_all());
            run.assert_same(gpu, &format!("{mode:?}, launch {round}"));
        }
    }
}
