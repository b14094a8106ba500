//! What is refused, how the error says so, and that nothing was written by then; and what looks bad and is not.

use dualadam::cpu::{self, CopyMut, DualAdam, Grads, ParamsMut, Tensor};
use dualadam::half::{bf16, f16};
use dualadam::{
    Dtype, DualAdamConfig, Element, Error, GradOf, HalfElement, State, StepCoeffs, SwitchSchedule, TensorLayout,
    TensorState, WeightDecay,
};

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
}

/// An error's message, which must be that of a value whose name and number are given.
fn value_error<T: std::fmt::Debug>(result: Result<T, Error>, expected_name: &str, expected_value: f64) -> String {
    let error = result.unwrap_err();
    let message = error.to_string();
    let Error::Value { name, requirement, value } = error else { panic!("{error:?}") };
    assert_eq!(name, expected_name, "{message}");
    assert_eq!(value.to_bits(), expected_value.to_bits(), "{message}");
    assert_eq!(message, format!("{name} must {requirement}, got {value:?}"));
    message
}

// Configurations.

/// The config is refused by `validate`, by its coefficients and by every constructor and setter.
fn refused(config: DualAdamConfig, name: &str, value: f64) {
    value_error(config.validate(), name, value);
    value_error(config.coeffs(1), name, value);
    value_error(config.coeffs_scaled(1, 0.5), name, value);
    value_error(DualAdam::new(config, &[3]), name, value);
    let good = DualAdamConfig::default();
    value_error(DualAdam::with_groups(&[good, config], &[TensorLayout::new(3)]), name, value);

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
        refused(good.with_lr(value), "lr", value);
        refused(good.with_eps(value), "eps", value);
        refused(good.with_weight_decay(WeightDecay::Decoupled(value)), "weight_decay", value);
        refused(good.with_weight_decay(WeightDecay::L2(value)), "weight_decay", value);
    }
    for value in [1.0, 1.0 + f64::EPSILON, 2.0, -1e-300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused(good.with_betas(value, 0.999), "beta1", value);
        refused(good.with_betas(0.9, value), "beta2", value);
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
            refused(good.with_schedule(schedule), name, value);
        }
    }
    let no_period = SwitchSchedule::Exponential { base: 0.5, period: 0, cutoff: 0.1 };
    refused(good.with_schedule(no_period), "period", 0.0);
    refused(good.with_schedule(SwitchSchedule::linear_until(0)), "switching_rate", f64::INFINITY);
}

/// What is fine as an f64 may not be as the f32 that the kernels see.
#[test]
fn values_are_judged_after_rounding_to_f32() {
    let good = DualAdamConfig::default();
    for eps in [0.0, 1e-50, 2.0_f64.powi(-150)] {
        refused(good.with_eps(eps), "eps", eps);
    }
    // 1e-2/1e-42 overflows where the moments are 0; so does lr alone once it is divided by 1-β1.
    refused(good.with_eps(1e-42), "lr", 1e-3);
    refused(good.with_lr(1e32), "lr", 1e32);
    refused(good.with_lr(3e38).with_eps(1.0), "lr", 3e38);
    refused(good.with_lr(1.0).with_betas(1.0 - f64::EPSILON / 2.0, 0.999).with_eps(1e-30), "lr", 1.0);
    // Where ε is large it is the inverse branch that overflows.
    refused(good.with_lr(1e30).with_eps(1e30), "lr", 1e30);
    let decay = good.with_lr(1e5).with_eps(1.0).with_weight_decay(WeightDecay::Decoupled(1e35));
    refused(decay, "weight_decay", 1e35);

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

        let mut owned = Owned::new();
        let before = owned.bits();
        let result = owned.optimizer.step_scaled(
            &mut [(&mut owned.w).into(), (&mut owned.b).into()],
            &[Some((&[1.0_f32; 3]).into()), Some((&[bf16::ONE; 2]).into())],
            value,
        );
        value_error(result, "grad_multiplier", value);
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
        assert!(matches!(error, Error::StepZero), "{error:?}");
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

// Buffers that hold numbers which any step would change.

fn filled<T: Element>(len: usize) -> Vec<T> {
    (0..len).map(|i| T::narrow(0.5 + i as f32)).collect()
}

/// Widening is exact, so these tell any two numbers apart.
fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.widen().to_bits()).collect()
}

