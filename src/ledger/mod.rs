//! What an optimizer keeps of its tensors apart from their memory: groups, steps, which masters are
//! set, and the coefficients of a step.

mod coeffs_table;
mod tensor_spec;

pub use coeffs_table::CoeffsTable;
pub use tensor_spec::TensorSpec;

use std::sync::Arc;

use crate::rule::DualAdamConfig;
use crate::tensor::{ArgumentError, ListError, Role, TensorError, TensorProblem, check_count, check_len};

/// The groups of an optimizer; for each tensor its group, its step and whether its masters are set.
///
/// The owning optimizers have a ledger. An adapter that keeps moments itself can have one as well.
/// In each step it:
///
/// 1. asks for the coefficients of each tensor that has a gradient, with
///    [`coeffs_index`](Self::coeffs_index);
/// 2. makes the step;
/// 3. counts the same tensors, with [`count`](Self::count).
///
/// # Examples
///
/// ```
/// use dualadam::{CoeffsTable, DualAdamConfig, Ledger, TensorSpec};
///
/// let mut ledger = Ledger::new(&[DualAdamConfig::adam()], &[TensorSpec::new(8), TensorSpec::new(2)])?;
/// let mut table = CoeffsTable::default();
/// let with_gradient = [0]; // tensor 1 has no gradient and is skipped
/// table.clear();
/// for tensor in with_gradient {
///     let index = ledger.coeffs_index(&mut table, tensor, 1.0)?;
///     assert_eq!(table.coeffs()[index], DualAdamConfig::adam().coeffs(1)?);
/// }
/// // Make the step here, with the coefficients in `table`. Then:
/// with_gradient.into_iter().for_each(|tensor| ledger.count(tensor));
/// assert_eq!((ledger.step(0)?, ledger.step(1)?), (1, 0));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    groups: Vec<DualAdamConfig>,
    tensors: Vec<Entry>,
}

/// The entry of one tensor.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    spec: TensorSpec,
    /// The number of updates so far.
    step: u64,
    /// Whether the masters hold the parameters. While they do not, the next update first sets them.
    master_is_set: bool,
}

impl Ledger {
    /// The ledger of tensors before their first step.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Group`] if a config is not valid.
    /// - [`TensorProblem::Group`] if a tensor's group is not an index of `groups`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, Ledger, TensorSpec};
    ///
    /// let error = Ledger::new(&[DualAdamConfig::default()], &[TensorSpec::new(8).in_group(1)]).unwrap_err();
    /// assert_eq!(error.to_string(), "tensor 0 must have a group below 1, got 1");
    /// ```
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

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The config of each parameter group.
    #[must_use]
    pub fn groups(&self) -> &[DualAdamConfig] {
        &self.groups
    }

    /// The description of each tensor.
    pub fn specs(&self) -> impl ExactSizeIterator<Item = &TensorSpec> {
        self.tensors.iter().map(|entry| &entry.spec)
    }

