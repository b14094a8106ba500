//! Steps controlled on the device: coefficients, counters, and what is skipped.

use std::ptr;

use dualadam::cuda::{
    Control, ControlGroup, ControlSet, CudaError, DualAdam, Kernels, RawLr, RawScalars, SetReport, TensorList,
};
use dualadam::{
    ArgumentError, ConfigError, DualAdamConfig, InverseTerm, ListError, RawBuffer, RawTensor, SkipReason, StepCoeffs,
    SwitchSchedule, WeightDecay,
};

use crate::common::data::{Inputs, SPECIAL, configs};

use super::Body;
use super::buffers::{COMBINATIONS, Device, Host};
use super::gpu::{Gpu, Memory};

pub(crate) const TESTS: &[Body] = bodies!["control":
    coefficients_of_a_hundred_thousand_steps_have_the_bits_of_the_host,
    coefficients_of_huge_steps_have_the_bits_of_the_host,
    schedules_of_many_rates_switch_at_the_steps_of_the_host,
    loss_scale_clip_factor_and_found_inf_are_read_and_judged_on_the_device,
    learning_rates_of_the_callers_are_read_and_judged_on_the_device,
    of_several_reasons_the_first_is_told,
    a_controlled_run_has_the_bits_of_the_cpu,
    what_the_callers_check_finds_skips_the_step,
    counters_of_the_callers_are_advanced,
    counters_stay_where_nothing_is_updated,
    controlled_steps_only_launch,
    learning_rates_are_set_in_the_order_of_the_stream,
    controls_refuse_what_cannot_be_right,
    controlled_steps_refuse_what_does_not_belong_together,
    capturable_optimizers_refuse_what_cannot_be_right,
    special_values_have_the_bits_of_the_cpu,
];

/// A tensor without elements, whose gradient is not missing.
fn empty(set: usize) -> RawTensor {
    let [param, grad, exp_avg, exp_avg_sq] = [RawBuffer::f32(4); 4];
    RawTensor::new(0, param, grad, exp_avg, exp_avg_sq).with_coeffs_index(set)
}

fn group(config: DualAdamConfig) -> ControlGroup {
    ControlGroup::new(config)
}

fn set(group: usize) -> ControlSet {
    ControlSet::new(group)
}

pub(crate) fn step(gpu: &Gpu, list: &mut TensorList, control: &mut Control, scalars: RawScalars) {
    // SAFETY: the stand-in checks each access.
    unsafe { list.step_controlled(control, &scalars, gpu.raw_stream()) }.unwrap();
}

pub(crate) fn report(gpu: &Gpu, control: &Control) -> Vec<SetReport> {
    // SAFETY: the stream lives.
    unsafe { control.report(gpu.raw_stream()) }.unwrap()
}

/// An f32 in device memory.
pub(crate) fn scalar(gpu: &Gpu, value: f32) -> Memory {
    gpu.memory(&value.to_ne_bytes())
}