/// The error is that of a length, and its message has all of it.
fn length_error(result: Result<(), Error>, at: usize, expected_buffer: &str, expected_len: usize, given: usize) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert_eq!(message, format!("{expected_buffer} of tensor {at} must have {expected_len} elements, got {given}"));
    let Error::Length { tensor, buffer, expected, actual } = error else { panic!("{error:?}") };
    assert_eq!((tensor, buffer, expected, actual), (at, expected_buffer, expected_len, given));
}

/// Lengths other than 5.
const OTHER_LENGTHS: [usize; 3] = [0, 4, 6];

fn flat_lengths<P: Element, G: GradOf<P>>() {
    for other in OTHER_LENGTHS {
        for (wrong, buffer) in ["grads", "exp_avg", "exp_avg_sq"].into_iter().enumerate() {
            let len = |this| if this == wrong { other } else { 5 };
            let (mut p, g) = (filled::<P>(5), filled::<G>(len(0)));
            let (mut m, mut v) = (filled::<f32>(len(1)), filled::<f32>(len(2)));
            let before = (bits(&p), bits(&m), bits(&v));
            length_error(cpu::step(&mut p, &g, &mut m, &mut v, &coeffs()), 0, buffer, 5, other);
            assert_eq!((bits(&p), bits(&m), bits(&v)), before, "{buffer}");
        }
    }
}

fn copy_lengths<C: HalfElement, G: GradOf<f32> + GradOf<C>>() {
    for other in OTHER_LENGTHS {
        for (wrong, buffer) in ["copy", "grads", "exp_avg", "exp_avg_sq"].into_iter().enumerate() {
            let len = |this| if this == wrong { other } else { 5 };
            let (mut p, mut c, g) = (filled::<f32>(5), filled::<C>(len(0)), filled::<G>(len(1)));
            let (mut m, mut v) = (filled::<f32>(len(2)), filled::<f32>(len(3)));
            let before = (bits(&p), bits(&c), bits(&m), bits(&v));
            length_error(cpu::step_with_copy(&mut p, &mut c, &g, &mut m, &mut v, &coeffs()), 0, buffer, 5, other);
            assert_eq!((bits(&p), bits(&c), bits(&m), bits(&v)), before, "{buffer}");
        }
    }
}

#[test]
fn flat_steps_refuse_unequal_lengths() {
    flat_lengths::<f32, f32>();
    flat_lengths::<f32, bf16>();
    flat_lengths::<f32, f16>();
    flat_lengths::<bf16, bf16>();
    flat_lengths::<bf16, f32>();
    flat_lengths::<f16, f16>();
    flat_lengths::<f16, f32>();
    copy_lengths::<bf16, bf16>();
    copy_lengths::<bf16, f32>();
    copy_lengths::<f16, f16>();
    copy_lengths::<f16, f32>();
}

/// The buffers of one tensor, each of its own length and type.
struct Buffers {
    params: Values,
    grads: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    copy: Option<Values>,
    set: usize,
}

enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Values {
    fn filled(dtype: Dtype, len: usize) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(filled(len)),
            Dtype::Bf16 => Self::Bf16(filled(len)),
            Dtype::F16 => Self::F16(filled(len)),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => bits(values),
            Self::Bf16(values) => bits(values),
            Self::F16(values) => bits(values),
        }
    }

    fn params(&mut self) -> ParamsMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::Bf16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }

    fn grads(&self) -> Grads<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::Bf16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }

    fn copy(&mut self) -> CopyMut<'_> {
        match self {
            Self::F32(_) => unreachable!("copies have 16 bits"),
            Self::Bf16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }
}

impl Buffers {
    /// Five f32 elements that a step accepts.
    fn good() -> Self {
        Self::of(Dtype::F32, Dtype::F32, None)
    }

    fn of(params: Dtype, grads: Dtype, copy: Option<Dtype>) -> Self {
        Self {
            params: Values::filled(params, 5),
            grads: Values::filled(grads, 5),
            exp_avg: filled(5),
            exp_avg_sq: filled(5),
            copy: copy.map(|dtype| Values::filled(dtype, 5)),
            set: 0,
        }
    }

