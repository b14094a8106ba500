//! The owning optimizer against the CPU's.

use dualadam::cuda::{CapturableDualAdam, DualAdam, Kernels, TensorList};
use dualadam::half::bf16;
use dualadam::{Dtype, DualAdamConfig, State, SwitchSchedule, TensorSpec, WeightDecay, cpu};
use testkit::data::{Inputs, narrow};
use testkit::values::Values;

use super::flat::{copied, read, upload};
use super::{Body, Gpu, Models, THREAD_LOCAL, capture, refused};

pub(crate) const TESTS: &[Body] = bodies!["owner":
    a_run_has_the_bits_of_the_cpu_across_backends,
    schedulers_and_foreign_moments_work_as_on_the_cpu,
    steps_over_the_same_buffers_only_launch,
    steps_after_the_first_can_be_captured,
    a_step_that_would_set_masters_cannot_be_captured,
    masters_are_widened_exactly,
    steps_are_ordered_with_the_buffers_streams,
    what_is_owned_can_move_to_another_thread,
];

fn groups() -> [DualAdamConfig; 2] {
    let schedule = SwitchSchedule::linear_until(4);
    let decayed = DualAdamConfig::default().with_lr(1e-2).with_weight_decay(WeightDecay::Decoupled(0.1));
    [decayed.with_schedule(schedule), DualAdamConfig::adam().with_lr(1e-3)]
}

/// f32 alone, empty, bf16 alone, bf16 with masters, f16 with masters.
pub(crate) fn models(gpu: &Gpu) -> Models {
    let specs = [
        ("f32_f32", 5000, 0),
        ("f32_f32", 0, 0),
        ("bf16_bf16", 33, 1),
        ("bf16_f32_master", 1030, 0),
        ("f16_f32_master", 7, 1),
    ];
    Models::new(&gpu.stream, &groups(), &specs).with_multiplier(0.5)
}

/// Ten steps through the switch, with gradients missing here and there, saved and resumed on the
/// other backend in between.
fn a_run_has_the_bits_of_the_cpu_across_backends(gpu: &Gpu) {
    let folder = tempfile::tempdir().unwrap();
    let (from_cpu, from_device) = (folder.path().join("cpu"), folder.path().join("device"));
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    for round in 0..10 {
        models.set_grads(round);
        models.step(&mut optimizer, |tensor| round != 3 && (tensor as u64 + round).is_multiple_of(4));
        models.assert_same(&optimizer, &format!("round {round}"));
        if round == 5 {
            models.cpu.save(&from_cpu).unwrap();
            optimizer.save(&from_device).unwrap();
            assert_eq!(std::fs::read(&from_cpu).unwrap(), std::fs::read(&from_device).unwrap());
            let mut resumed = models.optimizer(&gpu.kernels);
            resumed.load(&from_cpu).unwrap();
            optimizer = resumed;
            models.cpu.load(&from_device).unwrap();
        }
        if round == 7 {
            let state = State::load(&from_cpu).unwrap();
            assert_eq!(DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap().state().unwrap(), state);
        }
    }
    assert!(optimizer.step_of(0).unwrap() > 5 && optimizer.step_of(0).unwrap() < 10);
}

fn schedulers_and_foreign_moments_work_as_on_the_cpu(gpu: &Gpu) {
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    let moments = Inputs::random(5, 1030);
    optimizer.set_moments(3, 41, &moments.m, &moments.v).unwrap();
    models.cpu.set_moments(3, 41, &moments.m, &moments.v).unwrap();
    for round in 0..4 {
        for group in 0..2 {
            let config = optimizer.config(group).unwrap().with_lr(0.01 * round as f64).with_betas(0.8, 0.99);
            optimizer.set_config(group, config).unwrap();
            models.cpu.set_config(group, config).unwrap();
        }
        optimizer.set_lr(1, 0.5).unwrap();
        models.cpu.set_lr(1, 0.5).unwrap();
        models.set_grads(round);
        models.step(&mut optimizer, |tensor| tensor == 4 && round < 2);
    }
    models.assert_same(&optimizer, "after four rounds");
}

/// After the first step, a step with the same buffers only launches: it allocates nothing and waits
/// for nothing.
fn steps_over_the_same_buffers_only_launch(gpu: &Gpu) {
    let specs = [3000, 1, 100].map(|len| ("f32_f32", len, 0));
    let mut models = Models::new(&gpu.stream, &[DualAdamConfig::default()], &specs);
    let mut optimizer = models.optimizer(&gpu.kernels);
    let mut step = || models.launch(&mut optimizer, |_| false).unwrap();
    (0..3).for_each(|_| step());
    // The context is current already, so the step only asks which one is.
    gpu.launching_only([2, 1, 1, 1, 1, 4], step);
    assert_eq!(optimizer.step_of(2).unwrap(), 4);
}

