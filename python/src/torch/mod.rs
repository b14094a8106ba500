//! The steps of one torch optimizer.
//!
//! Each step looks at all tensors of the optimizer, so that nothing remembered can be out of date.

mod ahead;
mod control;
mod counter;
mod gather;
mod group;
mod known;
mod list;
mod masters;
mod run;
mod state;
mod stepper;
mod tensors;

pub(crate) use stepper::Stepper;

/// The place of a parameter: its group, and its position in the group.
type Place = (usize, usize);
