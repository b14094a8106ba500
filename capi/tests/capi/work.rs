//! The C functions give the results of the Rust functions.

use std::ffi::{CStr, CString};
use std::ptr;

use dualadam::{Dtype, DualAdamConfig, InverseTerm, RawBuffer, State, StepCoeffs, SwitchSchedule, TensorSpec, Variant};
use dualadam::{WeightDecay, cpu};
use dualadam_capi::*;
use testkit::data::{Inputs, configs};
use testkit::laws::by_cpu;
use testkit::masters::{VARIANTS, by_contract, changed};
use testkit::tensor::Tensor;

use crate::calls::*;

/// The config as a C struct.
fn in_c(config: &DualAdamConfig) -> dualadam_config {
    let mut c = config_of(config.schedule);
    (c.lr, c.beta1, c.beta2, c.eps) = (config.lr, config.beta1, config.beta2, config.eps);
    (c.weight_decay_kind, c.weight_decay) = match config.weight_decay {
        WeightDecay::None => (DUALADAM_DECAY_NONE, 0.0),
        WeightDecay::Decoupled(weight_decay) => (DUALADAM_DECAY_DECOUPLED, weight_decay),
        WeightDecay::L2(weight_decay) => (DUALADAM_DECAY_L2, weight_decay),
        other => panic!("{other:?} has no number"),
    };
    c.inverse_term = u32::from(config.inverse_term == InverseTerm::WithEps);
    c.maximize = config.maximize.into();
    c
}

fn config_of(schedule: SwitchSchedule) -> dualadam_config {
    let mut c = config();
    match schedule {
        SwitchSchedule::Linear { switching_rate } => {
            (c.schedule, c.switching_rate) = (DUALADAM_SCHEDULE_LINEAR, switching_rate);
        }
        SwitchSchedule::LinearEarlyDrop { switching_rate } => {
            (c.schedule, c.switching_rate) = (DUALADAM_SCHEDULE_LINEAR_EARLY_DROP, switching_rate);
        }
        SwitchSchedule::Exponential { base, period, cutoff } => {
            (c.schedule, c.base, c.period, c.cutoff) = (DUALADAM_SCHEDULE_EXPONENTIAL, base, period, cutoff);
        }
        SwitchSchedule::Fixed { switching_step } => {
            (c.schedule, c.switching_step) = (DUALADAM_SCHEDULE_FIXED, switching_step);
        }
        other => panic!("{other:?} has no number"),
    }
    c
}

fn in_rust(c: &dualadam_coeffs) -> StepCoeffs {
    bytemuck::cast(fields(c))
}

#[test]
fn defaults_coefficients_and_schedules_are_those_of_rust() {
    // SAFETY: the function returns a static C string.
    let version = unsafe { CStr::from_ptr(dualadam_version()) };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(in_rust(&coeffs(&config(), 3, 0.5)), DualAdamConfig::default().coeffs_scaled(3, 0.5).unwrap());
    for (config, step) in configs() {
        assert_eq!(
            in_rust(&coeffs(&in_c(&config), step, 0.25)),
            config.coeffs_scaled(step, 0.25).unwrap(),
            "{config:?}"
        );
    }
    for schedule in [
        SwitchSchedule::linear_until(160),
        SwitchSchedule::LinearEarlyDrop { switching_rate: 0.01 },
        SwitchSchedule::Exponential { base: 0.5, period: 10, cutoff: 0.25 },
        SwitchSchedule::Exponential { base: 1.0, period: 1, cutoff: 0.5 },
        SwitchSchedule::Fixed { switching_step: 20 },
    ] {
        let c = config_of(schedule);
        let (mut step, mut exists, mut alpha) = (7, 7, 7.0);
        // SAFETY: the pointers are to a live struct and to local variables.
        unsafe {
            ok(dualadam_config_validate(&c));
            ok(dualadam_config_first_adam_step(&c, &mut step, &mut exists));
            ok(dualadam_config_alpha(&c, 15, &mut alpha));
        }
        assert_eq!((exists == 1).then_some(step), schedule.first_adam_step());
        assert_eq!(step == 0, exists == 0);
        assert_eq!(alpha, schedule.alpha(15));
    }
}

