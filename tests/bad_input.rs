//! Bad input is refused with the right error, before anything is written. Input that only looks bad
//! is accepted.

use dualadam::cpu::{self, Buffer, BufferMut, DualAdam};
use dualadam::half::bf16;
use dualadam::{
    ArgumentError, ConfigError, Dtype, DualAdamConfig, Error, Role, State, StepCoeffs, SwitchSchedule, TensorError,
    TensorProblem, TensorSpec, WeightDecay,
};
use testkit::model::{self, Model, Spec};
use testkit::refused::{self, refused};
use testkit::state::{self, StateBits};
use testkit::{Formats, Tensor, Values, Variant, formats};

use Dtype::{Bf16, F16, F32};

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
}

/// Checks that the value of this name was refused, and that the error has its number.
fn value_error<T, E: Into<Error>>(result: Result<T, E>, name: &str, value: f64) {
    assert_eq!(refused::value(result, name).to_bits(), value.to_bits(), "{name} {value}");
}

/// The same for the config of a group, which the message names too.
fn group_error<T, E: Into<Error>>(result: Result<T, E>, expected_group: usize, name: &str, value: f64) {
    let error = refused(result);
    let message = error.to_string();
    let Error::Group { group, problem } = error else { panic!("{error:?}") };
    assert_eq!(group, expected_group, "{message}");
    assert_eq!(message, format!("group {group}: {problem}"));
    value_error(Err::<(), _>(problem), name, value);
}

// Configurations.

/// The config is refused by `validate`, by its coefficients and by every constructor and setter.
fn refused_config(config: DualAdamConfig, name: &str, value: f64) {
    value_error(config.validate(), name, value);
    value_error(config.coeffs(1), name, value);
    value_error(config.coeffs_scaled(1, 0.5), name, value);
    group_error(DualAdam::new(config, &[3]), 0, name, value);
    let good = DualAdamConfig::default();
    group_error(DualAdam::with_groups(&[good, config], &[TensorSpec::new(3)]), 1, name, value);

    let mut optimizer = DualAdam::new(good, &[3]).unwrap();
    value_error(optimizer.set_config(0, config), name, value);
    if name == "lr" && (config.lr.is_nan() || config == good.with_lr(config.lr)) {
        value_error(optimizer.set_lr(0, config.lr), name, value);
    }
    assert_eq!(optimizer.config(0).unwrap(), good);
}

#[test]
fn hyperparameters_out_of_range_are_refused_by_name_and_number() {
    let good = DualAdamConfig::default();
    let negative = [-1e-30, -0.5, -f64::INFINITY];
    let not_finite_as_f32 = [f64::NAN, f64::INFINITY, f64::MAX, 3.5e38];
    for value in negative.into_iter().chain(not_finite_as_f32) {
        refused_config(good.with_lr(value), "lr", value);
        refused_config(good.with_eps(value), "eps", value);
        refused_config(good.with_weight_decay(WeightDecay::Decoupled(value)), "weight_decay", value);
        refused_config(good.with_weight_decay(WeightDecay::L2(value)), "weight_decay", value);
    }
    for value in [1.0, 1.0 + f64::EPSILON, 2.0, -1e-300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused_config(good.with_betas(value, 0.999), "beta1", value);
        refused_config(good.with_betas(0.9, value), "beta2", value);
    }
    for value in [-f64::MIN_POSITIVE, -1.0, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let exponential = |base, cutoff| SwitchSchedule::Exponential { base, period: 10, cutoff };
        for (schedule, name) in [
            (SwitchSchedule::Linear { switching_rate: value }, "switching_rate"),
            (SwitchSchedule::LinearEarlyDrop { switching_rate: value }, "switching_rate"),
            (exponential(value, 0.1), "base"),
            (exponential(0.5, value), "cutoff"),
        ] {
            value_error(schedule.validate(), name, value);
            refused_config(good.with_schedule(schedule), name, value);
        }
    }
    let no_period = SwitchSchedule::Exponential { base: 0.5, period: 0, cutoff: 0.1 };
    refused_config(good.with_schedule(no_period), "period", 0.0);
    refused_config(good.with_schedule(SwitchSchedule::linear_until(0)), "switching_rate", f64::INFINITY);
}

