//! The coefficients of a step, formed once for all tensors that share them.

use std::collections::HashMap;

use crate::rule::{ConfigError, DualAdamConfig, StepCoeffs};

/// The coefficients of the step under way: one entry for each group and step that its tensors have.
///
/// [`Ledger::coeffs_index`](super::Ledger::coeffs_index) fills it. An adapter that keeps steps
/// elsewhere calls [`index`](Self::index) itself.
#[derive(Debug, Default)]
pub struct CoeffsTable {
    coeffs: Vec<StepCoeffs>,
    known: HashMap<(usize, u64), usize>,
    last: Option<((usize, u64), usize)>,
}

impl CoeffsTable {
    /// Forgets the step before.
    pub fn clear(&mut self) {
        self.coeffs.clear();
        self.known.clear();
        self.last = None;
    }

    /// The coefficients that were asked for since the last [`clear`](Self::clear).
    #[must_use]
    pub fn coeffs(&self) -> &[StepCoeffs] {
        &self.coeffs
    }

    /// The index of the coefficients of the `step`-th update of tensors in a group. Between two
    /// calls of [`clear`](Self::clear), groups and multiplier must stay the same.
    ///
    /// # Errors
    ///
    /// - What [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    ///
    /// # Panics
    ///
    /// If there is no such group.
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
