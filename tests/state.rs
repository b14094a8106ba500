//! The state of an optimizer: resumed runs, state taken over from torch, damaged files, interrupted
//! saves.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dualadam::cpu::DualAdam;
use dualadam::half::bf16;
use dualadam::reference::Element;
use dualadam::{
    ArgumentError, Arrays, DualAdamConfig, FORMAT_VERSION, InverseTerm, Role, State, StateError, StateProblem,
    SwitchSchedule, TensorError, TensorProblem, TensorSpec, WeightDecay,
};
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use testkit::bound::{Bound, exact_and_bound};
use testkit::data::{Noise, narrow};
use testkit::golden::rows;
use testkit::model::{Model, Spec, small};
use testkit::state::{StateBits, assert_survives, bits, float_bits, temporary};
use testkit::{Values, Variant, refused};

// A model whose gradients depend on its parameters, so that one wrong bit grows.

/// The tensor whose first gradient, which sets its masters, comes late.
const LATE: usize = Variant::COUNT + 1;

/// Tensors of every kind: each variant, both groups, an empty one, and the late one.
fn model() -> Model {
    let variants = || Variant::all().map(Variant::formats);
    let with_master = variants().find(|formats| formats.master.is_some()).unwrap();
    let lens = [37, 129, 64, 33, 20].into_iter().cycle().take(Variant::COUNT).chain([0, 9]);
    let formats = variants().chain(variants().take(1)).chain([with_master]);
    let spec = |(index, (formats, len))| Spec { formats, len, group: index % 3 / 2 };
    Model::new(&formats.zip(lens).enumerate().map(spec).collect::<Vec<_>>(), small)
}

/// Each tensor misses one step in five, so that steps differ.
fn has_gradient(tensor: usize, t: u64) -> bool {
    if tensor == LATE { t >= 12 } else { !(t + tensor as u64).is_multiple_of(5) }
}

fn train(optimizer: &mut DualAdam, model: &mut Model, steps: std::ops::RangeInclusive<u64>) {
    for t in steps {
        if t == 5 {
            optimizer.set_lr(0, 0.02 / 3.0).unwrap();
        }
        let mut grads = model.grads(t, |tensor| has_gradient(tensor, t));
        for (grads, params) in grads.iter_mut().zip(&model.params) {
            if let Some(Values::F32(grads)) = grads {
                grads.iter_mut().zip(params.wide()).for_each(|(grad, p)| *grad += 0.5 * p);
            }
        }
        model.step(optimizer, &grads, 1.0).unwrap();
    }
}

/// An optimizer and its model after the first `steps` steps.
fn trained(configs: &[DualAdamConfig; 2], steps: u64) -> (DualAdam, Model) {
    let mut model = model();
    let mut optimizer = DualAdam::with_groups(configs, &model.tensor_specs()).unwrap();
    train(&mut optimizer, &mut model, 1..=steps);
    (optimizer, model)
}

fn groups(schedule: SwitchSchedule) -> [DualAdamConfig; 2] {
    let first = DualAdamConfig::default().with_lr(1e-2).with_weight_decay(WeightDecay::Decoupled(0.1));
    let second = DualAdamConfig::default()
        .with_lr(0.1 + 0.2)
        .with_betas(0.8, 0.95)
        .with_eps(1e-6)
        .with_weight_decay(WeightDecay::L2(0.01))
        .with_inverse_term(InverseTerm::WithEps)
        .with_maximize(true);
    [first.with_schedule(schedule), second.with_schedule(schedule)]
}

/// Saved after any step, before, at and after the switch, and resumed by an optimizer that was made
/// with other configs.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    const LAST: u64 = 22;
    let (_folder, path) = temporary();
    for schedule in [
        SwitchSchedule::linear_until(10),
        SwitchSchedule::LinearEarlyDrop { switching_rate: 0.1 },
        SwitchSchedule::Exponential { base: 0.7, period: 3, cutoff: 0.3 },
        SwitchSchedule::Fixed { switching_step: 9 },
        SwitchSchedule::Linear { switching_rate: 0.0 },
        SwitchSchedule::Linear { switching_rate: 1.0 },
    ] {
        let (whole, whole_model) = trained(&groups(schedule), LAST);
        for saved_after in 0..LAST {
            let (first, mut model) = trained(&groups(schedule), saved_after);
            first.save(&path).unwrap();
            let (mut resumed, _) = trained(&[DualAdamConfig::adam(), DualAdamConfig::inv_adam()], 0);
            resumed.load(&path).unwrap();
            assert_eq!(bits(resumed.state()), bits(first.state()), "{schedule:?}, {saved_after}");
            train(&mut resumed, &mut model, saved_after + 1..=LAST);
            assert_eq!(bits(resumed.state()), bits(whole.state()), "{schedule:?}, {saved_after}");
            assert_eq!(model.params, whole_model.params, "{schedule:?}, {saved_after}");
        }
        let steps: Vec<_> = (0..whole_model.specs.len()).map(|tensor| whole.step_of(tensor).unwrap()).collect();
        assert_eq!((&steps[..6], steps[LATE]), (&[18, 18, 18, 17, 17, 18][..], 11));
    }
}

