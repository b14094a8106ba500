//! Controlled steps: coefficients, counters, and skipped steps.

use std::fmt::Display;
use std::sync::Arc;

use dualadam::cuda::cudarc::driver::{CudaGraph, CudaStream};
use dualadam::cuda::{Control, ControlGroup, ControlSet, CudaError, Kernels, RawLr, RawScalars, SetReport, TensorList};
use dualadam::{
    DualAdamConfig, InverseTerm, RawBuffer, RawTensor, SkipReason, Steering, StepCoeffs, SwitchSchedule, TensorSpec,
    WeightDecay,
};
use testkit::data::{SPECIAL, configs, steering};
use testkit::laws::{self, by_cpu};
use testkit::{Inputs, Tensor, formats};

use super::refused::refused;
use super::{Body, GLOBAL, Gpu, Memory, Twin, capture, refused, twin};

pub(crate) const TESTS: &[Body] = bodies!["control":
    coefficients_of_a_hundred_thousand_steps_have_the_bits_of_the_host,
    coefficients_of_huge_steps_have_the_bits_of_the_host,
    schedules_of_many_rates_switch_at_the_steps_of_the_host,
    loss_scale_clip_factor_and_found_inf_are_read_and_judged_on_the_device,
    learning_rates_in_the_callers_memory_are_judged_on_the_device,
    of_several_reasons_the_first_is_reported,
    a_controlled_run_has_the_bits_of_the_cpu,
    what_the_callers_check_finds_skips_the_step,
    counters_in_the_callers_memory_are_advanced,
    counters_stay_where_nothing_is_updated,
    controlled_steps_only_launch,
    learning_rates_are_set_in_the_order_of_the_stream,
    controls_refuse_bad_input,
    controlled_steps_refuse_what_does_not_belong_together,
    capturable_optimizers_refuse_bad_input,
    special_values_have_the_bits_of_the_cpu,
];

/// A tensor without elements, whose gradient is not missing.
fn empty(set: usize) -> RawTensor {
    Tensor::new(formats("f32_f32"), &Inputs::random(0, 0)).with_set(set).raw_at([4; 5])
}

/// A list of this many empty tensors, each with a set of its own.
fn empty_list(gpu: &Gpu, count: usize) -> TensorList {
    TensorList::new(&gpu.kernels, &(0..count).map(empty).collect::<Vec<_>>()).unwrap()
}

fn group(config: DualAdamConfig) -> ControlGroup {
    ControlGroup::new(config)
}

fn set(group: usize) -> ControlSet {
    ControlSet::new(group)
}

fn control(gpu: &Gpu, groups: &[ControlGroup], sets: &[ControlSet]) -> Control {
    Control::new(&gpu.kernels, groups, sets).unwrap()
}

pub(crate) fn try_step(
    stream: &CudaStream,
    list: &mut TensorList,
    control: &mut Control,
    scalars: RawScalars,
) -> Result<(), CudaError> {
    // SAFETY: the tensors that are not refused have buffers as long as they are; the stand-in
    // checks each access.
    unsafe { list.step_controlled(control, &scalars, stream.cu_stream().cast()) }
}

fn step(gpu: &Gpu, list: &mut TensorList, control: &mut Control, scalars: RawScalars) {
    try_step(&gpu.stream, list, control, scalars).unwrap();
}

pub(crate) fn report(gpu: &Gpu, control: &Control) -> Vec<SetReport> {
    // SAFETY: the stream lives.
    unsafe { control.report(gpu.raw_stream()) }.unwrap()
}

pub(crate) fn set_steps(gpu: &Gpu, control: &mut Control, steps: &[u64]) {
    // SAFETY: the stream lives.
    unsafe { control.set_steps(steps, gpu.raw_stream()) }.unwrap();
}

/// A set's report without the coefficients.
fn counts(report: &SetReport) -> (u64, u64, Option<SkipReason>) {
    (report.step, report.skipped, report.last_skip)
}

/// An f32 in device memory.
pub(crate) fn scalar(gpu: &Gpu, value: f32) -> Memory {
    gpu.memory(&value.to_ne_bytes())
}

#[track_caller]
fn assert_same_bits(found: &SetReport, expected: &StepCoeffs, what: impl Display) {
    assert!(bytemuck::bytes_of(&found.coeffs) == bytemuck::bytes_of(expected), "{what}: {found:?} {expected:?}");
}