/// A value that is valid as an f64 may be invalid as the f32 that the kernels use.
#[test]
fn values_are_judged_after_rounding_to_f32() {
    let good = DualAdamConfig::default();
    [0.0, 1e-50, 2.0_f64.powi(-150)].into_iter().for_each(|eps| refused_config(good.with_eps(eps), "eps", eps));
    // 1e-2/1e-42 overflows where the moments are 0; so does lr alone once it is divided by 1-β1.
    refused_config(good.with_eps(1e-42), "lr", 1e-3);
    refused_config(good.with_lr(1e32), "lr", 1e32);
    refused_config(good.with_lr(3e38).with_eps(1.0), "lr", 3e38);
    refused_config(good.with_lr(1.0).with_betas(1.0 - f64::EPSILON / 2.0, 0.999).with_eps(1e-30), "lr", 1.0);
    // Where ε is large it is the inverse branch that overflows.
    refused_config(good.with_lr(1e30).with_eps(1e30), "lr", 1e30);
    let decay = good.with_lr(1e5).with_eps(1.0).with_weight_decay(WeightDecay::Decoupled(1e35));
    refused_config(decay, "weight_decay", 1e35);

    let fine = [
        good.with_eps(1e-38).with_lr(1e-3),
        good.with_eps(2e-45).with_lr(0.0),
        good.with_lr(1e29),
        good.with_betas(1.0 - f64::EPSILON / 2.0, 1.0 - f64::EPSILON / 2.0),
    ];
    for config in fine {
        config.validate().unwrap();
        config.coeffs(1).unwrap();
    }
}

#[test]
fn gradient_multipliers_out_of_range_are_refused() {
    let config = DualAdamConfig::default();
    for value in [f64::NAN, f64::INFINITY, -f64::INFINITY, -1.0, 3.5e38, 1e-50, f64::from_bits(1)] {
        value_error(config.coeffs_scaled(1, value), "grad_multiplier", value);

        let (mut owned, before) = (Owned::new(), Owned::new().bits());
        value_error(owned.step(&[Some(filled(F32, 3)), Some(filled(Bf16, 2))], value), "grad_multiplier", value);
        assert_eq!(owned.bits(), before);
    }
    for value in [0.0, 1e-45, 3.4e38] {
        assert_eq!(config.coeffs_scaled(1, value).unwrap().grad_scale, value as f32);
    }
}

#[test]
fn step_zero_is_refused() {
    let config = DualAdamConfig::default();
    for result in [config.coeffs(0), config.coeffs_scaled(0, 0.5)] {
        let error = result.unwrap_err();
        assert_eq!(error, ConfigError::StepZero);
        assert_eq!(error.to_string(), "step must be at least 1, got 0");
    }
    config.coeffs(u64::MAX).unwrap();
}

#[test]
fn zero_is_a_learning_rate_a_beta_and_a_decay() {
    let (params, grads) = ([1.5_f32, -2.0, 0.0], [0.5_f32, -0.25, 0.0]);
    let step = |config: DualAdamConfig| {
        let (mut p, mut m, mut v) = (params, [0.0; 3], [0.0; 3]);
        cpu::step(&mut p, &grads, &mut m, &mut v, &config.coeffs(1).unwrap()).unwrap();
        (p, m, v)
    };
    let good = DualAdamConfig::default();
    let (p, m, v) = step(good.with_lr(0.0).with_weight_decay(WeightDecay::Decoupled(0.1)));
    assert_eq!(p.map(f32::to_bits), params.map(f32::to_bits));
    assert_eq!((m, v), (step(good).1, step(good).2));

    let (p, m, v) = step(good.with_betas(0.0, 0.0).with_schedule(SwitchSchedule::Fixed { switching_step: 0 }));
    assert_eq!((m, v), (grads, grads.map(|g| g * g)));
    assert!((p[0] - 1.499).abs() < 1e-6 && (p[1] + 1.999).abs() < 1e-6 && p[2] == 0.0, "{p:?}");

    for zero in [WeightDecay::Decoupled(0.0), WeightDecay::L2(0.0)] {
        assert_eq!(step(good.with_weight_decay(zero)), step(good));
    }
}

