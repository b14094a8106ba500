//! Reads the golden trajectories: float64 replays of the rule, described in
//! `tests/golden/README.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dualadam::{DualAdamConfig, InverseTerm, SwitchSchedule, WeightDecay};
use safetensors::SafeTensors;
use serde_json::Value;

/// One recorded run.
pub struct Golden {
    pub name: String,
    pub config: DualAdamConfig,
    /// Gradients of each step.
    pub grads: Vec<Vec<f32>>,
    pub theta0: Vec<f32>,
    /// The recorded states, by step number.
    pub records: BTreeMap<u64, Record>,
}

/// The state after a step.
pub struct Record {
    pub alpha: f64,
    pub theta: Vec<f64>,
    pub m: Vec<f64>,
    pub v: Vec<f64>,
    /// The change of the parameter in this step, without decay.
    pub delta: Vec<f64>,
}

/// All runs in the folder that the environment variable `DUALADAM_GOLDEN_DIR` names, or else in
/// `tests/golden`.
pub fn all() -> Vec<Golden> {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let folder = std::env::var_os("DUALADAM_GOLDEN_DIR").map_or_else(own, PathBuf::from);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    assert!(!paths.is_empty(), "{} has no .safetensors file", folder.display());
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &std::path::Path) -> Golden {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let settings = metadata.metadata().as_ref().unwrap();
    let setting = |name: &str| serde_json::from_str::<Value>(&settings[name]).unwrap();
    let rows_f64 = |name: &str| rows(&file, name, f64::from_le_bytes);
    let (theta, m, v, delta) = (rows_f64("theta"), rows_f64("m"), rows_f64("v"), rows_f64("delta"));
    let alphas = rows_f64("alpha").concat();
    let steps = rows(&file, "step", i64::from_le_bytes).concat();
    let records = steps.iter().enumerate().map(|(row, &step)| {
        let of = |rows: &[Vec<f64>]| rows[row].clone();
        let record = Record { alpha: alphas[row], theta: of(&theta), m: of(&m), v: of(&v), delta: of(&delta) };
        (u64::try_from(step).unwrap(), record)
    });
    Golden {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        config: config(&setting),
        grads: rows(&file, "grad", f32::from_le_bytes),
        theta0: rows(&file, "theta0", f32::from_le_bytes).concat(),
        records: records.collect(),
    }
}

/// The rows of a matrix. A vector counts as rows of one element.
pub fn rows<T, const N: usize>(file: &SafeTensors<'_>, name: &str, decode: impl Fn([u8; N]) -> T) -> Vec<Vec<T>> {
    let array = file.tensor(name).unwrap();
    assert_eq!(array.dtype().bitsize(), 8 * N, "{name}");
    let columns = if array.shape().len() == 2 { array.shape()[1] } else { 1 };
    let row = |bytes: &[u8]| bytes.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)).collect();
    array.data().chunks(columns * N).map(row).collect()
}

fn config(setting: &impl Fn(&str) -> Value) -> DualAdamConfig {
    let number = |name: &str| setting(name).as_f64().unwrap();
    let schedule = setting("schedule");
    let of_schedule = |name: &str| schedule[name].as_f64().unwrap();
    let weight_decay = number("weight_decay");
    let weight_decay = match setting("weight_decay_mode").as_str().unwrap() {
        "none" => WeightDecay::None,
        "decoupled" => WeightDecay::Decoupled(weight_decay),
        "l2" => WeightDecay::L2(weight_decay),
        other => panic!("weight_decay_mode {other}"),
    };
    let schedule = match schedule["kind"].as_str().unwrap() {
        "linear" => SwitchSchedule::Linear { switching_rate: of_schedule("switching_rate") },
        "linear_early_drop" => SwitchSchedule::LinearEarlyDrop { switching_rate: of_schedule("switching_rate") },
        "exponential" => SwitchSchedule::Exponential {
            base: of_schedule("base"),
            period: schedule["period"].as_u64().unwrap(),
            cutoff: of_schedule("cutoff"),
        },
        "fixed" => SwitchSchedule::Fixed { switching_step: schedule["switching_step"].as_u64().unwrap() },
        other => panic!("schedule {other}"),
    };
    let inverse_term = match setting("inverse_term").as_str().unwrap() {
        "paper" => InverseTerm::Paper,
        "with_eps" => InverseTerm::WithEps,
        other => panic!("inverse_term {other}"),
    };
    let beta = |index: usize| setting("betas")[index].as_f64().unwrap();
    DualAdamConfig::default()
        .with_lr(number("lr"))
        .with_betas(beta(0), beta(1))
        .with_eps(number("eps"))
        .with_weight_decay(weight_decay)
        .with_schedule(schedule)
        .with_inverse_term(inverse_term)
}
