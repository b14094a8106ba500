//! What each arithmetic instruction does: pure functions on register values, chosen once when a
//! kernel is decoded.
//!
//! A register value is a `u64` that holds the bits of its type, zero-extended. Float arithmetic is
//! IEEE, rounded to nearest even, without flush to zero; a NaN result of an f32 operation is the
//! canonical 0x7fffffff, as the PTX manual has it.
//!
//! Each function does one instruction for all lanes of a group at once: choosing what to do costs
//! more than doing it.

/// Threads that are executed together.
pub(crate) const LANES: usize = 32;
/// One register of each of them.
pub(crate) type Lanes = [u64; LANES];

/// An operation on one value.
pub(crate) type Fn1 = fn(&Lanes) -> Lanes;
/// An operation on two values.
pub(crate) type Fn2 = fn(&Lanes, &Lanes) -> Lanes;
/// An operation on three values.
pub(crate) type Fn3 = fn(&Lanes, &Lanes, &Lanes) -> Lanes;
/// An operation on four values.
pub(crate) type Fn4 = fn(&Lanes, &Lanes, &Lanes, &Lanes) -> Lanes;

/// Makes a function of all lanes from an operation on one lane.
macro_rules! lanes {
    (|$($arg:ident),+| $body:expr) => {
        |$($arg),+| {
            let mut result = [0; LANES];
            for lane in 0..LANES {
                $(let $arg = $arg[lane];)+
                result[lane] = $body;
            }
            result
        }
    };
}

/// The type of an instruction or of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Type {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    pub(crate) fn is_untyped(self) -> bool {
        matches!(self, Self::B8 | Self::B16 | Self::B32 | Self::B64)
    }

    /// Integers with a sign or without one, not plain bits.
    pub(crate) fn is_integer(self) -> bool {
        !self.is_float() && !self.is_untyped() && self != Self::Pred
    }
}

fn f32_of(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn f64_of(x: u64) -> f64 {
    f64::from_bits(x)
}

fn bits32(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}

fn bits64(x: f64) -> u64 {
    x.to_bits()
}

/// The integer types of at least 16 bits, each with the same body.
macro_rules! integers {
    ($ty:expr, $fn:ty, |$($arg:ident),+| $body:expr) => {
        match $ty {
            Type::U16 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as u16;)+ ($body) as u16 as u64 }) as $fn),
            Type::U32 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as u32;)+ ($body) as u32 as u64 }) as $fn),
            Type::U64 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as u64;)+ ($body) as u64 }) as $fn),
            Type::S16 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as i16;)+ ($body) as u16 as u64 }) as $fn),
            Type::S32 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as i32;)+ ($body) as u32 as u64 }) as $fn),
            Type::S64 => Some(lanes!(|$($arg),+| { $(let $arg = $arg as i64;)+ ($body) as u64 }) as $fn),
            _ => None,
        }
    };
}

/// Both float types, each with the same body.
macro_rules! floats {
    ($ty:expr, $fn:ty, |$($arg:ident),+| $body:expr) => {
        match $ty {
            Type::F32 => Some(lanes!(|$($arg),+| { $(let $arg = f32_of($arg);)+ bits32($body) }) as $fn),
            Type::F64 => Some(lanes!(|$($arg),+| { $(let $arg = f64_of($arg);)+ bits64($body) }) as $fn),
            _ => None,
        }
    };
}

/// Plain bits of 1, 16, 32 or 64: a mask keeps the result inside.
macro_rules! plain_bits {
    ($ty:expr, $fn:ty, |$($arg:ident),+| $body:expr) => {
        match $ty {
            Type::Pred => Some(lanes!(|$($arg),+| ($body) & 1) as $fn),
            Type::B16 => Some(lanes!(|$($arg),+| ($body) & 0xffff) as $fn),
            Type::B32 => Some(lanes!(|$($arg),+| ($body) & 0xffff_ffff) as $fn),
            Type::B64 => Some(lanes!(|$($arg),+| $body) as $fn),
            _ => None,
        }
    };
}

/// The choice of `min` and `max` between floats: a number wins over a NaN; `first` says whether `a`
/// wins between numbers.
macro_rules! float_pick {
    ($a:ident, $b:ident, $first:expr) => {
        if $a.is_nan() {
            $b
        } else if $b.is_nan() || ($first) {
            $a
        } else {
            $b
        }
    };
}