/// Learning rates that decimal digits cut short would change, and every other field of a config.
#[test]
fn configs_keep_every_bit() {
    let base = DualAdamConfig::default();
    let configs = [
        base.with_lr(0.1 + 0.2),
        base.with_lr(1.0 / 3.0).with_betas(1.0 - f64::EPSILON, 0.999_999_999_999_999_9).with_eps(0.1 + 0.7),
        base.with_lr(f64::from_bits(1)).with_betas(5e-324, -0.0),
        base.with_lr(-0.0).with_eps(1e-45).with_weight_decay(WeightDecay::L2(2.0_f64.sqrt())),
        base.with_weight_decay(WeightDecay::Decoupled(f64::MIN_POSITIVE)).with_inverse_term(InverseTerm::WithEps),
        base.with_schedule(SwitchSchedule::Exponential { base: 1.0 / 7.0, period: u64::MAX, cutoff: 1e-300 }),
        base.with_schedule(SwitchSchedule::Fixed { switching_step: u64::MAX }).with_maximize(true),
        base.with_schedule(SwitchSchedule::LinearEarlyDrop { switching_rate: f64::from_bits(1) }),
    ];
    assert_survives(&State::new(&configs, &[]).unwrap());
}

#[test]
fn special_values_and_the_largest_step_survive() {
    let special = [0x7fc0_1234, 0xffa0_0001, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 1, 0x8000_0001, 0x7f7f_ffff];
    let special = special.map(f32::from_bits).to_vec();
    let mut state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(special.len()).with_master()]).unwrap();
    // A second moment must not be negative.
    let positive = special.iter().map(|&v| if v < 0.0 { -v } else { v }).collect();
    set(&mut state, 0, u64::MAX, [special.clone(), positive], Some(special));
    assert_survives(&state);
}

/// Puts a tensor at a step, with these moments and, where there are some, with masters that are
/// set.
fn set(state: &mut State, tensor: usize, step: u64, moments: [Vec<f32>; 2], master: Option<Vec<f32>>) {
    state.ledger.set_step(tensor, step).unwrap();
    state.ledger.set_master_is_set(tensor, master.is_some()).unwrap();
    let arrays = &mut state.arrays[tensor];
    [arrays.exp_avg, arrays.exp_avg_sq] = moments;
    arrays.master = master;
}

#[test]
fn a_state_may_have_no_tensors_or_empty_ones() {
    let (_folder, path) = temporary();
    State::default().save(&path).unwrap();
    assert_eq!(State::load(&path).unwrap(), State::default());

    let config = DualAdamConfig::default().with_lr(0.25);
    for specs in [vec![], vec![TensorSpec::new(0)], vec![TensorSpec::new(0).with_master(), TensorSpec::new(0)]] {
        let optimizer = DualAdam::with_groups(&[config], &specs).unwrap();
        optimizer.save(&path).unwrap();
        let mut resumed = DualAdam::with_groups(&[DualAdamConfig::default()], &specs).unwrap();
        resumed.load(&path).unwrap();
        assert_eq!(bits(resumed.state()), bits(optimizer.state()));
    }
}

/// Names sort as text, "10" before "2": tensors must still come back in their places.
#[test]
fn many_tensors_keep_their_order() {
    let len = |number: u64| number as usize % 3 + 1;
    let spec = |number: u64| {
        let spec = TensorSpec::new(len(number));
        if number.is_multiple_of(2) { spec.with_master() } else { spec }
    };
    let mut state = State::new(&[DualAdamConfig::default()], &(0..120).map(spec).collect::<Vec<_>>()).unwrap();
    for number in 0..120 {
        let values = |offset: f32| vec![number as f32 + offset; len(number)];
        let master = number.is_multiple_of(2).then(|| values(0.5));
        set(&mut state, number as usize, number, [values(0.0), values(0.25)], master);
        if number % 4 == 2 {
            state.ledger.set_master_is_set(number as usize, false).unwrap();
        }
    }
    assert_survives(&state);
}

#[test]
fn equal_states_give_equal_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, save_early: bool| {
        let path = folder.path().join(name);
        let (mut optimizer, mut model) = trained(&groups(SwitchSchedule::linear_until(4)), 3);
        if save_early {
            optimizer.save(&path).unwrap();
            optimizer.load(&path).unwrap();
        }
        train(&mut optimizer, &mut model, 4..=6);
        optimizer.save(&path).unwrap();
        fs::read(path).unwrap()
    };
    assert!(file("one", false) == file("two", true));
}

/// Any safetensors reader finds the arrays under the names that the documentation gives.
#[test]
fn the_file_is_plain_safetensors() {
    let saved = Saved::new();
    let (_, metadata) = SafeTensors::read_metadata(&saved.bytes).unwrap();
    let header: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["dualadam"]).unwrap();
    assert_eq!(header["version"], FORMAT_VERSION);
    assert_eq!(header["groups"][0]["lr"], 0.125);
    assert_eq!(header["tensors"][2]["step"], 7);
    assert_eq!(header["tensors"][2]["group"], 1);

    let file = SafeTensors::deserialize(&saved.bytes).unwrap();
    let mut names = file.names();
    names.sort();
    assert_eq!(
        names,
        ["0.exp_avg", "0.exp_avg_sq", "1.exp_avg", "1.exp_avg_sq", "2.exp_avg", "2.exp_avg_sq", "2.master", "crc32"]
    );
    let tensors = &saved.state.arrays;
    for (name, values) in [
        ("0.exp_avg", &tensors[0].exp_avg),
        ("1.exp_avg_sq", &tensors[1].exp_avg_sq),
        ("2.exp_avg_sq", &tensors[2].exp_avg_sq),
        ("2.master", tensors[2].master.as_ref().unwrap()),
    ] {
        let array = file.tensor(name).unwrap();
        assert_eq!((array.dtype(), array.shape()), (Dtype::F32, &[values.len()][..]), "{name}");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(array.data(), bytes, "{name}");
    }
    let (body, crc) = saved.bytes.split_last_chunk::<4>().unwrap();
    let stored = file.tensor("crc32").unwrap();
    assert_eq!((stored.dtype(), stored.shape(), stored.data()), (Dtype::U8, &[4][..], &crc[..]));
    assert_eq!(u32::from_le_bytes(*crc), crc32fast::hash(body));
}

