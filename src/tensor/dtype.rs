//! The formats of elements, and their conversion to and from f32.

use half::{bf16, f16};

/// The format of a buffer's elements, at run time.
///
/// It displays as `f32`, `bf16` or `f16`.
///
/// # Examples
///
/// ```
/// use dualadam::Dtype;
///
/// assert_eq!((Dtype::Bf16.size(), Dtype::Bf16.to_string()), (2, "bf16".to_owned()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper 16 bits of binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl Dtype {
    /// The number of formats.
    pub(crate) const COUNT: usize = Self::F16 as usize + 1;

    /// The size of one element, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An element type, at compile time: `f32`, [`bf16`] or [`struct@f16`]. Sealed.
///
/// # Examples
///
/// ```
/// use dualadam::{Element, half::bf16};
///
/// let tie = 1.0 + 1.0 / 256.0; // halfway between 1 and the next bf16
/// assert_eq!(bf16::narrow(tie).widen(), 1.0);
/// ```
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type as a value.
    const DTYPE: Dtype;
    /// The value as f32. Exact.
    fn widen(self) -> f32;
    /// The nearest value of this type; of two that are equally near, the even one.
    ///
    /// Subnormals are kept. A value beyond the largest finite one becomes infinite if that is the
    /// nearest. A NaN stays a NaN.
    ///
    /// Narrowing to f16 rounds as the thread's rounding mode says. Steps set it to nearest even.
    fn narrow(value: f32) -> Self;
}

/// A 16-bit element type: [`bf16`] or [`struct@f16`]. Parameters of these types can have f32
/// masters. Sealed through [`Element`].
pub trait HalfElement: Element {}

/// A type that the gradients of parameters of type `P` can have. Sealed through [`Element`].
///
/// f32 parameters take gradients of any type; bf16 and f16 parameters take their own type or f32.
/// These are the pairs that some [variant](crate::Variant) has.
///
/// # Examples
///
/// f16 parameters do not take bf16 gradients, so this does not compile:
///
/// ```compile_fail,E0277
/// use dualadam::{DualAdamConfig, cpu};
/// use half::{bf16, f16};
///
/// let (mut param, grad, mut exp_avg, mut exp_avg_sq) = ([f16::ONE], [bf16::ONE], [0.0], [0.0]);
/// let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
/// cpu::step(&mut param, &grad, &mut exp_avg, &mut exp_avg_sq, &coeffs);
/// ```
pub trait GradOf<P: Element>: Element {}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl sealed::Sealed for bf16 {}
impl HalfElement for bf16 {}
impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_bits(bf16_bits(value))
    }
}

impl sealed::Sealed for f16 {}
impl HalfElement for f16 {}
impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(f32_bits_of_f16(self.to_bits()))
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_bits(f16_bits(value))
    }
}

// These have no branches and no calls, so that the loops vectorise. `half` tests the processor's
// features in each call.

const F32_INFINITY: u32 = 0x7f80_0000;

#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let x = value.to_bits();
    let rounded = x.wrapping_add(0x7fff + ((x >> 16) & 1)) >> 16;
    let quiet_nan = (x >> 16) | 0x40;
    (if value.is_nan() { quiet_nan } else { rounded }) as u16
}

#[inline(always)]
fn f32_bits_of_f16(h: u16) -> u32 {
    let magnitude = u32::from(h & 0x7fff);
    let sign = u32::from(h & 0x8000) << 16;
    // A subnormal is its integer value times 2^-24, which is exact.
    let subnormal = (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let normal = (magnitude << 13) + (112 << 23);
    let special = (magnitude << 13) | F32_INFINITY;
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    sign | if magnitude >= 0x7c00 { special } else { finite }
}

#[inline(always)]
fn f16_bits(value: f32) -> u16 {
    let x = value.to_bits();
    let magnitude = x & 0x7fff_ffff;
    let sign = (x >> 16) & 0x8000;
    // The last place of 0.5f32 is 2^-24, as is the smallest f16, so the addition rounds to f16.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let normal = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    let quiet_nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let number = if magnitude >= 0x4780_0000 { 0x7c00 } else { finite };
    (sign | if value.is_nan() { quiet_nan } else { number }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 16-bit pattern widens as `half` widens it, and narrows back to itself.
    #[test]
    fn all_patterns_widen_exactly() {
        for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 257 } else { 1 }) {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            assert_eq!(b.widen().is_nan(), b.is_nan());
            assert_eq!(h.widen().is_nan(), h.is_nan());
            if !b.is_nan() {
                assert_eq!(b.widen().to_bits(), b.to_f32().to_bits());
                assert_eq!(bf16::narrow(b.widen()), b);
            }
            if !h.is_nan() {
                assert_eq!(h.widen().to_bits(), h.to_f32().to_bits(), "{bits:#x}");
                assert_eq!(f16::narrow(h.widen()).to_bits(), bits);
            }
        }
    }

    fn check_narrowing(x: u32) {
        let value = f32::from_bits(x);
        if value.is_nan() {
            assert!(bf16::narrow(value).is_nan() && f16::narrow(value).is_nan(), "{x:#x}");
        } else {
            assert_eq!(bf16::narrow(value).to_bits(), bf16::from_f32(value).to_bits(), "{x:#x}");
            assert_eq!(f16::narrow(value).to_bits(), f16::from_f32(value).to_bits(), "{x:#x}");
        }
    }

    /// Every tie between two neighbours of either type, and the values beside it, of both signs.
    #[test]
    fn all_ties_round_to_even() {
        for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 257 } else { 1 }) {
            let bf16_tie = (u32::from(bits) << 16) | 0x8000;
            // Between an f16 and the next one: their midpoint is exact in f32.
            let (h, next) = (f16::from_bits(bits), f16::from_bits(bits.wrapping_add(1)));
            let f16_tie = ((h.to_f32() + next.to_f32()) / 2.0).to_bits();
            for tie in [bf16_tie, f16_tie] {
                for x in [tie.wrapping_sub(1), tie, tie.wrapping_add(1)] {
                    check_narrowing(x);
                }
            }
        }
    }

    /// A stride through all of f32, and its edges.
    #[test]
    fn narrowing_agrees_with_half() {
        for x in (0..=u32::MAX).step_by(if cfg!(miri) { 65_537 * 61 } else { 977 }) {
            check_narrowing(x);
        }
        for edge in [65519.99_f32, 65520.0, 65536.0, f32::MAX, f32::INFINITY, f32::NAN, 2.0_f32.powi(-25), 0.0, 1e-45] {
            check_narrowing(edge.to_bits());
            check_narrowing((-edge).to_bits());
        }
    }
}