/// Every schedule and term, and hyperparameters at the ends of their ranges.
fn odd_configs() -> Vec<DualAdamConfig> {
    let config = DualAdamConfig::default();
    let scheduled = |schedule| config.with_schedule(schedule);
    let exponential = |base, period, cutoff| scheduled(SwitchSchedule::Exponential { base, period, cutoff });
    vec![
        config,
        DualAdamConfig::authors_code().with_weight_decay(WeightDecay::Decoupled(0.05)),
        scheduled(SwitchSchedule::linear_until(49)).with_betas(0.0, 0.0).with_maximize(true),
        scheduled(SwitchSchedule::linear_until(99_991)).with_betas(1.0 - f64::EPSILON / 2.0, 0.999_999_999),
        scheduled(SwitchSchedule::LinearEarlyDrop { switching_rate: 1.0 / 77_777.0 }).with_eps(1e-3),
        exponential(0.999, 1, 1e-9).with_weight_decay(WeightDecay::L2(0.1)),
        exponential(0.5, 997, 0.25).with_inverse_term(InverseTerm::WithEps).with_betas(0.95, 0.9999),
        exponential(1.0 - 1e-12, 3, 0.0).with_lr(0.0),
        scheduled(SwitchSchedule::Fixed { switching_step: 31_415 }).with_lr(1.234_567_890_123e-5),
        DualAdamConfig::inv_adam().with_weight_decay(WeightDecay::Decoupled(1e-3)).with_lr(3.0),
        DualAdamConfig::adamw(0.1).with_betas(0.1, 0.2).with_eps(1e-30),
    ]
}

/// Checks the coefficients of the steps after these, each as a set of its own, in one launch for
/// each config.
fn check_coeffs(gpu: &Gpu, configs: &[DualAdamConfig], before: &[u64]) {
    let mut list = empty_list(gpu, before.len());
    for config in configs {
        let mut control = control(gpu, &[group(*config)], &vec![set(0); before.len()]);
        set_steps(gpu, &mut control, before);
        step(gpu, &mut list, &mut control, RawScalars::default());
        for (t, found) in before.iter().map(|t| t + 1).zip(report(gpu, &control)) {
            assert_same_bits(&found, &config.coeffs(t).unwrap(), format_args!("{config:?}, step {t}"));
            assert_eq!(counts(&found), (t, 0, None));
        }
    }
}

fn coefficients_of_a_hundred_thousand_steps_have_the_bits_of_the_host(gpu: &Gpu) {
    check_coeffs(gpu, &odd_configs(), &(0..100_000).collect::<Vec<_>>());
}

fn coefficients_of_huge_steps_have_the_bits_of_the_host(gpu: &Gpu) {
    let near = |power: u32| (-2..3).map(move |off: i64| (1_u64 << power).wrapping_add_signed(off));
    let mut before: Vec<u64> = [24, 31, 32, 52, 53, 54, 62, 63].into_iter().flat_map(near).collect();
    before.extend([u64::MAX - 1024, u64::MAX - 1023, u64::MAX - 2, u64::MAX - 1]);
    let slow = DualAdamConfig::default().with_schedule(SwitchSchedule::Linear { switching_rate: 1e-18 });
    let exponential = SwitchSchedule::Exponential { base: 0.999_999, period: 1 << 40, cutoff: 1e-3 };
    let fixed = SwitchSchedule::Fixed { switching_step: 1 << 53 };
    check_coeffs(gpu, &[slow, slow.with_schedule(exponential), slow.with_schedule(fixed)], &before);
}

/// Around the step where α reaches 0, roundings decide: a fused or reordered operation would switch
/// at another step.
fn schedules_of_many_rates_switch_at_the_steps_of_the_host(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let linear = (1..3000).map(|k| (k, SwitchSchedule::linear_until(k)));
    let early = (1..3000).map(|k| (k, SwitchSchedule::LinearEarlyDrop { switching_rate: 1.0 / k as f64 }));
    let cases: Vec<_> = linear.chain(early).collect();
    let groups: Vec<_> = cases.iter().map(|&(_, schedule)| group(config.with_schedule(schedule))).collect();
    let near = [-1, 0, 1, 2];
    let sets: Vec<_> = (0..groups.len()).flat_map(|group| [set(group); 4]).collect();
    let before = cases.iter().flat_map(|&(k, _)| near.map(|off| (k + 1_u64).saturating_add_signed(off - 2)));
    let before: Vec<_> = before.collect();
    let mut control = control(gpu, &groups, &sets);
    let mut list = empty_list(gpu, sets.len());
    set_steps(gpu, &mut control, &before);
    step(gpu, &mut list, &mut control, RawScalars::default());
    for ((set, before), found) in sets.iter().zip(before).zip(report(gpu, &control)) {
        let config = groups[set.group].config;
        assert_same_bits(
            &found,
            &config.coeffs(before + 1).unwrap(),
            format_args!("{config:?}, step {before} and one"),
        );
    }
}