/// A file from before tensors had names still loads, and a state without names is still written to
/// the same bytes.
#[test]
fn a_file_of_the_version_without_names_is_read_and_written_alike() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/state_without_names.safetensors");
    let bytes = fs::read(&path).unwrap();
    let expected = state_of_the_version_without_names();
    assert_eq!(bits(&State::load(&path).unwrap()), bits(&expected));
    assert_eq!(bits(&State::from_bytes(&bytes).unwrap()), bits(&expected));
    assert!(expected.to_bytes().unwrap() == bytes);
    let (_folder, again) = temporary();
    State::load(&path).unwrap().save(&again).unwrap();
    assert!(fs::read(again).unwrap() == bytes);
}

/// The state in that file.
fn state_of_the_version_without_names() -> State {
    let base = DualAdamConfig::default();
    let exponential = SwitchSchedule::Exponential { base: 1.0 / 7.0, period: u64::MAX, cutoff: 1e-300 };
    let groups = [
        base.with_lr(0.1 + 0.2).with_weight_decay(WeightDecay::Decoupled(0.1)),
        base.with_betas(0.8, 0.95)
            .with_eps(1e-6)
            .with_weight_decay(WeightDecay::L2(1.0 / 3.0))
            .with_inverse_term(InverseTerm::WithEps)
            .with_maximize(true)
            .with_schedule(SwitchSchedule::LinearEarlyDrop { switching_rate: 0.1 }),
        base.with_schedule(exponential),
        base.with_schedule(SwitchSchedule::Fixed { switching_step: u64::MAX }),
    ];
    // The elements, group and step of each tensor, and whether it has masters that are set.
    let tensors =
        [(5, 0, 7, None), (0, 3, 0, None), (3, 1, u64::MAX, Some(true)), (2, 2, 0, Some(false)), (0, 0, 2, Some(true))];
    let specs = tensors.map(|(len, group, _, master)| {
        let spec = TensorSpec::new(len).in_group(group);
        if master.is_some() { spec.with_master() } else { spec }
    });
    let mut state = State::new(&groups, &specs).unwrap();
    for (tensor, (len, _, step, master)) in tensors.into_iter().enumerate() {
        let array = |array: usize, mask: u32| {
            let value = |i| f32::from_bits((((tensor * 3 + array) * 64 + i) as u32).wrapping_mul(0x9e37_79b9) & mask);
            (0..len).map(value).collect::<Vec<f32>>()
        };
        let moments = [array(0, u32::MAX), array(1, u32::MAX >> 1)];
        set(&mut state, tensor, step, moments, master.map(|_| array(2, u32::MAX)));
        state.ledger.set_master_is_set(tensor, master == Some(true)).unwrap();
    }
    state
}

#[test]
fn the_bytes_of_a_state_are_those_of_its_file() {
    let saved = Saved::new();
    assert!(saved.state.to_bytes().unwrap() == saved.bytes);
    assert_eq!(State::from_bytes(&saved.bytes).unwrap(), saved.state);
    let mut damaged = saved.bytes.clone();
    damaged[9] ^= 1;
    for (bytes, checksum) in [(&damaged[..], true), (&saved.bytes[1..], true), (&[], false), (&[0; 3], false)] {
        let error = State::from_bytes(bytes).unwrap_err();
        let StateError::Problem(problem) = &error else { panic!("{error:?}") };
        assert_eq!(matches!(**problem, StateProblem::Checksum { .. }), checksum, "{error}");
        assert_eq!(matches!(**problem, StateProblem::TooShort { min: 4, .. }), !checksum, "{error}");
    }
}

/// Three tensors, the last two of the same kind, with these names.
fn named(names: [Option<&str>; 3]) -> DualAdam {
    let specs = [TensorSpec::new(3), TensorSpec::new(2).with_master(), TensorSpec::new(2).with_master()];
    let named =
        |(spec, name): (TensorSpec, Option<&str>)| if let Some(name) = name { spec.with_name(name) } else { spec };
    let specs: Vec<_> = specs.into_iter().zip(names).map(named).collect();
    DualAdam::with_groups(&[DualAdamConfig::default()], &specs).unwrap()
}

fn names_of(state: &State) -> Vec<Option<&str>> {
    state.ledger.specs().map(|spec| spec.name.as_deref()).collect()
}

