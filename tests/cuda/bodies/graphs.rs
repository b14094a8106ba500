//! Controlled steps captured in CUDA graphs: launched again and again they equal ordinary steps.

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::{
    self, CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
};
use dualadam::cuda::cudarc::driver::{CudaGraph, CudaSlice, CudaStream};
use dualadam::cuda::{
    Buffer, BufferMut, CapturableDualAdam, ControlGroup, CudaError, DualAdam, RawLr, RawScalars, Scalars,
};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, RawBuffer, RawTensor, SkipReason, State, SwitchSchedule, TensorSpec, cpu};

use std::sync::Arc;

use crate::common::data::{Inputs, narrow};

use super::Body;
use super::control::{Run, SIZES, report, scalar, step, switching};
use super::gpu::Gpu;

pub(crate) const TESTS: &[Body] = bodies!["graphs":
    a_graph_launched_again_and_again_equals_the_ordinary_run,
    a_graph_keeps_its_tensors_whatever_changes_later,
    a_step_is_captured_while_another_stream_works,
    two_graphs_run_on_two_streams,
    a_graph_may_outlive_what_it_captured,
    a_captured_list_without_control_may_be_dropped,
    what_the_host_must_do_is_refused_in_a_capture,
    an_optimizer_captured_once_has_the_bits_and_files_of_the_cpu,
    a_graph_may_have_several_steps,
    masters_are_set_once_each,
    foreign_moments_and_steps_reach_the_device,
    device_control_begins_where_the_host_was,
    a_graph_may_outlive_the_optimizer,
    controlled_optimizers_only_launch,
    scalars_must_be_one_element_of_the_context,
    nothing_to_update_is_nothing_to_launch,
];

pub(crate) fn capture(stream: &Arc<CudaStream>, mode: CUstreamCaptureMode, work: impl FnOnce()) -> CudaGraph {
    stream.begin_capture(mode).unwrap();
    work();
    stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap()
}

pub(crate) fn step_on(stream: &CudaStream, run: &mut Run, scalars: RawScalars) {
    // SAFETY: the stand-in checks each access.
    unsafe { run.list.step_controlled(&mut run.control, &scalars, stream.cu_stream().cast()) }.unwrap();
}

/// The very first step is captured; its launches go through the switch and through skipped steps, with new learning rates in the
/// caller's memory and in the control's.
fn a_graph_launched_again_and_again_equals_the_ordinary_run(gpu: &Gpu) {
    let [first, second] = switching();
    let lr = scalar(gpu, 0.5);
    let groups = [ControlGroup::new(first).with_lr(RawLr::F32(lr.address)), ControlGroup::new(second)];
    let mut run = Run::with_groups(gpu, &SIZES, &groups);
    let (found_inf, clip_factor) = (scalar(gpu, 0.0), scalar(gpu, 1.0));
    let scalars = RawScalars::default().with_found_inf(found_inf.address).with_clip_factor(clip_factor.address);
    let graph =
        capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || step(gpu, &mut run.list, &mut run.control, scalars));
    run.assert_same(gpu, "captured only");
    for round in 0..10_u8 {
        let is_skipped = [3, 4, 8].contains(&round);
        let lrs = [f32::from(round) * 0.125, 0.01];
        let multiplier = 1.0 / f32::from(round + 1);
        gpu.write(&found_inf, &(if is_skipped { f32::NAN } else { 0.0 }).to_ne_bytes());
        gpu.write(&clip_factor, &multiplier.to_ne_bytes());
        gpu.write(&lr, &lrs[0].to_ne_bytes());
        let second_lr = if round < 6 { f64::from(lrs[1]) } else { 0.25 };
        // SAFETY: the stream lives.
        unsafe { run.control.set_lr(1, second_lr, gpu.raw_stream()) }.unwrap();
        graph.launch().unwrap();
        if !is_skipped {
            run.expect(&[f64::from(lrs[0]), second_lr], multiplier.into(), |_| true);
        }
        run.assert_same(gpu, &format!("launch {round}"));
    }
    let all_skipped = report(gpu, &run.control).iter().all(|set| set.skipped == 3 && set.step == 7);
    assert!(all_skipped, "{:?}", report(gpu, &run.control));
    // An ordinary step after it goes on from there.
    gpu.write(&found_inf, &0_f32.to_ne_bytes());
    step(gpu, &mut run.list, &mut run.control, RawScalars::default());
    run.expect(&[1.125, 0.25], 1.0, |_| true);
    run.assert_same(gpu, "ordinary");
}