#[test]
fn a_step_has_the_bits_of_the_rust_step() {
    let (mut c, mut rust) = (Buffers::new(1, 1000), Buffers::new(1, 1000));
    for step in 1..=5 {
        let set = coeffs(&config(), step, 1.0);
        c.step(&set);
        cpu::step(&mut rust.p, &rust.g, &mut rust.m, &mut rust.v, &in_rust(&set)).unwrap();
    }
    assert_eq!(c, rust);
    // SAFETY: the structs are live; an empty tensor has no buffers.
    ok(unsafe { dualadam_cpu_step(&tensor(), &coeffs(&config(), 1, 1.0)) });
}

fn number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => DUALADAM_DTYPE_F32,
        Dtype::Bf16 => DUALADAM_DTYPE_BF16,
        Dtype::F16 => DUALADAM_DTYPE_F16,
        other => panic!("{other} has no number"),
    }
}

/// Every variant in one list, with a skipped tensor and an empty one.
#[test]
fn a_list_has_the_bits_of_the_rust_list() {
    let both = [coeffs(&config(), 1, 1.0), coeffs(&config(), 2, 1.0)];
    let tensor_of =
        |(i, variant): (usize, Variant)| Tensor::new(variant.formats(), &Inputs::random(i as u64, 37)).with_set(i % 2);
    let mut hosts: Vec<_> = Variant::all().enumerate().map(tensor_of).collect();
    assert_eq!(hosts.len(), 11);
    let (before, mut expected) = (hosts.clone(), hosts.clone());
    let mut tensors: Vec<_> = hosts.iter_mut().map(tensor_in_c).collect();
    let mut alone = Buffers::new(2, 37);
    let start = alone.clone();
    tensors.push(dualadam_tensor { grad: ptr::null(), ..alone.tensor() });
    tensors.push(tensor());
    // SAFETY: the structs and the buffers are live.
    ok(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), tensors.len(), both.as_ptr(), both.len()) });
    assert_eq!(alone, start);
    let sets = both.map(|coeffs| in_rust(&coeffs));
    expected.iter_mut().for_each(|tensor| by_cpu(std::slice::from_mut(tensor), &sets));
    for ((found, expected), before) in hosts.iter().zip(&expected).zip(&before) {
        found.assert_same(expected, "in a list");
        assert_ne!(found.exp_avg, before.exp_avg, "{}", found.types());
    }
    // SAFETY: both arrays are empty.
    ok(unsafe { dualadam_cpu_step_list(ptr::null(), 0, ptr::null(), 0) });
}

/// Only parameters and masters are looked at.
#[test]
fn masters_are_brought_up_to_date_as_in_rust() {
    for name in VARIANTS {
        let (mut found, mut expected) = [(); 2].map(|()| changed(name, 100, [0; 5], |i| i % 3 == 0)).into();
        let (grad, moment) = (ptr::null(), ptr::null_mut());
        let tensor = dualadam_tensor { grad, exp_avg: moment, exp_avg_sq: moment, ..tensor_in_c(&mut found) };
        // SAFETY: the struct and the buffers are live.
        ok(unsafe { dualadam_cpu_sync_master(&tensor) });
        by_contract(&mut expected);
        found.assert_same(&expected, name);
    }
}

/// The tensor as a C struct.
fn tensor_in_c(tensor: &mut Tensor) -> dualadam_tensor {
    let raw = tensor.raw();
    let at = |buffer: RawBuffer| ptr::with_exposed_provenance_mut(buffer.address as usize);
    dualadam_tensor {
        param: at(raw.param),
        grad: at(raw.grad),
        exp_avg: at(raw.exp_avg),
        exp_avg_sq: at(raw.exp_avg_sq),
        master: raw.master.map_or(ptr::null_mut(), at),
        len: raw.len,
        param_dtype: number(raw.param.dtype),
        grad_dtype: number(raw.grad.dtype),
        master_dtype: raw.master.map_or(0, |buffer| number(buffer.dtype)),
        coeffs_index: raw.coeffs_index as u32,
        ..self::tensor()
    }
}

