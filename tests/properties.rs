//! Laws that hold for all configurations, lengths, types and values, tried on random ones.

use dualadam::cpu::{self, DualAdam};
use dualadam::{DualAdamConfig, InverseTerm, State, StepCoeffs, SwitchSchedule, TensorSpec, WeightDecay};
use proptest::prelude::*;
use proptest::test_runner::Config;
use testkit::contract::same;
use testkit::data::Noise;
use testkit::laws::by_cpu;
use testkit::model::{self, Model, Spec};
use testkit::state::{self, StateBits, float_bits, temporary};
use testkit::{Formats, Tensor, Variant, variant};

/// A failing input is printed, and nothing is written beside the sources.
fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

// Only lengths and seeds are drawn, so that a failing input is short to read; the elements follow
// from them.

/// The tensor after the flat call for its types.
fn after(mut tensor: Tensor, coeffs: &StepCoeffs) -> Tensor {
    tensor.step_flat(coeffs).unwrap();
    tensor
}

// Strategies.

fn formats() -> impl Strategy<Value = Formats> {
    prop::sample::select(Variant::all().map(Variant::formats).collect::<Vec<_>>())
}

/// Mostly short: every remainder of the vector widths. Some lengths are beyond what one thread
/// takes.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 20 => 1..300_usize, 3 => 32_700..33_000_usize, 2 => 65_500..400_000_usize]
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (formats(), len(), any::<u64>()).prop_map(|(formats, len, seed)| Tensor::random(formats, len, seed))
}

fn schedule() -> impl Strategy<Value = SwitchSchedule> {
    let rate = || prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0, 0.0..1e-3];
    prop_oneof![
        rate().prop_map(|switching_rate| SwitchSchedule::Linear { switching_rate }),
        (1..40_u64).prop_map(SwitchSchedule::linear_until),
        rate().prop_map(|switching_rate| SwitchSchedule::LinearEarlyDrop { switching_rate }),
        (0.0..=1.0, 1..9_u64, 0.0..=1.0).prop_map(|(base, period, cutoff)| SwitchSchedule::Exponential {
            base,
            period,
            cutoff
        }),
        (0..40_u64).prop_map(|switching_step| SwitchSchedule::Fixed { switching_step }),
    ]
}

/// Configurations whose numbers come from these strategies.
fn config_of(
    lr: impl Strategy<Value = f64>,
    beta: impl Strategy<Value = f64> + Clone,
    eps: impl Strategy<Value = f64>,
    decay: impl Strategy<Value = f64> + Clone,
    schedule: impl Strategy<Value = SwitchSchedule>,
) -> impl Strategy<Value = DualAdamConfig> {
    let (decoupled, l2) = (decay.clone().prop_map(WeightDecay::Decoupled), decay.prop_map(WeightDecay::L2));
    let weight_decay = prop_oneof![Just(WeightDecay::None), decoupled, l2];
    let inverse_term = prop_oneof![Just(InverseTerm::Paper), Just(InverseTerm::WithEps)];
    (lr, beta.clone(), beta, eps, weight_decay, schedule, inverse_term, any::<bool>()).prop_map(
        |(lr, beta1, beta2, eps, weight_decay, schedule, inverse_term, maximize)| {
            let config = DualAdamConfig::default().with_lr(lr).with_betas(beta1, beta2).with_eps(eps);
            let config = config.with_weight_decay(weight_decay).with_schedule(schedule);
            config.with_inverse_term(inverse_term).with_maximize(maximize)
        },
    )
}

/// Valid, ordinary configurations.
fn config() -> impl Strategy<Value = DualAdamConfig> {
    let power_of_10 = |exponent: f64| 10_f64.powf(exponent);
    config_of((-6.0..0.0).prop_map(power_of_10), 0.0..0.9999, (-12.0..-2.0).prop_map(power_of_10), 0.0..0.5, schedule())
}