fn loss_scale_clip_factor_and_found_inf_are_read_and_judged_on_the_device(gpu: &Gpu) {
    let config = DualAdamConfig::default().with_maximize(true);
    let mut list = empty_list(gpu, 1);
    let mut control = control(gpu, &[group(config)], &[set(0)]);
    let memory = [0.0; 3].map(|value| scalar(gpu, value));
    let [loss_scale, clip_factor, found_inf] = memory.each_ref().map(|memory| memory.address);
    let none = RawScalars::default();
    let scalars = none.with_loss_scale(loss_scale).with_clip_factor(clip_factor).with_found_inf(found_inf);
    let (mut t, mut skipped, mut last) = (0, 0, None);
    let mut reasons = vec![];
    for values in steering() {
        memory.iter().zip(values).for_each(|(memory, value)| gpu.write(memory, &value.to_ne_bytes()));
        step(gpu, &mut list, &mut control, scalars);
        let [loss_scale, clip_factor, found_inf] = values;
        let steering = Steering::default().with_loss_scale(loss_scale).with_clip_factor(clip_factor);
        let multiplier = steering.with_found_inf(found_inf).multiplier();
        let found = report(gpu, &control)[0];
        match multiplier {
            Err(reason) => {
                (skipped, last) = (skipped + 1, Some(reason));
                reasons.push(reason);
            }
            Ok(multiplier) => {
                t += 1;
                assert_same_bits(&found, &config.coeffs_scaled(t, multiplier).unwrap(), format_args!("{values:?}"));
            }
        }
        assert_eq!(counts(&found), (t, skipped, last), "{values:?}");
    }
    use SkipReason::{ClipFactor, FoundInf, LossScale, Multiplier};
    for reason in [FoundInf, LossScale, ClipFactor, Multiplier] {
        assert!(reasons.contains(&reason), "{reason:?}");
    }
    // Each scalar may be missing.
    memory.iter().zip([8.0_f32, 0.5, 0.0]).for_each(|(memory, value)| gpu.write(memory, &value.to_ne_bytes()));
    for (scalars, multiplier) in [
        (none, 1.0),
        (none.with_loss_scale(loss_scale), 0.125),
        (none.with_clip_factor(clip_factor), 0.5),
        (none.with_found_inf(found_inf), 1.0),
        (scalars, 0.0625),
    ] {
        step(gpu, &mut list, &mut control, scalars);
        t += 1;
        let expected = config.coeffs_scaled(t, multiplier).unwrap();
        assert_same_bits(&report(gpu, &control)[0], &expected, format_args!("{scalars:?}"));
    }
}

fn learning_rates_in_the_callers_memory_are_judged_on_the_device(gpu: &Gpu) {
    let lrs: Vec<f64> =
        SPECIAL.iter().map(|&lr| f64::from(lr)).chain([1e-3, 0.1, 3e38, 1e300, 5e-324, 1e28, 2e29, 3.5e37]).collect();
    let configs = [
        DualAdamConfig::default(),
        DualAdamConfig::adamw(1e30).with_eps(1.0).with_lr(1e-10),
        DualAdamConfig::default().with_betas(1.0 - 1e-15, 0.9),
        DualAdamConfig::default().with_eps(1e30),
    ];
    let wide: Vec<_> = lrs.iter().map(|lr| gpu.memory(&lr.to_ne_bytes())).collect();
    let narrow: Vec<_> = lrs.iter().map(|&lr| scalar(gpu, lr as f32)).collect();
    for config in configs {
        let f64s = lrs.iter().zip(&wide).map(|(&lr, memory)| (lr, RawLr::F64(memory.address)));
        let f32s = lrs.iter().zip(&narrow).map(|(&lr, memory)| (f64::from(lr as f32), RawLr::F32(memory.address)));
        let cases: Vec<_> = f64s.chain(f32s).collect();
        let groups: Vec<_> = cases.iter().map(|&(_, lr)| group(config).with_lr(lr)).collect();
        let sets: Vec<_> = (0..groups.len()).map(set).collect();
        let mut control = control(gpu, &groups, &sets);
        step(gpu, &mut empty_list(gpu, sets.len()), &mut control, RawScalars::default());
        let mut skipped = 0;
        for (&(lr, _), found) in cases.iter().zip(report(gpu, &control)) {
            match config.with_lr(lr).coeffs(1) {
                Ok(expected) => {
                    assert_eq!((found.step, found.last_skip), (1, None), "{lr:e}, {config:?}");
                    assert_same_bits(&found, &expected, format_args!("{lr:e}"));
                }
                Err(_) => {
                    assert_eq!((found.step, found.last_skip), (0, Some(SkipReason::Lr)), "{lr:e}, {config:?}");
                    skipped += 1;
                }
            }
        }
        assert!(skipped > 8 && skipped < cases.len() - 8);
    }
}