    fn tensor(&mut self) -> Tensor<'_> {
        Tensor {
            params: self.params.params(),
            grads: self.grads.grads(),
            exp_avg: &mut self.exp_avg,
            exp_avg_sq: &mut self.exp_avg_sq,
            copy: self.copy.as_mut().map(Values::copy),
            set: self.set,
        }
    }

    fn bits(&self) -> [Vec<u32>; 4] {
        let copy = self.copy.as_ref().map(Values::bits).unwrap_or_default();
        [self.params.bits(), bits(&self.exp_avg), bits(&self.exp_avg_sq), copy]
    }
}

/// A list with one bad tensor, at each place among good ones, is refused without a write; returns the error of each place.
fn refused_list(bad: impl Fn() -> Buffers) -> Vec<Error> {
    (0..3)
        .map(|place| {
            let mut list = [Buffers::good(), Buffers::good(), Buffers::of(Dtype::F32, Dtype::Bf16, Some(Dtype::Bf16))];
            list[place] = bad();
            let before: Vec<_> = list.iter().map(Buffers::bits).collect();
            let mut tensors: Vec<_> = list.iter_mut().map(Buffers::tensor).collect();
            let error = cpu::step_list(&mut tensors, &[coeffs(), coeffs()]).unwrap_err();
            assert_eq!(list.iter().map(Buffers::bits).collect::<Vec<_>>(), before, "{error}");
            error
        })
        .collect()
}

#[test]
fn lists_refuse_unequal_lengths() {
    for other in OTHER_LENGTHS {
        type Change = fn(&mut Buffers, usize);
        let bad: [(&str, Change); 4] = [
            ("grads", |bad, len| bad.grads = Values::filled(Dtype::F32, len)),
            ("exp_avg", |bad, len| bad.exp_avg = filled(len)),
            ("exp_avg_sq", |bad, len| bad.exp_avg_sq = filled(len)),
            ("copy", |bad, len| bad.copy = Some(Values::filled(Dtype::F16, len))),
        ];
        for (buffer, change) in bad {
            let errors = refused_list(|| {
                let mut bad = Buffers::good();
                change(&mut bad, other);
                bad
            });
            for (place, error) in errors.into_iter().enumerate() {
                length_error(Err(error), place, buffer, 5, other);
            }
        }
    }
}

