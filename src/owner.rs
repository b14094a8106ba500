//! What the owning optimizers of all backends check and look up alike.

#[cfg(any(feature = "cuda", feature = "webgpu"))]
use crate::TensorLayout;
use crate::state::check_second_moment;
use crate::{DualAdamConfig, Error};

/// The entry of a list at a position that the caller named; `list` is what the list holds.
pub(crate) fn at<'a, T>(list: &'static str, entries: &'a [T], position: usize) -> Result<&'a T, Error> {
    entries.get(position).ok_or(Error::Position { list, len: entries.len(), value: position })
}

/// Replaces a group's config by a valid one.
pub(crate) fn set_config(groups: &mut [DualAdamConfig], group: usize, config: DualAdamConfig) -> Result<(), Error> {
    at("group", groups, group)?;
    config.validate()?;
    groups[group] = config;
    Ok(())
}

/// Fails unless there are as many parameters and gradients as tensors.
pub(crate) fn check_counts(tensors: usize, params: usize, grads: usize) -> Result<(), Error> {
    for (list, actual) in [("params", params), ("grads", grads)] {
        if actual != tensors {
            return Err(Error::Count { list, expected: tensors, actual });
        }
    }
    Ok(())
}

/// Fails unless these can be the moments of a tensor of `len` elements.
pub(crate) fn check_moments(tensor: usize, len: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), Error> {
    for (buffer, actual) in [("exp_avg", exp_avg.len()), ("exp_avg_sq", exp_avg_sq.len())] {
        if actual != len {
            return Err(Error::Length { tensor, buffer, expected: len, actual });
        }
    }
    check_second_moment(exp_avg_sq)
}

/// Fails unless the configs are valid and each tensor's group is there.
#[cfg(any(feature = "cuda", feature = "webgpu"))]
pub(crate) fn check_groups(groups: &[DualAdamConfig], layout: &[TensorLayout]) -> Result<(), Error> {
    groups.iter().try_for_each(DualAdamConfig::validate)?;
    match layout.iter().enumerate().find(|(_, layout)| layout.group >= groups.len()) {
        Some((tensor, layout)) => Err(Error::Index { tensor, index: "group", len: groups.len(), value: layout.group }),
        None => Ok(()),
    }
}