/// Names of any text, and tensors that have none beside others that have one.
#[test]
fn a_file_keeps_the_names_of_tensors() {
    for names in [
        [Some("layer.0.weight"), None, Some("layer.0.bias")],
        [Some(""), Some("same"), Some("same")],
        [Some("\"\\ \n\0 {}"), Some("größe 重み 🦀"), Some("crc32")],
        [None; 3],
    ] {
        let (_folder, path) = temporary();
        let mut optimizer = named(names);
        optimizer.set_moments(0, 9, &[1.0, -2.0, 3.0], &[0.5; 3]).unwrap();
        optimizer.save(&path).unwrap();
        let loaded = State::load(&path).unwrap();
        assert_eq!(&loaded, optimizer.state());
        assert_eq!(names_of(&loaded), names);
        assert!(loaded.to_bytes().unwrap() == fs::read(&path).unwrap());
        let mut resumed = named(names);
        resumed.load(&path).unwrap();
        assert_eq!(resumed.state(), optimizer.state());
    }
}

/// If only the optimizer or only the file has names, they are not compared. If both have names,
/// they must agree.
#[test]
fn names_are_compared_where_both_have_them() {
    let (_folder, path) = temporary();
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    for (own, file, difference) in [
        ([None; 3], [a, b, c], None),
        ([a, b, c], [None; 3], None),
        ([a, None, c], [None, b, c], None),
        ([a, b, c], [a, b, c], None),
        ([a, b, c], [a, c, b], Some((1, "b", "c"))),
        ([None, None, b], [a, b, c], Some((2, "b", "c"))),
        ([a, b, c], [Some("A"), None, None], Some((0, "a", "A"))),
        ([Some(""), b, c], [a, b, c], Some((0, "", "a"))),
    ] {
        let mut other = named(file);
        other.set_moments(0, 3, &[1.0; 3], &[2.0; 3]).unwrap();
        other.save(&path).unwrap();
        let mut optimizer = named(own);
        let before = optimizer.state().clone();
        let result = optimizer.load(&path);
        let Some((tensor, expected, found)) = difference else {
            result.unwrap();
            assert_eq!(bits(optimizer.state()), bits(other.state()));
            let both: Vec<_> = own.iter().zip(file).map(|(own, file)| own.or(file)).collect();
            assert_eq!(names_of(optimizer.state()), both);
            continue;
        };
        let layout = StateProblem::Layout {
            what: format!("the name of tensor {tensor}"),
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        let text = format!("the name of tensor {tensor} must be {expected}, it is {found}");
        assert!(result.as_ref().unwrap_err().to_string().ends_with(&text), "{result:?}");
        assert_eq!(refused::file_problem(result), layout);
        assert_eq!(*optimizer.state().check_layout(other.state()).unwrap_err(), layout);
        assert_eq!(optimizer.state(), &before);
    }
}

// Damaged files.

/// A small state in a file, and an optimizer of the same layout that must not change when loading
/// fails.
struct Saved {
    _folder: TempDir,
    path: PathBuf,
    state: State,
    bytes: Vec<u8>,
    optimizer: DualAdam,
    optimizer_bits: StateBits,
}

impl Saved {
    fn new() -> Self {
        let config = DualAdamConfig::default().with_lr(0.125);
        let groups = [config, config.with_schedule(SwitchSchedule::Fixed { switching_step: 3 })];
        let specs = [TensorSpec::new(2), TensorSpec::new(0), TensorSpec::new(2).in_group(1).with_master()];
        let mut state = State::new(&groups, &specs).unwrap();
        let moments = |values: &[f32]| [values.to_vec(), values.iter().map(|value| value * value).collect()];
        set(&mut state, 0, 5, moments(&[1.5, -2.25]), None);
        set(&mut state, 2, 7, moments(&[0.0, 3e-39]), Some(vec![4.0, -5.0]));
        let (folder, path) = temporary();
        state.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();

        let mut other = state.clone();
        other.ledger.set_lr(0, 0.5).unwrap();
        other.arrays[0].exp_avg[0] = -9.0;
        other.ledger.set_step(2, 1).unwrap();
        let optimizer = DualAdam::try_from(other).unwrap();
        let optimizer_bits = bits(optimizer.state());
        Self { _folder: folder, path, state, bytes, optimizer, optimizer_bits }
    }

    /// Loads these bytes as a file, into the optimizer; checks that a failure is a typed one and
    /// changes nothing.
    fn load(&mut self, bytes: &[u8]) -> Result<(), StateProblem> {
        write_in_place(&self.path, bytes);
        let result = self.optimizer.load(&self.path);
        if result.is_err() {
            assert_eq!(bits(self.optimizer.state()), self.optimizer_bits);
        }
        result.map_err(|error| match error {
            StateError::File { path, problem } if path == self.path => *problem,
            other => panic!("{other:?}"),
        })
    }
}

/// `fs::write` empties the file first, which costs some file systems a wait for the disk each time.
fn write_in_place(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

/// The same bytes with the right checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

/// A file with the right checksum around any metadata.
fn file_with_metadata(json: &str) -> Vec<u8> {
    let metadata = std::collections::HashMap::from([("dualadam".to_owned(), json.to_owned())]);
    let crc = safetensors::tensor::TensorView::new(Dtype::U8, vec![4], &[0; 4]).unwrap();
    sealed(safetensors::serialize([("crc32", crc)], Some(metadata)).unwrap())
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let mut saved = Saved::new();
    let bytes = saved.bytes.clone();
    for len in 0..bytes.len() {
        match saved.load(&bytes[..len]) {
            Err(StateProblem::TooShort { min: 4, actual }) if len < 4 => assert_eq!(actual, len),
            Err(StateProblem::Checksum { .. }) if len >= 4 => {}
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    saved.load(&bytes).unwrap();
}

#[test]
fn a_file_with_any_bit_flipped_is_refused() {
    let mut saved = Saved::new();
    let mut bytes = saved.bytes.clone();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let problem = saved.load(&bytes);
        assert!(matches!(problem, Err(StateProblem::Checksum { .. })), "bit {bit}: {problem:?}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    saved.load(&bytes).unwrap();
}

/// The checksum detects accidents. A file that passes it may still be wrong.
#[test]
fn a_file_with_any_bit_flipped_and_the_right_checksum_loads_valid_or_is_refused() {
    let mut saved = Saved::new();
    let mut bytes = saved.bytes.clone();
    let mut refused = 0;
    for bit in 0..(bytes.len() - 4) * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        match saved.load(&sealed(bytes.clone())) {
            Err(_) => refused += 1,
            Ok(()) => {
                saved.optimizer.state().ledger.groups().iter().for_each(|group| group.validate().unwrap());
                saved.optimizer_bits = bits(saved.optimizer.state());
            }
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(refused > bytes.len(), "{refused}");
}

#[test]
fn files_that_are_something_else_are_refused() {
    let mut saved = Saved::new();
    let bytes = saved.bytes.clone();
    for garbage in [vec![], vec![0; 3], vec![0; 4], vec![0; 1000], vec![0xff; 1000], b"not a state".repeat(9)] {
        saved.load(&garbage).unwrap_err();
        if garbage.len() >= 4 {
            saved.load(&sealed(garbage)).unwrap_err();
        }
    }
    saved.load(&[&bytes[..], &[0]].concat()).unwrap_err();
    saved.load(&[&bytes[..], &bytes[..]].concat()).unwrap_err();
    saved.load(&bytes[1..]).unwrap_err();

    let crc = safetensors::tensor::TensorView::new(Dtype::U8, vec![4], &[0; 4]).unwrap();
    let foreign = sealed(safetensors::serialize([("crc32", crc)], None).unwrap());
    assert!(matches!(saved.load(&foreign), Err(StateProblem::Malformed(_))));
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut saved = Saved::new();
    for found in [0, 2, 9] {
        let to = format!(r#"\"version\":{found}"#);
        let file = sealed(replaced(&saved.bytes, &format!(r#"\"version\":{FORMAT_VERSION}"#), &to));
        assert_eq!(saved.load(&file), Err(StateProblem::Version { supported: FORMAT_VERSION, found }));
    }
    // A file of a later version need not have anything but the version.
    let problem = saved.load(&file_with_metadata(r#"{"version":4000000000,"layers":{}}"#)).unwrap_err();
    assert_eq!(problem, StateProblem::Version { supported: FORMAT_VERSION, found: 4_000_000_000 });
    assert_eq!(problem.to_string(), "its format version must be 1, it is 4000000000");
}

/// Right checksum and version, wrong content: an invalid config, a group out of range, arrays
/// missing or of other types.
#[test]
fn inconsistent_content_is_refused() {
    let mut saved = Saved::new();
    let bytes = saved.bytes.clone();
    for (from, to) in [
        (r#"\"lr\":0.125"#, r#"\"lr\":-1.25"#),
        (r#"\"beta1\":0.9"#, r#"\"beta1\":1.9"#),
        (r#"\"beta1\":0.9"#, r#"\"bETA1\":0.9"#),
        (r#"\"group\":1"#, r#"\"group\":2"#),
        (r#"\"step\":5"#, r#"\"step\":-"#),
        ("\"dualadam\"", "\"dualadan\""),
        ("0.exp_avg\"", "3.exp_avg\""),
        ("2.exp_avg_sq", "2.exp_avg_Sq"),
        ("2.master", "1.master"),
        ("F32", "I32"),
    ] {
        let problem = saved.load(&sealed(replaced(&bytes, from, to)));
        assert!(matches!(problem, Err(StateProblem::Malformed(_))), "{from} -> {to}: {problem:?}");
    }
    let tensor = r#"{"group":0,"step":0,"master":false,"master_is_set":false}"#;
    let no_group = format!(r#"{{"version":1,"groups":[],"tensors":[{tensor}]}}"#);
    let problem = saved.load(&file_with_metadata(&no_group)).unwrap_err();
    assert!(matches!(problem, StateProblem::Malformed(_)), "{problem:?}");
}

#[test]
fn a_state_that_could_not_be_loaded_is_not_saved() {
    let saved = Saved::new();
    let state = saved.state.clone();
    let length = |actual| TensorProblem::Length { expected: 2, actual };
    let change: [(fn(&mut Arrays), _, _); 5] = [
        (|tensor| tensor.exp_avg.push(1.0), Role::ExpAvg, length(3)),
        (|tensor| tensor.exp_avg_sq.clear(), Role::ExpAvgSq, length(0)),
        (|tensor| tensor.master = Some(vec![0.0; 3]), Role::Master, length(3)),
        (|tensor| tensor.master = None, Role::Master, length(0)),
        (|tensor| tensor.exp_avg_sq[0] = -1.0, Role::ExpAvgSq, TensorProblem::Negative { value: -1.0 }),
    ];
    for (change, role, expected) in change {
        let mut other = state.clone();
        change(&mut other.arrays[2]);
        let (_folder, path) = temporary();
        for result in [other.save(&path), other.to_bytes().map(drop)] {
            let error = result.unwrap_err();
            let StateError::Argument(ArgumentError::Tensor(TensorError { tensor: 2, buffer, problem, .. })) = error
            else {
                panic!("{error:?}")
            };
            assert_eq!((buffer, problem), (Some(role), expected));
        }
        assert!(!path.exists());
    }
    let mut other = state;
    other.arrays.pop();
    refused::count(other.to_bytes(), "arrays", 3, 2);
}

#[test]
fn another_models_state_is_refused() {
    let (_folder, path) = temporary();
    let config = DualAdamConfig::default();
    let own = [TensorSpec::new(3), TensorSpec::new(4).in_group(1), TensorSpec::new(5).with_master()];
    let mut optimizer = DualAdam::with_groups(&[config; 2], &own).unwrap();
    optimizer.set_moments(0, 3, &[1.0; 3], &[2.0; 3]).unwrap();
    let before = bits(optimizer.state());

    let with = |index: usize, spec: TensorSpec| {
        let mut other = own.to_vec();
        other[index] = spec;
        other
    };
    let four = [&own[..], &own[..1]].concat();
    let of = |len, group, masters: &str| format!("{len} elements in group {group} {masters} masters");
    let tensor = |index: usize, own: String, other: String| (format!("tensor {index}"), own, other);
    let number =
        |what: &str, own: usize, other: usize| (format!("the number of {what}"), own.to_string(), other.to_string());
    for (groups, specs, (what, own, other)) in [
        (2, own[..2].to_vec(), number("tensors", 3, 2)),
        (2, four, number("tensors", 3, 4)),
        (3, own.to_vec(), number("groups", 2, 3)),
        (2, with(0, TensorSpec::new(2)), tensor(0, of(3, 0, "without"), of(2, 0, "without"))),
        (2, with(1, TensorSpec::new(4)), tensor(1, of(4, 1, "without"), of(4, 0, "without"))),
        (2, with(1, own[1].clone().with_master()), tensor(1, of(4, 1, "without"), of(4, 1, "with"))),
        (2, with(2, TensorSpec::new(5)), tensor(2, of(5, 0, "with"), of(5, 0, "without"))),
    ] {
        let message = format!("{what} must be {own}, it is {other}");
        let foreign = DualAdam::with_groups(&vec![config; groups], &specs).unwrap();
        foreign.save(&path).unwrap();
        let error = optimizer.load(&path).unwrap_err();
        let StateError::File { problem, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(**problem, StateProblem::Layout { .. }), "{error:?}");
        assert_eq!(optimizer.state().check_layout(foreign.state()).as_ref(), Err(problem));
        assert!(error.to_string().contains(&message), "{error}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
        assert_eq!(bits(optimizer.state()), before);
    }
}

// Files that cannot be read or written.

fn io_error(result: Result<(), StateError>, expected: &Path) -> std::io::Error {
    match result.unwrap_err() {
        StateError::Io { path, source, .. } if path == expected => source,
        other => panic!("{other:?}"),
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Each of these paths fails for every user, root included.
#[test]
fn a_path_that_cannot_be_written_is_an_io_error_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("directory")).unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    let state = Saved::new().state;
    for name in ["missing/state", "directory", "file/state"] {
        let path = folder.path().join(name);
        let error = state.save(&path).unwrap_err();
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
        io_error(Err(error), &path);
        assert_eq!(names_in(folder.path()), ["directory", "file"], "{name}");
        assert_eq!(names_in(&folder.path().join("directory")), [""; 0], "{name}");
    }
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"content");
    if cfg!(target_os = "linux") {
        let path = Path::new("/proc/state");
        io_error(state.save(path), path);
    }
}

#[test]
fn a_path_that_cannot_be_read_is_an_io_error_and_the_optimizer_stays() {
    let mut saved = Saved::new();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_eq!(io_error(saved.optimizer.load(&missing), &missing).kind(), std::io::ErrorKind::NotFound);
    io_error(saved.optimizer.load(folder.path()), folder.path());
    assert_eq!(bits(saved.optimizer.state()), saved.optimizer_bits);
}

// A test that needs a process of its own runs this program again for the same test, with this
// variable set to the folder to work in.

const CHILD_FOLDER: &str = "DUALADAM_TEST_CHILD_FOLDER";

fn child_folder() -> Option<PathBuf> {
    std::env::var_os(CHILD_FOLDER).map(PathBuf::from)
}

/// A command that runs one test of this binary in a process of its own, in `folder`. Its standard
/// error is piped.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has a shell to prepare the process"))]
fn child(test: &str, folder: &Path, shell_preparation: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = if cfg!(unix) {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{shell_preparation} exec \"$0\" \"$@\"")).arg(program);
        shell
    } else {
        Command::new(program)
    };
    command.args([test, "--exact", "--nocapture"]).env(CHILD_FOLDER, folder);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Tells the parent that one more thing is done.
fn report() {
    std::io::stderr().write_all(b".").unwrap();
}

/// Runs a child to its end. It must report once, since a name that matches no test would succeed as
/// well.
fn run_child(test: &str, folder: &Path, shell_preparation: &str) {
    let output = child(test, folder, shell_preparation).output().unwrap();
    let reports = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && reports == ".", "{}: {reports}", output.status);
}

/// A different state for each number, with files of different lengths.
fn numbered_state(number: u64) -> State {
    let len = if number.is_multiple_of(2) { 20_000 } else { 50_000 };
    let mut state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(len)]).unwrap();
    set(&mut state, 0, number, [vec![number as f32; len], vec![number as f32 + 0.5; len]], None);
    state
}

fn save_until_killed(path: &Path) -> ! {
    let first = State::load(path).unwrap().ledger.step(0).unwrap() + 1;
    report();
    for number in first.. {
        numbered_state(number).save(path).unwrap();
        report();
    }
    unreachable!("killed before the numbers end")
}

/// A process saves one state after the other and is killed at a random point. The file must then
/// hold the last state that was completely saved, or the one after it. Files that the dead process
/// left behind must not disturb the next process.
#[test]
fn a_killed_writer_leaves_the_old_or_the_new_file() {
    if let Some(folder) = child_folder() {
        save_until_killed(&folder.join("state"));
    }
    const KILLS: u64 = 80;
    let (folder, path) = temporary();
    let start = Instant::now();
    numbered_state(0).save(&path).unwrap();
    // Long enough for some saves, on a slow disk too.
    let delay = start.elapsed().mul_f64(2.0).max(Duration::from_millis(6));
    let (mut last, mut replaced, mut leftovers) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut writer = child("a_killed_writer_leaves_the_old_or_the_new_file", folder.path(), "").spawn().unwrap();
        let mut reports = writer.stderr.take().unwrap();
        reports.read_exact(&mut [0]).unwrap();
        std::thread::sleep(delay.mul_f64(f64::from(Noise(kill).unit()) + 1.0));
        writer.kill().unwrap();
        writer.wait().unwrap();

        let mut saves = vec![];
        reports.read_to_end(&mut saves).unwrap();
        let saves = saves.len() as u64;
        let found = State::load(&path).unwrap();
        let number = found.ledger.step(0).unwrap();
        assert!(number == last + saves || number == last + saves + 1, "{number} after {last} and {saves} saves");
        assert_eq!(found, numbered_state(number));
        replaced += u64::from(number > last);
        last = number;
        let left = names_in(folder.path()).len() - 1;
        leftovers += u64::from(left > 0);
        // Keeps some of the dead processes' files for the next processes to meet, without filling
        // the disk.
        if kill % 10 == 9 {
            remove_all_but(folder.path(), "state");
        }
    }
    println!("{KILLS} kills: {last} saves, file replaced in {replaced} runs, files left behind after {leftovers}");
    assert!(replaced > 0 && leftovers > 0, "no kill met a save: {replaced}, {leftovers}");
}

fn remove_all_but(folder: &Path, kept: &str) {
    names_in(folder).iter().filter(|name| *name != kept).for_each(|name| fs::remove_file(folder.join(name)).unwrap());
}

/// A limit on the length of files stands in for a full disk: the write fails half way.
#[cfg(unix)]
#[test]
fn a_save_that_cannot_be_finished_keeps_the_old_file_and_leaves_nothing_behind() {
    if let Some(folder) = child_folder() {
        let path = folder.join("state");
        let old = fs::read(&path).unwrap();
        assert_eq!(io_error(numbered_state(1).save(&path), &path).kind(), std::io::ErrorKind::FileTooLarge);
        assert_eq!(fs::read(&path).unwrap(), old);
        assert_eq!(names_in(&folder), ["state"]);
        return report();
    }
    let folder = tempfile::tempdir().unwrap();
    Saved::new().state.save(folder.path().join("state")).unwrap();
    let name = "a_save_that_cannot_be_finished_keeps_the_old_file_and_leaves_nothing_behind";
    run_child(name, folder.path(), "trap '' XFSZ; ulimit -f 16;");
}

/// The file has the permissions of any new file, not those of the temporary one.
#[cfg(unix)]
#[test]
fn the_files_mode_is_that_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    if let Some(folder) = child_folder() {
        let (state, ordinary) = (folder.join("state"), folder.join("ordinary"));
        fs::File::create(&ordinary).unwrap();
        for _new_then_replaced in 0..2 {
            numbered_state(0).save(&state).unwrap();
            assert_eq!(mode(&state), mode(&ordinary));
        }
        return report();
    }
    for umask in [0o000, 0o022, 0o027, 0o077] {
        let folder = tempfile::tempdir().unwrap();
        run_child("the_files_mode_is_that_of_a_new_file", folder.path(), &format!("umask {umask:03o};"));
        assert_eq!(mode(&folder.path().join("state")), 0o666 & !umask);
    }
}

/// A bare file name means the current folder.
#[test]
fn a_bare_file_name_works() {
    if let Some(folder) = child_folder() {
        std::env::set_current_dir(folder).unwrap();
        numbered_state(1).save("state").unwrap();
        assert_eq!(State::load("state").unwrap(), numbered_state(1));
        return report();
    }
    let folder = tempfile::tempdir().unwrap();
    run_child("a_bare_file_name_works", folder.path(), "");
    assert_eq!(names_in(folder.path()), ["state"]);
}

// torch's state.

fn torch_config(json: &serde_json::Value) -> DualAdamConfig {
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let weight_decay = number(&json["weight_decay"]);
    DualAdamConfig::adam()
        .with_lr(number(&json["lr"]))
        .with_betas(number(&json["betas"][0]), number(&json["betas"][1]))
        .with_eps(number(&json["eps"]))
        .with_weight_decay(match json["optimizer"].as_str().unwrap() {
            "AdamW" => WeightDecay::Decoupled(weight_decay),
            "Adam" if weight_decay != 0.0 => WeightDecay::L2(weight_decay),
            _ => WeightDecay::None,
        })
        .with_maximize(json["maximize"] == true)
}

/// Runs that take over moments and step of torch's Adam and AdamW after step 10 continue as torch
/// does in float64, within the error of the f32 roundings.
#[test]
fn torchs_adam_is_continued() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_torch/torch_adam.safetensors");
    let bytes = fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (metadata, file) = (metadata.metadata().as_ref().unwrap(), SafeTensors::deserialize(&bytes).unwrap());
    let start_step: u64 = metadata["step"].parse().unwrap();
    for name in ["adam", "adam_l2", "adamw", "adam_maximize"] {
        let config = torch_config(&serde_json::from_str(&metadata[name]).unwrap());
        let f32s = |array| rows(&file, &format!("{name}.{array}"), f32::from_le_bytes);
        let f64s = |array| rows(&file, &format!("{name}.{array}"), f64::from_le_bytes);
        let starts = ["start.params", "start.exp_avg", "start.exp_avg_sq"];
        let [mut params, m, v] = starts.map(|array| f32s(array).concat());
        // torch's state after each step.
        let [all_p, all_m, all_v] = ["params", "exp_avg", "exp_avg_sq"].map(f64s);
        let len = params.len();
        let element = |theta: &[f64], m: &[f64], v: &[f64], i: usize| Element { theta: theta[i], m: m[i], v: v[i] };
        let [p64, m64, v64] = [&params, &m, &v].map(|start| start.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let mut exact: Vec<_> = (0..len).map(|i| element(&p64, &m64, &v64, i)).collect();
        let (mut bounds, mut worst) = (vec![Bound::default(); len], [0.0_f64; 3]);

        let mut optimizer = DualAdam::new(config, &[len]).unwrap();
        optimizer.set_moments(0, start_step, &m, &v).unwrap();
        for (row, grads) in f32s("grad").iter().enumerate() {
            optimizer.step([(&mut params).into()], [Some(grads.into())]).unwrap();
            let t = start_step + row as u64 + 1;
            assert_eq!(optimizer.step_of(0).unwrap(), t);
            let found = &optimizer.state().arrays[0];
            for i in 0..len {
                let after = element(&all_p[row], &all_m[row], &all_v[row], i);
                let (own, bound) = exact_and_bound(&config, t, exact[i], grads[i], bounds[i]);
                let float64 = |expected: f64| 1e-14 * expected.abs();
                for (own, torchs) in [(own.theta, after.theta), (own.m, after.m), (own.v, after.v)] {
                    assert!((own - torchs).abs() <= 1e-12 * torchs.abs(), "{name}: {own} and {torchs} of step {t}");
                }
                (exact[i], bounds[i]) = (after, bound);
                for (k, (actual, expected, bound)) in [
                    (params[i], after.theta, bounds[i].p),
                    (found.exp_avg[i], after.m, bounds[i].m),
                    (found.exp_avg_sq[i], after.v, bounds[i].v),
                ]
                .into_iter()
                .enumerate()
                {
                    let error = (f64::from(actual) - expected).abs();
                    let bound = bound + float64(expected);
                    let what = format!("{name}: {}[{i}] of step {t}", ["p", "m", "v"][k]);
                    assert!(error <= bound, "{what}: {actual}, {expected}, {error:e} > {bound:e}");
                    worst[k] = worst[k].max(error / bound.max(f64::MIN_POSITIVE));
                }
            }
        }
        println!("{name}: largest errors of p, m and v, as parts of their bounds: {worst:.2?}");
    }
}

/// With masters, a run that takes over torch's moments continues from the 16-bit parameters,
/// exactly as from f32 parameters of the same values.
#[test]
fn moments_taken_over_before_the_first_update_set_masters_from_the_parameters() {
    let config = DualAdamConfig::adam();
    let mut model: Vec<bf16> = narrow(&small(1, 20));
    let mut params: Vec<f32> = model.iter().map(|value| value.to_f32()).collect();
    let (m, v, grads) = (small(2, 20), vec![0.5; 20], small(3, 20));

    let mut masters = DualAdam::with_groups(&[config], &[TensorSpec::new(20).with_master()]).unwrap();
    let mut plain = DualAdam::new(config, &[20]).unwrap();
    [&mut masters, &mut plain].into_iter().for_each(|optimizer| optimizer.set_moments(0, 10, &m, &v).unwrap());
    for _ in 0..3 {
        masters.step([(&mut model).into()], [Some((&grads).into())]).unwrap();
        plain.step([(&mut params).into()], [Some((&grads).into())]).unwrap();
    }
    let tensor = &masters.state().arrays[0];
    assert_eq!(float_bits(tensor.master.as_ref().unwrap()), float_bits(&params));
    assert_eq!(float_bits(&tensor.exp_avg), float_bits(&plain.state().arrays[0].exp_avg));
    assert_eq!(model, narrow::<bf16>(&params));
}
