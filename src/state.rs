//! What an optimizer remembers between steps, alike on every backend.

use crate::{DualAdamConfig, Error, StateProblem};

/// What an optimizer must know of a tensor beforehand.
///
/// # Example
///
/// ```
/// use dualadam::TensorLayout;
///
/// let layout = TensorLayout::new(1024).in_group(1).with_master();
/// assert_eq!((layout.len, layout.group, layout.master), (1024, 1, true));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorLayout {
    /// Elements.
    pub len: usize,
    /// Index of the parameter group.
    pub group: usize,
    /// Whether the optimizer keeps f32 masters of this tensor's 16-bit parameters.
    pub master: bool,
}

impl TensorLayout {
    /// A tensor of `len` elements in group 0, without masters.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { len, group: 0, master: false }
    }

    /// Puts the tensor into a group.
    #[must_use]
    pub fn in_group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Keeps f32 masters of the tensor, whose parameters are then bf16 or f16.
    #[must_use]
    pub fn with_master(self) -> Self {
        Self { master: true, ..self }
    }
}

/// The state of an optimizer: its groups and its tensors' moments and steps. Every backend saves and resumes this.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, State, TensorLayout};
///
/// let state = State::new(&[DualAdamConfig::default()], &[TensorLayout::new(3)])?;
/// assert_eq!((state.tensors[0].step, &state.tensors[0].exp_avg), (0, &vec![0.0; 3]));
/// let optimizer = dualadam::cpu::DualAdam::try_from(state)?;
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The parameter groups.
    pub groups: Vec<DualAdamConfig>,
    /// The tensors, in the optimizer's order.
    pub tensors: Vec<TensorState>,
}

/// The state of one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TensorState {
    /// Index of the tensor's group.
    pub group: usize,
    /// Updates that the tensor has had.
    pub step: u64,
    /// The first moment.
    pub exp_avg: Vec<f32>,
    /// The second moment.
    pub exp_avg_sq: Vec<f32>,
    /// The f32 masters of 16-bit parameters.
    pub master: Option<Vec<f32>>,
    /// Whether the masters hold the parameters; until then, the next update sets them from the parameters first.
    pub master_is_set: bool,
}

impl State {
    /// The state before the first step: moments of 0.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a config is not valid; [`Error::Index`] if a tensor names a group that is not there; [`Error::Memory`]
    /// if the machine lacks the memory for it.
    pub fn new(groups: &[DualAdamConfig], layout: &[TensorLayout]) -> Result<Self, Error> {
        let tensors = layout.iter().enumerate().map(|(tensor, layout)| {
            let zeros = || {
                let elements = layout.len;
                bytemuck::allocation::try_zeroed_vec(elements).map_err(|()| Error::Memory { tensor, elements })
            };
            Ok(TensorState {
                group: layout.group,
                step: 0,
                exp_avg: zeros()?,
                exp_avg_sq: zeros()?,
                master: layout.master.then(zeros).transpose()?,
                master_is_set: false,
            })
        });
        let state = Self { groups: groups.to_vec(), tensors: tensors.collect::<Result<_, Error>>()? };
        state.validate()?;
        Ok(state)
    }

    /// Checks that the configs are valid, that each tensor's group is there, that its arrays have one length, and that no second
    /// moment is negative.
    ///
    /// # Errors
    ///
    /// [`Error::Value`], [`Error::Index`] or [`Error::Length`] for the first that is not as it must be.
    pub fn validate(&self) -> Result<(), Error> {
        self.groups.iter().try_for_each(DualAdamConfig::validate)?;
        for (index, TensorState { group, exp_avg, exp_avg_sq, master, .. }) in self.tensors.iter().enumerate() {
            if *group >= self.groups.len() {
                return Err(Error::Index { tensor: index, index: "group", len: self.groups.len(), value: *group });
            }
            let expected = exp_avg.len();
            for (buffer, array) in [("exp_avg_sq", Some(exp_avg_sq)), ("master", master.as_ref())] {
                if let Some(actual) = array.map(Vec::len).filter(|&actual| actual != expected) {
                    return Err(Error::Length { tensor: index, buffer, expected, actual });
                }
            }
            check_second_moment(exp_avg_sq)?;
        }
        Ok(())
    }

    /// Checks that `found` has the same number of groups as this state and the same tensors: in lengths,
    /// groups and masters.
    ///
    /// # Errors
    ///
    /// - [`StateProblem::Layout`] for the first difference.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, State, TensorLayout};
    ///
    /// let state = |len| State::new(&[DualAdamConfig::default()], &[TensorLayout::new(len)]);
    /// assert!(state(3)?.check_layout(&state(3)?).is_ok());
    /// assert!(state(3)?.check_layout(&state(4)?).is_err());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn check_layout(&self, found: &Self) -> Result<(), StateProblem> {
        let same = |what: String, expected: String, found: String| {
            if expected == found { Ok(()) } else { Err(StateProblem::Layout { what, expected, found }) }
        };
        let count = |count: usize| count.to_string();
        same("the number of groups".into(), count(self.groups.len()), count(found.groups.len()))?;
        same("the number of tensors".into(), count(self.tensors.len()), count(found.tensors.len()))?;
        let describe = |tensor: &TensorState| {
            let master = if tensor.master.is_some() { "with" } else { "without" };
            format!("{} elements in group {} {master} masters", tensor.exp_avg.len(), tensor.group)
        };
        for (index, (own, other)) in self.tensors.iter().zip(&found.tensors).enumerate() {
            same(format!("tensor {index}"), describe(own), describe(other))?;
        }
        Ok(())
    }
}

/// Fails if an element is negative, whose root would be NaN. NaN itself is let through: a run may have met it.
pub(crate) fn check_second_moment(exp_avg_sq: &[f32]) -> Result<(), Error> {
    match exp_avg_sq.iter().find(|&&v| v < 0.0) {
        Some(&value) => {
            Err(Error::Value { name: "exp_avg_sq", requirement: "be at least 0 everywhere", value: value.into() })
        }
        None => Ok(()),
    }
}