// Tensors of five elements, which any step would change.

/// Tensors in which one buffer has another length than the others, and that buffer's role.
fn uneven(formats: Formats) -> Vec<(Tensor, Role, usize)> {
    let good = Tensor::filled(formats, 5);
    // The right length is that of the parameters.
    let wrong = 1..good.buffers().len();
    let of = |other: usize| {
        let good = &good;
        wrong.clone().map(move |buffer| {
            let mut bad = good.clone();
            bad.resize(buffer, other);
            (bad, Role::ALL[buffer], other)
        })
    };
    [0, 4, 6].into_iter().flat_map(of).collect()
}

fn step_list(list: &mut [Tensor], sets: &[StepCoeffs]) -> Result<(), TensorError> {
    cpu::step_list(&mut list.iter_mut().map(Tensor::cpu).collect::<Vec<_>>(), sets)
}

/// A list with one bad tensor, at each place among good ones, is refused without a write; `check`
/// looks at the result of each place.
fn refused_list(bad: &Tensor, check: impl Fn(usize, Result<(), TensorError>)) {
    let good = ["f32_f32", "f32_f32", "bf16_bf16_master"].map(|name| Tensor::filled(formats(name), 5));
    for place in 0..3 {
        let mut list = good.clone();
        list[place] = bad.clone();
        let before = list.clone();
        check(place, step_list(&mut list, &[coeffs(), coeffs()]));
        assert_eq!(list, before);
    }
}

#[test]
fn flat_steps_and_lists_refuse_unequal_lengths() {
    for (bad, buffer, other) in Variant::all().flat_map(|variant| uneven(variant.formats())) {
        let mut alone = bad.clone();
        refused::length(alone.step_flat(&coeffs()), 0, buffer, 5, other);
        assert_eq!(alone, bad, "{buffer}");
        refused_list(&bad, |place, result| refused::length(result, place, buffer, 5, other));
    }
}

#[test]
fn lists_refuse_sets_out_of_range() {
    let mut good = Tensor::filled(formats("f32_f32"), 5);
    for value in [2, 3, usize::MAX] {
        refused_list(&good.clone().with_set(value), |place, result| refused::coeffs_index(result, place, 2, value));
    }
    let before = good.clone();
    refused::coeffs_index(step_list(std::slice::from_mut(&mut good), &[]), 0, 0, 0);
    assert_eq!(good, before);
}

const DTYPES: [Dtype; 3] = [F32, Bf16, F16];

/// Every combination of formats is either stepped or refused by name, and those in the table are
/// stepped.
#[test]
fn lists_refuse_formats_without_a_kernel() {
    let mut accepted = 0;
    let masters = [None, Some(F32), Some(Bf16), Some(F16)];
    for index in 0..DTYPES.len().pow(4) * masters.len() {
        let dtype = |place: u32| DTYPES[index / masters.len() / DTYPES.len().pow(place) % DTYPES.len()];
        let mut formats = Formats::new(dtype(0), dtype(1));
        (formats.exp_avg, formats.exp_avg_sq) = (dtype(2), dtype(3));
        formats.master = masters[index % masters.len()];
        let bad = Tensor::filled(formats, 5);
        if Variant::all().any(|variant| variant.formats() == formats) {
            step_list(&mut [bad], &[coeffs()]).unwrap();
            accepted += 1;
            continue;
        }
        refused_list(&bad, |place, result| refused::formats(result, place, formats));
    }
    assert_eq!(accepted, Variant::COUNT);
}