#[test]
fn lists_refuse_sets_out_of_range() {
    for value in [2, 3, usize::MAX] {
        let errors = refused_list(|| Buffers { set: value, ..Buffers::good() });
        for (place, error) in errors.into_iter().enumerate() {
            assert_eq!(error.to_string(), format!("set of tensor {place} must be below 2, got {value:?}"));
            assert!(
                matches!(error, Error::Index { tensor, index: "set", len: 2, value: v } if (tensor, v) == (place, value))
            );
        }
    }
    let mut good = Buffers::good();
    let before = good.bits();
    let error = cpu::step_list(&mut [good.tensor()], &[]).unwrap_err();
    assert!(matches!(error, Error::Index { tensor: 0, index: "set", len: 0, value: 0 }), "{error:?}");
    assert_eq!(good.bits(), before);
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Every combination of types either steps or is refused by name, and which do is the table of the documentation.
#[test]
fn lists_refuse_types_without_a_kernel() {
    use Dtype::{Bf16, F16, F32};
    let mut accepted = vec![];
    for params in DTYPES {
        for grads in DTYPES {
            for copy in [None, Some(Bf16), Some(F16)] {
                let mut one = Buffers::of(params, grads, copy);
                if cpu::step_list(&mut [one.tensor()], &[coeffs()]).is_ok() {
                    accepted.push((params, grads, copy));
                    continue;
                }
                for (place, error) in refused_list(|| Buffers::of(params, grads, copy)).into_iter().enumerate() {
                    let and_copy = copy.map(|copy| format!(" and a {copy} copy")).unwrap_or_default();
                    let start = format!(
                        "tensor {place}: {params} parameters with {grads} gradients{and_copy} are not supported"
                    );
                    assert!(error.to_string().starts_with(&start), "{error}");
                    let Error::Types { tensor, params: p, grads: g, copy: c } = error else { panic!("{error:?}") };
                    assert_eq!((tensor, p, g, c), (place, params, grads, copy));
                }
            }
        }
    }
    assert_eq!(
        accepted,
        [
            (F32, F32, None),
            (F32, F32, Some(Bf16)),
            (F32, F32, Some(F16)),
            (F32, Bf16, None),
            (F32, Bf16, Some(Bf16)),
            (F32, F16, None),
            (F32, F16, Some(F16)),
            (Bf16, F32, None),
            (Bf16, Bf16, None),
            (F16, F32, None),
            (F16, F16, None),
        ]
    );
}

// The owning optimizer.

/// An optimizer that has made a step: tensor 0 of 3 f32, tensor 1 of 2 bf16 with masters that are not set yet.
struct Owned {
    optimizer: DualAdam,
    w: Vec<f32>,
    b: Vec<bf16>,
}

impl Owned {
    fn new() -> Self {
        let layout = [TensorLayout::new(3), TensorLayout::new(2).with_master()];
        let mut optimizer = DualAdam::with_groups(&[DualAdamConfig::default()], &layout).unwrap();
        let (mut w, mut b) = (filled(3), filled(2));
        optimizer.step(&mut [(&mut w).into(), (&mut b).into()], &[Some((&[1.0_f32; 3]).into()), None]).unwrap();
        Self { optimizer, w, b }
    }

    /// `Debug` prints floats so that no two others print the same, and here is no NaN.
    fn bits(&self) -> (String, Vec<u32>, Vec<u32>) {
        (format!("{:?}", self.optimizer.state()), bits(&self.w), bits(&self.b))
    }
}

/// A step with these lists is refused, and neither it nor anything before it in the lists has been done.
fn refused_step(params: &mut [Values], grads: &[Option<Values>]) -> Error {
    let mut owned = Owned::new();
    let before = (owned.bits(), params.iter().map(Values::bits).collect::<Vec<_>>());
    let grads: Vec<_> = grads.iter().map(|grads| grads.as_ref().map(Values::grads)).collect();
    let error =
        owned.optimizer.step(&mut params.iter_mut().map(Values::params).collect::<Vec<_>>(), &grads).unwrap_err();
    assert_eq!((owned.bits(), params.iter().map(Values::bits).collect::<Vec<_>>()), before, "{error}");
    error
}

fn values(list: &[(Dtype, usize)]) -> Vec<Values> {
    list.iter().map(|&(dtype, len)| Values::filled(dtype, len)).collect()
}

fn some_values(list: &[(Dtype, usize)]) -> Vec<Option<Values>> {
    values(list).into_iter().map(Some).collect()
}

#[test]
fn the_optimizer_refuses_lists_that_are_not_its_own() {
    use Dtype::{Bf16, F32};
    let good = [(F32, 3), (Bf16, 2)];
    for (params, grads, list, actual) in [
        (&good[..1], &good[..], "params", 1),
        (&good, &good[..1], "grads", 1),
        (&[good[0], good[1], good[1]], &good, "params", 3),
        (&good, &[good[0], good[1], good[1]], "grads", 3),
        (&[], &[], "params", 0),
    ] {
        let error = refused_step(&mut values(params), &some_values(grads));
        assert_eq!(error.to_string(), format!("{list} must have 2 entries, got {actual}"));
        assert!(matches!(error, Error::Count { list: l, expected: 2, actual: a } if (l, a) == (list, actual)));
    }
}

#[test]
fn the_optimizer_refuses_unequal_lengths() {
    use Dtype::{Bf16, F32};
    let good = [(F32, 3), (Bf16, 2)];
    for (place, dtype, len) in [(0, F32, 3), (1, Bf16, 2)] {
        for other in [0, len - 1, len + 1] {
            let mut wrong = good;
            wrong[place] = (dtype, other);
            let error = refused_step(&mut values(&wrong), &some_values(&good));
            length_error(Err(error), place, "params", len, other);
            let error = refused_step(&mut values(&good), &some_values(&wrong));
            length_error(Err(error), place, "grads", len, other);
            // Without a gradient too: parameters of another length are another tensor's.
            let error = refused_step(&mut values(&wrong), &[None, None]);
            length_error(Err(error), place, "params", len, other);
        }
    }
}

#[test]
fn the_optimizer_refuses_types_without_a_kernel() {
    use Dtype::{Bf16, F16, F32};
    // f32 parameters need no masters, and masters take gradients of f32 or of the parameters' type.
    for (params, grads, copy) in [(F32, F32, F32), (F32, Bf16, F32), (F32, F16, Bf16), (F32, Bf16, F16)] {
        let error = refused_step(&mut values(&[(F32, 3), (copy, 2)]), &some_values(&[(F32, 3), (grads, 2)]));
        let Error::Types { tensor: 1, params: p, grads: g, copy: c } = error else { panic!("{error:?}") };
        assert_eq!((p, g, c), (params, grads, Some(copy)));
    }
    let error = refused_step(&mut values(&[(Bf16, 3), (Bf16, 2)]), &some_values(&[(F16, 3), (Bf16, 2)]));
    assert!(matches!(error, Error::Types { tensor: 0, params: Bf16, grads: F16, copy: None }), "{error:?}");
}

#[test]
fn the_largest_step_cannot_be_exceeded() {
    let mut owned = Owned::new();
    owned.optimizer.set_moments(1, u64::MAX, &[0.5; 2], &[0.25; 2]).unwrap();
    let before = owned.bits();
    let grads = filled::<f32>(3);
    let error = owned
        .optimizer
        .step(
            &mut [(&mut owned.w).into(), (&mut owned.b).into()],
            &[Some((&grads).into()), Some((&[1.0_f32; 2]).into())],
        )
        .unwrap_err();
    assert!(matches!(error, Error::StepOverflow { tensor: 1 }), "{error:?}");
    assert!(error.to_string().contains("tensor 1") && error.to_string().contains(&u64::MAX.to_string()), "{error}");
    assert_eq!(owned.bits(), before);
    // The other tensor is not held up by it.
    let lists = (&mut [(&mut owned.w).into(), (&mut owned.b).into()], &[Some((&grads).into()), None]);
    owned.optimizer.step(lists.0, lists.1).unwrap();
}

#[test]
fn positions_out_of_range_are_refused() {
    let config = DualAdamConfig::default();
    let mut owned = Owned::new();
    let before = owned.bits();
    let position = |error: Error, expected: &str, len: usize, given: usize| {
        assert_eq!(error.to_string(), format!("{expected} must be below {len}, got {given}"));
        assert!(matches!(error, Error::Position { list, len: l, value } if (list, l, value) == (expected, len, given)));
    };
    for given in [1, 2, usize::MAX] {
        position(owned.optimizer.config(given).unwrap_err(), "group", 1, given);
        position(owned.optimizer.set_config(given, config).unwrap_err(), "group", 1, given);
        position(owned.optimizer.set_lr(given, 0.1).unwrap_err(), "group", 1, given);
    }
    for given in [2, usize::MAX] {
        position(owned.optimizer.step_of(given).unwrap_err(), "tensor", 2, given);
        position(owned.optimizer.set_moments(given, 1, &[], &[]).unwrap_err(), "tensor", 2, given);
    }
    assert_eq!(owned.bits(), before);

    for (groups, group) in [(0, 0), (1, 1), (2, 7)] {
        let layout = [TensorLayout::new(3).in_group(group)];
        let error = DualAdam::with_groups(&vec![config; groups], &layout).unwrap_err();
        assert_eq!(error.to_string(), format!("group of tensor 0 must be below {groups}, got {group}"));
        assert!(matches!(error, Error::Index { tensor: 0, index: "group", .. }), "{error:?}");
    }
}

#[test]
fn moments_that_do_not_fit_are_refused() {
    let mut owned = Owned::new();
    let before = owned.bits();
    let good = [0.5; 3];
    for other in [0, 2, 4] {
        length_error(owned.optimizer.set_moments(0, 9, &vec![0.5; other], &good), 0, "exp_avg", 3, other);
        length_error(owned.optimizer.set_moments(0, 9, &good, &vec![0.5; other]), 0, "exp_avg_sq", 3, other);
    }
    for negative in [-1.0_f32, -1e-45, f32::NEG_INFINITY] {
        value_error(owned.optimizer.set_moments(0, 9, &good, &[1.0, 2.0, negative]), "exp_avg_sq", negative.into());
    }
    assert_eq!(owned.bits(), before);
}

/// A state's fields are open: an optimizer made from one that makes no sense must say so at its first step.
#[test]
fn a_state_made_by_hand_is_checked_before_it_is_used() {
    let config = DualAdamConfig::default();
    let tensor = TensorState { exp_avg: vec![0.5; 2], exp_avg_sq: vec![0.5; 2], ..TensorState::default() };
    let step = |state: State| DualAdam::try_from(state).unwrap_err();
    let no_lr = State { groups: vec![config.with_lr(f64::NAN)], tensors: vec![tensor.clone()] };
    value_error(Err::<(), _>(step(no_lr)), "lr", f64::NAN);
    let uneven = TensorState { exp_avg_sq: vec![0.5; 3], ..tensor.clone() };
    length_error(Err(step(State { groups: vec![config], tensors: vec![uneven] })), 0, "exp_avg_sq", 2, 3);
    let no_group = step(State { groups: vec![config], tensors: vec![TensorState { group: 1, ..tensor }] });
    assert!(matches!(no_group, Error::Index { tensor: 0, index: "group", len: 1, value: 1 }), "{no_group:?}");
}

// What is not bad input.

#[test]
fn empty_tensors_are_fine_anywhere() {
    fn flat<P: Element, G: GradOf<P>>() {
        cpu::step::<P, G>(&mut [], &[], &mut [], &mut [], &coeffs()).unwrap();
    }
    flat::<f32, f32>();
    flat::<bf16, bf16>();
    flat::<f16, f32>();
    cpu::step_with_copy::<bf16, f32>(&mut [], &mut [], &[], &mut [], &mut [], &coeffs()).unwrap();
    cpu::step_list(&mut [], &[]).unwrap();
    cpu::step_list(&mut [], &[coeffs()]).unwrap();

    let alone = {
        let mut one = Buffers::good();
        cpu::step_list(&mut [one.tensor()], &[coeffs()]).unwrap();
        one.bits()
    };
    let empty = || Buffers {
        params: Values::filled(Dtype::F32, 0),
        grads: Values::filled(Dtype::Bf16, 0),
        exp_avg: vec![],
        exp_avg_sq: vec![],
        copy: None,
        set: 0,
    };
    // Bit i of the pattern makes tensor i empty.
    for pattern in 0..16 {
        let is_empty = |i: usize| pattern >> i & 1 == 1;
        let mut list: Vec<_> = (0..4).map(|i| if is_empty(i) { empty() } else { Buffers::good() }).collect();
        let mut tensors: Vec<_> = list.iter_mut().map(Buffers::tensor).collect();
        cpu::step_list(&mut tensors, &[coeffs()]).unwrap();
        for (i, tensor) in list.iter().enumerate() {
            assert_eq!(tensor.bits(), if is_empty(i) { Default::default() } else { alone.clone() }, "{pattern:04b}");
        }
    }
}

#[test]
fn the_optimizer_takes_empty_tensors_anywhere() {
    let config = DualAdamConfig::default();
    let layout = [TensorLayout::new(0), TensorLayout::new(2), TensorLayout::new(0).with_master()];
    let mut optimizer = DualAdam::with_groups(&[config], &layout).unwrap();
    let (mut none, mut w, mut half) = ([0.0_f32; 0], [1.0_f32, 2.0], [bf16::ONE; 0]);
    let grads = [Some(Grads::F32(&[])), Some(Grads::F32(&[1.0, 1.0])), Some(Grads::Bf16(&[]))];
    for _ in 0..2 {
        optimizer.step(&mut [(&mut none).into(), (&mut w).into(), (&mut half).into()], &grads).unwrap();
    }
    assert_eq!([0, 1, 2].map(|tensor| optimizer.step_of(tensor).unwrap()), [2; 3]);

    let mut alone = DualAdam::new(config, &[2]).unwrap();
    let mut expected = [1.0_f32, 2.0];
    for _ in 0..2 {
        alone.step(&mut [(&mut expected).into()], &[Some((&[1.0_f32, 1.0]).into())]).unwrap();
    }
    assert_eq!(w, expected);
    DualAdam::new(config, &[]).unwrap().step(&mut [], &[]).unwrap();
    DualAdam::with_groups(&[], &[]).unwrap().step(&mut [], &[]).unwrap();
}

/// What a step makes of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Becomes {
    Nan,
    Exactly(f32),
}

