//! What is timed over one set of buffers.

use dualadam::{DualAdamConfig, StepCoeffs};

/// The step of the first coefficient set, and of the first controlled step.
pub(crate) const FIRST_STEP: u64 = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// A device-to-device copy that moves as many bytes as the step.
    Copy,
    /// A copy of the same size by a kernel with many loads in flight.
    UnrolledCopy,
    /// A multiply and an add for each written value, over the step's streams as one flat buffer.
    Triad,
    /// The step with a kernel for each operation, over flat f32 buffers.
    Unfused,
    /// The step, of a flat buffer or of a list with one coefficient set.
    Dual,
    /// The same for plain Adam.
    Adam,
    /// The step of a list's elements as one flat buffer.
    Flat,
    /// The step of a list with the most coefficient sets that travel as an argument.
    MostSets,
    /// The step of a list with a set for each tensor, from device memory.
    SetEach,
    /// The step controlled on the device, as a list: a launch that forms the coefficients, then the
    /// list's.
    Controlled,
    /// The same, captured in a CUDA graph and launched as one.
    Captured,
}

impl Job {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::UnrolledCopy => "copy, unrolled",
            Self::Triad => "triad",
            Self::Unfused => "unfused",
            Self::Dual => "dual",
            Self::Adam => "adam",
            Self::Flat => "dual, flat",
            Self::MostSets => "dual, 96 sets",
            Self::SetEach => "dual, a set each",
            Self::Controlled => "dual, controlled",
            Self::Captured => "dual, captured",
        }
    }

    /// Floating-point operations of an element, as the paper counts them.
    pub(crate) fn flops(self) -> usize {
        match self {
            Self::Copy | Self::UnrolledCopy | Self::Triad => 0,
            Self::Adam => 14,
            _ => 18,
        }
    }

    /// The coefficient sets that the tensors of a list take in turns.
    pub(crate) fn sets(self, tensors: usize) -> usize {
        match self {
            Self::MostSets => 96,
            Self::SetEach => tensors,
            _ => 1,
        }
    }

    /// Whether it only moves bytes.
    pub(crate) fn is_copy(self) -> bool {
        matches!(self, Self::Copy | Self::UnrolledCopy)
    }

    /// Whether it steps the tensors of a list as a list.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Self::Dual | Self::Adam | Self::MostSets | Self::SetEach) || self.is_controlled()
    }

    /// Whether the coefficients are formed on the device.
    pub(crate) fn is_controlled(self) -> bool {
        matches!(self, Self::Controlled | Self::Captured)
    }

    /// The coefficients of a set. Each set is of another step, so that a mix-up of sets shows. All
    /// steps are before the switch at 12,500 and far from the first, so that both branches count in
    /// the result.
    pub(crate) fn coeffs(self, set: usize) -> StepCoeffs {
        self.config().coeffs(FIRST_STEP + set as u64).expect("the configurations are valid")
    }

    pub(crate) fn config(self) -> DualAdamConfig {
        if self == Self::Adam { DualAdamConfig::adam() } else { DualAdamConfig::default() }
    }
}