fn same_bits(a: &StepCoeffs, b: &StepCoeffs) -> bool {
    bytemuck::bytes_of(a) == bytemuck::bytes_of(b)
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

/// The coefficients of many steps of one config, each a set of its own, in one launch.
fn coeffs_of(gpu: &Gpu, list: &mut TensorList, config: DualAdamConfig, before: &[u64]) -> Vec<SetReport> {
    let mut control = Control::new(&gpu.kernels, &[group(config)], &vec![set(0); before.len()]).unwrap();
    // SAFETY: the stream lives.
    unsafe { control.set_steps(before, gpu.raw_stream()) }.unwrap();
    step(gpu, list, &mut control, RawScalars::default());
    report(gpu, &control)
}

fn coefficients_of_a_hundred_thousand_steps_have_the_bits_of_the_host(gpu: &Gpu) {
    let before: Vec<u64> = (0..100_000).collect();
    let tensors: Vec<_> = (0..before.len()).map(empty).collect();
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    for config in odd_configs() {
        for (t, found) in (1..).zip(coeffs_of(gpu, &mut list, config, &before)) {
            let expected = config.coeffs(t).unwrap();
            assert!(same_bits(&found.coeffs, &expected), "{config:?}, step {t}: {found:?} {expected:?}");
            assert_eq!((found.step, found.skipped, found.last_skip), (t, 0, None));
        }
    }
}

fn coefficients_of_huge_steps_have_the_bits_of_the_host(gpu: &Gpu) {
    let near = |power: u32| (-2..3).map(move |off: i64| (1_u64 << power).wrapping_add_signed(off));
    let mut before: Vec<u64> = [24, 31, 32, 52, 53, 54, 62, 63].into_iter().flat_map(near).collect();
    before.extend([u64::MAX - 1024, u64::MAX - 1023, u64::MAX - 2, u64::MAX - 1]);
    let tensors: Vec<_> = (0..before.len()).map(empty).collect();
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    let slow = DualAdamConfig::default().with_schedule(SwitchSchedule::Linear { switching_rate: 1e-18 });
    let period = 1 << 40;
    let exponential = SwitchSchedule::Exponential { base: 0.999_999, period, cutoff: 1e-3 };
    let fixed = SwitchSchedule::Fixed { switching_step: 1 << 53 };
    for config in [slow, slow.with_schedule(exponential), slow.with_schedule(fixed)] {
        for (t, found) in before.iter().zip(coeffs_of(gpu, &mut list, config, &before)) {
            let expected = config.coeffs(t + 1).unwrap();
            assert!(same_bits(&found.coeffs, &expected), "{config:?}, step {}: {found:?} {expected:?}", t + 1);
        }
    }
}

/// Around the step where α reaches 0 its roundings decide: a fused or reordered operation would switch at another step.
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
    let mut control = Control::new(&gpu.kernels, &groups, &sets).unwrap();
    let tensors: Vec<_> = (0..sets.len()).map(empty).collect();
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    // SAFETY: the stream lives.
    unsafe { control.set_steps(&before, gpu.raw_stream()) }.unwrap();
    step(gpu, &mut list, &mut control, RawScalars::default());
    for ((set, before), found) in sets.iter().zip(before).zip(report(gpu, &control)) {
        let config = groups[set.group].config;
        let expected = config.coeffs(before + 1).unwrap();
        assert!(same_bits(&found.coeffs, &expected), "{config:?}, step {}: {found:?} {expected:?}", before + 1);
    }
}

/// What the host's rules say of a multiplier.
fn expected_skip(loss_scale: f32, clip_factor: f32, found_inf: f32) -> Option<SkipReason> {
    if found_inf != 0.0 {
        return Some(SkipReason::FoundInf);
    }
    if !(loss_scale > 0.0 && loss_scale.is_finite()) {
        return Some(SkipReason::LossScale);
    }
    if !(clip_factor >= 0.0 && clip_factor.is_finite()) {
        return Some(SkipReason::ClipFactor);
    }
    let multiplier = f64::from(clip_factor) / f64::from(loss_scale);
    DualAdamConfig::default().coeffs_scaled(1, multiplier).is_err().then_some(SkipReason::Multiplier)
}

