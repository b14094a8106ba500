//! The parts of the library for adapters that keep the memory themselves: the ledger, the table of
//! coefficients, the scalars that steer a step, and errors.

use std::iter::zip;

use dualadam::{
    ArgumentError, CoeffsTable, ConfigError, DualAdamConfig, Error, Ledger, ListError, Role, SkipReason, StateError,
    Steering, SwitchSchedule, TensorError, TensorProblem, TensorSpec, WeightDecay, cpu,
};
use testkit::model::{Model, Spec, small};
use testkit::{Tensor, Variant, data, refused, state};

fn groups() -> [DualAdamConfig; 2] {
    let first = DualAdamConfig::default().with_schedule(SwitchSchedule::linear_until(4));
    [first, DualAdamConfig::adamw(0.1).with_lr(0.05).with_maximize(true)]
}

/// Each variant in both groups; each tensor misses some of its gradients.
#[test]
fn an_adapter_with_a_ledger_has_the_bits_of_the_optimizer() {
    let spec =
        |(index, variant): (usize, Variant)| Spec { formats: variant.formats(), len: 5 + index, group: index % 2 };
    let specs: Vec<_> = Variant::all().chain(Variant::all()).enumerate().map(spec).collect();
    let mut model = Model::new(&specs, small);
    let mut optimizer = cpu::DualAdam::with_groups(&groups(), &model.tensor_specs()).unwrap();

    let mut ledger = Ledger::new(&groups(), &model.tensor_specs()).unwrap();
    let mut table = CoeffsTable::default();
    let fresh = |(spec, param): (&Spec, _)| Tensor::fresh(spec.formats, param);
    let mut tensors: Vec<_> = zip(&specs, &model.params).map(fresh).collect();
    // Masters are set below, at the first gradient.
    tensors.iter_mut().filter_map(|tensor| tensor.master.as_mut()).for_each(|master| master.map(|_| 0.0));
    for round in 0..7 {
        let multiplier = 1.0 / (round + 1) as f64;
        ledger.set_lr(1, 0.01 * multiplier).unwrap();
        optimizer.set_lr(1, 0.01 * multiplier).unwrap();
        let grads = model.grads(round, |tensor| !(tensor as u64 + round).is_multiple_of(3));

        table.clear();
        for (index, (tensor, grad)) in zip(&mut tensors, &grads).enumerate() {
            let Some(grad) = grad else { continue };
            tensor.grad = grad.clone();
            tensor.set = ledger.coeffs_index(&mut table, index, multiplier).unwrap();
            let spec = ledger.spec(index).unwrap();
            assert_eq!(spec.has_master, tensor.master.is_some());
            if spec.has_master && !ledger.master_is_set(index).unwrap() {
                let params = tensor.param.wide();
                tensor.master.as_mut().unwrap().write(0, &params);
            }
        }
        let with_gradient = || zip(&grads, 0..).filter_map(|(grad, index)| grad.as_ref().map(|_| index));
        let mut list: Vec<_> =
            zip(&mut tensors, &grads).filter_map(|(tensor, grad)| grad.as_ref().map(|_| tensor.cpu())).collect();
        cpu::step_list(&mut list, table.coeffs()).unwrap();
        with_gradient().for_each(|index| ledger.count(index));

        model.step(&mut optimizer, &grads, multiplier).unwrap();
        assert_eq!(&ledger, &optimizer.state().ledger, "round {round}");
        for (index, tensor) in tensors.iter().enumerate() {
            let what = format!("round {round}, tensor {index}");
            assert_eq!(tensor.param.difference(&model.params[index]), None, "{what}");
            state::assert_holds(optimizer.state(), index, tensor, &what);
        }
    }
    let steps: Vec<_> = (0..specs.len()).map(|index| ledger.step(index).unwrap()).collect();
    assert!(steps.contains(&4) && steps.contains(&5), "{steps:?}");
}

