//! The steps of one torch optimizer.
//!
//! Each step looks at the optimizer's tensors again, so that nothing that is known of them can be
//! out of date.

mod control;
mod counter;
mod gather;
mod group;
mod known;
mod list;
mod run;
mod state;
mod stepper;
mod tensors;

pub(crate) use stepper::Stepper;

/// Where a parameter stands: its group, and its position there.
type Place = (usize, usize);
