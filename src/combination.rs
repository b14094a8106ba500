//! The variants: which combinations of formats have kernels, on every backend alike.

#![expect(unused_macros, reason = "the table has more than this needs")]

use half::{bf16, f16};

use crate::dtype::GradOf;
use crate::{Dtype, Error};

// `TABLE`, and which gradients go with which parameters.
include!(concat!(env!("OUT_DIR"), "/variants.rs"));

/// The format of each role of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// The model's tensor.
    pub param: Dtype,
    /// The gradient.
    pub grad: Dtype,
    /// The first moment.
    pub exp_avg: Dtype,
    /// The second moment.
    pub exp_avg_sq: Dtype,
    /// What is updated for the parameter, if not the parameter itself.
    pub master: Option<Dtype>,
}

/// A combination of formats that has kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant(usize);

impl Variant {
    /// All variants, in the table's order.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        (0..TABLE.len()).map(Self)
    }

    /// The name, which those of the kernels have in them.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self.0].0
    }

    /// The format of each role.
    #[must_use]
    pub fn formats(self) -> Formats {
        TABLE[self.0].1
    }

    /// Position among [`all`](Self::all).
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

impl Variant {
    /// The variant of a tensor's types, if there is one: of what is updated, the gradient, and its copy.
    pub(crate) fn of(tensor: usize, params: Dtype, grads: Dtype, copy: Option<Dtype>) -> Result<Self, Error> {
        let wanted = (copy.unwrap_or(params), grads, copy.map(|_| params));
        let is_wanted = |formats: &Formats| (formats.param, formats.grad, formats.master) == wanted;
        let found = TABLE.iter().position(|(_, formats)| is_wanted(formats));
        found.map(Self).ok_or(Error::Types { tensor, params, grads, copy })
    }
}

#[cfg(any(feature = "cuda", feature = "webgpu"))]
impl Variant {
    pub(crate) const COUNT: usize = TABLE.len();

    #[cfg(feature = "webgpu")]
    pub(crate) fn has_master(self) -> bool {
        self.formats().master.is_some()
    }
}