// The owning optimizer.

fn filled(dtype: Dtype, len: usize) -> Values {
    Values::new(dtype, &(0..len).map(|i| 0.5 + i as f32).collect::<Vec<_>>())
}

/// An optimizer that has made a step: tensor 0 of 3 f32, tensor 1 of 2 bf16 with masters that are
/// not set yet.
struct Owned {
    optimizer: DualAdam,
    model: Model,
}

impl Owned {
    fn new() -> Self {
        let specs = [("f32_f32", 3), ("bf16_bf16_master", 2)];
        let specs = specs.map(|(name, len)| Spec { formats: formats(name), len, group: 0 });
        let mut model = Model::new(&specs, model::small);
        model.params = vec![filled(F32, 3), filled(Bf16, 2)];
        let optimizer = DualAdam::with_groups(&[DualAdamConfig::default()], &model.tensor_specs()).unwrap();
        let mut owned = Self { optimizer, model };
        owned.step(&[Some(Values::F32(vec![1.0; 3])), None], 1.0).unwrap();
        owned
    }

    fn step(&mut self, grads: &[Option<Values>], multiplier: f64) -> Result<(), ArgumentError> {
        self.model.step(&mut self.optimizer, grads, multiplier)
    }

    fn bits(&self) -> (StateBits, Vec<Values>) {
        (state::bits(self.optimizer.state()), self.model.params.clone())
    }
}

/// Tries a step with these lists, and checks that it changes nothing.
fn refused_step(params: &[(Dtype, usize)], grads: &[Option<(Dtype, usize)>]) -> Result<(), ArgumentError> {
    let mut owned = Owned::new();
    owned.model.params = params.iter().map(|&(dtype, len)| filled(dtype, len)).collect();
    let before = owned.bits();
    let grads: Vec<_> = grads.iter().map(|grads| grads.map(|(dtype, len)| filled(dtype, len))).collect();
    let result = owned.step(&grads, 1.0);
    assert_eq!(owned.bits(), before, "{result:?}");
    result
}

/// The types and lengths of the optimizer's tensors.
const GOOD: [(Dtype, usize); 2] = [(F32, 3), (Bf16, 2)];
const GRADS: [Option<(Dtype, usize)>; 2] = [Some(GOOD[0]), Some(GOOD[1])];

#[test]
fn the_optimizer_refuses_lists_that_are_not_its_own() {
    for (params, grads, list, actual) in [
        (&GOOD[..1], &GRADS[..], "params", 1),
        (&GOOD, &GRADS[..1], "grads", 1),
        (&[GOOD[0], GOOD[1], GOOD[1]], &GRADS, "params", 3),
        (&GOOD, &[GRADS[0], GRADS[1], GRADS[1]], "grads", 3),
        (&[], &[], "params", 0),
    ] {
        refused::count(refused_step(params, grads), list, 2, actual);
    }
}