/// Instructions with one source.
pub(crate) fn unary(name: &str, ty: Type) -> Option<Fn1> {
    match name {
        "neg" if ty.is_float() => floats!(ty, Fn1, |a| -a),
        "neg" if ty.is_signed() => integers!(ty, Fn1, |a| a.wrapping_neg()),
        "abs" if ty.is_float() => floats!(ty, Fn1, |a| a.abs()),
        "abs" => match ty {
            Type::S16 => Some(lanes!(|a| (a as i16).wrapping_abs() as u16 as u64)),
            Type::S32 => Some(lanes!(|a| (a as i32).wrapping_abs() as u32 as u64)),
            Type::S64 => Some(lanes!(|a| (a as i64).wrapping_abs() as u64)),
            _ => None,
        },
        "not" => plain_bits!(ty, Fn1, |a| !a),
        "sqrt.rn" => floats!(ty, Fn1, |a| a.sqrt()),
        "rcp.rn" => floats!(ty, Fn1, |a| 1.0 / a),
        "popc" if ty == Type::B32 => Some(lanes!(|a| u64::from((a as u32).count_ones()))),
        "popc" if ty == Type::B64 => Some(lanes!(|a| u64::from(a.count_ones()))),
        "clz" if ty == Type::B32 => Some(lanes!(|a| u64::from((a as u32).leading_zeros()))),
        "clz" if ty == Type::B64 => Some(lanes!(|a| u64::from(a.leading_zeros()))),
        "brev" if ty == Type::B32 => Some(lanes!(|a| u64::from((a as u32).reverse_bits()))),
        "brev" if ty == Type::B64 => Some(lanes!(|a| a.reverse_bits())),
        _ => None,
    }
}

/// `testp`: a predicate on the class of a float.
pub(crate) fn test_class(name: &str, ty: Type) -> Option<Fn1> {
    macro_rules! class {
        (|$a:ident| $body:expr) => {
            match ty {
                Type::F32 => Some(lanes!(|x| {
                    let $a = f32_of(x);
                    u64::from($body)
                }) as Fn1),
                Type::F64 => Some(lanes!(|x| {
                    let $a = f64_of(x);
                    u64::from($body)
                }) as Fn1),
                _ => None,
            }
        };
    }
    match name {
        "finite" => class!(|a| a.is_finite()),
        "infinite" => class!(|a| a.is_infinite()),
        "number" => class!(|a| !a.is_nan()),
        "notanumber" => class!(|a| a.is_nan()),
        "normal" => class!(|a| a.is_normal()),
        "subnormal" => class!(|a| a.is_subnormal()),
        _ => None,
    }
}

/// Instructions with two sources of the same type.
pub(crate) fn binary(name: &str, ty: Type) -> Option<Fn2> {
    match name {
        "add" => integers!(ty, Fn2, |a, b| a.wrapping_add(b)),
        "sub" => integers!(ty, Fn2, |a, b| a.wrapping_sub(b)),
        "mul.lo" => integers!(ty, Fn2, |a, b| a.wrapping_mul(b)),
        "mul.hi" => high_product(ty),
        "mul.wide" => wide_product(ty),
        "add.rn" => floats!(ty, Fn2, |a, b| a + b),
        "sub.rn" => floats!(ty, Fn2, |a, b| a - b),
        "mul.rn" => floats!(ty, Fn2, |a, b| a * b),
        "div.rn" => floats!(ty, Fn2, |a, b| a / b),
        "min" if ty.is_float() => {
            floats!(ty, Fn2, |a, b| float_pick!(a, b, a < b || (a == b && a.is_sign_negative())))
        }
        "max" if ty.is_float() => {
            floats!(ty, Fn2, |a, b| float_pick!(a, b, a > b || (a == b && a.is_sign_positive())))
        }
        "min" => integers!(ty, Fn2, |a, b| a.min(b)),
        "max" => integers!(ty, Fn2, |a, b| a.max(b)),
        "and" => plain_bits!(ty, Fn2, |a, b| a & b),
        "or" => plain_bits!(ty, Fn2, |a, b| a | b),
        "xor" => plain_bits!(ty, Fn2, |a, b| a ^ b),
        "copysign" => match ty {
            Type::F32 => Some(lanes!(|a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000))),
            Type::F64 => Some(lanes!(|a, b| (b & !(1 << 63)) | (a & (1 << 63)))),
            _ => None,
        },
        _ => None,
    }
}