/// All reasons to skip at once, and one less each time.
fn of_several_reasons_the_first_is_reported(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "f32_f32", 300);
    let mut list = gpu.list(std::slice::from_ref(&twin));
    let config = DualAdamConfig::default();
    let (lr, counter) = (gpu.memory(&f64::NAN.to_ne_bytes()), gpu.memory(&u64::MAX.to_ne_bytes()));
    let groups = [group(config).with_lr(RawLr::F64(lr.address))];
    let mut control = control(gpu, &groups, &[set(0).with_step(counter.address)]);
    let [loss_scale, clip_factor, found_inf] = [f32::NAN; 3].map(|value| scalar(gpu, value));
    let scalars = RawScalars::default().with_loss_scale(loss_scale.address);
    let scalars = scalars.with_clip_factor(clip_factor.address).with_found_inf(found_inf.address);
    use SkipReason::{ClipFactor, FoundInf, LossScale, Lr, Multiplier, Step};
    let (subnormal, full) = (f32::from_bits(1).to_ne_bytes(), u64::MAX);
    let ends = [
        (FoundInf, &found_inf, &0_f32.to_ne_bytes()[..]),
        (LossScale, &loss_scale, &subnormal),
        (ClipFactor, &clip_factor, &1_f32.to_ne_bytes()),
        (Multiplier, &loss_scale, &2_f32.to_ne_bytes()),
        (Lr, &lr, &0.25_f64.to_ne_bytes()),
        (Step, &counter, &(full - 1).to_ne_bytes()),
    ];
    for (skipped, (reason, memory, right)) in (1..).zip(ends) {
        step(gpu, &mut list, &mut control, scalars);
        let found = report(gpu, &control)[0];
        assert_eq!((counts(&found), found.coeffs), ((full, skipped, Some(reason)), bytemuck::Zeroable::zeroed()));
        twin.assert_same(gpu, "skipped");
        gpu.write(memory, right);
    }
    step(gpu, &mut list, &mut control, scalars);
    twin.expect(&[config.with_lr(0.25).coeffs_scaled(full, 0.5).unwrap()]);
    twin.assert_same(gpu, "made");
    // The report keeps the last reason, and the counter stays at its maximum.
    assert_eq!(counts(&report(gpu, &control)[0]), (full, 6, Some(Step)));
    step(gpu, &mut list, &mut control, scalars);
    twin.assert_same(gpu, "at the end");
    assert_eq!(report(gpu, &control)[0].skipped, 7);
}

/// Tensors of all variants on host and device, their list and their control.
pub(crate) struct Run {
    pub(crate) list: TensorList,
    pub(crate) control: Control,
    pub(crate) twins: Vec<Twin>,
    configs: Vec<DualAdamConfig>,
    pub(crate) steps: Vec<u64>,
}

impl Run {
    /// Every two tensors share a set, and the sets take the groups in turns.
    pub(crate) fn new(gpu: &Gpu, sizes: &[usize], configs: &[DualAdamConfig]) -> Self {
        let groups: Vec<_> = configs.iter().map(|&config| group(config)).collect();
        Self::with_groups(gpu, sizes, &groups)
    }

    pub(crate) fn with_groups(gpu: &Gpu, sizes: &[usize], groups: &[ControlGroup]) -> Self {
        let twins = Twin::all(gpu, laws::mixed(sizes, |i| i / 2));
        let sets: Vec<_> = (0..sizes.len().div_ceil(2)).map(|i| set(i % groups.len())).collect();
        let configs = groups.iter().map(|group| group.config).collect();
        let (list, control) = (gpu.list(&twins), control(gpu, groups, &sets));
        Self { list, control, twins, configs, steps: vec![0; sets.len()] }
    }