impl Becomes {
    fn check(self, value: f32, what: &str) {
        match self {
            Self::Nan => assert!(value.is_nan(), "{what}: {value}"),
            Self::Exactly(expected) => assert_eq!(value.to_bits(), expected.to_bits(), "{what}: {value}"),
        }
    }
}

/// Elements that have a NaN or infinite gradient become what the rule says, the others what they become without it.
fn special_gradients<P: Element, G: GradOf<P>>(config: DualAdamConfig, cases: &[(f32, Becomes, Becomes, Becomes)]) {
    // Vectors and their tail, and more than one thread's share.
    for len in [1, 7, 8, 9, 100, 70_001] {
        let step = |change: &dyn Fn(&mut [G])| {
            let mut grads: Vec<G> = (0..len).map(|i| G::narrow(0.25 + (i % 5) as f32)).collect();
            change(&mut grads);
            let (mut p, mut m, mut v) = (vec![P::narrow(1.0); len], vec![0.5; len], vec![0.25; len]);
            cpu::step(&mut p, &grads, &mut m, &mut v, &config.coeffs(3).unwrap()).unwrap();
            (p, m, v)
        };
        let clean = step(&|_| ());
        for at in [0, len / 2, len - 1] {
            for &(grad, p_becomes, m_becomes, v_becomes) in cases {
                let (mut p, mut m, mut v) = step(&|grads| grads[at] = G::narrow(grad));
                let what = format!("element {at} of {len}, gradient {grad}");
                p_becomes.check(p[at].widen(), &what);
                m_becomes.check(m[at], &what);
                v_becomes.check(v[at], &what);
                (p[at], m[at], v[at]) = (clean.0[at], clean.1[at], clean.2[at]);
                assert!(
                    bits(&p) == bits(&clean.0) && bits(&m) == bits(&clean.1) && bits(&v) == bits(&clean.2),
                    "{what}"
                );
            }
        }
    }
}