/// Tensors of the same group and step share coefficients, wherever they stand; those of each pair
/// are formed once.
#[test]
fn a_table_has_each_groups_and_steps_coefficients_once() {
    let specs = [0, 0, 1, 0, 1, 0, 1].map(|group| TensorSpec::new(1).in_group(group));
    let mut ledger = Ledger::new(&groups(), &specs).unwrap();
    ledger.set_step(3, 9).unwrap();
    ledger.set_step(6, 9).unwrap();
    let mut table = CoeffsTable::default();
    for multiplier in [1.0, 0.25] {
        table.clear();
        assert!(table.coeffs().is_empty());
        let indices = [0, 1, 2, 3, 4, 5, 6].map(|tensor| ledger.coeffs_index(&mut table, tensor, multiplier).unwrap());
        assert_eq!(indices, [0, 0, 1, 2, 1, 0, 3]);
        let expected = [(0, 1), (1, 1), (0, 10), (1, 10)];
        assert_eq!(
            table.coeffs(),
            expected.map(|(group, step)| groups()[group].coeffs_scaled(step, multiplier).unwrap())
        );
        // The same pairs by group and step, for an adapter that keeps the steps itself.
        for (index, (group, step)) in expected.into_iter().enumerate() {
            assert_eq!(table.index(&groups(), group, step, multiplier), Ok(index));
        }
        assert_eq!(table.coeffs().len(), 4);
        assert_eq!(table.index(&groups(), 1, 2, multiplier), Ok(4));
    }
    // Asking for coefficients changes no step.
    assert_eq!([0, 3].map(|tensor| ledger.step(tensor).unwrap()), [0, 9]);
    // After an error the table goes on as before.
    table.clear();
    assert_eq!(table.index(&groups(), 0, 0, 1.0), Err(ConfigError::StepZero));
    refused::value(table.index(&groups(), 0, 1, f64::NAN), "grad_multiplier");
    assert_eq!((table.coeffs().len(), table.index(&groups(), 0, 1, 0.5)), (0, Ok(0)));
    assert_eq!(table.coeffs(), [groups()[0].coeffs_scaled(1, 0.5).unwrap()]);
}

#[test]
fn a_ledger_refuses_what_is_not_there_and_stays() {
    let specs = [TensorSpec::new(3), TensorSpec::new(2).in_group(1).with_master().with_name("bias")];
    let mut ledger = Ledger::new(&groups(), &specs).unwrap();
    let before = ledger.clone();
    let mut table = CoeffsTable::default();
    assert_eq!((ledger.len(), ledger.is_empty()), (2, false));
    assert!(ledger.specs().eq(&specs) && ledger.spec(1) == Ok(&specs[1]));
    for tensor in [2, usize::MAX] {
        refused::position(ledger.spec(tensor), "tensor", 2, tensor);
        refused::position(ledger.step(tensor), "tensor", 2, tensor);
        refused::position(ledger.set_step(tensor, 1), "tensor", 2, tensor);
        refused::position(ledger.master_is_set(tensor), "tensor", 2, tensor);
        refused::position(ledger.set_master_is_set(tensor, false), "tensor", 2, tensor);
        refused::position(ledger.coeffs_index(&mut table, tensor, 1.0), "tensor", 2, tensor);
        refused::position(ledger.config(tensor), "group", 2, tensor);
        refused::position(ledger.set_config(tensor, groups()[0]), "group", 2, tensor);
        refused::position(ledger.set_lr(tensor, 0.1), "group", 2, tensor);
    }
    refused::problem(ledger.set_master_is_set(0, true), 0, Role::Master, TensorProblem::NoMaster);
    refused::value(ledger.set_lr(0, f64::NAN), "lr");
    refused::value(ledger.set_config(0, groups()[0].with_weight_decay(WeightDecay::L2(-1.0))), "weight_decay");
    refused::value(ledger.coeffs_index(&mut table, 0, -1.0), "grad_multiplier");
    refused::group_value(Ledger::new(&[groups()[0], groups()[0].with_eps(0.0)], &[]), 1, "eps");
    refused::group(Ledger::new(&groups(), &[TensorSpec::new(1).in_group(2)]), 0, 2, 2);
    assert_eq!(ledger, before);

    ledger.set_master_is_set(0, false).unwrap();
    ledger.set_master_is_set(1, true).unwrap();
    ledger.set_step(1, u64::MAX).unwrap();
    assert_eq!((ledger.master_is_set(0), ledger.master_is_set(1)), (Ok(false), Ok(true)));
    let overflow = ledger.coeffs_index(&mut table, 1, 1.0);
    assert!(overflow.as_ref().unwrap_err().to_string().starts_with("tensor 1 (bias) must be at a step below"));
    refused::step_overflow(overflow, 1);
    assert!(table.coeffs().is_empty());
    ledger.count(0);
    assert_eq!((ledger.step(0), ledger.master_is_set(0)), (Ok(1), Ok(false)));
}

// The scalars that steer a step.

