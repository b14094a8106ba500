//! 16-bit loads and stores, seen through steps that change nothing else.

use bytemuck::Zeroable;
use dualadam::StepCoeffs;
use dualadam::half::f16;
use testkit::contract::same;
use testkit::data::SPECIAL;
use testkit::{Formats, Inputs, Tensor as Host, Values, Variant};

use crate::gpu::Gpu;

/// Coefficients of a step that changes no parameter.
fn still() -> StepCoeffs {
    let mut coeffs = StepCoeffs::zeroed();
    coeffs.eps = 1.0;
    coeffs
}

/// The formats of all variants for which `holds` is true.
fn all_formats(holds: impl Fn(&Formats) -> bool) -> impl Iterator<Item = Formats> {
    Variant::all().map(Variant::formats).filter(holds)
}

/// Short runs of the parameters, from each of them on: less than a quad of four elements, or a quad
/// and a tail.
fn tails(p: &[f32]) -> impl Iterator<Item = Vec<f32>> {
    [1, 2, 3, 5, 6, 7].into_iter().flat_map(|len| p.windows(len).map(<[f32]>::to_vec))
}

/// With β1 = 0 and m = 0 the new m is the gradient.
pub(crate) fn all_16_bit_patterns_load(gpu: &Gpu) {
    let mut coeffs = still();
    (coeffs.one_minus_beta1, coeffs.grad_scale) = (1.0, 1.0);
    let inputs = Inputs::parameters(vec![0.0; 1 << 16]);
    for formats in all_formats(|formats| formats.grad.size() == 2) {
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        let grad = Values::from_bits(formats.grad, &patterns);
        let host = Host { grad, ..Host::new(formats, &inputs) };
        let found = gpu.device.stepped(&host, &coeffs).exp_avg.wide();
        for ((found, expected), pattern) in found.into_iter().zip(host.grad.wide()).zip(patterns) {
            // The device may flush values that are subnormal in f32, and a zero loses its sign when
            // it is added to the old m.
            let flushed = expected.abs() < f32::MIN_POSITIVE && found == 0.0;
            assert!(flushed || same(found, expected), "{formats}, {pattern:#x}: {found:e}, not {expected:e}");
        }
    }
}

/// Every pattern, as a parameter, stays as it is; those at the edges also at every place of a tail.
pub(crate) fn all_16_bit_patterns_stay(gpu: &Gpu) {
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    let edges = [0, 1, 2, 0x3ff, 0x400, 0x3f80, 0x7bff, 0x7c00, 0x7c01, 0x7e00, 0x7f7f, 0x7f80, 0x7f81, 0x7fff];
    let edges: Vec<_> = edges.into_iter().flat_map(|bits| [bits, bits | 0x8000]).collect();
    for formats in all_formats(|formats| formats.param.size() == 2 && formats.master.is_none()) {
        let wide = |patterns: &[u16]| Values::from_bits(formats.param, patterns).wide();
        let (all, edges) = (wide(&patterns), wide(&edges));
        let inputs = [all].into_iter().chain(tails(&edges)).map(Inputs::parameters);
        let hosts: Vec<_> = inputs.map(|inputs| Host::new(formats, &inputs)).collect();
        for (found, host) in gpu.device.stepped_together(&hosts, &[still()]).iter().zip(&hosts) {
            for (found, expected) in found.param.wide().into_iter().zip(host.param.wide()) {
                let flushed = expected.is_subnormal() && found == 0.0;
                assert!(flushed || same(found, expected), "{formats}: {found:e}, not {expected:e}");
            }
        }
    }
}

/// With a learning rate of 0 the master stays, and the parameter is the master, narrowed.
pub(crate) fn ties_and_extremes_store(gpu: &Gpu) {
    let mut p: Vec<f32> = SPECIAL.to_vec();
    for bits in 0..=u16::MAX {
        let (b, h) = (u32::from(bits) << 16, f16::from_bits(bits).to_f32());
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        for tie in [b | 0x8000, ((h + next) / 2.0).to_bits()] {
            p.extend([tie.wrapping_sub(1), tie, tie.wrapping_add(1)].map(f32::from_bits));
        }
    }
    let inputs: Vec<_> = [p].into_iter().chain(tails(SPECIAL)).map(Inputs::parameters).collect();
    for formats in all_formats(|formats| formats.master.is_some()) {
        let hosts: Vec<_> = inputs.iter().map(|inputs| Host::new(formats, inputs)).collect();
        let mut flushed = 0;
        for (found, inputs) in gpu.device.stepped_together(&hosts, &[still()]).iter().zip(&inputs) {
            let masters = found.updated().wide();
            for (&kept, &x) in masters.iter().zip(&inputs.p) {
                flushed += usize::from(x.is_subnormal() && kept == 0.0);
                assert!(same(kept, x) || x.is_subnormal(), "{x:e} became {kept:e}");
            }
            // The parameter is narrowed from the master as the device has kept it.
            let expected = Values::new(formats.param, &masters);
            for (i, (found, expected)) in found.param.wide().into_iter().zip(expected.wide()).enumerate() {
                assert!(same(found, expected), "{formats}, {:e}: {found:e}, not {expected:e}", inputs.p[i]);
            }
        }
        println!("{formats}: {flushed} subnormal masters were flushed");
    }
}
