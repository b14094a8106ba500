//! States compared by bits, so that -0, NaN and the last digit of a learning rate count; and
//! temporary files for them.

use std::path::PathBuf;

use dualadam::{Arrays, State};
use tempfile::TempDir;

use crate::tensor::Tensor;

/// The bits of a state. Its configs are kept as their `Debug` texts, which differ for any two f64.
/// A valid config has no NaN.
#[derive(Debug, Clone, PartialEq)]
pub struct StateBits {
    groups: Vec<String>,
    tensors: Vec<TensorBits>,
}

/// Group, step, moments, masters and whether they are set.
type TensorBits = (usize, u64, [Vec<u32>; 2], Option<Vec<u32>>, bool);

pub fn float_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn bits(state: &State) -> StateBits {
    let State { ledger, arrays, .. } = state;
    let of = |(index, arrays): (usize, &Arrays)| {
        let (group, step) = (ledger.spec(index).unwrap().group, ledger.step(index).unwrap());
        let moments = [float_bits(&arrays.exp_avg), float_bits(&arrays.exp_avg_sq)];
        let master = arrays.master.as_deref().map(float_bits);
        (group, step, moments, master, ledger.master_is_set(index).unwrap())
    };
    let groups = ledger.groups().iter().map(|group| format!("{group:?}")).collect();
    StateBits { groups, tensors: arrays.iter().enumerate().map(of).collect() }
}

/// Fails unless a state has a tensor's moments, to the bit, and its masters once they are set.
#[track_caller]
pub fn assert_holds(state: &State, index: usize, tensor: &Tensor, what: &str) {
    let Arrays { exp_avg, exp_avg_sq, master, .. } = &state.arrays[index];
    assert_eq!(float_bits(exp_avg), float_bits(&tensor.exp_avg.wide()), "{what}");
    assert_eq!(float_bits(exp_avg_sq), float_bits(&tensor.exp_avg_sq.wide()), "{what}");
    assert_eq!(master.is_some(), tensor.master.is_some(), "{what}");
    if state.ledger.master_is_set(index).unwrap() {
        assert_eq!(float_bits(master.as_ref().unwrap()), float_bits(&tensor.updated().wide()), "{what}");
    }
}

/// The path of a file that does not exist yet, in a folder that is deleted when it is dropped.
pub fn temporary() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    (folder, path)
}

/// Fails unless the state file keeps every bit.
#[track_caller]
pub fn assert_survives(state: &State) {
    let (_folder, path) = temporary();
    state.save(&path).unwrap();
    assert_eq!(bits(&State::load(&path).unwrap()), bits(state));
}