/// In Adam the update of an infinite gradient is inf·(1/inf), a NaN; inverse Adam multiplies by the root, and it is inf.
#[test]
fn nan_and_infinite_gradients_stay_in_their_elements() {
    const INF: f32 = f32::INFINITY;
    use Becomes::{Exactly, Nan};
    let adam =
        [(f32::NAN, Nan, Nan, Nan), (INF, Nan, Exactly(INF), Exactly(INF)), (-INF, Nan, Exactly(-INF), Exactly(INF))];
    let dual = [
        (f32::NAN, Nan, Nan, Nan),
        (INF, Exactly(-INF), Exactly(INF), Exactly(INF)),
        (-INF, Exactly(INF), Exactly(-INF), Exactly(INF)),
    ];
    let decay = WeightDecay::Decoupled(0.1);
    for (config, cases) in [
        (DualAdamConfig::adam(), &adam),
        (DualAdamConfig::adam().with_weight_decay(decay), &adam),
        (DualAdamConfig::default(), &dual),
        (DualAdamConfig::inv_adam().with_weight_decay(decay), &dual),
    ] {
        special_gradients::<f32, f32>(config, cases);
        special_gradients::<f32, bf16>(config, cases);
        special_gradients::<bf16, bf16>(config, cases);
        special_gradients::<f16, f32>(config, cases);
    }
}