/// Which tensors have a gradient is the graph's own: neither later steps nor other captures change it.
fn a_graph_keeps_its_tensors_whatever_changes_later(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 40, 5, 17], &switching());
    let none = RawScalars::default();
    let all = run.raw();
    let mut some = all.clone();
    some[2].grad.address = 0;
    some[3].grad.address = 0;
    let capture_of = |tensors: &[RawTensor], run: &mut Run| {
        capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
            run.list.update(tensors).unwrap();
            step(gpu, &mut run.list, &mut run.control, none);
        })
    };
    let of_all = capture_of(&all, &mut run);
    let of_some = capture_of(&some, &mut run);
    run.assert_same(gpu, "captured only");
    let mut others = all.clone();
    others[0].grad.address = 0;
    others[1].grad.address = 0;
    for round in 0..3 {
        of_all.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |_| true);
        run.list.update(&others).unwrap();
        step(gpu, &mut run.list, &mut run.control, none);
        run.expect(&[1e-2; 2], 1.0, |tensor| tensor >= 2);
        of_some.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |tensor| tensor < 2);
        run.assert_same(gpu, &format!("round {round}"));
    }
}

fn a_step_is_captured_while_another_stream_works(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    for mode in [CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL] {
        let (mut captured, mut working) =
            (Run::new(gpu, &[300, 5], &switching()), Run::new(gpu, &[17, 4097], &switching()));
        let none = RawScalars::default();
        step_on(&other, &mut working, none);
        let graph = capture(&gpu.stream, mode, || {
            step_on(&other, &mut working, none);
            step_on(&gpu.stream, &mut captured, none);
            // SAFETY: the stream lives.
            unsafe { working.control.set_lr(0, 0.5, other.cu_stream().cast()) }.unwrap();
            step_on(&other, &mut working, none);
        });
        graph.launch().unwrap();
        step_on(&other, &mut working, none);
        graph.launch().unwrap();
        for round in 0..4 {
            working.expect(&[if round < 2 { 1e-2 } else { 0.5 }, 1e-2], 1.0, |_| true);
        }
        (0..2).for_each(|_| captured.expect(&[1e-2; 2], 1.0, |_| true));
        gpu.context.synchronize().unwrap();
        captured.assert_same(gpu, "captured");
        working.assert_same(gpu, "at work");
    }
}

fn two_graphs_run_on_two_streams(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    let mut runs = [Run::new(gpu, &[300, 5, 4096], &switching()), Run::new(gpu, &[17, 4097], &switching())];
    let none = RawScalars::default();
    let [one, two] = &mut runs;
    let graphs = [
        capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || step_on(&gpu.stream, one, none)),
        capture(&other, CU_STREAM_CAPTURE_MODE_GLOBAL, || step_on(&other, two, none)),
    ];
    for _ in 0..6 {
        graphs.iter().for_each(|graph| graph.launch().unwrap());
        runs.iter_mut().for_each(|run| run.expect(&[1e-2; 2], 1.0, |_| true));
    }
    gpu.context.synchronize().unwrap();
    runs.iter().for_each(|run| run.assert_same(gpu, "both"));
}

/// List and control are gone; the graph that captured them works on.
fn a_graph_may_outlive_what_it_captured(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5, 4096], &switching());
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        step_on(&gpu.stream, &mut run, RawScalars::default());
    });
    // In their place one that no graph knows.
    let fresh = Run::new(gpu, &[1], &switching());
    (run.list, run.control) = (fresh.list, fresh.control);
    for _ in 0..6 {
        graph.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |_| true);
    }
    run.assert_same_tensors(gpu, "after the end");
}

/// Ordinary steps of a list that were captured: the list may be dropped as well.
fn a_captured_list_without_control_may_be_dropped(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let mut run = Run::new(gpu, &[300, 5], &[config]);
    let coeffs = config.coeffs(1).unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        // SAFETY: the stand-in checks each access.
        unsafe { run.list.step_raw(&[coeffs], gpu.raw_stream()) }.unwrap();
    });
    run.list = Run::new(gpu, &[1], &[config]).list;
    graph.launch().unwrap();
    run.expect(&[config.lr], 1.0, |_| true);
    run.assert_same_tensors(gpu, "after the end");
}