/// `div` and `rem` of integers; the executor refuses a divisor of 0, whose result the manual leaves
/// open.
pub(crate) fn quotient(name: &str, ty: Type) -> Option<Fn2> {
    match name {
        "div" => integers!(ty, Fn2, |a, b| a.wrapping_div(b)),
        "rem" => integers!(ty, Fn2, |a, b| a.wrapping_rem(b)),
        _ => None,
    }
}

/// Shifts: the amount is a u32, and an amount of the width or more leaves nothing but sign bits.
pub(crate) fn shift(name: &str, ty: Type) -> Option<Fn2> {
    macro_rules! amount {
        ($b:ident, $max:expr) => {
            ($b as u32).min($max)
        };
    }
    Some(match (name, ty) {
        ("shl", Type::B16) => lanes!(|a, b| (a << amount!(b, 16)) & 0xffff),
        ("shl", Type::B32) => lanes!(|a, b| (a << amount!(b, 32)) & 0xffff_ffff),
        ("shl", Type::B64) => lanes!(|a, b| a.checked_shl(b as u32).unwrap_or(0)),
        ("shr", Type::B16 | Type::U16) => lanes!(|a, b| a >> amount!(b, 16)),
        ("shr", Type::B32 | Type::U32) => lanes!(|a, b| a >> amount!(b, 32)),
        ("shr", Type::B64 | Type::U64) => lanes!(|a, b| a.checked_shr(b as u32).unwrap_or(0)),
        ("shr", Type::S16) => lanes!(|a, b| ((a as i16) >> amount!(b, 15)) as u16 as u64),
        ("shr", Type::S32) => lanes!(|a, b| ((a as i32) >> amount!(b, 31)) as u32 as u64),
        ("shr", Type::S64) => lanes!(|a, b| ((a as i64) >> amount!(b, 63)) as u64),
        _ => return None,
    })
}

fn high_product(ty: Type) -> Option<Fn2> {
    Some(match ty {
        Type::U16 => lanes!(|a, b| (a as u16 as u64 * b as u16 as u64) >> 16),
        Type::U32 => lanes!(|a, b| (a as u32 as u64 * b as u32 as u64) >> 32),
        Type::U64 => lanes!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        Type::S16 => lanes!(|a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16 as u64),
        Type::S32 => lanes!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32 as u64),
        Type::S64 => lanes!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        _ => return None,
    })
}