/// Iterators may be shorter or longer than each other and than the optimizer's list, or have no
/// end.
#[test]
fn the_optimizer_refuses_iterators_of_another_length() {
    let mut owned = Owned::new();
    let before = owned.bits();
    let optimizer = &mut owned.optimizer;
    let param = || BufferMut::F32(&mut []);
    let grad = || Some(Buffer::F32(&[]));
    let endless = || std::iter::repeat_with(param);
    let endless_grads = || std::iter::repeat_with(grad);
    refused::count(optimizer.step(endless(), endless_grads()), "params", 2, usize::MAX);
    refused::count(optimizer.step(endless(), endless_grads().take(2)), "params", 2, usize::MAX);
    refused::count(optimizer.step(endless(), []), "params", 2, usize::MAX);
    refused::count(optimizer.step(endless().take(2), endless_grads()), "grads", 2, usize::MAX);
    refused::count(optimizer.step(endless().take(2), endless_grads().take(1)), "grads", 2, 1);
    refused::count(optimizer.step(endless().take(2), []), "grads", 2, 0);
    refused::count(optimizer.step([], endless_grads()), "params", 2, 0);
    refused::count(optimizer.step(endless().take(1), endless_grads().take(2)), "params", 2, 1);
    refused::count(optimizer.step(endless().take(1000), endless_grads().take(1000)), "params", 2, 1000);
    // The number of entries is checked before the entries themselves, and before the multiplier.
    refused::count(optimizer.step_scaled(endless(), endless_grads(), f64::NAN), "params", 2, usize::MAX);
    // If an iterator does not state its length, the error only says that it has more entries.
    refused::count(optimizer.step(std::iter::from_fn(|| Some(param())), []), "params", 2, 3);
    refused::length(optimizer.step(endless().take(2), endless_grads().take(2)), 0, Role::Param, 3, 0);
    assert_eq!(owned.bits(), before);

    // An iterator has ended at its first `None`, even if it goes on and the total would be right.
    let resumed = || {
        let mut calls = 0;
        std::iter::from_fn(move || {
            calls += 1;
            (calls > 1).then_some(())
        })
    };
    refused::count(owned.optimizer.step(resumed().take(3).map(|()| param()), endless_grads().take(2)), "params", 2, 0);
    refused::count(owned.optimizer.step(endless().take(2), resumed().take(3).map(|()| grad())), "grads", 2, 0);
    assert_eq!(owned.bits(), before);
    owned.step(&[Some(filled(F32, 3)), None], 1.0).unwrap();
}

/// Errors name a tensor that has a name, whichever call finds the problem.
#[test]
fn errors_name_the_tensor() {
    let config = DualAdamConfig::default();
    let specs = [TensorSpec::new(3), TensorSpec::new(2).with_master().with_name("head.weight")];
    let mut optimizer = DualAdam::with_groups(&[config], &specs).unwrap();
    #[track_caller]
    fn says<T, E: Into<Error>>(result: Result<T, E>, text: &str) {
        let error = refused(result);
        assert!(error.to_string().starts_with(text), "{error}");
        let Error::Tensor(TensorError { name, tensor, .. }) = error else { panic!("{error:?}") };
        assert_eq!(name.as_deref(), (tensor == 1).then_some("head.weight"));
    }
    let (mut w, mut half, mut wide) = ([1.0_f32; 3], [bf16::ONE; 2], [1.0_f32; 2]);
    let step = optimizer.step([(&mut w).into(), (&mut half).into()], [None, Some((&[bf16::ONE; 4]).into())]);
    says(step, "grad of tensor 1 (head.weight) must have 2 elements, got 4");
    let step = optimizer.step([(&mut w).into(), (&mut half[..1]).into()], [None, None]);
    says(step, "param of tensor 1 (head.weight) must have 2 elements, got 1");
    let step = optimizer.step([(&mut w).into(), (&mut wide).into()], [None, Some((&[1.0_f32; 2]).into())]);
    says(step, "tensor 1 (head.weight) must have the formats of a variant");
    // Without a name, the error has the position alone.
    let step = optimizer.step([(&mut w[..1]).into(), (&mut half).into()], [None, None]);
    says(step, "param of tensor 0 must have 3 elements, got 1");
    says(optimizer.set_moments(0, 1, &[], &[]), "exp_avg of tensor 0 must have 3 elements, got 0");
    let moments = optimizer.set_moments(1, 1, &[0.0], &[0.0; 2]);
    says(moments, "exp_avg of tensor 1 (head.weight) must have 2 elements, got 1");
    let moments = optimizer.set_moments(1, 1, &[0.0; 2], &[0.0, -1.0]);
    says(moments, "exp_avg_sq of tensor 1 (head.weight) must be at least 0 everywhere, got -1.0");
    optimizer.set_moments(1, u64::MAX, &[0.0; 2], &[0.0; 2]).unwrap();
    let step = optimizer.step([(&mut w).into(), (&mut half).into()], [None, Some((&[bf16::ONE; 2]).into())]);
    says(step, "tensor 1 (head.weight) must be at a step below");

    let mut state = optimizer.state().clone();
    state.arrays[1].master = None;
    says(DualAdam::try_from(state), "master of tensor 1 (head.weight) must have 2 elements, got 0");
    let other_group = [specs[0].clone(), specs[1].clone().in_group(5)];
    says(DualAdam::with_groups(&[config], &other_group), "tensor 1 (head.weight) must have a group below 1, got 5");
    let too_large = [specs[0].clone(), TensorSpec::new(usize::MAX / 4).with_name("head.weight")];
    says(DualAdam::with_groups(&[config], &too_large), "tensor 1 (head.weight) must fit in memory");
}