fn coeffs() -> impl Strategy<Value = StepCoeffs> {
    (config(), 1..60_u64, 0.0..2.0)
        .prop_map(|(config, step, multiplier)| config.coeffs_scaled(step, multiplier).unwrap())
}

// Partition, order and threads.

proptest! {
    #![proptest_config(cases(200))]

    /// A buffer that is cut anywhere, at any alignment, and stepped piece by piece has the bits of
    /// the whole.
    #[test]
    fn split_is_whole(whole in tensor(), coeffs in coeffs(), cuts in prop::collection::vec(0.0..=1.0, 0..4)) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut: &f64| (cut * whole.len() as f64) as usize).collect();
        cuts.sort_unstable();
        let (mut before, mut expected) = (whole.clone(), after(whole, &coeffs));
        for &cut in cuts.iter().rev() {
            prop_assert_eq!(after(before.split_off(cut), &coeffs).difference(&expected.split_off(cut)), None);
        }
        prop_assert_eq!(after(before, &coeffs).difference(&expected), None);
    }

    /// The same within one allocation, so that a piece that writes past its end meets its
    /// neighbour.
    #[test]
    fn a_step_in_the_middle_leaves_the_rest(
        formats in formats(), len in 0..200_usize, from in 0.0..=1.0, to in 0.0..=1.0, coeffs in coeffs(), seed: u64,
    ) {
        let before = Tensor::random(formats, len, seed);
        let (from, to) = ((from * len as f64) as usize, (to * len as f64) as usize);
        let part = from.min(to)..from.max(to);
        let (whole, partly) = (after(before.clone(), &coeffs), after(before.clone().window(part.clone()), &coeffs));
        for ((found, whole), before) in partly.buffers().into_iter().zip(whole.buffers()).zip(before.buffers()) {
            for i in 0..len {
                let expected = if part.contains(&i) { whole } else { before };
                prop_assert!(same(found.at(i), expected.at(i)), "{}: element {i}, part {part:?}", partly.types());
            }
        }
    }

    /// A list gives each tensor what the flat call with its set gives, in any order of the list.
    #[test]
    fn a_list_is_its_flat_steps_in_any_order(
        list in prop::collection::vec((tensor(), 0..3_usize), 0..12),
        sets in prop::array::uniform3(coeffs()),
        order: prop::sample::Index,
        seed: u64,
    ) {
        let mut list: Vec<_> = list.into_iter().map(|(tensor, set)| tensor.with_set(set)).collect();
        let noise = &mut Noise(seed);
        list.sort_by_cached_key(|_| noise.bits());
        if !list.is_empty() {
            let by = order.index(list.len());
            list.rotate_left(by);
        }
        let expected: Vec<_> = list.iter().map(|tensor| after(tensor.clone(), &sets[tensor.set])).collect();
        by_cpu(&mut list, &sets);
        for (found, expected) in list.iter().zip(&expected) {
            prop_assert_eq!(found.difference(expected), None);
        }
    }
}

fn pools() -> &'static [rayon::ThreadPool; 3] {
    static POOLS: std::sync::OnceLock<[rayon::ThreadPool; 3]> = std::sync::OnceLock::new();
    POOLS.get_or_init(|| [1, 2, 3].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()))
}

proptest! {
    #![proptest_config(cases(24))]

    /// Flat steps and lists give the same bits on one, two and three threads.
    #[test]
    fn threads_do_not_matter(
        list in prop::collection::vec((formats(), prop_oneof![0..2_000_usize, 30_000..300_000_usize]), 1..5),
        coeffs in coeffs(),
        seed: u64,
    ) {
        let list: Vec<_> = list.into_iter().map(|(formats, len)| Tensor::random(formats, len, seed)).collect();
        let run = |pool: &rayon::ThreadPool| pool.install(|| {
            let flat: Vec<_> = list.iter().map(|tensor| after(tensor.clone(), &coeffs)).collect();
            let mut list = list.clone();
            by_cpu(&mut list, &[coeffs]);
            [flat, list]
        });
        let found = pools().each_ref().map(run);
        for (other, first) in found.iter().flatten().flat_map(|other| other.iter().zip(&found[0][0])) {
            prop_assert_eq!(other.difference(first), None);
        }
    }
}

