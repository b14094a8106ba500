//! The bits of a step are the same whatever the calling thread's floating-point control word says.

#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use dualadam::{DualAdamConfig, SkipReason, State, Steering, StepCoeffs, SwitchSchedule, TensorSpec, WeightDecay, cpu};
use testkit::{Formats, Inputs, Tensor, Variant, formats, masters};

/// MXCSR with its exceptions masked.
const STANDARD: u32 = 0x1f80;
const FLUSH_TO_ZERO: u32 = 1 << 15;
const DENORMALS_ARE_ZERO: u32 = 1 << 6;

/// Every rounding mode, with and without flushing subnormals.
fn words() -> impl Iterator<Item = u32> {
    let flushing = [0, FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO];
    (0..4).flat_map(move |rounding| flushing.map(|flush| STANDARD | rounding << 13 | flush))
}

fn control_word() -> u32 {
    let mut word = 0_u32;
    // SAFETY: the instruction writes four bytes, the size of `word`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word) };
    word
}

/// Runs `work` under a control word. `work` must leave the word as it is, except for the flags of
/// exceptions that occurred.
fn under<R>(word: u32, work: impl FnOnce() -> R) -> R {
    let before = control_word();
    // SAFETY: no reserved bit is set, and exceptions stay masked.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word) };
    let result = work();
    let after = control_word();
    // SAFETY: the word was read from the register.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const before) };
    assert_eq!(after & !0x3f, word & !0x3f, "the control word must be unchanged");
    result
}

fn config() -> DualAdamConfig {
    let schedule = SwitchSchedule::linear_until(1_000);
    DualAdamConfig::default().with_schedule(schedule).with_weight_decay(WeightDecay::Decoupled(0.013)).with_lr(3.7e-3)
}

/// A tensor whose moments go through subnormals.
fn tensor(formats: Formats, len: usize) -> Tensor {
    let value = |i: usize, scale: f32| ((i * 7919 % 1009) as f32 - 504.0) * scale;
    let values = |value: &dyn Fn(usize) -> f32| (0..len).map(value).collect();
    let inputs = Inputs {
        p: values(&|i| value(i, 1.3e-3)),
        grad: values(&|i| value(i, if i % 2 == 0 { 1.1e-3 } else { 3.3e-21 })),
        m: values(&|i| value(i, 1e-41)),
        v: values(&|i| value(i, 1e-42).abs()),
    };
    Tensor::new(formats, &inputs)
}

/// The bits of what a step writes, after three steps under a control word.
fn bits(mut tensor: Tensor, coeffs: &[StepCoeffs], word: u32) -> Vec<u32> {
    for coeffs in coeffs {
        under(word, || tensor.step_flat(coeffs)).unwrap();
    }
    tensor.buffers().iter().flat_map(|values| values.wide()).map(f32::to_bits).collect()
}

#[test]
fn steps_of_any_size_have_the_same_bits() {
    let coeffs: Vec<_> = (1..=3).map(|t| config().coeffs(t).unwrap()).collect();
    // The first stays on the calling thread; several threads share the second.
    for len in [100, 100_000] {
        for variant in Variant::all() {
            let tensor = tensor(variant.formats(), len);
            let expected = bits(tensor.clone(), &coeffs, STANDARD);
            assert!(expected.iter().any(|bits| (1..0x80_0000).contains(&(bits & 0x7fff_ffff))), "no subnormal");
            for word in words() {
                let found = bits(tensor.clone(), &coeffs, word);
                assert!(found == expected, "{}, {len} elements under {word:#x}", variant.name());
            }
        }
    }
}

#[test]
fn several_threads_may_each_have_their_own_word() {
    let coeffs: Vec<_> = (1..=3).map(|t| config().coeffs(t).unwrap()).collect();
    let tensor = tensor(formats("f32_f32"), 70_000);
    let expected = bits(tensor.clone(), &coeffs, STANDARD);
    std::thread::scope(|scope| {
        for word in words() {
            let (tensor, coeffs, expected) = (tensor.clone(), &coeffs, &expected);
            scope.spawn(move || assert!(&bits(tensor, coeffs, word) == expected, "{word:#x}"));
        }
    });
}