/// What the host would have to do again for each launch, or would have to wait for, cannot be captured; the capture goes on.
fn what_the_host_must_do_is_refused_in_a_capture(gpu: &Gpu) {
    let context = gpu.other_context();
    let mut run = Run::new(gpu, &[300, 5, 17, 1], &switching());
    let none = RawScalars::default();
    let refused =
        |result: Result<(), CudaError>| assert!(matches!(result, Err(CudaError::Captured { .. })), "{result:?}");
    let stream = gpu.raw_stream();
    let mut optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[4]).unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, || {
        // SAFETY: the stream lives, and the stand-in checks each access.
        unsafe {
            refused(run.control.set_lr(0, 0.1, stream));
            refused(run.control.set_config(0, DualAdamConfig::default(), stream));
            refused(run.control.set_steps(&[1, 2], stream));
            refused(run.control.steps(stream).map(|_| ()));
            refused(run.control.report(stream).map(|_| ()));
        }
        refused(optimizer.state().map(|_| ()));
        refused(optimizer.set_moments(0, 1, &[0.0; 4], &[0.0; 4]));
        refused(optimizer.into_capturable().map(|_| ()));
    });
    drop(graph);
    let mut run = Run::new(gpu, &[300, 5, 17, 1], &switching());
    // A capture begun in another context.
    let other = context.new_stream().unwrap();
    let graph = other.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    graph.unwrap();
    // SAFETY: refused before anything is launched.
    let step = unsafe { run.list.step_controlled(&mut run.control, &none, other.cu_stream().cast()) };
    assert!(matches!(step, Err(CudaError::Context { argument: "stream" })), "{step:?}");
    let _ = other.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap();
    gpu.context.bind_to_thread().unwrap();
    // Nothing of all that had an effect.
    step_on(&gpu.stream, &mut run, none);
    run.expect(&[1e-2; 2], 1.0, |_| true);
    run.assert_same(gpu, "afterwards");
}

/// f32; bf16 and f16 with masters, in another group, the first of them longer than its masters' blocks have threads; bf16 alone.
const LENS: [usize; 4] = [300, 4170, 19, 5];

fn layout() -> [TensorSpec; 4] {
    let [a, b, c, d] = LENS.map(TensorSpec::new);
    [a, b.in_group(1).with_master(), c.in_group(1).with_master(), d]
}

fn groups() -> [DualAdamConfig; 2] {
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(3));
    [config, config.with_schedule(SwitchSchedule::Fixed { switching_step: 2 })]
}

/// A model on host and device, and the CPU's optimizer.
struct Model {
    a: Vec<f32>,
    b: Vec<bf16>,
    c: Vec<f16>,
    d: Vec<bf16>,
    device: (CudaSlice<f32>, CudaSlice<bf16>, CudaSlice<f16>, CudaSlice<bf16>),
    grads: [Vec<f32>; 4],
    device_grads: [CudaSlice<f32>; 4],
    found_inf: CudaSlice<f32>,
    loss_scale: CudaSlice<f32>,
    cpu: cpu::DualAdam,
}

type Lists<'a> = ([BufferMut<'a>; 4], [Option<Buffer<'a>>; 4], Scalars<'a>);

/// Both optimizers.
pub(crate) trait Optimizer {
    fn state(&self) -> Result<State, CudaError>;
    fn step_of(&self, tensor: usize) -> u64;
    /// A step without multiplier and scalars.
    ///
    /// # Safety
    ///
    /// As for the optimizer's own.
    unsafe fn step_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError>;
}

impl Optimizer for DualAdam {
    fn state(&self) -> Result<State, CudaError> {
        self.state()
    }

    fn step_of(&self, tensor: usize) -> u64 {
        self.step_of(tensor).unwrap()
    }

    unsafe fn step_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError> {
        // SAFETY: the requirements are the same.
        unsafe { self.step_raw(params, grads, 1.0) }
    }
}

impl Optimizer for CapturableDualAdam {
    fn state(&self) -> Result<State, CudaError> {
        self.state()
    }

    fn step_of(&self, tensor: usize) -> u64 {
        self.step_of(tensor).unwrap()
    }

    unsafe fn step_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError> {
        // SAFETY: the requirements are the same.
        unsafe { self.step_raw(params, grads, &RawScalars::default()) }
    }
}

