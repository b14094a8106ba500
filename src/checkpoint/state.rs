//! The state of an optimizer, the same on every backend.

use crate::ledger::{Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, in_standard_env};
use crate::tensor::{ArgumentError, Role, TensorError, TensorProblem, check_count, check_len};

use super::error::StateProblem;

/// All that an optimizer keeps between steps: the [`Ledger`] and each tensor's [`Arrays`].
///
/// The optimizers of all backends save and load this state, so that a run can be resumed on another
/// backend. It does not contain the parameters, which the caller saves; it does contain their
/// masters.
///
/// With the feature `files`, `to_bytes` and `from_bytes` convert it to and from the bytes of a
/// file, and `save` and `load` write and read a file.
///
/// # Examples
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
    /// The groups, each tensor's step, and which masters are set.
    pub ledger: Ledger,
    /// The arrays of each tensor, in the order of the ledger.
    pub arrays: Vec<Arrays>,
}

/// The arrays of one tensor. Each has the tensor's length.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, Role, State, TensorSpec};
///
/// let state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3).with_master()])?;
/// let roles: Vec<_> = state.arrays[0].by_role().map(|(role, _)| role).collect();
/// assert_eq!(roles, [Role::ExpAvg, Role::ExpAvgSq, Role::Master]);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Arrays {
    /// The first moment.
    pub exp_avg: Vec<f32>,
    /// The second moment.
    pub exp_avg_sq: Vec<f32>,
    /// The f32 masters of 16-bit parameters. `None` for a tensor without masters.
    pub master: Option<Vec<f32>>,
}

impl Arrays {
    /// Each array that the tensor has, with its role.
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
    /// The state before the first step: moments of 0, and masters that are not set yet.
    ///
    /// # Errors
    ///
    /// - As [`Ledger::new`].
    /// - [`TensorProblem::Memory`] if an array cannot be allocated.
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

    /// Checks that each tensor of the ledger has its arrays, and that no second moment is negative.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) if `arrays` has another length than the
    ///   ledger.
    /// - [`TensorProblem::Length`] if an array has another length than its tensor, or if masters
    ///   are missing or should not be there.
    /// - [`TensorProblem::Negative`] if a second moment has a negative element.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, State, TensorSpec};
    ///
    /// let mut state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3)])?;
    /// state.arrays[0].exp_avg.push(0.0);
    /// assert_eq!(state.validate().unwrap_err().to_string(), "exp_avg of tensor 0 must have 3 elements, got 4");
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn validate(&self) -> Result<(), ArgumentError> {
        check_count("arrays", self.ledger.len(), self.arrays.len())?;
        for (tensor, (spec, arrays)) in self.ledger.specs().zip(&self.arrays).enumerate() {
            let checked = check_arrays(tensor, spec, arrays);
            checked.map_err(|error| self.ledger.named(error))?;
        }
        Ok(())
    }

    /// Checks that another state is of the same model.
    ///
    /// Both must have the same number of groups and of tensors. Each tensor must have the same
    /// length and group in both, and masters in both or in neither. Where it has a name in both,
    /// the names must be the same.
    ///
    /// # Errors
    ///
    /// - [`StateProblem::Layout`] for the first difference.
    ///
    /// # Examples
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

/// [`State::check_layout`] of two ledgers.
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

/// Returns an error unless these can be the moments of a tensor of `len` elements. NaN is accepted,
/// since a step with NaN gradients makes such moments.
pub(crate) fn check_moments(tensor: usize, len: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), TensorError> {
    check_len(tensor, Role::ExpAvg, len, exp_avg.len())?;
    check_len(tensor, Role::ExpAvgSq, len, exp_avg_sq.len())?;
    match in_standard_env(exp_avg_sq, |exp_avg_sq| exp_avg_sq.iter().find(|&&v| v < 0.0)) {
        Some(&value) => Err(TensorError::of_buffer(tensor, Role::ExpAvgSq, TensorProblem::Negative { value })),
        None => Ok(()),
    }
}
