//! Which combinations of element types have kernels, on every backend alike.

use crate::{Dtype, Error};

use Dtype::{Bf16, F16, F32};

/// The types of parameters, gradients and copy, and the kernels' name for them.
const COMBINATIONS: [(Dtype, Dtype, Option<Dtype>, &str); 11] = [
    (F32, F32, None, "f32_f32"),
    (F32, Bf16, None, "f32_bf16"),
    (F32, F16, None, "f32_f16"),
    (Bf16, Bf16, None, "bf16_bf16"),
    (Bf16, F32, None, "bf16_f32"),
    (F16, F16, None, "f16_f16"),
    (F16, F32, None, "f16_f32"),
    (F32, F32, Some(Bf16), "f32_f32_bf16"),
    (F32, Bf16, Some(Bf16), "f32_bf16_bf16"),
    (F32, F32, Some(F16), "f32_f32_f16"),
    (F32, F16, Some(F16), "f32_f16_f16"),
];

/// A combination of element types that has kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Combination(usize);

impl Combination {
    /// The combination of a tensor's types, if there is one.
    pub(crate) fn of(tensor: usize, params: Dtype, grads: Dtype, copy: Option<Dtype>) -> Result<Self, Error> {
        let found = COMBINATIONS.iter().position(|&(p, g, c, _)| (p, g, c) == (params, grads, copy));
        found.map(Self).ok_or(Error::Types { tensor, params, grads, copy })
    }
}

#[cfg(any(feature = "cuda", feature = "webgpu"))]
impl Combination {
    pub(crate) const COUNT: usize = COMBINATIONS.len();

    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The type of the copy that masters keep of the parameters.
    #[cfg(feature = "webgpu")]
    pub(crate) fn copy(self) -> Option<Dtype> {
        COMBINATIONS[self.0].2
    }

    pub(crate) fn name(self) -> &'static str {
        COMBINATIONS[self.0].3
    }

    /// Position among [`all`](Self::all).
    pub(crate) fn index(self) -> usize {
        self.0
    }
}