    pub(crate) fn raw(&self) -> Vec<RawTensor> {
        twin::raw(&self.twins)
    }

    /// Takes the gradients of some tensors out of the list.
    pub(crate) fn leave_out(&mut self, is_left_out: impl Fn(usize) -> bool) -> Result<(), CudaError> {
        let mut raw = self.raw();
        raw.iter_mut().enumerate().filter(|(i, _)| is_left_out(*i)).for_each(|(_, raw)| raw.grad.address = 0);
        Ok(self.list.update(&raw)?)
    }

    pub(crate) fn try_launch(&mut self, stream: &CudaStream, scalars: RawScalars) -> Result<(), CudaError> {
        try_step(stream, &mut self.list, &mut self.control, scalars)
    }

    /// A step on a stream.
    pub(crate) fn launch(&mut self, stream: &CudaStream) {
        self.try_launch(stream, RawScalars::default()).unwrap();
    }

    /// A step in a graph.
    pub(crate) fn capture(&mut self, stream: &Arc<CudaStream>) -> CudaGraph {
        capture(stream, GLOBAL, || self.launch(stream))
    }

    /// A step on the device and on the CPU.
    pub(crate) fn step(&mut self, gpu: &Gpu) {
        self.launch(&gpu.stream);
        self.expect_all();
    }

    pub(crate) fn set_lr(&mut self, gpu: &Gpu, group: usize, lr: f64) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        unsafe { self.control.set_lr(group, lr, gpu.raw_stream()) }
    }

    /// Steps the tensors that have a gradient on the CPU, with these learning rates of the groups.
    pub(crate) fn expect(&mut self, lrs: &[f64], multiplier: f64, has_gradient: impl Fn(usize) -> bool) {
        let mut sets: Vec<StepCoeffs> = vec![bytemuck::Zeroable::zeroed(); self.steps.len()];
        for (set, coeffs) in sets.iter_mut().enumerate() {
            if has_gradient(2 * set) || has_gradient(2 * set + 1) {
                self.steps[set] += 1;
                let group = set % self.configs.len();
                *coeffs = self.configs[group].with_lr(lrs[group]).coeffs_scaled(self.steps[set], multiplier).unwrap();
            }
        }
        self.twins.iter_mut().enumerate().filter(|(i, _)| has_gradient(*i)).for_each(|(_, twin)| twin.expect(&sets));
    }

    /// The same with the groups' own learning rates.
    pub(crate) fn expect_of(&mut self, has_gradient: impl Fn(usize) -> bool) {
        let lrs: Vec<_> = self.configs.iter().map(|config| config.lr).collect();
        self.expect(&lrs, 1.0, has_gradient);
    }

    pub(crate) fn expect_all(&mut self) {
        self.expect_of(|_| true);
    }

    #[track_caller]
    pub(crate) fn assert_same(&self, gpu: &Gpu, what: &str) {
        self.assert_same_tensors(gpu, what);
        let steps: Vec<_> = report(gpu, &self.control).iter().map(|report| report.step).collect();
        assert_eq!(steps, self.steps, "{what}");
    }

    #[track_caller]
    pub(crate) fn assert_same_tensors(&self, gpu: &Gpu, what: &str) {
        twin::assert_all_same(gpu, &self.twins, what);
    }
}

/// Sizes around edges, for all variants twice, and a pair of empty tensors.
pub(crate) const SIZES: [usize; 24] =
    [5000, 0, 17, 4096, 33, 1, 2, 3, 4, 5, 255, 256, 257, 7, 8193, 0, 12, 4097, 64, 9, 100, 31, 0, 0];

/// Two groups that switch after a few steps.
pub(crate) fn switching() -> [DualAdamConfig; 2] {
    let config = DualAdamConfig::default().with_lr(1e-2);
    let decayed = config.with_weight_decay(WeightDecay::Decoupled(0.1));
    [
        decayed.with_schedule(SwitchSchedule::linear_until(4)),
        config.with_schedule(SwitchSchedule::Fixed { switching_step: 3 }).with_maximize(true),
    ]
}

