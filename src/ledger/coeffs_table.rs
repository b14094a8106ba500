//! The coefficients of a step. Tensors that share group and step share one entry.

use std::collections::HashMap;

use crate::rule::{ConfigError, DualAdamConfig, StepCoeffs};

/// The coefficients of one step of an optimizer: an entry for each pair of group and tensor step.
///
/// [`Ledger::coeffs_index`](super::Ledger::coeffs_index) fills the table. An adapter that keeps
/// steps elsewhere calls [`index`](Self::index) itself. A table that is used again keeps its
/// memory.
///
/// # Examples
///
/// ```
/// use dualadam::{CoeffsTable, DualAdamConfig};
///
/// let groups = [DualAdamConfig::default(), DualAdamConfig::adam()];
/// let mut table = CoeffsTable::default();
/// table.clear();
/// let (first, second) = (table.index(&groups, 0, 7, 1.0)?, table.index(&groups, 1, 7, 1.0)?);
/// assert_eq!(table.index(&groups, 0, 7, 1.0)?, first);
/// assert_eq!(table.coeffs(), [groups[0].coeffs(7)?, groups[1].coeffs(7)?]);
/// assert_eq!((first, second), (0, 1));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct CoeffsTable {
    coeffs: Vec<StepCoeffs>,
    known: HashMap<(usize, u64), usize>,
    last: Option<((usize, u64), usize)>,
}

impl CoeffsTable {
    /// Removes all entries, for the next step.
    pub fn clear(&mut self) {
        self.coeffs.clear();
        self.known.clear();
        self.last = None;
    }

    /// The entries since the last [`clear`](Self::clear). Tensors refer to them by `coeffs_index`.
    #[must_use]
    pub fn coeffs(&self) -> &[StepCoeffs] {
        &self.coeffs
    }

    /// The index in [`coeffs`](Self::coeffs) of the coefficients of a tensor's `step`-th update.
    ///
    /// The tensor is in group `group` of `groups`, and its gradients are first multiplied by
    /// `grad_multiplier`. If the pair of group and step has no entry yet, one is made.
    ///
    /// An entry is found by group and step alone. Call [`clear`](Self::clear) before you change
    /// `groups` or `grad_multiplier`.
    ///
    /// # Errors
    ///
    /// - [`ConfigError`] as [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) returns it. Only the
    ///   first call for a group and step checks.
    ///
    /// # Panics
    ///
    /// If `group` is not an index of `groups` and has no entry yet.
    pub fn index(
        &mut self,
        groups: &[DualAdamConfig],
        group: usize,
        step: u64,
        grad_multiplier: f64,
    ) -> Result<usize, ConfigError> {
        let key = (group, step);
        // Neighbours mostly share group and step.
        if let Some((_, index)) = self.last.filter(|(last, _)| *last == key) {
            return Ok(index);
        }
        let index = match self.known.get(&key) {
            Some(&index) => index,
            None => {
                self.coeffs.push(groups[group].coeffs_scaled(step, grad_multiplier)?);
                self.known.insert(key, self.coeffs.len() - 1);
                self.coeffs.len() - 1
            }
        };
        self.last = Some((key, index));
        Ok(index)
    }
}