fn wide_product(ty: Type) -> Option<Fn2> {
    Some(match ty {
        Type::U16 => lanes!(|a, b| (a as u16 as u32 * b as u16 as u32) as u64),
        Type::U32 => lanes!(|a, b| a as u32 as u64 * b as u32 as u64),
        Type::S16 => lanes!(|a, b| (i32::from(a as i16) * i32::from(b as i16)) as u32 as u64),
        Type::S32 => lanes!(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
        _ => return None,
    })
}

/// Instructions with three sources.
pub(crate) fn ternary(name: &str, ty: Type) -> Option<Fn3> {
    match name {
        "fma.rn" => floats!(ty, Fn3, |a, b, c| a.mul_add(b, c)),
        "mad.lo" => integers!(ty, Fn3, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad.wide" => wide_sum(ty),
        "mad.hi" => high_sum(ty),
        "prmt" if ty == Type::B32 => Some(lanes!(|a, b, c| permute(a, b, c))),
        "shf.l.wrap" if ty == Type::B32 => Some(lanes!(|a, b, c| funnel_left(a, b, c as u32 & 31))),
        "shf.l.clamp" if ty == Type::B32 => Some(lanes!(|a, b, c| funnel_left(a, b, (c as u32).min(32)))),
        "shf.r.wrap" if ty == Type::B32 => Some(lanes!(|a, b, c| funnel_right(a, b, c as u32 & 31))),
        "shf.r.clamp" if ty == Type::B32 => Some(lanes!(|a, b, c| funnel_right(a, b, (c as u32).min(32)))),
        "bfe" => match ty {
            Type::U32 => Some(lanes!(|a, b, c| extract(a, b, c, 32, false))),
            Type::S32 => Some(lanes!(|a, b, c| extract(a, b, c, 32, true))),
            Type::U64 => Some(lanes!(|a, b, c| extract(a, b, c, 64, false))),
            Type::S64 => Some(lanes!(|a, b, c| extract(a, b, c, 64, true))),
            _ => None,
        },
        _ => None,
    }
}

fn wide_sum(ty: Type) -> Option<Fn3> {
    Some(match ty {
        Type::U16 => lanes!(|a, b, c| (a as u16 as u32 * b as u16 as u32).wrapping_add(c as u32) as u64),
        Type::U32 => lanes!(|a, b, c| (a as u32 as u64 * b as u32 as u64).wrapping_add(c)),
        Type::S16 => lanes!(|a, b, c| (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32 as u64),
        Type::S32 => lanes!(|a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64),
        _ => return None,
    })
}

fn high_sum(ty: Type) -> Option<Fn3> {
    Some(match ty {
        Type::U32 => {
            lanes!(|a, b, c| ((((a as u32 as u64) * (b as u32 as u64)) >> 32) as u32).wrapping_add(c as u32) as u64)
        }
        Type::U64 => lanes!(|a, b, c| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)),
        Type::S32 => lanes!(|a, b, c| {
            (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c as u32) as u64
        }),
        _ => return None,
    })
}

fn funnel_left(low: u64, high: u64, by: u32) -> u64 {
    (((high << 32) | low) << by) >> 32 & 0xffff_ffff
}

fn funnel_right(low: u64, high: u64, by: u32) -> u64 {
    (((high << 32) | low) >> by) & 0xffff_ffff
}

/// `prmt` in its default mode: each nibble of `c` picks one of eight bytes, or copies of its sign.
fn permute(a: u64, b: u64, c: u64) -> u64 {
    let bytes = ((b << 32) | a).to_le_bytes();
    (0..4).fold(0, |result, k| {
        let pick = (c >> (4 * k)) as usize & 15;
        let byte = bytes[pick & 7];
        let byte = if pick & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        result | u64::from(byte) << (8 * k)
    })
}

/// `bfe`: position and length are taken modulo 256; past the top there are sign bits, or zeros.
fn extract(a: u64, b: u64, c: u64, width: u32, signed: bool) -> u64 {
    let (position, length) = (b as u32 & 255, c as u32 & 255);
    let top = width - 1;
    let sign_at = (position + length).saturating_sub(1).min(top);
    let sign = signed && length > 0 && (a >> sign_at) & 1 == 1;
    let field = if position > top { 0 } else { a >> position };
    let kept = length.min(width - position.min(width));
    let mask = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
    let fill = if sign { !mask } else { 0 };
    let all = if width == 64 { u64::MAX } else { 0xffff_ffff };
    ((field & mask) | fill) & all
}

/// Instructions with four sources.
pub(crate) fn quaternary(name: &str, ty: Type) -> Option<Fn4> {
    Some(match (name, ty) {
        ("bfi", Type::B32) => lanes!(|a, b, c, d| insert(a, b, c, d, 32)),
        ("bfi", Type::B64) => lanes!(|a, b, c, d| insert(a, b, c, d, 64)),
        ("lop3", Type::B32) => lanes!(|a, b, c, table| look_up(a, b, c, table)),
        _ => return None,
    })
}

/// `lop3`: the sources' three bits are the number of the table's bit that the result gets.
fn look_up(a: u64, b: u64, c: u64, table: u64) -> u64 {
    let chosen = (0..8).filter(|row| (table >> row) & 1 == 1);
    let term = |row: u64| {
        let side = |x: u64, bit: u64| if (row >> bit) & 1 == 1 { x } else { !x };
        side(a, 2) & side(b, 1) & side(c, 0)
    };
    chosen.fold(0, |all, row| all | term(row)) & 0xffff_ffff
}

/// `bfi`: the low bits of `a` over those of `b` from a position on.
fn insert(a: u64, b: u64, position: u64, length: u64, width: u32) -> u64 {
    let (position, length) = (position as u32 & 255, length as u32 & 255);
    if position >= width || length == 0 {
        return b;
    }
    let kept = length.min(width - position);
    let mask = (if kept >= 64 { u64::MAX } else { (1 << kept) - 1 }) << position;
    (b & !mask) | ((a << position) & mask)
}

/// `setp`: comparisons. Of floats, the plain ones are false when a NaN takes part, those with a `u`
/// are true.
pub(crate) fn compare(name: &str, ty: Type) -> Option<Fn2> {
    macro_rules! ints {
        (|$a:ident, $b:ident| $body:expr) => {
            match ty {
                Type::U16 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = ($a as u16, $b as u16);
                    u64::from($body)
                }) as Fn2),
                Type::U32 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = ($a as u32, $b as u32);
                    u64::from($body)
                }) as Fn2),
                Type::U64 => Some(lanes!(|$a, $b| u64::from($body)) as Fn2),
                Type::S16 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = ($a as i16, $b as i16);
                    u64::from($body)
                }) as Fn2),
                Type::S32 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = ($a as i32, $b as i32);
                    u64::from($body)
                }) as Fn2),
                Type::S64 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = ($a as i64, $b as i64);
                    u64::from($body)
                }) as Fn2),
                _ => None,
            }
        };
    }
    macro_rules! reals {
        (|$a:ident, $b:ident| $body:expr) => {
            match ty {
                Type::F32 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = (f32_of($a), f32_of($b));
                    u64::from($body)
                }) as Fn2),
                Type::F64 => Some(lanes!(|$a, $b| {
                    let ($a, $b) = (f64_of($a), f64_of($b));
                    u64::from($body)
                }) as Fn2),
                _ => None,
            }
        };
    }
    let equality = if ty.is_untyped() { Some(()) } else { None };
    match name {
        // Registers hold their values zero-extended, so that plain bits compare as they are.
        "eq" if equality.is_some() => Some(lanes!(|a, b| u64::from(a == b))),
        "ne" if equality.is_some() => Some(lanes!(|a, b| u64::from(a != b))),
        _ if equality.is_some() => None,
        "eq" if ty.is_float() => reals!(|a, b| a == b),
        "ne" if ty.is_float() => reals!(|a, b| !a.is_nan() && !b.is_nan() && a != b),
        "lt" if ty.is_float() => reals!(|a, b| a < b),
        "le" if ty.is_float() => reals!(|a, b| a <= b),
        "gt" if ty.is_float() => reals!(|a, b| a > b),
        "ge" if ty.is_float() => reals!(|a, b| a >= b),
        "equ" => reals!(|a, b| a.is_nan() || b.is_nan() || a == b),
        "neu" => reals!(|a, b| a != b),
        "ltu" => reals!(|a, b| a.is_nan() || b.is_nan() || a < b),
        "leu" => reals!(|a, b| a.is_nan() || b.is_nan() || a <= b),
        "gtu" => reals!(|a, b| a.is_nan() || b.is_nan() || a > b),
        "geu" => reals!(|a, b| a.is_nan() || b.is_nan() || a >= b),
        "num" => reals!(|a, b| !a.is_nan() && !b.is_nan()),
        "nan" => reals!(|a, b| a.is_nan() || b.is_nan()),
        "eq" => ints!(|a, b| a == b),
        "ne" => ints!(|a, b| a != b),
        "lt" => ints!(|a, b| a < b),
        "le" => ints!(|a, b| a <= b),
        "gt" => ints!(|a, b| a > b),
        "ge" => ints!(|a, b| a >= b),
        "lo" if !ty.is_signed() => ints!(|a, b| a < b),
        "ls" if !ty.is_signed() => ints!(|a, b| a <= b),
        "hi" if !ty.is_signed() => ints!(|a, b| a > b),
        "hs" if !ty.is_signed() => ints!(|a, b| a >= b),
        _ => None,
    }
}