impl Model {
    fn new(gpu: &Gpu) -> Self {
        let [a, b, c, d] = LENS.map(|len| Inputs::random(len as u64, len).p);
        let (b, c, d) = (narrow::<bf16>(&b), narrow::<f16>(&c), narrow::<bf16>(&d));
        let grads = LENS.map(|len| Inputs::random(1000 + len as u64, len).grad);
        let stream = &gpu.stream;
        let device = (
            stream.clone_htod(&a).unwrap(),
            stream.clone_htod(&b).unwrap(),
            stream.clone_htod(&c).unwrap(),
            stream.clone_htod(&d).unwrap(),
        );
        let model = Self {
            device,
            device_grads: grads.each_ref().map(|grads| stream.clone_htod(grads).unwrap()),
            found_inf: stream.clone_htod(&[0.0_f32]).unwrap(),
            loss_scale: stream.clone_htod(&[4.0_f32]).unwrap(),
            cpu: cpu::DualAdam::with_groups(&groups(), &layout()).unwrap(),
            a,
            b,
            c,
            d,
            grads,
        };
        gpu.context.synchronize().unwrap();
        model
    }

    /// Parameters, gradients but for those that are missing, and scalars on the device.
    fn lists(&mut self, missing: Option<usize>) -> Lists<'_> {
        let (a, b, c, d) = &mut self.device;
        let mut tensors = 0..;
        let grads = self.device_grads.each_ref().map(|grads| (tensors.next() != missing).then_some(grads.into()));
        let scalars = Scalars::default().with_found_inf(self.found_inf.as_view());
        let scalars = scalars.with_loss_scale(self.loss_scale.as_view());
        ([a.into(), b.into(), c.into(), d.into()], grads, scalars)
    }

    fn set_found_inf(&mut self, gpu: &Gpu, value: f32) {
        gpu.stream.memcpy_htod(&[value], &mut self.found_inf).unwrap();
        gpu.context.synchronize().unwrap();
    }

    /// The step on the CPU, with the multiplier that the loss scale makes.
    fn expect(&mut self, missing: Option<usize>) {
        let mut tensors = 0..;
        let grads: [Option<cpu::Buffer<'_>>; 4] =
            self.grads.each_ref().map(|grads| (tensors.next() != missing).then_some(grads.into()));
        let Self { a, b, c, d, cpu, .. } = self;
        cpu.step_scaled([a.into(), b.into(), c.into(), d.into()], grads, 0.25).unwrap();
    }

    fn assert_same(&self, gpu: &Gpu, optimizer: &impl Optimizer, what: &str) {
        let (found, expected) = (optimizer.state().unwrap(), self.cpu.state());
        assert_eq!(found.ledger, expected.ledger, "{what}");
        for (i, (found, expected)) in found.arrays.iter().zip(&expected.arrays).enumerate() {
            // Masters that were never set may be anything.
            assert!(found == expected, "{what}, tensor {i}");
            assert_eq!(optimizer.step_of(i), self.cpu.step_of(i).unwrap());
        }
        self.assert_same_params(gpu, what);
    }

    fn assert_same_params(&self, gpu: &Gpu, what: &str) {
        let (a, b, c, d) = &self.device;
        assert!(gpu.stream.clone_dtoh(a).unwrap() == self.a, "{what}");
        assert!(gpu.stream.clone_dtoh(b).unwrap() == self.b, "{what}");
        assert!(gpu.stream.clone_dtoh(c).unwrap() == self.c, "{what}");
        assert!(gpu.stream.clone_dtoh(d).unwrap() == self.d, "{what}");
    }
}

fn optimizer(gpu: &Gpu) -> CapturableDualAdam {
    let made = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &groups(), &layout()).unwrap();
    made.into_capturable().unwrap()
}