// The rule.

proptest! {
    #![proptest_config(cases(200))]

    /// Once α is 0, a dual step is the plain Adam step, whatever led there.
    #[test]
    fn after_the_switch_dual_is_adam(config in config(), steps in 0..1_000_u64, tensor in tensor()) {
        let Some(switch) = config.schedule.first_adam_step() else { return Ok(()) };
        let Some(step) = switch.checked_add(steps) else { return Ok(()) };
        let adam = config.with_schedule(DualAdamConfig::adam().schedule).with_inverse_term(InverseTerm::Paper);
        let (dual, adam) = (config.coeffs(step).unwrap(), adam.coeffs(step).unwrap());
        prop_assert!(dual.is_adam());
        prop_assert_eq!(after(tensor.clone(), &dual).difference(&after(tensor, &adam)), None);
    }

    /// Before the switch it is not: without this, the law above could hold because α is always 0.
    #[test]
    fn before_the_switch_dual_is_not_adam(config in config(), step in 1..60_u64) {
        prop_assume!(config.lr * config.schedule.alpha(step) > 1e-30);
        prop_assert!(!config.coeffs(step).unwrap().is_adam());
    }

    #[test]
    fn maximising_is_descending_on_the_negated_gradient(config in config(), step in 1..60_u64, tensor in tensor()) {
        let up = config.with_maximize(true).coeffs(step).unwrap();
        let down = config.with_maximize(false).coeffs(step).unwrap();
        prop_assert_eq!(after_other_grads(&tensor, |g| -g, &down).difference(&after(tensor, &up)), None);
    }

    /// A power of two scales a 16-bit gradient without rounding, as long as it stays in range.
    #[test]
    fn a_power_of_two_multiplier_is_a_scaled_gradient(
        config in config(), step in 1..60_u64, power in -6..=6_i32, formats in formats(), len in len(), seed: u64,
    ) {
        let multiplier = 2_f64.powi(power);
        let mut tensor = Tensor::random(formats, len, seed);
        tensor.grad = Noise(seed).values(formats.grad, len, |noise| 1.0 + 7.0 * noise.unit().abs());
        let scaled = after_other_grads(&tensor, |g| g * multiplier as f32, &config.coeffs(step).unwrap());
        prop_assert_eq!(scaled.difference(&after(tensor, &config.coeffs_scaled(step, multiplier).unwrap())), None);
    }

    /// The multiplier is rounded to f32 once and the product once, so f32 gradients of any value
    /// may be scaled beforehand.
    #[test]
    fn any_multiplier_is_a_scaled_f32_gradient(config in config(), step in 1..60_u64, multiplier in 1e-6..1e6, len in len(), seed: u64) {
        let tensor = Tensor::random(variant::formats("f32_f32"), len, seed);
        let scaled = after_other_grads(&tensor, |g| g * multiplier as f32, &config.coeffs(step).unwrap());
        prop_assert_eq!(scaled.difference(&after(tensor, &config.coeffs_scaled(step, multiplier).unwrap())), None);
    }
}

/// The tensor after a step with other gradients, with its own gradients put back.
fn after_other_grads(tensor: &Tensor, change: impl Fn(f32) -> f32, coeffs: &StepCoeffs) -> Tensor {
    let mut other = tensor.clone();
    other.grad.map(change);
    Tensor { grad: tensor.grad.clone(), ..after(other, coeffs) }
}

// The owning optimizer.