fn loss_scale_clip_factor_and_found_inf_are_read_and_judged_on_the_device(gpu: &Gpu) {
    let config = DualAdamConfig::default().with_maximize(true);
    let mut list = TensorList::new(&gpu.kernels, &[empty(0)]).unwrap();
    let mut control = Control::new(&gpu.kernels, &[group(config)], &[set(0)]).unwrap();
    let memory = [0.0; 3].map(|value| scalar(gpu, value));
    let [loss_scale, clip_factor, found_inf] = memory.each_ref().map(|memory| memory.address);
    let none = RawScalars::default();
    let scalars = none.with_loss_scale(loss_scale).with_clip_factor(clip_factor).with_found_inf(found_inf);
    let (mut t, mut skipped, mut last) = (0, 0, None);
    let mut reasons = vec![];
    let pairs = SPECIAL.iter().flat_map(|&a| SPECIAL.iter().map(move |&b| (a, b)));
    let ordinary = [(65_536.0, 1.0), (1e-30, 1e30), (3.0, 0.1), (f32::MAX, 1e-45), (1024.0, 0.0), (1e-45, 1e-45)];
    let cases = pairs.chain(ordinary).map(|(a, b)| [a, b, 0.0]);
    let found = SPECIAL.iter().map(|&c| [1.0, 1.0, c]);
    for values in cases.chain(found) {
        for (memory, value) in memory.iter().zip(values) {
            gpu.write(memory, &value.to_ne_bytes());
        }
        step(gpu, &mut list, &mut control, scalars);
        let [loss_scale, clip_factor, found_inf] = values;
        let reason = expected_skip(loss_scale, clip_factor, found_inf);
        match reason {
            Some(_) => (skipped, last) = (skipped + 1, reason),
            None => t += 1,
        }
        let found = report(gpu, &control)[0];
        assert_eq!((found.step, found.skipped, found.last_skip), (t, skipped, last), "{values:?}");
        if reason.is_none() {
            let multiplier = f64::from(clip_factor) / f64::from(loss_scale);
            assert!(same_bits(&found.coeffs, &config.coeffs_scaled(t, multiplier).unwrap()), "{values:?}");
        }
        reasons.extend(reason);
    }
    use SkipReason::{ClipFactor, FoundInf, LossScale, Multiplier};
    for reason in [FoundInf, LossScale, ClipFactor, Multiplier] {
        assert!(reasons.contains(&reason), "{reason:?}");
    }
    // Each may be missing.
    gpu.write(&memory[0], &8_f32.to_ne_bytes());
    gpu.write(&memory[1], &0.5_f32.to_ne_bytes());
    gpu.write(&memory[2], &0_f32.to_ne_bytes());
    for (scalars, multiplier) in [
        (RawScalars::default(), 1.0),
        (none.with_loss_scale(loss_scale), 0.125),
        (none.with_clip_factor(clip_factor), 0.5),
        (none.with_found_inf(found_inf), 1.0),
        (scalars, 0.0625),
    ] {
        step(gpu, &mut list, &mut control, scalars);
        t += 1;
        let found = report(gpu, &control)[0];
        assert!(same_bits(&found.coeffs, &config.coeffs_scaled(t, multiplier).unwrap()), "{scalars:?}");
    }
}

