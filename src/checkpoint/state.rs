//! The state of an optimizer, alike on every backend.

use crate::ledger::{Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, in_standard_env};
use crate::tensor::{ArgumentError, Role, TensorError, TensorProblem, check_count, check_len};

use super::error::StateProblem;

/// What an optimizer remembers between steps: the ledger, and each tensor's arrays. Every backend
/// saves and resumes this.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, State, TensorSpec};
///
/// let state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3)])?;
/// assert_eq!((state.ledger.step(0)?, &state.arrays[0].exp_avg), (0, &vec![0.0; 3]));
/// let optimizer = dualadam::cpu::DualAdam::try_from(state)?;
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct State {
    /// Groups, steps, and which masters are set.
    pub ledger: Ledger,
    /// The arrays of each tensor, in the ledger's order.
    pub arrays: Vec<Arrays>,
}

/// The arrays of one tensor, all of its length.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Arrays {
    /// The first moment.
    pub exp_avg: Vec<f32>,
    /// The second moment.
    pub exp_avg_sq: Vec<f32>,
    /// The f32 masters of 16-bit parameters.
    pub master: Option<Vec<f32>>,
}

impl Arrays {
    /// Each array with its role.
    pub fn by_role(&self) -> impl Iterator<Item = (Role, &[f32])> {
        let arrays = [
            (Role::ExpAvg, Some(self.exp_avg.as_slice())),
            (Role::ExpAvgSq, Some(self.exp_avg_sq.as_slice())),
            (Role::Master, self.master.as_deref()),
        ];
        arrays.into_iter().filter_map(|(role, array)| Some((role, array?)))
    }
}

impl State {
    /// The state before the first step: moments of 0.
    ///
    /// # Errors
    ///
    /// - What [`Ledger::new`] refuses.
    /// - [`TensorProblem::Memory`] if the machine lacks the memory for an array.
    pub fn new(groups: &[DualAdamConfig], specs: &[TensorSpec]) -> Result<Self, ArgumentError> {
        let ledger = Ledger::new(groups, specs)?;
        let arrays = specs.iter().enumerate().map(|(tensor, spec)| {
            let zeros = || {
                bytemuck::allocation::try_zeroed_vec(spec.len).map_err(|()| {
                    let bytes = (spec.len as u64).saturating_mul(size_of::<f32>() as u64);
                    ledger.named(TensorError::of_tensor(tensor, TensorProblem::Memory { bytes }))
                })
            };
            let master = spec.has_master.then(zeros).transpose()?;
            Ok(Arrays { exp_avg: zeros()?, exp_avg_sq: zeros()?, master })
        });
        let arrays = arrays.collect::<Result<_, TensorError>>()?;
        Ok(Self { ledger, arrays })
    }

    /// Checks that the tensors have the arrays that the ledger says, and that no second moment is
    /// negative.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) for another number of arrays than tensors.
    /// - [`TensorProblem::Length`] for an array of another length, or masters that are there or
    ///   missing.
    /// - [`TensorProblem::Negative`] for a second moment that is negative somewhere.
    pub fn validate(&self) -> Result<(), ArgumentError> {
        check_count("arrays", self.ledger.len(), self.arrays.len())?;
        for (tensor, (spec, arrays)) in self.ledger.specs().zip(&self.arrays).enumerate() {
            let checked = check_arrays(tensor, spec, arrays);
            checked.map_err(|error| self.ledger.named(error))?;
        }
        Ok(())
    }

    /// Checks that another state is of the same model: as many groups and tensors, each tensor of
    /// the same length and group, with or without masters, and of the same name where both have
    /// one.
    ///
    /// # Errors
    ///
    /// - [`StateProblem::Layout`] for the first difference.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, State, TensorSpec};
    ///
    /// let state = |len| State::new(&[DualAdamConfig::default()], &[TensorSpec::new(len)]);
    /// assert!(state(3)?.check_layout(&state(3)?).is_ok());
    /// assert!(state(3)?.check_layout(&state(4)?).is_err());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn check_layout(&self, other: &Self) -> Result<(), Box<StateProblem>> {
        check_layout(&self.ledger, &other.ledger)
    }
}

/// [`State::check_layout`], of a state whose arrays are elsewhere.
pub(crate) fn check_layout(own: &Ledger, other: &Ledger) -> Result<(), Box<StateProblem>> {
    let same = |what: String, expected: String, found: String| {
        if expected == found { Ok(()) } else { Err(Box::new(StateProblem::Layout { what, expected, found })) }
    };
    let count = |count: usize| count.to_string();
    same("the number of groups".into(), count(own.groups().len()), count(other.groups().len()))?;
    same("the number of tensors".into(), count(own.len()), count(other.len()))?;
    let describe = |spec: &TensorSpec| {
        let master = if spec.has_master { "with" } else { "without" };
        format!("{} elements in group {} {master} masters", spec.len, spec.group)
    };
    for (index, (own, other)) in own.specs().zip(other.specs()).enumerate() {
        same(format!("tensor {index}"), describe(own), describe(other))?;
        if let (Some(own), Some(other)) = (&own.name, &other.name) {
            same(format!("the name of tensor {index}"), own.to_string(), other.to_string())?;
        }
    }
    Ok(())
}

fn check_arrays(tensor: usize, spec: &TensorSpec, arrays: &Arrays) -> Result<(), TensorError> {
    let master = arrays.master.as_ref().map_or(0, Vec::len);
    let masters = if spec.has_master { spec.len } else { 0 };
    check_len(tensor, Role::Master, masters, master)?;
    check_moments(tensor, spec.len, &arrays.exp_avg, &arrays.exp_avg_sq)
}

/// Fails unless these can be the moments of a tensor of `len` elements. NaN is let through: a run
/// may have met it.
pub(crate) fn check_moments(tensor: usize, len: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), TensorError> {
    check_len(tensor, Role::ExpAvg, len, exp_avg.len())?;
    check_len(tensor, Role::ExpAvgSq, len, exp_avg_sq.len())?;
    match in_standard_env(exp_avg_sq, |exp_avg_sq| exp_avg_sq.iter().find(|&&v| v < 0.0)) {
        Some(&value) => Err(TensorError::of_buffer(tensor, Role::ExpAvgSq, TensorProblem::Negative { value })),
        None => Ok(()),
    }
}
