//! What the caller says of a control: groups, sets, and addresses of scalars.

use crate::cuda::error::{AddressProblem, ControlAddress, CudaError};
use crate::ledger::check_groups;
use crate::rule::DualAdamConfig;
use crate::tensor::ListError;

/// A learning rate in the caller's device memory, by address.
///
/// It is read in each step, and never written. Its value must be finite, at least 0 and small
/// enough, as [`DualAdamConfig::validate`] says; else the step is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawLr {
    /// The address of an f32, as torch has it.
    F32(u64),
    /// The address of an f64.
    F64(u64),
}

/// A parameter group of a [`Control`](super::Control).
///
/// # Example
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{ControlGroup, RawLr};
///
/// let group = ControlGroup::new(DualAdamConfig::default()).with_lr(RawLr::F32(0x1000));
/// assert_eq!(group.lr, Some(RawLr::F32(0x1000)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ControlGroup {
    /// The hyperparameters. Where `lr` gives an address, the config's own lr is not used, but must
    /// be valid.
    pub config: DualAdamConfig,
    /// The learning rate in the caller's memory; if `None`, the control keeps the config's in its
    /// own.
    pub lr: Option<RawLr>,
}

impl ControlGroup {
    /// A group whose learning rate the control keeps.
    #[must_use]
    pub const fn new(config: DualAdamConfig) -> Self {
        Self { config, lr: None }
    }

    /// With a learning rate in the caller's memory.
    #[must_use]
    pub const fn with_lr(self, lr: RawLr) -> Self {
        Self { lr: Some(lr), ..self }
    }
}

/// A coefficient set of a [`Control`](super::Control): tensors of one group that are updated
/// together.
///
/// # Example
///
/// ```
/// use dualadam::cuda::ControlSet;
///
/// let set = ControlSet::new(1).with_step(0x2000);
/// assert_eq!((set.group, set.step), (1, Some(0x2000)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlSet {
    /// The index of the group.
    pub group: usize,
    /// The address of the step counter, a u64, in the caller's memory, read and written; if `None`,
    /// the control keeps one that begins at 0.
    pub step: Option<u64>,
}

impl ControlSet {
    /// A set of tensors of a group, whose step counter the control keeps.
    #[must_use]
    pub const fn new(group: usize) -> Self {
        Self { group, step: None }
    }

    /// With a step counter in the caller's memory, by address.
    #[must_use]
    pub const fn with_step(self, address: u64) -> Self {
        Self { step: Some(address), ..self }
    }
}

/// Scalars in device memory that steer one step, by address: each an f32, and 0 for none.
///
/// They mean what those of [`Steering`](crate::Steering) mean: the multiplier of the gradients is
/// clip factor / loss scale, formed in f64 and rounded once.
///
/// # Example
///
/// ```
/// use dualadam::cuda::RawScalars;
///
/// let scalars = RawScalars::default().with_loss_scale(0x1000).with_found_inf(0x1004);
/// assert_eq!((scalars.loss_scale, scalars.clip_factor, scalars.found_inf), (0x1000, 0, 0x1004));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RawScalars {
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0.
    pub loss_scale: u64,
    /// What the gradients are multiplied by after that: finite, at least 0.
    pub clip_factor: u64,
    /// Anything but 0, NaN too, skips the step.
    pub found_inf: u64,
}

impl RawScalars {
    /// With a loss scale at this address.
    #[must_use]
    pub const fn with_loss_scale(self, address: u64) -> Self {
        Self { loss_scale: address, ..self }
    }

    /// With a clip factor at this address.
    #[must_use]
    pub const fn with_clip_factor(self, address: u64) -> Self {
        Self { clip_factor: address, ..self }
    }

    /// With a found-inf at this address.
    #[must_use]
    pub const fn with_found_inf(self, address: u64) -> Self {
        Self { found_inf: address, ..self }
    }

    /// Fails for an address that cannot be that of an f32.
    pub(in crate::cuda) fn check(&self) -> Result<(), CudaError> {
        check_aligned(ControlAddress::LossScale, self.loss_scale, 4)?;
        check_aligned(ControlAddress::ClipFactor, self.clip_factor, 4)?;
        check_aligned(ControlAddress::FoundInf, self.found_inf, 4)
    }
}

fn check_aligned(argument: ControlAddress, address: u64, align: usize) -> Result<(), CudaError> {
    if address.is_multiple_of(align as u64) {
        return Ok(());
    }
    Err(CudaError::Address { argument, problem: AddressProblem::Misaligned { align }, address })
}

/// Checks what a control is made of: configs that are valid, groups that are there, and what the
/// caller keeps.
pub(super) fn check(groups: &[ControlGroup], sets: &[ControlSet]) -> Result<(), CudaError> {
    let limit = u64::from(u32::MAX);
    if sets.len() as u64 > limit {
        return Err(ListError::TooMany { list: "sets", limit, actual: sets.len() as u64 }.into());
    }
    check_groups(groups.iter().map(|group| &group.config))?;
    let len = groups.len();
    if let Some((set, &ControlSet { group: value, .. })) = sets.iter().enumerate().find(|(_, set)| set.group >= len) {
        return Err(CudaError::SetGroup { set, len, value });
    }
    check_addresses(groups, sets)
}

/// Checks what the caller keeps: no address null or misaligned, and no counter where something else
/// is.
fn check_addresses(groups: &[ControlGroup], sets: &[ControlSet]) -> Result<(), CudaError> {
    let lr = |(group, lr): (usize, &ControlGroup)| {
        let (address, bytes) = match lr.lr? {
            RawLr::F32(address) => (address, 4),
            RawLr::F64(address) => (address, 8),
        };
        Some((ControlAddress::Lr { group }, address, bytes))
    };
    let step = |(index, set): (usize, &ControlSet)| Some((ControlAddress::Step { set: index }, set.step?, 8));
    let lrs = groups.iter().enumerate().filter_map(lr);
    let mut all: Vec<_> = lrs.chain(sets.iter().enumerate().filter_map(step)).collect();
    for &(argument, address, bytes) in &all {
        if address == 0 {
            return Err(CudaError::Address { argument, problem: AddressProblem::Null, address });
        }
        check_aligned(argument, address, bytes)?;
    }
    // All is aligned and no longer than 8 bytes, so that what overlaps lies in the same 8 bytes.
    // Counters come first there.
    let is_step = |argument: ControlAddress| matches!(argument, ControlAddress::Step { .. });
    all.sort_by_key(|&(argument, address, _)| (address / 8, !is_step(argument)));
    for pair in all.windows(2) {
        let [(argument, address, _), (other, other_address, _)] = [pair[0], pair[1]];
        if is_step(argument) && address / 8 == other_address / 8 {
            return Err(CudaError::Address { argument, problem: AddressProblem::Overlap { other }, address });
        }
    }
    Ok(())
}
