//! What an optimizer knows of its tensors beside their memory: groups, steps, masters, and the
//! coefficients of a step.

mod coeffs_table;
mod tensor_spec;

pub use coeffs_table::CoeffsTable;
pub use tensor_spec::TensorSpec;

use std::sync::Arc;

use crate::rule::DualAdamConfig;
use crate::tensor::{ArgumentError, ListError, Role, TensorError, TensorProblem, check_count, check_len};

/// The groups of an optimizer, and of each tensor its group, its step and whether its masters are
/// set.
///
/// The owning optimizers have one, and so may an adapter that keeps the memory itself: for each
/// step it asks for the coefficients of each tensor that has a gradient, makes the step, and then
/// counts those tensors.
///
/// # Example
///
/// ```
/// use dualadam::{CoeffsTable, DualAdamConfig, Ledger, TensorSpec};
///
/// let mut ledger = Ledger::new(&[DualAdamConfig::adam()], &[TensorSpec::new(8), TensorSpec::new(2)])?;
/// let mut table = CoeffsTable::default();
/// let with_gradient = [0]; // tensor 1 has none, and is skipped
/// table.clear();
/// for tensor in with_gradient {
///     let index = ledger.coeffs_index(&mut table, tensor, 1.0)?;
///     assert_eq!(table.coeffs()[index], DualAdamConfig::adam().coeffs(1)?);
/// }
/// // … the step, and then:
/// with_gradient.into_iter().for_each(|tensor| ledger.count(tensor));
/// assert_eq!((ledger.step(0)?, ledger.step(1)?), (1, 0));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    groups: Vec<DualAdamConfig>,
    tensors: Vec<Entry>,
}

/// What is known of a tensor.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    spec: TensorSpec,
    /// Updates that the tensor has had.
    step: u64,
    /// Whether the masters hold the parameters; until then, the next update sets them first.
    master_is_set: bool,
}

impl Ledger {
    /// The ledger of tensors before their first step.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Group`] if a config is not valid.
    /// - [`TensorProblem::Group`] if a tensor's group is not there.
    pub fn new(groups: &[DualAdamConfig], specs: &[TensorSpec]) -> Result<Self, ArgumentError> {
        check_groups(groups)?;
        let entry = |(index, spec): (usize, &TensorSpec)| {
            let (len, value) = (groups.len(), spec.group);
            if value >= len {
                let name = spec.name.clone();
                let problem = TensorProblem::Group { len, value };
                return Err(TensorError { name, ..TensorError::of_tensor(index, problem) });
            }
            Ok(Entry { spec: spec.clone(), step: 0, master_is_set: false })
        };
        let tensors = specs.iter().enumerate().map(entry).collect::<Result<_, _>>()?;
        Ok(Self { groups: groups.to_vec(), tensors })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The parameter groups.
    #[must_use]
    pub fn groups(&self) -> &[DualAdamConfig] {
        &self.groups
    }

    /// What was said of each tensor beforehand.
    pub fn specs(&self) -> impl ExactSizeIterator<Item = &TensorSpec> {
        self.tensors.iter().map(|entry| &entry.spec)
    }

    /// What was said of a tensor beforehand.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn spec(&self, tensor: usize) -> Result<&TensorSpec, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| &entry.spec)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        at("group", &self.groups, group).copied()
    }