fn learning_rates_of_the_callers_are_read_and_judged_on_the_device(gpu: &Gpu) {
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
        let groups: Vec<_> = cases.iter().map(|&(_, lr)| ControlGroup::new(config).with_lr(lr)).collect();
        let sets: Vec<_> = (0..groups.len()).map(set).collect();
        let mut control = Control::new(&gpu.kernels, &groups, &sets).unwrap();
        let tensors: Vec<_> = (0..sets.len()).map(empty).collect();
        let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
        step(gpu, &mut list, &mut control, RawScalars::default());
        let mut skipped = 0;
        for (&(lr, _), found) in cases.iter().zip(report(gpu, &control)) {
            match config.with_lr(lr).coeffs(1) {
                Ok(expected) => {
                    assert_eq!((found.step, found.last_skip), (1, None), "{lr:e}, {config:?}");
                    assert!(same_bits(&found.coeffs, &expected), "{lr:e}: {found:?}");
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
fn of_several_reasons_the_first_is_told(gpu: &Gpu) {
    let mut host = Host::new(COMBINATIONS[0], &Inputs::random(3, 300), [0; 5], 0);
    let device = host.upload(gpu);
    let mut list = TensorList::new(&gpu.kernels, &[device.raw(&host)]).unwrap();
    let config = DualAdamConfig::default();
    let (lr, counter) = (gpu.memory(&f64::NAN.to_ne_bytes()), gpu.memory(&u64::MAX.to_ne_bytes()));
    let groups = [ControlGroup::new(config).with_lr(RawLr::F64(lr.address))];
    let mut control = Control::new(&gpu.kernels, &groups, &[ControlSet::new(0).with_step(counter.address)]).unwrap();
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
        let SetReport { step, skipped: found, last_skip, coeffs, .. } = report(gpu, &control)[0];
        assert_eq!((step, found, last_skip), (full, skipped, Some(reason)));
        assert_eq!(coeffs, bytemuck::Zeroable::zeroed());
        device.assert_same(gpu, &host, "skipped");
        gpu.write(memory, right);
    }
    step(gpu, &mut list, &mut control, scalars);
    host.step(&[config.with_lr(0.25).coeffs_scaled(full, 0.5).unwrap()]);
    device.assert_same(gpu, &host, "made");
    // The last reason stays told, and the counter stays at its end.
    let SetReport { step: t, skipped, last_skip, .. } = report(gpu, &control)[0];
    assert_eq!((t, skipped, last_skip), (full, 6, Some(Step)));
    step(gpu, &mut list, &mut control, scalars);
    device.assert_same(gpu, &host, "at the end");
    assert_eq!(report(gpu, &control)[0].skipped, 7);
}

/// Tensors of all combinations on host and device, their list and their control.
pub(crate) struct Run {
    pub(crate) list: TensorList,
    pub(crate) control: Control,
    pub(crate) hosts: Vec<Host>,
    pub(crate) devices: Vec<Device>,
    configs: Vec<DualAdamConfig>,
    pub(crate) steps: Vec<u64>,
}

impl Run {
    /// A set for each two tensors, of the groups in turns.
    pub(crate) fn new(gpu: &Gpu, sizes: &[usize], configs: &[DualAdamConfig]) -> Self {
        let groups: Vec<_> = configs.iter().map(|&config| group(config)).collect();
        Self::with_groups(gpu, sizes, &groups)
    }

    pub(crate) fn with_groups(gpu: &Gpu, sizes: &[usize], groups: &[ControlGroup]) -> Self {
        let host = |(i, &size): (usize, &usize)| {
            let types = COMBINATIONS[i % COMBINATIONS.len()];
            Host::new(types, &Inputs::random(i as u64, size), [i % 3, i % 4, i % 2, 0, i % 5], i / 2)
        };
        let hosts: Vec<_> = sizes.iter().enumerate().map(host).collect();
        let devices: Vec<_> = hosts.iter().map(|host| host.upload(gpu)).collect();
        let raw: Vec<_> = devices.iter().zip(&hosts).map(|(device, host)| device.raw(host)).collect();
        let list = TensorList::new(&gpu.kernels, &raw).unwrap();
        let sets: Vec<_> = (0..sizes.len().div_ceil(2)).map(|i| set(i % groups.len())).collect();
        let control = Control::new(&gpu.kernels, groups, &sets).unwrap();
        let configs = groups.iter().map(|group| group.config).collect();
        Self { list, control, hosts, devices, configs, steps: vec![0; sets.len()] }
    }

    pub(crate) fn raw(&self) -> Vec<RawTensor> {
        self.devices.iter().zip(&self.hosts).map(|(device, host)| device.raw(host)).collect()
    }

    /// The step on the CPU, of the tensors that have a gradient, with these learning rates in the groups.
    pub(crate) fn expect(&mut self, lrs: &[f64], multiplier: f64, has_gradient: impl Fn(usize) -> bool) {
        let active: Vec<_> =
            (0..self.steps.len()).map(|set| has_gradient(2 * set) || has_gradient(2 * set + 1)).collect();
        let zero = bytemuck::Zeroable::zeroed();
        let mut sets: Vec<StepCoeffs> = vec![zero; self.steps.len()];
        for (set, coeffs) in sets.iter_mut().enumerate().filter(|(set, _)| active[*set]) {
            self.steps[set] += 1;
            let group = set % self.configs.len();
            *coeffs = self.configs[group].with_lr(lrs[group]).coeffs_scaled(self.steps[set], multiplier).unwrap();
        }
        let stepped = self.hosts.iter_mut().enumerate().filter(|(i, _)| has_gradient(*i));
        stepped.for_each(|(_, host)| host.step(&sets));
    }

    pub(crate) fn assert_same(&self, gpu: &Gpu, what: &str) {
        self.assert_same_tensors(gpu, what);
        let steps: Vec<_> = report(gpu, &self.control).iter().map(|report| report.step).collect();
        assert_eq!(steps, self.steps, "{what}");
    }

    pub(crate) fn assert_same_tensors(&self, gpu: &Gpu, what: &str) {
        for (i, (device, host)) in self.devices.iter().zip(&self.hosts).enumerate() {
            device.assert_same(gpu, host, &format!("{what}, tensor {i}"));
        }
    }
}

/// Sizes around edges, for all combinations twice, and a pair of empty tensors.
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

/// Through the switch, with gradients missing here and there, steps skipped, and new learning rates.
fn a_controlled_run_has_the_bits_of_the_cpu(gpu: &Gpu) {
    let mut run = Run::new(gpu, &SIZES, &switching());
    let found_inf = scalar(gpu, 0.0);
    let loss_scale = scalar(gpu, 0.0);
    let scalars = RawScalars::default().with_found_inf(found_inf.address).with_loss_scale(loss_scale.address);
    let mut lrs = [1e-2; 2];
    for round in 0..9_u32 {
        let has_gradient = |tensor: usize| !(tensor + round as usize).is_multiple_of(3) && tensor / 2 != round as usize;
        let mut raw = run.raw();
        raw.iter_mut().enumerate().filter(|(i, _)| !has_gradient(*i)).for_each(|(_, raw)| raw.grad.address = 0);
        run.list.update(&raw).unwrap();
        let is_skipped = round == 2 || round == 6;
        gpu.write(&found_inf, &f32::from(u8::from(is_skipped)).to_ne_bytes());
        gpu.write(&loss_scale, &2_f32.powi(round as i32).to_ne_bytes());
        lrs[1] = 1e-3 * f64::from(round);
        // SAFETY: the stream lives.
        unsafe { run.control.set_lr(1, lrs[1], gpu.raw_stream()) }.unwrap();
        step(gpu, &mut run.list, &mut run.control, scalars);
        if !is_skipped {
            run.expect(&lrs, 0.5_f64.powi(round as i32), has_gradient);
        }
        run.assert_same(gpu, &format!("round {round}"));
    }
    assert!(report(gpu, &run.control).iter().take(11).all(|set| set.last_skip == Some(SkipReason::FoundInf)));
    assert_eq!(run.control.config(1).unwrap().lr, lrs[1]);
}

/// The caller's own check finds what is not finite, wherever it stands; the step then leaves all as it was, and the next goes on.
fn what_the_callers_check_finds_skips_the_step(gpu: &Gpu) {
    let len = 4100;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, len / 2, len - 1] {
            let mut inputs = Inputs::random(place as u64, len);
            inputs.grad[place] = bad;
            let mut host = Host::new(COMBINATIONS[0], &inputs, [0; 5], 0);
            let device = host.upload(gpu);
            let raw = device.raw(&host);
            let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
            let config = DualAdamConfig::default();
            let mut control = Control::new(&gpu.kernels, &[group(config)], &[set(0)]).unwrap();
            let mut found = vec![0.0_f32; len];
            gpu.read(&device.memory[1], bytemuck::cast_slice_mut(&mut found));
            let is_found = found.iter().any(|grad| !grad.is_finite());
            let found_inf = scalar(gpu, f32::from(u8::from(is_found)));
            let scalars = RawScalars::default().with_found_inf(found_inf.address);
            step(gpu, &mut list, &mut control, scalars);
            device.assert_same(gpu, &host, "skipped");
            let SetReport { step: t, skipped, last_skip, .. } = report(gpu, &control)[0];
            assert_eq!((t, skipped, last_skip), (0, 1, Some(SkipReason::FoundInf)));

            gpu.write(&found_inf, &0_f32.to_ne_bytes());
            step(gpu, &mut list, &mut control, scalars);
            host.step(&[config.coeffs(1).unwrap()]);
            device.assert_same(gpu, &host, "made");
            assert_eq!(report(gpu, &control)[0].step, 1);
        }
    }
}

/// Counters and learning rates in the caller's memory, beside the control's own.
fn counters_of_the_callers_are_advanced(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let (counter, lr) = (gpu.memory(&41_u64.to_ne_bytes()), gpu.memory(&0.5_f64.to_ne_bytes()));
    let groups = [group(config), ControlGroup::new(config).with_lr(RawLr::F64(lr.address))];
    let sets = [set(0), ControlSet::new(1).with_step(counter.address)];
    let mut control = Control::new(&gpu.kernels, &groups, &sets).unwrap();
    let mut list = TensorList::new(&gpu.kernels, &[empty(0), empty(1)]).unwrap();
    step(gpu, &mut list, &mut control, RawScalars::default());
    let found = report(gpu, &control);
    assert!(same_bits(&found[1].coeffs, &config.with_lr(0.5).coeffs(42).unwrap()));
    let mut bytes = [0; 8];
    gpu.read(&counter, &mut bytes);
    assert_eq!((u64::from_ne_bytes(bytes), found[0].step, found[1].step), (42, 1, 42));
    gpu.write(&lr, &0.25_f64.to_ne_bytes());
    // SAFETY: the stream lives, and the memory, too.
    unsafe {
        control.set_steps(&[6, 7], gpu.raw_stream()).unwrap();
        step(gpu, &mut list, &mut control, RawScalars::default());
        assert_eq!(control.steps(gpu.raw_stream()).unwrap(), [7, 8]);
    }
    assert!(same_bits(&report(gpu, &control)[1].coeffs, &config.with_lr(0.25).coeffs(8).unwrap()));

    // SAFETY: as above.
    unsafe {
        let refused = control.set_lr(1, 0.1, gpu.raw_stream());
        assert!(matches!(refused, Err(CudaError::CallersLr { group: 1 })), "{refused:?}");
        control.set_config(1, config.with_betas(0.5, 0.6), gpu.raw_stream()).unwrap();
        control.set_config(0, config.with_lr(2.0), gpu.raw_stream()).unwrap();
    }
    step(gpu, &mut list, &mut control, RawScalars::default());
    let found = report(gpu, &control);
    assert!(same_bits(&found[0].coeffs, &config.with_lr(2.0).coeffs(8).unwrap()));
    assert!(same_bits(&found[1].coeffs, &config.with_betas(0.5, 0.6).with_lr(0.25).coeffs(9).unwrap()));
}

/// A set that no tensor with a gradient names keeps its counter, and is not skipped either; one at its last step is skipped.
fn counters_stay_where_nothing_is_updated(gpu: &Gpu) {
    let mut control = Control::new(&gpu.kernels, &[group(DualAdamConfig::default())], &[set(0); 4]).unwrap();
    let missing = empty(2).with_grad(RawBuffer::f32(0));
    let mut list = TensorList::new(&gpu.kernels, &[empty(0), empty(0), missing, empty(3)]).unwrap();
    // SAFETY: the stream lives.
    unsafe { control.set_steps(&[5, 6, 7, u64::MAX], gpu.raw_stream()) }.unwrap();
    for _ in 0..2 {
        step(gpu, &mut list, &mut control, RawScalars::default());
    }
    let found = report(gpu, &control);
    let numbers: Vec<_> = found.iter().map(|set| (set.step, set.skipped, set.last_skip)).collect();
    assert_eq!(numbers, [(7, 0, None), (6, 0, None), (7, 0, None), (u64::MAX, 2, Some(SkipReason::Step))]);
}

/// A step with nothing new launches kernels only.
fn controlled_steps_only_launch(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5], &switching());
    step(gpu, &mut run.list, &mut run.control, RawScalars::default());
    gpu.context.synchronize().unwrap();
    let expected = [
        ("cuCtxGetCurrent", 3),
        ("cuEventRecord", 6),
        ("cuLaunchKernel", 9),
        ("cuStreamGetCtx", 3),
        ("cuStreamIsCapturing", 3),
        ("cuThreadExchangeStreamCaptureMode", 6),
    ];
    gpu.calling_only(&expected, || {
        (0..3).for_each(|_| step(gpu, &mut run.list, &mut run.control, RawScalars::default()));
    });
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
        // SAFETY: the stream lives.
        unsafe { run.control.set_lr(0, 0.1 * f64::from(round), gpu.raw_stream()) }.unwrap();
        step(gpu, &mut run.list, &mut run.control, RawScalars::default());
        run.expect(&[0.1 * f64::from(round)], 1.0, |_| true);
    }
    if let Some(stand_in) = &gpu.stand_in {
        assert!(stand_in.pending() > 4 * 4, "nothing has run: {}", stand_in.pending());
    }
    run.assert_same(gpu, "late");
}