#[test]
fn states_are_those_of_rust() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zustände.safetensors");
    let file = CString::new(path.to_str().unwrap()).unwrap();
    let groups = [config(), in_c(&DualAdamConfig::authors_code().with_weight_decay(WeightDecay::L2(0.5)))];
    let specs = [spec(3), dualadam_tensor_spec { group: 1, has_master: 1, ..spec(2) }, spec(0)];
    let mut handle = 0;
    // SAFETY: the pointers are to live structs and to a local variable.
    ok(unsafe { dualadam_state_new(groups.as_ptr(), 2, specs.as_ptr(), 3, &mut handle) });
    let mut expected = State::new(
        &[DualAdamConfig::default(), DualAdamConfig::authors_code().with_weight_decay(WeightDecay::L2(0.5))],
        &[TensorSpec::new(3), TensorSpec::new(2).in_group(1).with_master(), TensorSpec::new(0)],
    )
    .unwrap();
    let values = state_tensor(handle, 1);
    assert_eq!((values.len, values.step, values.group, values.master_is_set), (2, 0, 1, 0));
    // SAFETY: the state's arrays have two elements.
    unsafe {
        values.exp_avg.write(1.5);
        values.exp_avg_sq.add(1).write(2.5);
        values.master.add(1).write(-3.5);
    }
    ok(dualadam_state_set_step(handle, 1, 77, 1));
    expected.ledger.set_step(1, 77).unwrap();
    expected.ledger.set_master_is_set(1, true).unwrap();
    let arrays = &mut expected.arrays[1];
    (arrays.exp_avg[0], arrays.exp_avg_sq[1]) = (1.5, 2.5);
    arrays.master.as_mut().unwrap()[1] = -3.5;
    assert!(state_tensor(handle, 0).master.is_null());
    // SAFETY: the path is a C string.
    ok(unsafe { dualadam_state_save(handle, file.as_ptr()) });
    assert_eq!(State::load(&path).unwrap(), expected);

    let config =
        in_c(&DualAdamConfig::default().with_lr(0.5).with_schedule(SwitchSchedule::Fixed { switching_step: 9 }));
    let (mut loaded, mut groups, mut tensors, mut back) = (0, 0, 0, config_of(SwitchSchedule::linear_until(1)));
    // SAFETY: the pointers are to a C string, live structs and local variables.
    unsafe {
        ok(dualadam_state_load(file.as_ptr(), &mut loaded));
        ok(dualadam_state_counts(loaded, &mut groups, &mut tensors));
        ok(dualadam_state_set_config(loaded, 0, &config));
        ok(dualadam_state_config(loaded, 0, &mut back, size_of_val(&back)));
        ok(dualadam_state_save(loaded, file.as_ptr()));
    }
    assert_eq!((groups, tensors), (2, 3));
    assert_eq!((back.lr, back.schedule, back.switching_step), (0.5, DUALADAM_SCHEDULE_FIXED, 9));
    let changed = DualAdamConfig::default().with_lr(0.5).with_schedule(SwitchSchedule::Fixed { switching_step: 9 });
    expected.ledger.set_config(0, changed).unwrap();
    assert_eq!(State::load(&path).unwrap(), expected);
    assert_eq!(state_tensor(loaded, 1).step, 77);
    // Resuming a state leaves its arrays at their addresses.
    ok(dualadam_state_set_step(handle, 1, 3, 0));
    let before = state_tensor(handle, 1);
    // SAFETY: the state's arrays have two elements, and the path is a C string.
    unsafe {
        before.exp_avg.write(0.0);
        before.exp_avg_sq.add(1).write(0.0);
        before.master.add(1).write(0.0);
        ok(dualadam_state_resume(handle, file.as_ptr()));
        assert_eq!((*before.exp_avg, *before.exp_avg_sq.add(1), *before.master.add(1)), (1.5, 2.5, -3.5));
        ok(dualadam_state_save(handle, file.as_ptr()));
    }
    let after = state_tensor(handle, 1);
    assert_eq!((after.exp_avg, after.step, after.master_is_set), (before.exp_avg, 77, 1));
    assert_eq!(State::load(&path).unwrap(), expected);
    ok(dualadam_state_free(handle));
    ok(dualadam_state_free(loaded));
}