/// The value of an integer type in 64 bits, with its sign.
pub(crate) fn extend(ty: Type) -> Option<Fn1> {
    Some(match ty {
        Type::B8 | Type::U8 => lanes!(|a| a & 0xff),
        Type::B16 | Type::U16 | Type::F16 | Type::Bf16 => lanes!(|a| a & 0xffff),
        Type::B32 | Type::U32 | Type::F32 => lanes!(|a| a & 0xffff_ffff),
        Type::B64 | Type::U64 | Type::F64 => lanes!(|a| a),
        Type::S8 => lanes!(|a| a as i8 as u64),
        Type::S16 => lanes!(|a| a as i16 as u64),
        Type::S32 => lanes!(|a| a as i32 as u64),
        Type::S64 => lanes!(|a| a),
        Type::Pred => return None,
    })
}

/// Cuts a value down to the width of its register.
pub(crate) fn chop(bits: u32) -> Fn1 {
    match bits {
        8 => lanes!(|a| a & 0xff),
        16 => lanes!(|a| a & 0xffff),
        32 => lanes!(|a| a & 0xffff_ffff),
        _ => lanes!(|a| a),
    }
}

/// `cvt` in two steps. `register` is the width of the destination register, to which a signed
/// result is extended.
pub(crate) fn convert(to: Type, from: Type, rounding: Option<&str>, register: u32) -> Option<[Fn1; 3]> {
    let keep: Fn1 = |a| *a;
    match (from.is_float(), to.is_float(), rounding) {
        (false, false, None) if from.is_integer() && to.is_integer() => {
            Some([extend(from)?, extend(to)?, chop(register)])
        }
        (false, true, Some("rn")) if from.is_integer() => {
            let round: Fn1 = match (from.is_signed(), to) {
                (true, Type::F32) => lanes!(|a| bits32(a as i64 as f32)),
                (true, _) => lanes!(|a| bits64(a as i64 as f64)),
                (false, Type::F32) => lanes!(|a| bits32(a as f32)),
                (false, _) => lanes!(|a| bits64(a as f64)),
            };
            Some([extend(from)?, round, keep])
        }
        (true, true, None) if (to, from) == (Type::F32, Type::F16) => {
            Some([keep, lanes!(|a| bits32(from_f16(a as u16))), keep])
        }
        (true, true, Some("rn")) if (to, from) == (Type::F16, Type::F32) => {
            Some([keep, lanes!(|a| u64::from(to_f16(f32_of(a)))), keep])
        }
        (true, true, Some("rn")) if (to, from) == (Type::Bf16, Type::F32) => {
            Some([keep, lanes!(|a| u64::from(to_bf16(f32_of(a)))), keep])
        }
        (true, false, Some(rounding)) if to.is_integer() => {
            Some([integral(from, rounding)?, saturate(to, from)?, chop(register)])
        }
        (true, true, Some("rn")) if (to, from) == (Type::F32, Type::F64) => {
            Some([keep, lanes!(|a| bits32(f64_of(a) as f32)), keep])
        }
        (true, true, None) if (to, from) == (Type::F64, Type::F32) => {
            Some([keep, lanes!(|a| bits64(f64::from(f32_of(a)))), keep])
        }
        (true, true, Some(rounding)) if to == from => Some([integral(from, rounding)?, keep, keep]),
        _ => None,
    }
}