/// Through the switch, with gradients missing here and there, steps skipped, and new learning
/// rates.
fn a_controlled_run_has_the_bits_of_the_cpu(gpu: &Gpu) {
    let mut run = Run::new(gpu, &SIZES, &switching());
    let found_inf = scalar(gpu, 0.0);
    let loss_scale = scalar(gpu, 0.0);
    let scalars = RawScalars::default().with_found_inf(found_inf.address).with_loss_scale(loss_scale.address);
    let mut lrs = [1e-2; 2];
    for round in 0..9_u32 {
        let has_gradient = |tensor: usize| !(tensor + round as usize).is_multiple_of(3) && tensor / 2 != round as usize;
        run.leave_out(|i| !has_gradient(i)).unwrap();
        let is_skipped = round == 2 || round == 6;
        gpu.write(&found_inf, &f32::from(u8::from(is_skipped)).to_ne_bytes());
        gpu.write(&loss_scale, &2_f32.powi(round as i32).to_ne_bytes());
        lrs[1] = 1e-3 * f64::from(round);
        run.set_lr(gpu, 1, lrs[1]).unwrap();
        run.try_launch(&gpu.stream, scalars).unwrap();
        if !is_skipped {
            run.expect(&lrs, 0.5_f64.powi(round as i32), has_gradient);
        }
        run.assert_same(gpu, &format!("round {round}"));
    }
    assert!(report(gpu, &run.control).iter().take(11).all(|set| set.last_skip == Some(SkipReason::FoundInf)));
    assert_eq!(run.control.config(1).unwrap().lr, lrs[1]);
}

/// The caller's own check finds a value that is not finite, wherever it stands. The step then
/// changes nothing, and the next one is made.
fn what_the_callers_check_finds_skips_the_step(gpu: &Gpu) {
    let len = 4100;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, len / 2, len - 1] {
            let mut inputs = Inputs::random(place as u64, len);
            inputs.grad[place] = bad;
            let mut twin = Twin::new(gpu, Tensor::new(formats("f32_f32"), &inputs));
            let mut list = gpu.list(std::slice::from_ref(&twin));
            let config = DualAdamConfig::default();
            let mut control = control(gpu, &[group(config)], &[set(0)]);
            let is_found = twin.found(gpu).grad.wide().iter().any(|grad| !grad.is_finite());
            let found_inf = scalar(gpu, f32::from(u8::from(is_found)));
            let scalars = RawScalars::default().with_found_inf(found_inf.address);
            step(gpu, &mut list, &mut control, scalars);
            twin.assert_same(gpu, "skipped");
            assert_eq!(counts(&report(gpu, &control)[0]), (0, 1, Some(SkipReason::FoundInf)));

            gpu.write(&found_inf, &0_f32.to_ne_bytes());
            step(gpu, &mut list, &mut control, scalars);
            twin.expect(&[config.coeffs(1).unwrap()]);
            twin.assert_same(gpu, "made");
            assert_eq!(report(gpu, &control)[0].step, 1);
        }
    }
}

/// Counters and learning rates in the caller's memory, beside the control's own.
fn counters_in_the_callers_memory_are_advanced(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let (counter, lr) = (gpu.memory(&41_u64.to_ne_bytes()), gpu.memory(&0.5_f64.to_ne_bytes()));
    let groups = [group(config), group(config).with_lr(RawLr::F64(lr.address))];
    let mut control = control(gpu, &groups, &[set(0), set(1).with_step(counter.address)]);
    let mut list = empty_list(gpu, 2);
    step(gpu, &mut list, &mut control, RawScalars::default());
    let found = report(gpu, &control);
    assert_same_bits(&found[1], &config.with_lr(0.5).coeffs(42).unwrap(), "the caller's rate");
    let mut bytes = [0; 8];
    gpu.read(&counter, &mut bytes);
    assert_eq!((u64::from_ne_bytes(bytes), found[0].step, found[1].step), (42, 1, 42));
    gpu.write(&lr, &0.25_f64.to_ne_bytes());
    set_steps(gpu, &mut control, &[6, 7]);
    step(gpu, &mut list, &mut control, RawScalars::default());
    // SAFETY: the stream and the memory live.
    assert_eq!(unsafe { control.steps(gpu.raw_stream()) }.unwrap(), [7, 8]);
    assert_same_bits(&report(gpu, &control)[1], &config.with_lr(0.25).coeffs(8).unwrap(), "another rate");

    // SAFETY: as above.
    unsafe {
        let refused = control.set_lr(1, 0.1, gpu.raw_stream());
        assert!(matches!(refused, Err(CudaError::CallersLr { group: 1 })), "{refused:?}");
        control.set_config(1, config.with_betas(0.5, 0.6), gpu.raw_stream()).unwrap();
        control.set_config(0, config.with_lr(2.0), gpu.raw_stream()).unwrap();
    }
    step(gpu, &mut list, &mut control, RawScalars::default());
    let found = report(gpu, &control);
    assert_same_bits(&found[0], &config.with_lr(2.0).coeffs(8).unwrap(), "a new rate");
    assert_same_bits(&found[1], &config.with_betas(0.5, 0.6).with_lr(0.25).coeffs(9).unwrap(), "new betas");
}