fn controls_refuse_what_cannot_be_right(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let new = |groups: &[ControlGroup], sets: &[ControlSet]| Control::new(&gpu.kernels, groups, sets).map(|_| ());
    assert!(matches!(
        new(&[group(config)], &[]),
        Err(CudaError::Argument(ArgumentError::List(ListError::Empty { list: "sets" })))
    ));
    let refused = new(&[group(config)], &[set(0), set(1)]);
    assert!(
        matches!(
            refused,
            Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "group", len: 1, value: 1 })))
        ),
        "{refused:?}"
    );
    let refused = new(&[group(config.with_lr(-1.0))], &[set(0)]);
    assert!(
        matches!(refused, Err(CudaError::Argument(ArgumentError::Config(ConfigError::Value { name: "lr", .. })))),
        "{refused:?}"
    );
    let message = |lr: Option<RawLr>, steps: &[Option<u64>]| {
        let set = |&step: &Option<u64>| step.map_or(set(0), |step| set(0).with_step(step));
        let sets: Vec<_> = steps.iter().map(set).collect();
        let group = lr.map_or(group(config), |lr| group(config).with_lr(lr));
        new(&[group], &sets).unwrap_err().to_string()
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
    let shared = group(config).with_lr(RawLr::F32(0x1000));
    let beside = RawLr::F32(0x1004);
    new(&[shared, shared, group(config).with_lr(beside)], &[set(0).with_step(0x1008)]).unwrap();

    let mut control = Control::new(&gpu.kernels, &[group(config)], &[set(0)]).unwrap();
    let stream = gpu.raw_stream();
    // SAFETY: the stream lives.
    unsafe {
        let refused = control.set_lr(1, 0.1, stream);
        assert!(
            matches!(refused, Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "group", .. })))),
            "{refused:?}"
        );
        let refused = control.set_lr(0, f64::NAN, stream);
        assert!(
            matches!(refused, Err(CudaError::Argument(ArgumentError::Config(ConfigError::Value { name: "lr", .. })))),
            "{refused:?}"
        );
        let refused = control.set_config(0, config.with_eps(0.0), stream);
        assert!(
            matches!(refused, Err(CudaError::Argument(ArgumentError::Config(ConfigError::Value { name: "eps", .. })))),
            "{refused:?}"
        );
        let refused = control.set_steps(&[1, 2], stream);
        assert!(
            matches!(
                refused,
                Err(CudaError::Argument(ArgumentError::List(ListError::Count {
                    list: "steps",
                    expected: 1,
                    actual: 2
                })))
            ),
            "{refused:?}"
        );
    }
    assert_eq!((control.len(), control.is_empty(), control.config(0).unwrap()), (1, false, config));
}