#[test]
fn the_optimizer_refuses_unequal_lengths() {
    for (place, (dtype, len)) in GOOD.into_iter().enumerate() {
        for other in [0, len - 1, len + 1] {
            let (mut params, mut grads) = (GOOD, GRADS);
            (params[place], grads[place]) = ((dtype, other), Some((dtype, other)));
            refused::length(refused_step(&params, &GRADS), place, Role::Param, len, other);
            refused::length(refused_step(&GOOD, &grads), place, Role::Grad, len, other);
            // Without a gradient, too: parameters of another length belong to another tensor.
            refused::length(refused_step(&params, &[None, None]), place, Role::Param, len, other);
        }
    }
}

#[test]
fn the_optimizer_refuses_formats_without_a_kernel() {
    // f32 parameters need no masters, and masters take gradients of f32 or of the parameters' type.
    for (grad, param) in [(F32, F32), (Bf16, F32), (F16, Bf16), (Bf16, F16)] {
        let step = refused_step(&[GOOD[0], (param, 2)], &[GRADS[0], Some((grad, 2))]);
        refused::formats(step, 1, Formats::new(param, grad).with_master(F32));
    }
    refused::formats(refused_step(&[(Bf16, 3), GOOD[1]], &[Some((F16, 3)), GRADS[1]]), 0, Formats::new(Bf16, F16));
}

#[test]
fn the_largest_step_cannot_be_exceeded() {
    let mut owned = Owned::new();
    owned.optimizer.set_moments(1, u64::MAX, &[0.5; 2], &[0.25; 2]).unwrap();
    let (before, mut grads) = (owned.bits(), [Some(filled(F32, 3)), Some(filled(F32, 2))]);
    refused::step_overflow(owned.step(&grads, 1.0), 1);
    assert_eq!(owned.bits(), before);
    // The other tensor can still be stepped.
    grads[1] = None;
    owned.step(&grads, 1.0).unwrap();
}

#[test]
fn positions_out_of_range_are_refused() {
    let config = DualAdamConfig::default();
    let mut owned = Owned::new();
    let before = owned.bits();
    for given in [1, 2, usize::MAX] {
        refused::position(owned.optimizer.config(given), "group", 1, given);
        refused::position(owned.optimizer.set_config(given, config), "group", 1, given);
        refused::position(owned.optimizer.set_lr(given, 0.1), "group", 1, given);
    }
    for given in [2, usize::MAX] {
        refused::position(owned.optimizer.step_of(given), "tensor", 2, given);
        refused::position(owned.optimizer.set_moments(given, 1, &[], &[]), "tensor", 2, given);
    }
    assert_eq!(owned.bits(), before);

    for (groups, group) in [(0, 0), (1, 1), (2, 7)] {
        let specs = [TensorSpec::new(3).in_group(group)];
        refused::group(DualAdam::with_groups(&vec![config; groups], &specs), 0, groups, group);
    }
}