fn from_f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Rounds to nearest even; a NaN becomes the canonical 0x7fff.
fn to_f16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = f64::from(x.abs());
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    // Both the quotient by the spacing of f16 numbers and its rounding are exact in f64.
    let exponent = ((x.abs().to_bits() >> 23) as i32 - 127).max(-14);
    let steps = (magnitude / 2f64.powi(exponent - 10)).round_ties_even() as u16;
    sign | (((exponent + 14) as u16) << 10).wrapping_add(steps)
}

/// Rounds to nearest even; a NaN becomes the canonical 0x7fff.
fn to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = u64::from(x.to_bits());
    // Halfway goes up where the last bit that stays is odd. From the largest finite numbers this
    // gives infinity.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rounds a float to an integral value.
fn integral(ty: Type, rounding: &str) -> Option<Fn1> {
    match rounding {
        "rni" => floats!(ty, Fn1, |a| a.round_ties_even()),
        "rzi" => floats!(ty, Fn1, |a| a.trunc()),
        "rmi" => floats!(ty, Fn1, |a| a.floor()),
        "rpi" => floats!(ty, Fn1, |a| a.ceil()),
        _ => None,
    }
}

/// From an integral float to an integer: clamped to its range, NaN becomes 0. That is what `as`
/// does.
fn saturate(to: Type, from: Type) -> Option<Fn1> {
    macro_rules! cast {
        ($read:ident) => {
            Some(match to {
                Type::U8 => lanes!(|a| $read(a) as u8 as u64),
                Type::U16 => lanes!(|a| $read(a) as u16 as u64),
                Type::U32 => lanes!(|a| $read(a) as u32 as u64),
                Type::U64 => lanes!(|a| $read(a) as u64),
                Type::S8 => lanes!(|a| $read(a) as i8 as u64),
                Type::S16 => lanes!(|a| $read(a) as i16 as u64),
                Type::S32 => lanes!(|a| $read(a) as i32 as u64),
                Type::S64 => lanes!(|a| $read(a) as i64 as u64),
                _ => return None,
            })
        };
    }
    if from == Type::F32 { cast!(f32_of) } else { cast!(f64_of) }
}