fn controlled_steps_refuse_what_does_not_belong_together(gpu: &Gpu) {
    let context = gpu.other_context();
    let config = DualAdamConfig::default();
    let mut control = Control::new(&gpu.kernels, &[group(config)], &[set(0)]).unwrap();
    let mut list = TensorList::new(&gpu.kernels, &[empty(0), empty(1)]).unwrap();
    let refused = |list: &mut TensorList, control: &mut Control, scalars: RawScalars, stream| {
        // SAFETY: refused before anything is launched.
        unsafe { list.step_controlled(control, &scalars, stream) }.unwrap_err()
    };
    let none = RawScalars::default();
    let stream = gpu.raw_stream();
    // A control smaller than its list.
    let error = refused(&mut list, &mut control, none, stream);
    assert_eq!(error.to_string(), "tensor 1 must have a coeffs_index below 1, got 1");

    let mut list = TensorList::new(&gpu.kernels, &[empty(0)]).unwrap();
    let with = |name, scalars| (name, scalars);
    for (name, scalars) in [
        with("loss_scale", none.with_loss_scale(0x1002)),
        with("clip_factor", none.with_clip_factor(0x1001)),
        with("found_inf", none.with_found_inf(0x1003)),
    ] {
        let message = refused(&mut list, &mut control, scalars, stream).to_string();
        assert!(message.starts_with(&format!("{name} must be aligned to 4 bytes, got address 0x100")), "{message}");
    }

    let other = Kernels::in_context(&context).unwrap();
    let mut foreign = Control::new(&other, &[group(config)], &[set(0)]).unwrap();
    let error = refused(&mut list, &mut foreign, none, stream);
    assert!(matches!(error, CudaError::Context { argument: "control" }), "{error:?}");
    let foreign_stream = other.context().new_stream().unwrap();
    let raw = foreign_stream.cu_stream().cast();
    let error = refused(&mut list, &mut control, none, raw);
    assert!(matches!(error, CudaError::Context { argument: "stream" }), "{error:?}");
    // SAFETY: the streams live.
    unsafe {
        let refused = control.set_lr(0, 0.1, raw);
        assert!(matches!(refused, Err(CudaError::Context { argument: "stream" })), "{refused:?}");
        assert!(matches!(control.report(raw), Err(CudaError::Context { argument: "stream" })));
        assert!(matches!(control.steps(raw), Err(CudaError::Context { argument: "stream" })));
        assert!(matches!(control.set_steps(&[1], raw), Err(CudaError::Context { argument: "stream" })));
    }
    gpu.assert_nothing_launched();
}