/// The owning optimizer takes them too, and counts the step.
#[test]
fn the_optimizer_steps_with_nan_and_infinite_gradients() {
    let mut owned = Owned::new();
    let clean = bits(&{
        let mut other = Owned::new();
        let grads = [Some(Grads::F32(&[1.0, 1.0, 2.0])), None];
        other.optimizer.step(&mut [(&mut other.w).into(), (&mut other.b).into()], &grads).unwrap();
        other.w
    });
    let grads = [Some(Grads::F32(&[f32::NAN, f32::INFINITY, 2.0])), Some(Grads::F32(&[f32::NEG_INFINITY, f32::NAN]))];
    owned.optimizer.step(&mut [(&mut owned.w).into(), (&mut owned.b).into()], &grads).unwrap();
    assert!(owned.w[0].is_nan() && owned.w[1] == f32::NEG_INFINITY, "{:?}", owned.w);
    assert_eq!(owned.w[2].to_bits(), clean[2]);
    assert!(owned.b[0] == bf16::INFINITY && owned.b[1].is_nan(), "{:?}", owned.b);
    let master = owned.optimizer.state().tensors[1].master.as_ref().unwrap();
    assert!(master[0] == f32::INFINITY && master[1].is_nan(), "{master:?}");
    assert_eq!([0, 1].map(|tensor| owned.optimizer.step_of(tensor).unwrap()), [2, 1]);
}
