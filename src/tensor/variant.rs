//! The combinations of formats that have kernels, the same on every backend. `variants.txt` lists
//! them.

use std::fmt;

use half::{bf16, f16};

use super::dtype::{Dtype, GradOf};
use super::role::Role;

// `TABLE`, the implementations of `GradOf`, and the macro `for_each_variant!`.
include!(concat!(env!("OUT_DIR"), "/variants.rs"));
pub(crate) use for_each_variant;

/// The format of each of a tensor's buffers.
///
/// # Examples
///
/// ```
/// use dualadam::{Dtype, Formats};
///
/// let formats = Formats::new(Dtype::Bf16, Dtype::Bf16).with_master(Dtype::F32);
/// assert_eq!(formats.to_string(), "bf16 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq, f32 master");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Formats {
    /// The format of the parameters.
    pub param: Dtype,
    /// The format of the gradients.
    pub grad: Dtype,
    /// The format of the first moment.
    pub exp_avg: Dtype,
    /// The format of the second moment.
    pub exp_avg_sq: Dtype,
    /// The format of the masters, or `None` without masters.
    pub master: Option<Dtype>,
}

impl Formats {
    /// Parameters and gradients of these formats, with f32 moments and without masters.
    #[must_use]
    pub const fn new(param: Dtype, grad: Dtype) -> Self {
        Self { param, grad, exp_avg: Dtype::F32, exp_avg_sq: Dtype::F32, master: None }
    }

    /// Sets [`master`](Self::master).
    #[must_use]
    pub const fn with_master(self, master: Dtype) -> Self {
        Self { master: Some(master), ..self }
    }

    /// The format of a role, or `None` for [`Role::Master`] without masters.
    #[must_use]
    pub const fn of(&self, role: Role) -> Option<Dtype> {
        match role {
            Role::Param => Some(self.param),
            Role::Grad => Some(self.grad),
            Role::ExpAvg => Some(self.exp_avg),
            Role::ExpAvgSq => Some(self.exp_avg_sq),
            Role::Master => self.master,
        }
    }

    /// A number below [`CODES`] that no other formats have.
    const fn code(&self) -> usize {
        let (mut code, mut role) = (0, 0);
        while role < Role::COUNT {
            let digit = match self.of(Role::ARRAY[role]) {
                None => 0,
                Some(dtype) => dtype as usize + 1,
            };
            assert!(digit < DIGITS, "Dtype::COUNT counts all formats");
            code = code * DIGITS + digit;
            role += 1;
        }
        code
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for role in Role::ARRAY {
            if let Some(dtype) = self.of(role) {
                write!(f, "{separator}{dtype} {role}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// The digits of a code: a role has one of the formats or is absent.
const DIGITS: usize = Dtype::COUNT + 1;

const CODES: usize = DIGITS.pow(Role::COUNT as u32);

/// The variant of each code, if there is one.
const BY_CODE: [Option<Variant>; CODES] = {
    let mut by_code = [None; CODES];
    let mut index = 0;
    while index < Variant::COUNT {
        by_code[TABLE[index].1.code()] = Some(Variant(index as u8));
        index += 1;
    }
    by_code
};

/// A combination of formats that has kernels on every backend. `variants.txt` lists them all.
///
/// # Examples
///
/// ```
/// use dualadam::{Dtype, Formats, Variant};
///
/// let variant = Variant::of(Formats::new(Dtype::F32, Dtype::Bf16)).unwrap();
/// assert_eq!(variant.name(), "f32_bf16");
/// assert_eq!(Variant::of(Formats::new(Dtype::F16, Dtype::Bf16)), None);
/// assert!(Variant::all().any(|other| other == variant));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant(u8);

impl Variant {
    /// The number of variants.
    pub const COUNT: usize = TABLE.len();

    /// All variants, in the order of `variants.txt`.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        (0..Self::COUNT).map(|index| Self(index as u8))
    }

    /// The variant with these formats, or `None` if no kernel has them.
    #[must_use]
    pub const fn of(formats: Formats) -> Option<Self> {
        BY_CODE[formats.code()]
    }

    /// The variants with parameters and masters of these formats, whatever their other formats.
    pub(crate) fn with_master(param: Dtype, master: Dtype) -> impl Iterator<Item = Self> {
        Self::all().filter(move |variant| {
            let formats = variant.formats();
            formats.param == param && formats.master == Some(master)
        })
    }

    /// The name, such as `bf16_bf16_master`: the formats of parameters and gradients, then
    /// `_master` with masters. The kernels' names end with it.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self.index()].0
    }

    /// The format of each buffer.
    #[must_use]
    pub fn formats(self) -> Formats {
        TABLE[self.index()].1
    }

    /// The position in [`all`](Self::all).
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_variant_is_found_by_its_formats() {
        assert_eq!(Variant::all().len(), Variant::COUNT);
        for (index, variant) in Variant::all().enumerate() {
            assert_eq!((variant.index(), Variant::of(variant.formats())), (index, Some(variant)));
        }
    }

    /// A name says which formats differ from f32 moments without masters.
    #[test]
    fn names_are_those_of_their_formats() {
        for variant in Variant::all() {
            let Formats { param, grad, exp_avg, exp_avg_sq, master } = variant.formats();
            let unless_f32 = |dtype: Dtype| if dtype == Dtype::F32 { String::new() } else { dtype.to_string() };
            let moment =
                |role, dtype: Dtype| if dtype == Dtype::F32 { String::new() } else { format!("_{role}{dtype}") };
            let (m, v) = (moment("m", exp_avg), moment("v", exp_avg_sq));
            let master = master.map_or(String::new(), |dtype| format!("_master{}", unless_f32(dtype)));
            assert_eq!(variant.name(), format!("{param}_{grad}{m}{v}{master}"));
        }
    }
}
