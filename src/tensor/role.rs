//! The roles of a tensor's buffers. The build script has the names, too, to read `variants.txt`; a
//! test compares them.

use std::fmt;

/// The role of one of a tensor's buffers.
///
/// It displays as its [name](Self::name).
///
/// # Examples
///
/// ```
/// use dualadam::Role;
///
/// assert_eq!(Role::ExpAvgSq.to_string(), "exp_avg_sq");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The parameters, as the model uses them. Written; also read, unless the tensor has masters.
    Param,
    /// The gradients. Only read.
    Grad,
    /// The first moment. Read and written.
    ExpAvg,
    /// The second moment. Read and written.
    ExpAvgSq,
    /// The f32 masters of 16-bit parameters. Read and written: the step updates the master, and
    /// writes its rounding to `param`.
    Master,
}

impl Role {
    /// The number of roles.
    pub(crate) const COUNT: usize = Self::ARRAY.len();

    /// [`ALL`](Self::ALL) as an array.
    pub(crate) const ARRAY: [Self; 5] = [Self::Param, Self::Grad, Self::ExpAvg, Self::ExpAvgSq, Self::Master];

    /// All roles, in the order of the kernels' arguments and the shaders' bindings.
    pub const ALL: &'static [Self] = &Self::ARRAY;

    /// The name, as in errors, state files, kernels and shaders.
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
