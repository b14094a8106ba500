//! The coefficients that the owning optimizers on devices form for a step.

use std::collections::HashMap;

use crate::{DualAdamConfig, Error, StepCoeffs};

/// The coefficient sets of the step under way: one for each group and step that its tensors have.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    coeffs: Vec<StepCoeffs>,
    found: HashMap<(usize, u64), usize>,
    last: Option<((usize, u64), usize)>,
}

impl Sets {
    pub(crate) fn clear(&mut self) {
        self.coeffs.clear();
        self.found.clear();
        self.last = None;
    }

    /// The sets that were asked for since the last [`clear`](Self::clear).
    pub(crate) fn coeffs(&self) -> &[StepCoeffs] {
        &self.coeffs
    }

    /// The set of a group's `step`.
    pub(crate) fn index(
        &mut self,
        groups: &[DualAdamConfig],
        group: usize,
        step: u64,
        multiplier: f64,
    ) -> Result<usize, Error> {
        let key = (group, step);
        // Neighbours mostly share group and step.
        if let Some((_, index)) = self.last.filter(|(last, _)| *last == key) {
            return Ok(index);
        }
        let index = match self.found.get(&key) {
            Some(&index) => index,
            None => {
                self.coeffs.push(groups[group].coeffs_scaled(step, multiplier)?);
                self.found.insert(key, self.coeffs.len() - 1);
                self.coeffs.len() - 1
            }
        };
        self.last = Some((key, index));
        Ok(index)
    }
}