/// Work that an optimizer does only once cannot become part of a graph. Its other steps can.
fn steps_after_the_first_can_be_captured(gpu: &Gpu) {
    let mut models = Models::new(&gpu.stream, &[DualAdamConfig::default()], &[("bf16_f32_master", 40, 0)]);
    let mut optimizer = models.optimizer(&gpu.kernels);
    let mut step = || models.launch(&mut optimizer, |_| false);
    drop(capture(&gpu.stream, THREAD_LOCAL, || refused::captured(step())));
    step().unwrap();
    let graph = capture(&gpu.stream, THREAD_LOCAL, || step().unwrap());
    graph.launch().unwrap();
    drop(graph);
    (0..2).for_each(|_| models.expect(|_| false));
    models.assert_same(&optimizer, "replayed");
}

/// A graph would set the masters in each launch.
fn a_step_that_would_set_masters_cannot_be_captured(gpu: &Gpu) {
    let mut models = Models::new(&gpu.stream, &[DualAdamConfig::default()], &[("bf16_bf16_master", 40, 0); 2]);
    let mut optimizer = models.optimizer(&gpu.kernels);
    // After this the list exists, but tensor 1 has had no update.
    models.step(&mut optimizer, |tensor| tensor == 1);
    let mut step = || models.launch(&mut optimizer, |_| false);
    drop(capture(&gpu.stream, THREAD_LOCAL, || {
        let error = step().unwrap_err();
        assert!(error.to_string().contains("the first update of a tensor with masters"), "{error}");
        refused::captured(Err::<(), _>(error));
    }));
    step().unwrap();
    models.expect(|_| false);
    models.assert_same(&optimizer, "not captured");
}

/// Masters are the exact values of their parameters, for every bit pattern.
fn masters_are_widened_exactly(gpu: &Gpu) {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let lr_0 = DualAdamConfig::default().with_lr(0.0);
    let specs = ["bf16_f32_master", "f16_f32_master"].map(|name| (name, all.len(), 0));
    let mut models = Models::new(&gpu.stream, &[lr_0], &specs);
    models.set_still([Dtype::Bf16, Dtype::F16].map(|dtype| Values::from_bits(dtype, &all)));
    let mut optimizer = models.optimizer(&gpu.kernels);
    models.launch(&mut optimizer, |_| false).unwrap();
    for (found, params) in optimizer.state().unwrap().arrays.iter().zip(&models.host.params) {
        for (a, b) in found.master.iter().flatten().zip(params.wide()) {
            // A step may change the bits of a NaN, even with lr 0.
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{a:e} {b:e}");
        }
    }
}

/// Each buffer is of a stream of its own, which only cudarc's events order with the optimizer's
/// stream.
fn steps_are_ordered_with_the_buffers_streams(gpu: &Gpu) {
    // SAFETY: nothing was allocated while event tracking was off.
    unsafe { gpu.context.enable_event_tracking() };
    let specs = [TensorSpec::new(300), TensorSpec::new(40).with_master()];
    let mut optimizer = gpu.optimizer(&specs).unwrap();
    let mut on_cpu = cpu::DualAdam::with_groups(&[DualAdamConfig::default()], &specs).unwrap();
    let (mut p, mut q) = (Inputs::random(1, 300).p, narrow::<bf16>(&Inputs::random(2, 40).p));
    let (mut device_p, mut device_q) = (upload(&gpu.context, &p), upload(&gpu.context, &q));
    for round in 0..3 {
        let grads = [300, 40].map(|len| Inputs::random(10 + round, len).grad);
        let mut device_grads = grads.each_ref().map(|grads| upload(&gpu.context, grads));
        let given = device_grads.each_ref().map(|grads| Some(grads.into()));
        optimizer.step([(&mut device_p).into(), (&mut device_q).into()], given).unwrap();
        for grads in &mut device_grads {
            grads.stream().clone().memset_zeros(grads).unwrap();
        }
        let found = (copied(&device_p), copied(&device_q));
        let given = grads.each_ref().map(|grads| Some(grads.into()));
        on_cpu.step([(&mut p).into(), (&mut q).into()], given).unwrap();
        assert_eq!((read(&found.0), read(&found.1)), (p.clone(), q.clone()), "round {round}");
    }
}

fn what_is_owned_can_move_to_another_thread(_: &Gpu) {
    fn check<T: Send + Sync>() {}
    check::<Kernels>();
    check::<TensorList>();
    check::<DualAdam>();
    check::<CapturableDualAdam>();
}