/// A tensor of a random model, and in how many of eight steps it has a gradient.
fn busy_tensor() -> impl Strategy<Value = (Spec, u64)> {
    let spec = (formats(), 0..40_usize, 0..2_usize).prop_map(|(formats, len, group)| Spec { formats, len, group });
    (spec, 0..=8_u64)
}

fn has_gradient(tensor: usize, busy: u64, step: u64) -> bool {
    Noise(step << 32 | tensor as u64).bits() % 8 < busy
}

struct Run {
    optimizer: DualAdam,
    model: Model,
    busy: Vec<u64>,
}

impl Run {
    fn new(groups: &[DualAdamConfig], tensors: &[(Spec, u64)]) -> Self {
        let (specs, busy): (Vec<_>, _) = tensors.iter().copied().unzip();
        let model = Model::new(&specs, model::small);
        Self { optimizer: DualAdam::with_groups(groups, &model.tensor_specs()).unwrap(), model, busy }
    }

    fn steps(&mut self, steps: std::ops::Range<u64>) {
        for step in steps {
            let grads = self.model.grads(step, |tensor| has_gradient(tensor, self.busy[tensor], step));
            self.model.step(&mut self.optimizer, &grads, 1.0).unwrap();
        }
    }

    fn bits(&self) -> (Vec<Vec<u32>>, StateBits) {
        let params = self.model.params.iter().map(|params| float_bits(&params.wide()));
        (params.collect(), state::bits(self.optimizer.state()))
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn a_resumed_run_is_an_uninterrupted_one(
        groups in prop::array::uniform2(config()),
        tensors in prop::collection::vec(busy_tensor(), 0..8),
        before in 0..12_u64,
        after in 0..12_u64,
    ) {
        let mut whole = Run::new(&groups, &tensors);
        whole.steps(0..before + after);

        let (_folder, path) = temporary();
        let mut first = Run::new(&groups, &tensors);
        first.steps(0..before);
        first.optimizer.save(&path).unwrap();
        let mut resumed = Run::new(&[DualAdamConfig::default(); 2], &tensors);
        resumed.model = first.model;
        resumed.optimizer.load(&path).unwrap();
        resumed.steps(before..before + after);
        prop_assert_eq!(resumed.bits(), whole.bits());
    }

    /// The optimizer gives each tensor what flat steps over it give, each at the tensor's own count
    /// of gradients.
    #[test]
    fn the_optimizer_is_flat_steps_per_tensor(
        groups in prop::array::uniform2(config()),
        tensors in prop::collection::vec(busy_tensor(), 1..8),
        steps in 0..10_u64,
    ) {
        let (mut whole, start) = (Run::new(&groups, &tensors), Run::new(&groups, &tensors).model);
        whole.steps(0..steps);
        for (tensor, &(spec, busy)) in tensors.iter().enumerate() {
            let mut alone = Tensor::fresh(spec.formats, &start.params[tensor]);
            let mut updates = 0;
            for step in (0..steps).filter(|&step| has_gradient(tensor, busy, step)) {
                updates += 1;
                alone.grad = start.grads(step, |_| true).swap_remove(tensor).unwrap();
                alone.step_flat(&groups[spec.group].coeffs(updates).unwrap()).unwrap();
            }
            let state = whole.optimizer.state();
            prop_assert_eq!(state.ledger.step(tensor), Ok(updates));
            prop_assert_eq!(state.ledger.master_is_set(tensor), Ok(alone.master.is_some() && updates > 0));
            state::assert_holds(state, tensor, &alone, &alone.types());
            prop_assert_eq!(whole.model.params[tensor].difference(&alone.param), None);
        }
    }
}

// Configurations, sensible or not.

/// Any f64 at all, numbers of any magnitude, and numbers at the edges of the hyperparameters'
/// ranges.
fn wild() -> impl Strategy<Value = f64> {
    let edges = [
        [0.0, -0.0, 1.0, 0.9, 0.999, 1e-8, 1e-3, 1.0 - f64::EPSILON / 2.0, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY],
        [f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e-45, 7e-46, 7.1e-46, 1.2e-38, 3.4e38, 3.5e38, -1.0],
    ]
    .concat();
    prop_oneof![
        2 => prop::sample::select(edges),
        3 => (-60.0..60.0).prop_map(|exponent| 10_f64.powf(exponent)),
        3 => 0.0..1.0,
        1 => any::<u64>().prop_map(f64::from_bits),
    ]
}

/// Often inside 0..1, where a β must be for the rest of the config to matter.
fn wild_fraction() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..1.0, 2 => (-17.0..0.0).prop_map(|exponent| 1.0 - 10_f64.powf(exponent)), 1 => wild()]
}