/// The first update of tensors with masters is captured, and skipped at first; launches go through the switch; the state goes to the
/// CPU and back.
fn an_optimizer_captured_once_has_the_bits_and_files_of_the_cpu(gpu: &Gpu) {
    let folder = tempfile::tempdir().unwrap();
    let (from_cpu, from_device) = (folder.path().join("cpu"), folder.path().join("device"));
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let (params, grads, _) = model.lists(None);
    optimizer.prepare(params, grads).unwrap();
    gpu.context.synchronize().unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, || {
        let (params, grads, scalars) = model.lists(None);
        optimizer.step(params, grads, &scalars).unwrap();
    });
    model.assert_same(gpu, &optimizer, "captured only");
    for round in 0..6 {
        let is_skipped = round == 0 || round == 4;
        model.set_found_inf(gpu, f32::from(u8::from(is_skipped)));
        let lr = 1e-2 * f64::from(round + 1);
        optimizer.set_lr(0, lr).unwrap();
        model.cpu.set_lr(0, lr).unwrap();
        if round == 2 {
            let config = groups()[1].with_betas(0.8, 0.99);
            optimizer.set_config(1, config).unwrap();
            model.cpu.set_config(1, config).unwrap();
        }
        graph.launch().unwrap();
        if !is_skipped {
            model.expect(None);
        }
        model.assert_same(gpu, &optimizer, &format!("launch {round}"));
        let skipped = u64::from(round >= 4) + 1;
        let report = optimizer.report().unwrap();
        assert!(report.iter().all(|set| set.skipped == skipped && set.last_skip == Some(SkipReason::FoundInf)));
    }
    optimizer.save(&from_device).unwrap();
    model.cpu.save(&from_cpu).unwrap();
    assert_eq!(std::fs::read(&from_cpu).unwrap(), std::fs::read(&from_device).unwrap());

    // Onwards on the device from the CPU's file, without a graph and with a gradient missing, and on the CPU from the device's.
    optimizer.load(&from_cpu).unwrap();
    model.cpu.load(&from_device).unwrap();
    model.set_found_inf(gpu, 0.0);
    for round in 0..3 {
        let missing = (round > 0).then_some(round);
        let (params, grads, scalars) = model.lists(missing);
        optimizer.step(params, grads, &scalars).unwrap();
        model.expect(missing);
        model.assert_same(gpu, &optimizer, &format!("resumed, round {round}"));
    }
    // And without device control again.
    let state = optimizer.state().unwrap();
    assert_eq!(state, *model.cpu.state());
    let mut plain = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap();
    let (params, grads, _) = model.lists(None);
    plain.step_scaled(params, grads, 0.25).unwrap();
    model.expect(None);
    model.assert_same(gpu, &plain, "without control");
}

/// Two steps in one graph: what the first one notes on the device, of masters too, the second one finds.
fn a_graph_may_have_several_steps(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let (params, grads, _) = model.lists(None);
    optimizer.prepare(params, grads).unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, || {
        for _ in 0..2 {
            let (params, grads, scalars) = model.lists(None);
            optimizer.step(params, grads, &scalars).unwrap();
        }
    });
    for round in 0..3 {
        model.set_found_inf(gpu, f32::from(u8::from(round == 0)));
        graph.launch().unwrap();
        if round > 0 {
            (0..2).for_each(|_| model.expect(None));
        }
        model.assert_same(gpu, &optimizer, &format!("launch {round}"));
    }
    assert!(optimizer.report().unwrap().iter().all(|set| (set.step, set.skipped) == (4, 2)));
}

/// Masters are set before a tensor's own first update, whenever that is, and never again.
fn masters_are_set_once_each(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    for (round, missing) in [Some(1), Some(2), None, Some(1), None].into_iter().enumerate() {
        model.set_found_inf(gpu, f32::from(u8::from(round == 1)));
        let (params, grads, scalars) = model.lists(missing);
        optimizer.step(params, grads, &scalars).unwrap();
        if round != 1 {
            model.expect(missing);
        }
        // The host learns of the masters only here and there.
        if round % 2 == 1 {
            model.assert_same(gpu, &optimizer, &format!("round {round}"));
        }
    }
    model.assert_same(gpu, &optimizer, "at the end");
    if let Some(stand_in) = &gpu.stand_in {
        // Each step is one launch that prepares the sets, and one for each combination of types.
        let launches = stand_in.launches();
        assert_eq!(launches.len(), 5 * (1 + 4));
        assert!(
            launches.iter().all(|launch| launch.0 == "prepare_sets" || launch.0.starts_with("list_")),
            "{launches:?}"
        );
    }
}

/// Moments and counters from elsewhere, and masters that are still to be set.
fn foreign_moments_and_steps_reach_the_device(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let moments = Inputs::random(5, LENS[1]);
    optimizer.set_moments(1, 41, &moments.m, &moments.v).unwrap();
    model.cpu.set_moments(1, 41, &moments.m, &moments.v).unwrap();
    for round in 0..2 {
        let (params, grads, scalars) = model.lists(None);
        optimizer.step(params, grads, &scalars).unwrap();
        model.expect(None);
        model.assert_same(gpu, &optimizer, &format!("round {round}"));
    }
}

