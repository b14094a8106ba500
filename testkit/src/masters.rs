//! Tests that every implementation of `sync_master` must pass, and what it must do, written a
//! second time.

use dualadam::Dtype;
use dualadam::half::{bf16, f16};

use crate::data::Inputs;
use crate::tensor::Tensor;
use crate::values::Values;
use crate::variant::{Variant, formats};

/// Brings the masters of a tensor up to date.
pub type Sync<'a> = &'a dyn Fn(&mut Tensor);

/// Variants with masters, one for each type of parameters.
pub const VARIANTS: [&str; 2] = ["bf16_f32_master", "f16_f32_master"];

/// An element's master after the call. `half` does the conversions, so that none is shared with the
/// library.
fn updated(dtype: Dtype, param: u16, master: f32) -> f32 {
    let (rounded, value) = match dtype {
        Dtype::Bf16 => (bf16::from_f32(master).to_bits(), bf16::from_bits(param).to_f32()),
        Dtype::F16 => (f16::from_f32(master).to_bits(), f16::from_bits(param).to_f32()),
        other => panic!("{other} has no masters"),
    };
    if rounded == param { master } else { value }
}

/// What an implementation must do to a tensor.
pub fn by_contract(tensor: &mut Tensor) {
    let ([param_range, master_range], dtype) = ([0, 4].map(|buffer| tensor.range(buffer)), tensor.param.dtype());
    let params = bytemuck::cast_slice::<_, u16>(tensor.param.bytes())[param_range].to_vec();
    let masters = tensor.master.as_mut().expect("the tensor has masters").floats();
    for (master, param) in masters[master_range].iter_mut().zip(params) {
        *master = updated(dtype, param, *master);
    }
}

/// Brings the masters up to date both ways and compares everything: the other buffers and the
/// filling stay as they are.
#[track_caller]
pub fn check(sync: Sync<'_>, tensor: &Tensor, what: &str) {
    let (mut found, mut expected) = (tensor.clone(), tensor.clone());
    sync(&mut found);
    by_contract(&mut expected);
    found.assert_same(&expected, what);
    let again = found.clone();
    sync(&mut found);
    found.assert_same(&again, &format!("{what}, a second time"));
}

/// A tensor with these parameters, as bits, and these masters.
pub fn tensor(name: &str, params: &[u16], masters: &[f32]) -> Tensor {
    let tensor = Tensor::new(formats(name), &Inputs::parameters(masters.to_vec()));
    Tensor { param: Values::from_bits(tensor.param.dtype(), params), ..tensor }
}

/// The value of a 16-bit pattern.
fn value(dtype: Dtype, bits: u16) -> f32 {
    if dtype == Dtype::Bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
}

/// The value halfway between a pattern and the next one. Beyond the largest finite value, that is
/// where rounding to infinity begins.
fn tie(dtype: Dtype, bits: u16) -> f32 {
    match dtype {
        Dtype::Bf16 => f32::from_bits(u32::from(bits) << 16 | 0x8000),
        _ if bits & 0x7fff == 0x7bff => 65_520_f32.copysign(value(dtype, bits)),
        _ => (value(dtype, bits) + value(dtype, bits.wrapping_add(1))) / 2.0,
    }
}

/// Masters to stand beside a parameter: what rounds to it, to its neighbours, and to something
/// else.
fn masters(dtype: Dtype, bits: u16) -> [f32; 12] {
    const OTHERS: [f32; 9] =
        [0.0, -0.0, 1e-45, -1e-40, 6e-8, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)];
    let exact = value(dtype, bits);
    let (below, above) = (tie(dtype, bits.wrapping_sub(1)), tie(dtype, bits));
    let beside = |x: f32, by: i32| f32::from_bits(x.to_bits().wrapping_add_signed(by));
    let around = |x: f32| [beside(x, -1), x, beside(x, 1)];
    let ([a, b, c], [d, e, f], [g, h, i]) = (around(below), around(exact), around(above));
    let others = [value(dtype, bits.wrapping_add(1)), -exact, OTHERS[usize::from(bits) % OTHERS.len()]];
    let [j, k, l] = others;
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// Every pattern of a parameter, beside each kind of master. `at_once` patterns are in a tensor.
pub fn patterns(sync: Sync<'_>, names: &[&str], at_once: usize) {
    for name in names {
        let dtype = formats(name).param;
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut kept = 0;
        for bits in all.chunks(at_once) {
            let pairs: Vec<_> =
                bits.iter().flat_map(|&bits| masters(dtype, bits).map(|master| (bits, master))).collect();
            let (params, masters): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
            check(sync, &tensor(name, &params, &masters), &format!("{name}, patterns from {:#x}", bits[0]));
            let is_kept = |&&(bits, master): &&(u16, f32)| {
                updated(dtype, bits, master).to_bits() == master.to_bits() && master != value(dtype, bits)
            };
            kept += pairs.iter().filter(is_kept).count();
        }
        assert!(kept > 4 * all.len(), "only {kept} masters keep low bits");
    }
}

/// A tensor whose parameters are the rounded masters, except where `is_changed`.
pub fn changed(name: &str, len: usize, offsets: [usize; 5], is_changed: impl Fn(usize) -> bool) -> Tensor {
    let mut tensor = Tensor::padded(formats(name), &Inputs::random(len as u64, len), offsets);
    let mut params = tensor.master.as_ref().expect("the variant has masters").wide()[tensor.range(4)].to_vec();
    params.iter_mut().enumerate().filter(|(i, _)| is_changed(*i)).for_each(|(_, param)| *param *= -0.75);
    tensor.param.write(offsets[0], &params);
    tensor
}

/// Every variant with masters and size, with nothing changed, all, every third element, and only
/// the first or the last one.
pub fn sizes(sync: Sync<'_>, sizes: impl IntoIterator<Item = usize>) {
    for len in sizes {
        for variant in Variant::all().filter(|variant| variant.formats().master.is_some()) {
            let changes: [&dyn Fn(usize) -> bool; 5] =
                [&|_| false, &|_| true, &|i| i % 3 == 1, &|i| i == 0, &|i| i + 1 == len];
            for (number, is_changed) in changes.iter().enumerate() {
                let tensor = changed(variant.name(), len, [0; 5], is_changed);
                check(sync, &tensor, &format!("{}, change {number}", variant.name()));
            }
        }
    }
}

/// Every pair of offsets of parameters and masters, with lengths around those of vectors.
pub fn misalignments(sync: Sync<'_>, most: usize, lens: &[usize]) {
    for name in VARIANTS {
        for (param, master) in (0..=most).flat_map(|param| (0..=most).map(move |master| (param, master))) {
            for &len in lens {
                let tensor = changed(name, len, [param, 0, 0, 0, master], |i| i % 5 < 2);
                check(sync, &tensor, &format!("{name}, offsets {param} and {master}"));
            }
        }
    }
}