#[test]
fn moments_that_do_not_fit_are_refused() {
    let mut owned = Owned::new();
    let before = owned.bits();
    let good = [0.5; 3];
    for other in [0, 2, 4] {
        refused::length(owned.optimizer.set_moments(0, 9, &vec![0.5; other], &good), 0, Role::ExpAvg, 3, other);
        refused::length(owned.optimizer.set_moments(0, 9, &good, &vec![0.5; other]), 0, Role::ExpAvgSq, 3, other);
    }
    for negative in [-1.0_f32, -1e-45, f32::NEG_INFINITY] {
        let moments = owned.optimizer.set_moments(0, 9, &good, &[1.0, 2.0, negative]);
        refused::problem(moments, 0, Role::ExpAvgSq, TensorProblem::Negative { value: negative });
    }
    assert_eq!(owned.bits(), before);
}

/// A state's arrays are public, so a program may fill them with anything. No optimizer may be made
/// from an invalid state.
#[test]
fn a_state_made_by_hand_is_checked_before_it_is_used() {
    let config = DualAdamConfig::default();
    let specs = [TensorSpec::new(2), TensorSpec::new(2).with_master()];
    let state = State::new(&[config], &specs).unwrap();
    let made = |change: fn(&mut State)| {
        let mut state = state.clone();
        change(&mut state);
        let error = refused(DualAdam::try_from(state.clone()));
        assert_eq!(error.to_string(), refused(state.validate()).to_string());
        Err::<(), _>(error)
    };
    refused::length(made(|state| state.arrays[0].exp_avg_sq.push(0.5)), 0, Role::ExpAvgSq, 2, 3);
    refused::length(made(|state| state.arrays[0].exp_avg.clear()), 0, Role::ExpAvg, 2, 0);
    refused::length(made(|state| state.arrays[0].master = Some(vec![0.5; 2])), 0, Role::Master, 0, 2);
    refused::length(made(|state| state.arrays[1].master = Some(vec![0.5; 3])), 1, Role::Master, 2, 3);
    refused::length(made(|state| state.arrays[1].master = None), 1, Role::Master, 2, 0);
    // Masters of no elements are the same as none.
    for (spec, master) in [(TensorSpec::new(0), Some(vec![])), (TensorSpec::new(0).with_master(), None)] {
        let mut state = State::new(&[config], std::slice::from_ref(&spec)).unwrap();
        state.arrays[0].master = master;
        assert_eq!(DualAdam::try_from(state).unwrap().state(), &State::new(&[config], &[spec]).unwrap());
    }
    let negative = TensorProblem::Negative { value: -1.0 };
    refused::problem(made(|state| state.arrays[1].exp_avg_sq[1] = -1.0), 1, Role::ExpAvgSq, negative);
    refused::count(made(|state| state.arrays.truncate(1)), "arrays", 2, 1);
    refused::count(made(|state| state.arrays.push(state.arrays[0].clone())), "arrays", 2, 3);
    refused::count(made(|state| state.ledger = Default::default()), "arrays", 0, 2);

    // The ledger itself refuses these, so no state can contain them.
    group_error(State::new(&[config.with_lr(f64::NAN)], &specs), 0, "lr", f64::NAN);
    refused::group(State::new(&[config], &[specs[0].clone().in_group(1)]), 0, 1, 1);
    let mut ledger = state.ledger;
    value_error(ledger.set_config(0, config.with_lr(f64::NAN)), "lr", f64::NAN);
    value_error(ledger.set_lr(0, -1.0), "lr", -1.0);
    assert_eq!(ledger.groups(), [config]);
}

// Input that is not bad.