/// An optimizer that was on its way moves its counters to the device.
fn device_control_begins_where_the_host_was(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &groups(), &layout()).unwrap();
    for missing in [None, Some(2)] {
        let (params, grads, _) = model.lists(missing);
        optimizer.step_scaled(params, grads, 0.25).unwrap();
        model.expect(missing);
    }
    let mut optimizer = optimizer.into_capturable().unwrap();
    model.assert_same(gpu, &optimizer, "before");
    for missing in [None, Some(3)] {
        let (params, grads, scalars) = model.lists(missing);
        optimizer.step(params, grads, &scalars).unwrap();
        model.expect(missing);
    }
    model.assert_same(gpu, &optimizer, "after");
}

/// The first step needs memory, so it cannot be captured unprepared; what was captured outlives the optimizer.
fn a_graph_may_outlive_the_optimizer(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, || {
        let (params, grads, scalars) = model.lists(None);
        let step = optimizer.step(params, grads, &scalars);
        assert!(matches!(step, Err(CudaError::Captured { .. })), "{step:?}");
    });
    drop(graph);
    let (params, grads, _) = model.lists(None);
    optimizer.prepare(params, grads).unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, || {
        let (params, grads, scalars) = model.lists(None);
        optimizer.step(params, grads, &scalars).unwrap();
        assert!(matches!(optimizer.step_of(0), Err(CudaError::Captured { .. })));
        assert!(matches!(optimizer.report(), Err(CudaError::Captured { .. })));
        assert!(matches!(optimizer.set_lr(0, 0.1), Err(CudaError::Captured { .. })));
    });
    assert_eq!(optimizer.config(0).unwrap(), groups()[0]);
    drop(optimizer);
    for _ in 0..4 {
        graph.launch().unwrap();
        model.expect(None);
    }
    gpu.context.synchronize().unwrap();
    model.assert_same_params(gpu, "after the end");
}

/// After the first step with the same buffers nothing but launches, not even a wait.
fn controlled_optimizers_only_launch(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let mut step = |model: &mut Model| {
        let (params, grads, scalars) = model.lists(None);
        optimizer.step(params, grads, &scalars).unwrap();
        model.expect(None);
    };
    step(&mut model);
    let expected = [
        ("cuCtxGetCurrent", 2),
        ("cuEventRecord", 1),
        ("cuLaunchKernel", 5),
        ("cuStreamGetCtx", 1),
        ("cuStreamIsCapturing", 1),
        ("cuThreadExchangeStreamCaptureMode", 4),
    ];
    gpu.calling_only(&expected, || step(&mut model));
    model.assert_same(gpu, &optimizer, "late");
}

fn scalars_must_be_one_element_of_the_context(gpu: &Gpu) {
    let context = gpu.other_context();
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu);
    let pair = gpu.stream.alloc_zeros::<f32>(2).unwrap();
    let other = context.new_stream().unwrap();
    let foreign = other.alloc_zeros::<f32>(1).unwrap();
    let (params, grads, _) = model.lists(None);
    let scalars = Scalars::default().with_loss_scale(pair.as_view());
    let step = optimizer.step(params, grads, &scalars);
    let expected = "loss_scale must have 1 entries, got 2";
    assert_eq!(step.unwrap_err().to_string(), expected);
    let scalars = Scalars::default().with_found_inf(foreign.as_view());
    let (params, grads, _) = model.lists(None);
    let step = optimizer.step(params, grads, &scalars);
    assert!(matches!(step, Err(CudaError::Context { argument: "found_inf" })), "{step:?}");
    gpu.context.bind_to_thread().unwrap();
    model.assert_same(gpu, &optimizer, "nothing happened");
}

/// Steps of an optimizer with no tensor, or of tensors that all lack a gradient, are no steps.
fn nothing_to_update_is_nothing_to_launch(gpu: &Gpu) {
    let optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[]).unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    optimizer.step([], [], &Scalars::default()).unwrap();
    assert_eq!(optimizer.state().unwrap(), State::new(&[DualAdamConfig::default()], &[]).unwrap());
    assert!(optimizer.report().unwrap().is_empty());
    let optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[4]).unwrap();
    let mut optimizer = optimizer.into_capturable().unwrap();
    let params = [RawBuffer::f32(0x1000)];
    // SAFETY: nothing is launched.
    unsafe { optimizer.step_raw(&params, &[None], &RawScalars::default()) }.unwrap();
    assert_eq!(optimizer.step_of(0).unwrap(), 0);
    gpu.assert_nothing_launched();
}