/// In each rounding mode, with subnormals flushed, on the calling thread.
#[test]
fn masters_follow_the_same_rule() {
    for word in words().skip(3).step_by(4) {
        let sync = |tensor: &mut Tensor| under(word, || tensor.sync_master()).unwrap();
        masters::patterns(&sync, &masters::VARIANTS, 1 << 11);
    }
}

/// The results are the same under each word.
fn same_under_each<R: PartialEq>(work: impl Fn() -> R) {
    let expected = under(STANDARD, &work);
    words().for_each(|word| assert!(under(word, &work) == expected, "under {word:#x}"));
}

#[test]
fn coefficients_have_the_same_bits() {
    let config = config();
    [1, 7, 999, 123_456].into_iter().for_each(|t| same_under_each(|| config.coeffs_scaled(t, 0.37).unwrap()));
}

#[test]
fn schedules_and_multipliers_have_the_same_bits() {
    same_under_each(|| {
        let exponential = SwitchSchedule::Exponential { base: 0.999, period: 3, cutoff: 1e-9 };
        let schedules = [3, 7, 1_000_003].map(SwitchSchedule::linear_until).into_iter().chain([exponential]);
        let alphas: Vec<_> = schedules.flat_map(|schedule| [2, 5, 999].map(|t| schedule.alpha(t).to_bits())).collect();
        let to_zero = SwitchSchedule::Exponential { base: 0.5, period: 1, cutoff: 0.0 };
        let steering = Steering::default().with_clip_factor(0.1).with_loss_scale(3.0);
        (alphas, to_zero.first_adam_step(), steering.multiplier().map(f64::to_bits))
    });
}

/// A value that is subnormal as an f32 does not count as 0, and a value that rounds to 0 does.
#[test]
fn the_same_values_are_refused() {
    same_under_each(|| {
        let values = [1e-38, 1e-39, 1.2e-45, 7.1e-46, 7e-46, 1e-300];
        let is_taken = [true, true, true, true, false, false];
        assert_eq!(values.map(|multiplier| config().coeffs_scaled(1, multiplier).is_ok()), is_taken);
        assert_eq!(values.map(|eps| config().with_lr(0.0).with_eps(eps).validate().is_ok()), is_taken);
        let clipped = |clip| Steering::default().with_clip_factor(clip).with_loss_scale(7.0).multiplier();
        assert_eq!([1e-38, 1e-39, 1e-45].map(|clip| clipped(clip).is_ok()), [true, true, false]);
        assert_eq!(Steering::default().with_found_inf(1e-40).multiplier(), Err(SkipReason::FoundInf));
        let mut state = State::new(&[config()], &[TensorSpec::new(1)]).unwrap();
        state.arrays[0].exp_avg_sq[0] = -1e-40;
        assert!(state.validate().is_err());
        let mut coeffs = config().coeffs(1_000).unwrap();
        assert!(coeffs.is_adam());
        coeffs.inverse_scale = 1e-40;
        assert!(!coeffs.is_adam());
    });
}

/// Numbers in a file are text, and are read as they were written.
#[test]
#[cfg(feature = "files")]
fn files_have_the_same_numbers() {
    let config = DualAdamConfig::default().with_lr(0.1 / 3.0).with_eps(1e-8 / 7.0);
    let state = State::new(&[config], &[TensorSpec::new(1)]).unwrap();
    let bytes = state.to_bytes().unwrap();
    same_under_each(|| {
        assert!(state.to_bytes().unwrap() == bytes);
        assert!(State::from_bytes(&bytes).unwrap() == state);
    });
}

#[test]
fn an_optimizer_gives_the_same_bits() {
    let config = config();
    same_under_each(|| {
        let mut optimizer = cpu::DualAdam::new(config, &[1000, 50_000]).unwrap();
        let (mut a, mut b) = (vec![1e-3_f32; 1000], vec![-2e-3_f32; 50_000]);
        let (a_grad, b_grad) = (vec![1.7e-20_f32; 1000], vec![0.9e-3_f32; 50_000]);
        for _ in 0..3 {
            let params = [(&mut a).into(), (&mut b).into()];
            optimizer.step(params, [Some((&a_grad).into()), Some((&b_grad).into())]).unwrap();
        }
        (a.iter().chain(&b).map(|p| p.to_bits()).collect::<Vec<_>>(), optimizer.state().clone())
    });
}