fn capturable_optimizers_refuse_what_cannot_be_right(gpu: &Gpu) {
    let optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[4]).unwrap();
    let (params, grads) = ([RawBuffer::f32(0x1000)], [Some(RawBuffer::f32(0x2000))]);
    let mut optimizer = optimizer.into_capturable().unwrap();
    // SAFETY: refused before anything is launched.
    let step = unsafe { optimizer.step_raw(&params, &grads, &RawScalars::default().with_found_inf(2)) };
    assert!(matches!(step, Err(CudaError::Address { .. })), "{step:?}");
    let set_lr = optimizer.set_lr(0, f64::INFINITY);
    assert!(matches!(set_lr, Err(CudaError::Argument(ArgumentError::Config(ConfigError::Value { name: "lr", .. })))));
    let set_lr = optimizer.set_lr(1, 0.1);
    assert!(matches!(set_lr, Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "group", .. })))));
    gpu.assert_nothing_launched();
}

/// All configurations of the other tests, as controlled steps over special values.
fn special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let special = Inputs::special();
    let (configs, before): (Vec<_>, Vec<_>) = configs().into_iter().map(|(config, step)| (config, step - 1)).unzip();
    let groups: Vec<_> = configs.iter().map(|&config| group(config)).collect();
    let sets: Vec<_> = (0..groups.len()).map(set).collect();
    let coeffs: Vec<_> = configs.iter().zip(&before).map(|(config, &step)| config.coeffs(step + 1).unwrap()).collect();
    for types in COMBINATIONS {
        let mut hosts: Vec<_> = (0..sets.len()).map(|set| Host::new(types, &special, [0; 5], set)).collect();
        let devices: Vec<_> = hosts.iter().map(|host| host.upload(gpu)).collect();
        let raw: Vec<_> = devices.iter().zip(&hosts).map(|(device, host)| device.raw(host)).collect();
        let mut list = TensorList::new(&gpu.kernels, &raw).unwrap();
        let mut control = Control::new(&gpu.kernels, &groups, &sets).unwrap();
        // SAFETY: the stream lives.
        unsafe { control.set_steps(&before, ptr::null_mut()) }.unwrap();
        gpu.context.synchronize().unwrap();
        step(gpu, &mut list, &mut control, RawScalars::default());
        for (device, host) in devices.iter().zip(&mut hosts) {
            host.step(&coeffs);
            device.assert_same(gpu, host, &format!("{types:?}"));
        }
    }
}