#[test]
fn empty_tensors_are_fine_anywhere() {
    Variant::all().for_each(|variant| Tensor::filled(variant.formats(), 0).step_flat(&coeffs()).unwrap());
    cpu::step_list(&mut [], &[]).unwrap();
    cpu::step_list(&mut [], &[coeffs()]).unwrap();

    let good = Tensor::filled(formats("f32_f32"), 5);
    let mut alone = good.clone();
    alone.step(&[coeffs()]);
    let empty = Tensor::filled(formats("f32_bf16"), 0);
    // Bit i of the pattern makes tensor i empty.
    for pattern in 0..16 {
        let of = |if_empty: &Tensor, other: &Tensor| {
            (0..4).map(|i| if pattern >> i & 1 == 1 { if_empty } else { other }.clone()).collect::<Vec<_>>()
        };
        let mut list = of(&empty, &good);
        step_list(&mut list, &[coeffs()]).unwrap();
        assert_eq!(list, of(&empty, &alone), "{pattern:04b}");
    }
}

#[test]
fn the_optimizer_takes_empty_tensors_anywhere() {
    let config = DualAdamConfig::default();
    let specs = [TensorSpec::new(0), TensorSpec::new(2), TensorSpec::new(0).with_master()];
    let mut optimizer = DualAdam::with_groups(&[config], &specs).unwrap();
    let (mut none, mut w, mut half) = ([0.0_f32; 0], [1.0_f32, 2.0], [bf16::ONE; 0]);
    for _ in 0..2 {
        let grads = [Some(Buffer::F32(&[])), Some(Buffer::F32(&[1.0, 1.0])), Some(Buffer::Bf16(&[]))];
        optimizer.step([(&mut none).into(), (&mut w).into(), (&mut half).into()], grads).unwrap();
    }
    assert_eq!([0, 1, 2].map(|tensor| optimizer.step_of(tensor).unwrap()), [2; 3]);

    let mut alone = DualAdam::new(config, &[2]).unwrap();
    let mut expected = [1.0_f32, 2.0];
    (0..2).for_each(|_| alone.step([(&mut expected).into()], [Some((&[1.0_f32, 1.0]).into())]).unwrap());
    assert_eq!(w, expected);
    DualAdam::new(config, &[]).unwrap().step([], []).unwrap();
    DualAdam::with_groups(&[], &[]).unwrap().step([], []).unwrap();
}

/// The owning optimizer accepts such gradients, and counts the step.
#[test]
fn the_optimizer_steps_with_nan_and_infinite_gradients() {
    let mut owned = Owned::new();
    let mut clean = Owned::new();
    clean.step(&[Some(Values::F32(vec![1.0, 1.0, 2.0])), None], 1.0).unwrap();
    let grads = [vec![f32::NAN, f32::INFINITY, 2.0], vec![f32::NEG_INFINITY, f32::NAN]];
    owned.step(&grads.map(|grads| Some(Values::F32(grads))), 1.0).unwrap();
    let [w, b] = [0, 1].map(|tensor: usize| owned.model.params[tensor].wide());
    assert!(w[0].is_nan() && w[1] == f32::NEG_INFINITY, "{w:?}");
    assert_eq!(w[2].to_bits(), clean.model.params[0].at(2).to_bits());
    assert!(b[0] == f32::INFINITY && b[1].is_nan(), "{b:?}");
    let master = owned.optimizer.state().arrays[1].master.as_ref().unwrap();
    assert!(master[0] == f32::INFINITY && master[1].is_nan(), "{master:?}");
    assert_eq!([0, 1].map(|tensor| owned.optimizer.step_of(tensor).unwrap()), [2, 1]);
}

#[test]
fn a_bad_multiplier_is_refused_even_where_no_gradient_uses_it() {
    let mut optimizer = DualAdam::new(DualAdamConfig::default(), &[2]).unwrap();
    let mut params = [1.0_f32; 2];
    value_error(optimizer.step_scaled([(&mut params).into()], [None], -2.0), "grad_multiplier", -2.0);
}