    /// The description of a tensor.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    pub fn spec(&self, tensor: usize) -> Result<&TensorSpec, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| &entry.spec)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `group` is not an index of [`groups`](Self::groups).
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        at("group", &self.groups, group).copied()
    }

    /// Sets the config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `group` is not an index of [`groups`](Self::groups).
    /// - [`ConfigError`](crate::ConfigError) if [`validate`](DualAdamConfig::validate) refuses the
    ///   config.
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
    /// - As [`set_config`](Self::set_config).
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, Ledger};
    ///
    /// let mut ledger = Ledger::new(&[DualAdamConfig::default(), DualAdamConfig::adamw(0.01)], &[])?;
    /// ledger.set_lr(1, 1e-4)?;
    /// assert_eq!(ledger.config(1)?, DualAdamConfig::adamw(0.01).with_lr(1e-4));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.set_config(group, self.config(group)?.with_lr(lr))
    }

    /// The number of updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    pub fn step(&self, tensor: usize) -> Result<u64, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| entry.step)
    }

    /// Sets the number of updates that a tensor has had, such as from another optimizer's state.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    pub fn set_step(&mut self, tensor: usize, step: u64) -> Result<(), ListError> {
        at_mut("tensor", &mut self.tensors, tensor)?.step = step;
        Ok(())
    }

    /// Whether a tensor's masters hold its parameters. False for a tensor without masters.
    ///
    /// While it is false, the tensor's next update first sets the masters from the parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    pub fn master_is_set(&self, tensor: usize) -> Result<bool, ListError> {
        at("tensor", &self.tensors, tensor).map(|entry| entry.master_is_set)
    }

    /// Sets whether a tensor's masters hold its parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    /// - [`TensorProblem::NoMaster`] if `is_set` is true and the tensor has no masters.
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

    /// Whether a tensor's next update first sets its masters from its parameters. Panics if there
    /// is no such tensor.
    pub(crate) fn sets_master(&self, tensor: usize) -> bool {
        let Entry { spec, master_is_set, .. } = &self.tensors[tensor];
        spec.has_master && !master_is_set
    }

    /// The index in `table` of the coefficients of a tensor's next update.
    ///
    /// The tensor's gradients are first multiplied by `grad_multiplier`. If the tensor's group and
    /// step have no entry in the table yet, one is made.
    ///
    /// Tensors that share group and step share an entry, which is formed for the first of them.
    /// Call [`CoeffsTable::clear`] before you change configs or the multiplier.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if `tensor` is not below [`len`](Self::len).
    /// - [`TensorProblem::StepOverflow`] if the tensor's step is [`u64::MAX`].
    /// - [`ConfigError`](crate::ConfigError) if [`coeffs_scaled`](DualAdamConfig::coeffs_scaled)
    ///   refuses the multiplier.
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

    /// Counts an update of a tensor. Its masters, if it has any, are set from then on.
    ///
    /// The count stops at [`u64::MAX`], where [`coeffs_index`](Self::coeffs_index) refuses further
    /// updates.
    ///
    /// # Panics
    ///
    /// If `tensor` is not below [`len`](Self::len).
    pub fn count(&mut self, tensor: usize) {
        let entry = &mut self.tensors[tensor];
        entry.step = entry.step.saturating_add(1);
        entry.master_is_set = entry.spec.has_master;
    }

    /// Gives each tensor that has no name the name of the tensor with the same index in `other`.
    ///
    /// It is for a state that was loaded from a file without names.
    /// [`State::check_layout`](crate::State::check_layout) tells whether both ledgers are of the
    /// same model.
    ///
    /// # Examples
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

    /// Replaces the content of `into` with `entries`. Returns an error unless there is one entry
    /// for each tensor.
    pub(crate) fn collect<T>(
        &self,
        list: &'static str,
        entries: impl IntoIterator<Item = T>,
        into: &mut Vec<T>,
    ) -> Result<(), ListError> {
        let mut entries = entries.into_iter().fuse();
        into.clear();
        into.extend(entries.by_ref().take(self.len()));
        // The iterator may be endless: take its word for how many entries are left.
        let further = if entries.next().is_some() { entries.size_hint().0.saturating_add(1) } else { 0 };
        check_count(list, self.len(), into.len().saturating_add(further))
    }

    /// Returns an error unless there are as many parameters and gradients as tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn check_counts(&self, params: usize, grads: usize) -> Result<(), ListError> {
        check_count("params", self.len(), params)?;
        check_count("grads", self.len(), grads)
    }

    /// Returns an error unless a buffer has its tensor's length. Panics if there is no such tensor.
    pub(crate) fn check_len(&self, tensor: usize, buffer: Role, actual: usize) -> Result<(), TensorError> {
        let expected = self.tensors[tensor].spec.len;
        check_len(tensor, buffer, expected, actual).map_err(|error| self.named(error))
    }

    /// The name of a tensor, if there is such a tensor and it has a name.
    pub(crate) fn name_of(&self, tensor: usize) -> Option<Arc<str>> {
        self.tensors.get(tensor).and_then(|entry| entry.spec.name.clone())
    }

    /// The error with the tensor's name, if it has one.
    pub(crate) fn named(&self, error: TensorError) -> TensorError {
        TensorError { name: self.name_of(error.tensor), ..error }
    }

    /// Adds the tensor's name to an error about a tensor.
    #[cfg(any(feature = "cuda", feature = "webgpu"))]
    pub(crate) fn name(&self, error: &mut ArgumentError) {
        if let ArgumentError::Tensor(error) = error {
            error.name = self.name_of(error.tensor);
        }
    }
}

/// Returns an error for the first config that is not valid.
pub(crate) fn check_groups<'a>(groups: impl IntoIterator<Item = &'a DualAdamConfig>) -> Result<(), ArgumentError> {
    let check = |(group, config): (usize, &DualAdamConfig)| {
        config.validate().map_err(|problem| ArgumentError::Group { group, problem })
    };
    groups.into_iter().enumerate().try_for_each(check)
}

/// The entry at an index that the caller gave. Errors call the index by `list`.
fn at<'a, T>(list: &'static str, entries: &'a [T], position: usize) -> Result<&'a T, ListError> {
    entries.get(position).ok_or(ListError::Position { list, len: entries.len(), value: position })
}

fn at_mut<'a, T>(list: &'static str, entries: &'a mut [T], position: usize) -> Result<&'a mut T, ListError> {
    let len = entries.len();
    entries.get_mut(position).ok_or(ListError::Position { list, len, value: position })
}
