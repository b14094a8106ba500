//! The arguments of a control and of controlled steps: groups, sets, and addresses of scalars.

use crate::cuda::error::{AddressProblem, ControlAddress, CudaError};
use crate::ledger::check_groups;
use crate::rule::DualAdamConfig;
use crate::tensor::ListError;

/// The address of a learning rate in the caller's device memory.
///
/// Each step reads the value, and the library never writes it. A value that
/// [`DualAdamConfig::validate`] refuses, such as NaN or a negative one, skips the step.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::RawLr;
///
/// let of_torch = RawLr::F32(0x1000);
/// assert_ne!(of_torch, RawLr::F64(0x1000));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawLr {
    /// The address of an f32, the type of torch's tensor learning rates.
    F32(u64),
    /// The address of an f64.
    F64(u64),
}

/// A parameter group of a [`Control`](super::Control).
///
/// # Examples
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
    /// The hyperparameters. If `lr` is an address, the config's own lr must be valid but is not
    /// used.
    pub config: DualAdamConfig,
    /// The address of the learning rate in the caller's memory. If `None`, the control keeps the
    /// learning rate, which begins as that of `config`.
    pub lr: Option<RawLr>,
}

impl ControlGroup {
    /// A group with a learning rate that the control keeps.
    #[must_use]
    pub const fn new(config: DualAdamConfig) -> Self {
        Self { config, lr: None }
    }

    /// Takes the learning rate from the caller's memory.
    #[must_use]
    pub const fn with_lr(self, lr: RawLr) -> Self {
        Self { lr: Some(lr), ..self }
    }
}

/// A coefficient set of a [`Control`](super::Control): tensors of one group that always step
/// together, and so share a step counter.
///
/// # Examples
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
    /// The position of the group.
    pub group: usize,
    /// The address of the step counter in the caller's memory: a u64, read and written. If `None`,
    /// the control keeps a counter, which begins at 0.
    pub step: Option<u64>,
}

impl ControlSet {
    /// A set in a group, with a step counter that the control keeps.
    #[must_use]
    pub const fn new(group: usize) -> Self {
        Self { group, step: None }
    }

    /// Takes the step counter at this address in the caller's memory.
    #[must_use]
    pub const fn with_step(self, address: u64) -> Self {
        Self { step: Some(address), ..self }
    }
}

/// The addresses of scalars in device memory that steer one step: each an f32, or 0 for none.
///
/// The scalars have the meaning of those in [`Steering`](crate::Steering). The gradients are
/// multiplied by clip factor / loss scale, formed in f64 and rounded once to f32. A missing scalar
/// counts as 1, or as 0 for `found_inf`.
///
/// # Examples
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
    /// The factor by which the loss was multiplied, a divisor of the gradients: finite, above 0.
    pub loss_scale: u64,
    /// The factor by which the gradients are then multiplied: finite, at least 0.
    pub clip_factor: u64,
    /// A flag: any value other than 0, NaN too, skips the step.
    pub found_inf: u64,
}

impl RawScalars {
    /// Takes the loss scale at this address.
    #[must_use]
    pub const fn with_loss_scale(self, address: u64) -> Self {
        Self { loss_scale: address, ..self }
    }

    /// Takes the clip factor at this address.
    #[must_use]
    pub const fn with_clip_factor(self, address: u64) -> Self {
        Self { clip_factor: address, ..self }
    }

    /// Takes the found-inf flag at this address.
    #[must_use]
    pub const fn with_found_inf(self, address: u64) -> Self {
        Self { found_inf: address, ..self }
    }

    /// Fails if an address is not aligned for an f32.
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

/// Fails if a config is not valid, a set's group does not exist, or an address of the caller's
/// memory cannot be right.
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

/// Fails if an address is null or misaligned, or if a step counter overlaps another counter or a
/// learning rate.
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
    // Everything is aligned and at most 8 bytes long, so that what overlaps lies in the same
    // aligned 8 bytes. Sorting puts counters first there.
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