fn wild_config() -> impl Strategy<Value = DualAdamConfig> {
    let schedule = prop_oneof![
        wild_fraction().prop_map(|switching_rate| SwitchSchedule::Linear { switching_rate }),
        wild_fraction().prop_map(|switching_rate| SwitchSchedule::LinearEarlyDrop { switching_rate }),
        (wild_fraction(), any::<u64>(), wild_fraction())
            .prop_map(|(base, period, cutoff)| SwitchSchedule::Exponential { base, period, cutoff }),
        any::<u64>().prop_map(|switching_step| SwitchSchedule::Fixed { switching_step }),
        any::<u64>().prop_map(SwitchSchedule::linear_until),
    ];
    config_of(wild(), wild_fraction().boxed(), wild(), wild().boxed(), schedule)
}

fn any_step() -> impl Strategy<Value = u64> {
    prop_oneof![1..100_u64, any::<u32>().prop_map(|step| u64::from(step) + 1), 1..=u64::MAX]
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// A config that `validate` accepts has finite coefficients at every step, and no step makes a
    /// NaN where the gradient and the moments are 0. A config that it refuses has no coefficients.
    #[test]
    fn a_valid_config_never_makes_nan_of_zeros(config in wild_config(), step in any_step(), multiplier in wild()) {
        if config.validate().is_err() {
            prop_assert!(config.coeffs(step).is_err());
            return Ok(());
        }
        let coeffs = config.coeffs(step).unwrap();
        for coeffs in [coeffs, config.coeffs_scaled(step, multiplier).unwrap_or(coeffs)] {
            let scalars: &[f32] = bytemuck::cast_slice(bytemuck::bytes_of(&coeffs));
            prop_assert!(scalars.iter().all(|scalar| scalar.is_finite()), "{:?}", coeffs);
            // With L2 decay the parameter is a gradient, so it must be 0 for there to be none.
            let mut params = if coeffs.l2 == 0.0 { [0.0_f32, -0.0, 1.0, -2.5] } else { [0.0, -0.0, 0.0, -0.0] };
            let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
            cpu::step(&mut params, &[0.0_f32, -0.0, 0.0, -0.0], &mut m, &mut v, &coeffs).unwrap();
            prop_assert!(params.iter().all(|p| !p.is_nan()), "{:?} {:?}", params, coeffs);
            prop_assert_eq!((m, v), ([0.0; 4], [0.0; 4]), "{:?}", coeffs);
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    /// The state file keeps every bit of every valid config. Many to a file: saving one waits for
    /// the disk.
    #[test]
    fn the_state_file_keeps_every_bit_of_a_config(configs in prop::collection::vec(wild_config(), 200), steps in prop::collection::vec(any::<u64>(), 0..5)) {
        let groups: Vec<_> = configs.into_iter().filter(|config| config.validate().is_ok()).collect();
        prop_assume!(!groups.is_empty());
        let mut state = State::new(&groups, &vec![TensorSpec::new(0); steps.len()]).unwrap();
        steps.iter().enumerate().for_each(|(tensor, &step)| state.ledger.set_step(tensor, step).unwrap());
        state::assert_survives(&state);
    }
}