    /// Replaces the config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), ArgumentError> {
        at("group", &self.groups, group)?;
        config.validate()?;
        self.groups[group] = config;
        Ok(())
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// As [`set_config`](Self::set_config).
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.set_config(group, self.config(group)?.with_lr(lr))
    }

    /// The updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step(&self, tensor: usize) -> Result<u64, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| entry.step)
    }

    /// Sets the updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn set_step(&mut self, tensor: usize, step: u64) -> Result<(), ListError> {
        at_mut("tensor", &mut self.tensors, tensor)?.step = step;
        Ok(())
    }

    /// Whether a tensor's masters hold its parameters. Until then, its next update sets them first.
    /// False without masters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn master_is_set(&self, tensor: usize) -> Result<bool, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| entry.master_is_set)
    }

    /// Says whether a tensor's masters hold its parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - [`TensorProblem::NoMaster`] if they are said to and the tensor has none.
    pub fn set_master_is_set(&mut self, tensor: usize, is_set: bool) -> Result<(), ArgumentError> {
        let entry = at_mut("tensor", &mut self.tensors, tensor)?;
        if is_set && !entry.spec.has_master {
            let name = entry.spec.name.clone();
            let error = TensorError::of_buffer(tensor, Role::Master, TensorProblem::NoMaster);
            return Err(TensorError { name, ..error }.into());
        }
        entry.master_is_set = is_set;
        Ok(())
    }

    /// Whether a tensor's next update sets its masters from its parameters. The tensor must be
    /// there.
    pub(crate) fn sets_master(&self, tensor: usize) -> bool {
        let Entry { spec, master_is_set, .. } = &self.tensors[tensor];
        spec.has_master && !master_is_set
    }

    /// The index in `table` of the coefficients of a tensor's next update, for gradients that are
    /// first multiplied by `grad_multiplier`. The table gets them, if it does not have them yet.
    /// Between two calls of [`CoeffsTable::clear`], configs and multiplier must stay the same: of
    /// tensors that share group and step, only the first one's are looked at.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - [`TensorProblem::StepOverflow`] if its step cannot grow further.
    /// - [`ConfigError`](crate::ConfigError) for a multiplier that
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    pub fn coeffs_index(
        &self,
        table: &mut CoeffsTable,
        tensor: usize,
        grad_multiplier: f64,
    ) -> Result<usize, ArgumentError> {
        let Entry { spec, step, .. } = at("tensor", &self.tensors, tensor)?;
        let step = step.checked_add(1).ok_or_else(|| self.step_overflow(tensor))?;
        Ok(table.index(&self.groups, spec.group, step, grad_multiplier)?)
    }

    fn step_overflow(&self, tensor: usize) -> TensorError {
        self.named(TensorError::of_tensor(tensor, TensorProblem::StepOverflow))
    }

    /// Counts an update of a tensor, whose masters are set then. The count stays at [`u64::MAX`],
    /// from which [`coeffs_index`](Self::coeffs_index) refuses further steps.
    ///
    /// # Panics
    ///
    /// If there is no such tensor.
    pub fn count(&mut self, tensor: usize) {
        let entry = &mut self.tensors[tensor];
        entry.step = entry.step.saturating_add(1);
        entry.master_is_set = entry.spec.has_master;
    }

    /// Gives each tensor without a name the one that it has in another ledger of the same model,
    /// such as after a file without names was loaded.
    ///
    /// Tensors are matched by their position;
    /// [`State::check_layout`](crate::State::check_layout) tells whether the models are the same.
    /// Tensors that the other ledger lacks stay without a name.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, Ledger, TensorSpec};
    ///
    /// let groups = [DualAdamConfig::default()];
    /// let own = Ledger::new(&groups, &[TensorSpec::new(8).with_name("weight")])?;
    /// let mut loaded = Ledger::new(&groups, &[TensorSpec::new(8)])?;
    /// loaded.fill_names(&own);
    /// assert_eq!(loaded.spec(0)?.name.as_deref(), Some("weight"));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn fill_names(&mut self, other: &Self) {
        for (own, other) in self.tensors.iter_mut().zip(&other.tensors) {
            own.spec.name = own.spec.name.take().or_else(|| other.spec.name.clone());
        }
    }

    /// Puts the entries of a list into `into`, if there are as many as tensors.
    pub(crate) fn collect<T>(
        &self,
        list: &'static str,
        entries: impl IntoIterator<Item = T>,
        into: &mut Vec<T>,
    ) -> Result<(), ListError> {
        let mut entries = entries.into_iter().fuse();
        into.clear();
        into.extend(entries.by_ref().take(self.len()));
        // There may be no end of what is too many: it is counted as far as the iterator tells.
        let further = if entries.next().is_some() { entries.size_hint().0.saturating_add(1) } else { 0 };
        check_count(list, self.len(), into.len().saturating_add(further))
    }

    /// Fails unless there are as many parameters and gradients as tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn check_counts(&self, params: usize, grads: usize) -> Result<(), ListError> {
        check_count("params", self.len(), params)?;
        check_count("grads", self.len(), grads)
    }

    /// Fails unless a buffer of a tensor that is there has the tensor's length.
    pub(crate) fn check_len(&self, tensor: usize, buffer: Role, actual: usize) -> Result<(), TensorError> {
        let expected = self.tensors[tensor].spec.len;
        check_len(tensor, buffer, expected, actual).map_err(|error| self.named(error))
    }

    /// The name of a tensor, if it is there and has one.
    pub(crate) fn name_of(&self, tensor: usize) -> Option<Arc<str>> {
        self.tensors.get(tensor).and_then(|entry| entry.spec.name.clone())
    }

    /// The error with the tensor's name, if it has one.
    pub(crate) fn named(&self, error: TensorError) -> TensorError {
        TensorError { name: self.name_of(error.tensor), ..error }
    }

    /// Gives an error that is about a tensor the tensor's name.
    #[cfg(any(feature = "cuda", feature = "webgpu"))]
    pub(crate) fn name(&self, error: &mut ArgumentError) {
        if let ArgumentError::Tensor(error) = error {
            error.name = self.name_of(error.tensor);
        }
    }
}

/// Fails for the first config that is not valid.
pub(crate) fn check_groups<'a>(groups: impl IntoIterator<Item = &'a DualAdamConfig>) -> Result<(), ArgumentError> {
    let check = |(group, config): (usize, &DualAdamConfig)| {
        config.validate().map_err(|problem| ArgumentError::Group { group, problem })
    };
    groups.into_iter().enumerate().try_for_each(check)
}

/// The entry of a list at a position that the caller named; `list` is what the list holds.
fn at<'a, T>(list: &'static str, entries: &'a [T], position: usize) -> Result<&'a T, ListError> {
    entries.get(position).ok_or(ListError::Position { list, len: entries.len(), value: position })
}

fn at_mut<'a, T>(list: &'static str, entries: &'a mut [T], position: usize) -> Result<&'a mut T, ListError> {
    let len = entries.len();
    entries.get_mut(position).ok_or(ListError::Position { list, len, value: position })
}