/// A set that no tensor with a gradient names keeps its counter, and is not skipped either; one at
/// its last step is skipped.
fn counters_stay_where_nothing_is_updated(gpu: &Gpu) {
    let mut control = control(gpu, &[group(DualAdamConfig::default())], &[set(0); 4]);
    let mut missing = empty(2);
    missing.grad.address = 0;
    let mut list = TensorList::new(&gpu.kernels, &[empty(0), empty(0), missing, empty(3)]).unwrap();
    set_steps(gpu, &mut control, &[5, 6, 7, u64::MAX]);
    (0..2).for_each(|_| step(gpu, &mut list, &mut control, RawScalars::default()));
    let numbers: Vec<_> = report(gpu, &control).iter().map(counts).collect();
    assert_eq!(numbers, [(7, 0, None), (6, 0, None), (7, 0, None), (u64::MAX, 2, Some(SkipReason::Step))]);
}

/// A step with nothing new launches kernels only.
fn controlled_steps_only_launch(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5], &switching());
    run.launch(&gpu.stream);
    gpu.context.synchronize().unwrap();
    gpu.launching_only([3, 6, 9, 3, 3, 6], || (0..3).for_each(|_| run.launch(&gpu.stream)));
    if let Some(stand_in) = &gpu.stand_in {
        // Three launches of each step, and the events after the last: the list's and the control's.
        assert_eq!(stand_in.pending(), 15);
    }
    // The buffers must outlive the steps.
    gpu.context.synchronize().unwrap();
}

/// New learning rates do not wait for the device, and each reaches the step after it.
fn learning_rates_are_set_in_the_order_of_the_stream(gpu: &Gpu) {
    let [config, _] = switching();
    let mut run = Run::new(gpu, &[300, 5], &[config]);
    for round in 0..4 {
        run.set_lr(gpu, 0, 0.1 * f64::from(round)).unwrap();
        run.launch(&gpu.stream);
        run.expect(&[0.1 * f64::from(round)], 1.0, |_| true);
    }
    if let Some(stand_in) = &gpu.stand_in {
        assert!(stand_in.pending() > 4 * 4, "nothing has run: {}", stand_in.pending());
    }
    run.assert_same(gpu, "late");
}

fn controls_refuse_bad_input(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let new = |groups: &[ControlGroup], sets: &[ControlSet]| Control::new(&gpu.kernels, groups, sets).map(|_| ());
    refused::empty(new(&[group(config)], &[]), "sets");
    let without_group = new(&[group(config)], &[set(0), set(1)]).unwrap_err();
    assert_eq!(without_group.to_string(), "set 1 must have a group below 1, got 1");
    refused::group_value(new(&[group(config), group(config.with_lr(-1.0))], &[set(0)]), 1, "lr");
    let message = |lr: Option<RawLr>, steps: &[Option<u64>]| {
        let sets = steps.iter().map(|step| step.map_or(set(0), |step| set(0).with_step(step)));
        let group = lr.map_or(group(config), |lr| group(config).with_lr(lr));
        new(&[group], &sets.collect::<Vec<_>>()).unwrap_err().to_string()
    };
    let cases: [(_, &[Option<u64>], _); 9] = [
        (None, &[None, Some(0)], "step of set 1 must not be null, got address 0x0"),
        (Some(RawLr::F32(0)), &[None], "lr of group 0 must not be null, got address 0x0"),
        (None, &[Some(0x1004)], "step of set 0 must be aligned to 8 bytes, got address 0x1004"),
        (Some(RawLr::F64(0x1004)), &[None], "lr of group 0 must be aligned to 8 bytes, got address 0x1004"),
        (Some(RawLr::F32(0x1002)), &[None], "lr of group 0 must be aligned to 4 bytes, got address 0x1002"),
        (Some(RawLr::F32(0x1004)), &[Some(0x1000)], "step of set 0 must not overlap lr of group 0, got address 0x1000"),
        (Some(RawLr::F32(0x1000)), &[Some(0x1000)], "step of set 0 must not overlap lr of group 0, got address 0x1000"),
        (Some(RawLr::F64(0x1000)), &[Some(0x1000)], "step of set 0 must not overlap lr of group 0, got address 0x1000"),
        (None, &[Some(0x1000), Some(0x1000)], "step of set 0 must not overlap step of set 1, got address 0x1000"),
    ];
    for (lr, steps, expected) in cases {
        assert_eq!(message(lr, steps), expected);
    }
    let [shared, beside] = [0x1000, 0x1004].map(|address| group(config).with_lr(RawLr::F32(address)));
    new(&[shared, shared, beside], &[set(0).with_step(0x1008)]).unwrap();

    let mut control = control(gpu, &[group(config)], &[set(0)]);
    let stream = gpu.raw_stream();
    // SAFETY: the stream lives.
    unsafe {
        refused::position(control.set_lr(1, 0.1, stream), "group", 1, 1);
        refused::value(control.set_lr(0, f64::NAN, stream), "lr");
        refused::value(control.set_config(0, config.with_eps(0.0), stream), "eps");
        refused::count(control.set_steps(&[1, 2], stream), "steps", 1, 2);
    }
    assert_eq!((control.len(), control.is_empty(), control.config(0).unwrap()), (1, false, config));
}