/// The result that the documented rules give for the scalars; the tests of the device's control
/// follow the same rules.
fn expected([loss_scale, clip_factor, found_inf]: [f32; 3]) -> Result<f64, SkipReason> {
    if found_inf != 0.0 {
        return Err(SkipReason::FoundInf);
    }
    if !(loss_scale > 0.0 && loss_scale.is_finite()) {
        return Err(SkipReason::LossScale);
    }
    if !(clip_factor >= 0.0 && clip_factor.is_finite()) {
        return Err(SkipReason::ClipFactor);
    }
    let multiplier = f64::from(clip_factor) / f64::from(loss_scale);
    DualAdamConfig::default().coeffs_scaled(1, multiplier).map(|_| multiplier).map_err(|_| SkipReason::Multiplier)
}

fn steering([loss_scale, clip_factor, found_inf]: [f32; 3]) -> Steering {
    Steering::default().with_loss_scale(loss_scale).with_clip_factor(clip_factor).with_found_inf(found_inf)
}

/// The same cases as in the tests of the device's control.
#[test]
fn steering_judges_its_scalars_as_the_device_does() {
    const NAN: f32 = f32::NAN;
    // Also with every reason at once, and then with the first of them removed, one after the other.
    let several = [[NAN, -1.0, 1.0], [NAN, -1.0, 0.0], [0.0, f32::INFINITY, NAN], [-1.0, NAN, NAN]];
    let fewer = [[-1.0, NAN, 0.0], [1.0, NAN, 0.0]];
    let mut reasons = vec![];
    for scalars in data::steering().chain(several).chain(fewer) {
        let steering = steering(scalars);
        assert_eq!(steering.multiplier(), expected(scalars), "{steering:?}");
        reasons.extend(steering.multiplier().err());
    }
    for reason in [SkipReason::FoundInf, SkipReason::LossScale, SkipReason::ClipFactor, SkipReason::Multiplier] {
        assert!(reasons.contains(&reason), "{reason:?}");
    }
    let default = Steering::default();
    assert_eq!(steering([f32::MAX, 1e-45, 0.0]).multiplier(), Err(SkipReason::Multiplier));
    for (steering, multiplier) in [
        (default, 1.0),
        (default.with_loss_scale(8.0), 0.125),
        (default.with_clip_factor(0.5), 0.5),
        (default.with_found_inf(-0.0), 1.0),
        (steering([8.0, 0.5, 0.0]), 0.0625),
        // Formed in f64: as an f32 the quotient would be rounded twice.
        (steering([3.0, 0.1, 0.0]), f64::from(0.1_f32) / 3.0),
    ] {
        assert_eq!(steering.multiplier(), Ok(multiplier), "{steering:?}");
    }
    let places: Vec<_> = SkipReason::ALL.iter().map(|&reason| reason as usize).collect();
    assert_eq!(places, [0, 1, 2, 3, 4, 5]);
}

// Errors.

/// A `Result` is at least as large as its error.
#[test]
fn errors_are_at_most_64_bytes() {
    let sizes = [
        ("Error", size_of::<Error>()),
        ("ArgumentError", size_of::<ArgumentError>()),
        ("ConfigError", size_of::<ConfigError>()),
        ("ListError", size_of::<ListError>()),
        ("TensorError", size_of::<TensorError>()),
        ("StateError", size_of::<StateError>()),
        ("a step's result", size_of::<Result<(), ArgumentError>>()),
    ];
    for (name, size) in sizes {
        assert!(size <= 64, "{name} has {size} bytes");
    }
}

/// Whichever part reports a problem, it becomes the same `Error`, with the same text.
#[test]
fn errors_become_one_type_without_losing_their_text() {
    fn becomes<E: std::error::Error + Into<Error>>(error: E) -> Error {
        let text = error.to_string();
        let error = error.into();
        assert_eq!(error.to_string(), text);
        error
    }
    let value = || DualAdamConfig::default().with_lr(-1.0).validate().unwrap_err();
    assert!(matches!(becomes(value()), Error::Config(ConfigError::Value { name: "lr", .. })));
    assert!(matches!(becomes(ArgumentError::from(value())), Error::Config(_)));
    assert!(matches!(becomes(StateError::from(ArgumentError::from(value()))), Error::Config(_)));
    let position = || Ledger::default().step(0).unwrap_err();
    assert!(matches!(becomes(position()), Error::List(ListError::Position { list: "tensor", len: 0, value: 0 })));
    assert!(matches!(becomes(StateError::from(ArgumentError::from(position()))), Error::List(_)));
    let step = cpu::step(&mut [0.0_f32], &[0.0_f32; 2], &mut [0.0], &mut [0.0], &groups()[0].coeffs(1).unwrap());
    assert!(matches!(becomes(step.clone().unwrap_err()), Error::Tensor(TensorError { buffer: Some(Role::Grad), .. })));
    assert!(matches!(becomes(StateError::from(ArgumentError::from(step.unwrap_err()))), Error::Tensor(_)));
}
