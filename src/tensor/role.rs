//! What a tensor's buffers are for. The build has the names too, for `variants.txt`; a test
//! compares.

use std::fmt;

/// What one of a tensor's buffers is for.
///
/// # Example
///
/// ```
/// use dualadam::Role;
///
/// assert_eq!(Role::ExpAvgSq.to_string(), "exp_avg_sq");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The parameters, as the model has them. Written; read where the tensor has no master.
    Param,
    /// The gradients. The only buffer that is not written.
    Grad,
    /// The first moment.
    ExpAvg,
    /// The second moment.
    ExpAvgSq,
    /// The f32 masters of 16-bit parameters: what is updated, `param` being its rounding.
    Master,
}

impl Role {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ARRAY.len();

    /// [`ALL`](Self::ALL), where their number is known.
    pub(crate) const ARRAY: [Self; 5] = [Self::Param, Self::Grad, Self::ExpAvg, Self::ExpAvgSq, Self::Master];

    /// All roles, in the order of the kernels' arguments and the shaders' bindings.
    pub const ALL: &'static [Self] = &Self::ARRAY;

    /// The name, as in the kernels and the shaders.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Param => "param",
            Self::Grad => "grad",
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::Master => "master",
        }
    }

    /// Whether a step writes the buffer.
    pub(crate) fn is_written(self) -> bool {
        self != Self::Grad
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