/// The tensors of a state have names only if a Rust program saved it.
#[test]
fn a_state_that_resumes_keeps_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let file = CString::new(path.to_str().unwrap()).unwrap();
    let [plain, named] = [TensorSpec::new(2), TensorSpec::new(2).with_name("weight")]
        .map(|spec| State::new(&[DualAdamConfig::default()], &[spec]).unwrap());
    named.save(&path).unwrap();
    let mut handle = 0;
    // SAFETY: the pointers are to a C string and to a local variable.
    ok(unsafe { dualadam_state_load(file.as_ptr(), &mut handle) });
    plain.save(&path).unwrap();
    // SAFETY: the path is a C string.
    unsafe {
        ok(dualadam_state_resume(handle, file.as_ptr()));
        ok(dualadam_state_save(handle, file.as_ptr()));
    }
    assert_eq!(State::load(&path).unwrap(), named);
    ok(dualadam_state_free(handle));
}

/// A program that was compiled with a header of a later version passes larger structs, with zeros
/// in the new fields that it does not use.
#[test]
fn larger_structs_with_zeros_are_fine() {
    #[repr(C)]
    struct Later<T> {
        known: T,
        more: [u64; 2],
    }
    let size = size_of::<Later<dualadam_config>>();
    let mut later = Later { known: config(), more: [7; 2] };
    // SAFETY: the struct has that size.
    unsafe {
        ok(dualadam_config_init((&raw mut later).cast(), size));
        assert_eq!((later.known.size, later.known.lr, later.more), (size, 1e-3, [0; 2]));
        ok(dualadam_config_validate((&raw const later).cast()));
    }
    later.more[1] = 1;
    // SAFETY: the struct has that size.
    let status = unsafe { dualadam_config_validate((&raw const later).cast()) };
    fails(status, DUALADAM_STATUS_SIZE, "the size of config must be 104, or more with zeros beyond that, got 120");

    let mut buffers = [Buffers::new(3, 4), Buffers::new(4, 4)];
    let mut before = buffers.clone();
    let size = size_of::<Later<dualadam_tensor>>();
    let mut tensors = buffers.each_mut().map(|buffers| Later { known: buffers.tensor(), more: [0; 2] });
    tensors.iter_mut().for_each(|tensor| tensor.known.size = size);
    let set = coeffs(&config(), 1, 1.0);
    // SAFETY: the structs and the buffers are live.
    ok(unsafe { dualadam_cpu_step_list((&raw const tensors).cast(), 2, &set, 1) });
    for buffers in &mut before {
        cpu::step(&mut buffers.p, &buffers.g, &mut buffers.m, &mut buffers.v, &in_rust(&set)).unwrap();
    }
    assert_eq!(buffers, before);
}

#[test]
fn the_last_error_is_copied_out_and_cut_at_a_character() {
    let folder = tempfile::tempdir().unwrap();
    let file = CString::new(folder.path().join("ä").to_str().unwrap()).unwrap();
    let mut state = 0;
    // SAFETY: the pointers are to a C string and to a local variable.
    assert_eq!(unsafe { dualadam_state_load(file.as_ptr(), &mut state) }, DUALADAM_STATUS_IO);
    let text = last_error();
    assert!(text.starts_with("cannot read /") && text.contains("ä: No such file"), "{text}");
    let umlaut = text.find('ä').unwrap();
    for len in 1..text.len() + 3 {
        let (mut buffer, mut needed) = (vec![0xff_u8; text.len() + 3], 0);
        // SAFETY: the buffer is longer.
        ok(unsafe { dualadam_last_error(buffer.as_mut_ptr().cast(), len, &mut needed) });
        assert_eq!(needed, text.len() + 1);
        let kept = (len - 1).min(text.len());
        let kept = if kept == umlaut + 1 { umlaut } else { kept };
        assert_eq!((&buffer[..kept], buffer[kept]), (&text.as_bytes()[..kept], 0));
        assert!(buffer[kept + 1..].iter().all(|&byte| byte == 0xff), "written past the end");
    }
    // A new thread has no error.
    std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
    assert_eq!(last_error(), text);
}