fn controlled_steps_refuse_what_does_not_belong_together(gpu: &Gpu) {
    let context = gpu.other_context();
    let config = DualAdamConfig::default();
    let new = |kernels| Control::new(kernels, &[group(config)], &[set(0)]).unwrap();
    let (mut control, none) = (new(&gpu.kernels), RawScalars::default());
    // A control smaller than its list.
    refused::coeffs_index(try_step(&gpu.stream, &mut empty_list(gpu, 2), &mut control, none), 1, 1, 1);

    let mut list = empty_list(gpu, 1);
    let with = |name, scalars| (name, scalars);
    for (name, scalars) in [
        with("loss_scale", none.with_loss_scale(0x1002)),
        with("clip_factor", none.with_clip_factor(0x1001)),
        with("found_inf", none.with_found_inf(0x1003)),
    ] {
        let message = refused(try_step(&gpu.stream, &mut list, &mut control, scalars)).to_string();
        assert!(message.starts_with(&format!("{name} must be aligned to 4 bytes, got address 0x100")), "{message}");
    }

    let other = Kernels::in_context(&context).unwrap();
    refused::context(try_step(&gpu.stream, &mut list, &mut new(&other), none), "control");
    let foreign = other.context().new_stream().unwrap();
    refused::context(try_step(&foreign, &mut list, &mut control, none), "stream");
    let raw = foreign.cu_stream().cast();
    // SAFETY: the streams live.
    unsafe {
        refused::context(control.set_lr(0, 0.1, raw), "stream");
        refused::context(control.report(raw), "stream");
        refused::context(control.steps(raw), "stream");
        refused::context(control.set_steps(&[1], raw), "stream");
    }
    gpu.assert_nothing_launched();
}

fn capturable_optimizers_refuse_bad_input(gpu: &Gpu) {
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(4)]).unwrap().into_capturable().unwrap();
    let (params, grads) = ([RawBuffer::f32(0x1000)], [Some(RawBuffer::f32(0x2000))]);
    // SAFETY: refused before anything is launched.
    let step = unsafe { optimizer.step_raw(&params, &grads, &RawScalars::default().with_found_inf(2)) };
    assert!(matches!(step, Err(CudaError::Address { .. })), "{step:?}");
    refused::value(optimizer.set_lr(0, f64::INFINITY), "lr");
    refused::position(optimizer.set_lr(1, 0.1), "group", 1, 1);
    gpu.assert_nothing_launched();
}

/// All configurations of the other tests, as controlled steps over special values.
fn special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let (configs, before): (Vec<_>, Vec<_>) = configs().into_iter().map(|(config, step)| (config, step - 1)).unzip();
    let groups: Vec<_> = configs.iter().map(|&config| group(config)).collect();
    let sets: Vec<_> = (0..groups.len()).map(set).collect();
    let controlled = |tensors: &mut [Tensor], _: &[StepCoeffs]| {
        let twins = Twin::all(gpu, tensors.iter().cloned());
        let mut control = control(gpu, &groups, &sets);
        set_steps(gpu, &mut control, &before);
        step(gpu, &mut gpu.list(&twins), &mut control, RawScalars::default());
        tensors.iter_mut().zip(&twins).for_each(|(tensor, twin)| *tensor = twin.found(gpu));
    };
    laws::values(&controlled, &by_cpu, &Inputs::special(), &laws::all_sets());
}
