//! Reports of controlled steps.

use crate::rule::StepCoeffs;
use crate::steering::SkipReason;

use super::layout::DeviceState;

/// What the device recorded about the steps of a coefficient set.
///
/// # Examples
///
/// ```
/// use dualadam::SkipReason;
/// use dualadam::cuda::SetReport;
///
/// fn explain(report: &SetReport) -> String {
///     match report.last_skip {
///         None => format!("{} steps", report.step),
///         Some(SkipReason::FoundInf) => format!("{} steps, {} skipped for infinities", report.step, report.skipped),
///         Some(reason) => format!("{} steps, {} skipped: {reason:?}", report.step, report.skipped),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SetReport {
    /// The step counter: the updates that the set's tensors have had.
    pub step: u64,
    /// The number of steps that were skipped.
    pub skipped: u64,
    /// Why the last skipped step was skipped.
    pub last_skip: Option<SkipReason>,
    /// The coefficients of the last step that was not skipped; all 0 before the first one.
    pub coeffs: StepCoeffs,
}

impl SetReport {
    pub(super) fn new(step: u64, state: &DeviceState, coeffs: StepCoeffs) -> Self {
        Self { step, skipped: state.skipped, last_skip: reason_of(state.last_skip), coeffs }
    }
}

/// The reason for a number that the kernel writes. The numbers count from 1.
fn reason_of(number: u32) -> Option<SkipReason> {
    SkipReason::ALL.get((number as usize).wrapping_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels and the host must agree on these.
    #[test]
    fn reasons_have_the_numbers_of_the_kernels() {
        let source = include_str!("../../../kernels/control.cuh");
        let reasons = [
            ("SKIP_FOUND_INF", SkipReason::FoundInf),
            ("SKIP_LOSS_SCALE", SkipReason::LossScale),
            ("SKIP_CLIP_FACTOR", SkipReason::ClipFactor),
            ("SKIP_MULTIPLIER", SkipReason::Multiplier),
            ("SKIP_LR", SkipReason::Lr),
            ("SKIP_STEP", SkipReason::Step),
        ];
        for (number, (name, reason)) in (1..).zip(reasons) {
            assert_eq!(source.matches(&format!("{name} = {number},")).count(), 1, "{name}");
            assert_eq!(reason_of(number), Some(reason));
        }
        assert_eq!((reason_of(0), reason_of(7)), (None, None));
    }
}
