//! How a step runs over one tensor: split over the threads, then the widest vectors the processor has.

use crate::dtype::{Element, HalfElement};
use crate::{Error, StepCoeffs};

use super::update::update;

/// Elements that one task takes: large enough that a steal costs nothing beside it, small enough to balance.
const CHUNK: usize = 1 << 16;

/// Up to here a step stays on the calling thread: waking another costs more than it saves.
pub(super) const SEQUENTIAL: usize = 1 << 15;

/// The buffers of one tensor, all of one length. `copy` is a slice of `()` where there is no 16-bit copy.
pub(super) struct Streams<'a, P, G, C> {
    pub(super) params: &'a mut [P],
    pub(super) grads: &'a [G],
    pub(super) exp_avg: &'a mut [f32],
    pub(super) exp_avg_sq: &'a mut [f32],
    pub(super) copy: &'a mut [C],
}

/// What is written into the copy: a 16-bit number or nothing.
pub(super) trait CopyElement: Copy + Send {
    fn of(param: f32) -> Self;
}

impl CopyElement for () {
    #[inline(always)]
    fn of(_: f32) {}
}

impl<C: HalfElement> CopyElement for C {
    #[inline(always)]
    fn of(param: f32) -> Self {
        Self::narrow(param)
    }
}

impl<P: Element, G: Element, C: CopyElement> Streams<'_, P, G, C> {
    /// Fails unless all buffers have the parameters' length.
    pub(super) fn check(&self, tensor: usize) -> Result<(), Error> {
        let expected = self.params.len();
        for (buffer, actual) in [
            ("grads", self.grads.len()),
            ("exp_avg", self.exp_avg.len()),
            ("exp_avg_sq", self.exp_avg_sq.len()),
            ("copy", self.copy.len()),
        ] {
            if actual != expected {
                return Err(Error::Length { tensor, buffer, expected, actual });
            }
        }
        Ok(())
    }

    /// One step over buffers that [`check`](Self::check) has passed.
    pub(super) fn run(self, coeffs: &StepCoeffs) {
        let level = Level::detect();
        if self.params.len() <= SEQUENTIAL {
            self.run_chunk(coeffs, level);
        } else {
            self.run_parallel(coeffs, level);
        }
    }

    fn run_parallel(self, coeffs: &StepCoeffs, level: Level) {
        if self.params.len() <= CHUNK {
            return self.run_chunk(coeffs, level);
        }
        let (left, right) = self.halves();
        rayon::join(|| left.run_parallel(coeffs, level), || right.run_parallel(coeffs, level));
    }

    fn halves(self) -> (Self, Self) {
        // A multiple of 64 elements, so that two threads share no cache line of aligned buffers.
        let middle = (self.params.len() / 2).next_multiple_of(64);
        let (params, params_right) = self.params.split_at_mut(middle);
        let (grads, grads_right) = self.grads.split_at(middle);
        let (exp_avg, exp_avg_right) = self.exp_avg.split_at_mut(middle);
        let (exp_avg_sq, exp_avg_sq_right) = self.exp_avg_sq.split_at_mut(middle);
        let (copy, copy_right) = self.copy.split_at_mut(middle);
        (
            Self { params, grads, exp_avg, exp_avg_sq, copy },
            Self {
                params: params_right,
                grads: grads_right,
                exp_avg: exp_avg_right,
                exp_avg_sq: exp_avg_sq_right,
                copy: copy_right,
            },
        )
    }

    fn run_chunk(self, coeffs: &StepCoeffs, level: Level) {
        if coeffs.is_adam() { self.run_level::<false>(coeffs, level) } else { self.run_level::<true>(coeffs, level) }
    }

    fn run_level<const DUAL: bool>(self, coeffs: &StepCoeffs, level: Level) {
        let Self { params, grads, exp_avg, exp_avg_sq, copy } = self;
        match level {
            Level::Portable => elements::<DUAL, _, _, _>(params, grads, exp_avg, exp_avg_sq, copy, coeffs),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Level::detect` returns this level only where the processor has AVX2 and FMA.
            Level::Avx2Fma => unsafe {
                elements_avx2_fma::<DUAL, _, _, _>(params, grads, exp_avg, exp_avg_sq, copy, coeffs);
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn elements_avx2_fma<const DUAL: bool, P: Element, G: Element, C: CopyElement>(
    params: &mut [P],
    grads: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    copy: &mut [C],
    coeffs: &StepCoeffs,
) {
    elements::<DUAL, P, G, C>(params, grads, exp_avg, exp_avg_sq, copy, coeffs);
}

/// The loop. No branch depends on an element, and the buffers are arguments, known not to overlap: so it vectorises.
#[inline(always)]
fn elements<const DUAL: bool, P: Element, G: Element, C: CopyElement>(
    params: &mut [P],
    grads: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    copy: &mut [C],
    coeffs: &StepCoeffs,
) {
    let coeffs = *coeffs;
    for ((((p, grad), m), v), copy) in params.iter_mut().zip(grads).zip(exp_avg).zip(exp_avg_sq).zip(copy) {
        let new = update::<DUAL>(&coeffs, p.widen(), grad.widen(), m, v);
        *p = P::narrow(new);
        *copy = C::of(new);
    }
}

/// An instruction set that the loop is compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// What every processor of the target has. On x86-64 that lacks FMA, so each `mul_add` is a call.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2Fma,
}

impl Level {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Self::Avx2Fma;
        }
        Self::Portable
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::{DualAdamConfig, GradOf, WeightDecay};

    const LEN: usize = 1003;

    /// The bits of all that a step wrote, at one level. NaNs count as one value.
    fn bits<P: Element, G: GradOf<P>>(level: Level, coeffs: &StepCoeffs) -> Vec<u32> {
        // Bit patterns in steps through all of f32: normal and subnormal numbers, infinities and NaNs.
        let pattern = |i: usize, step: u32| f32::from_bits((i as u32).wrapping_mul(step));
        let mut params: Vec<_> = (0..LEN).map(|i| P::narrow(pattern(i, 4_282_663))).collect();
        let grads: Vec<_> = (0..LEN).map(|i| G::narrow(pattern(i, 2_654_435_761))).collect();
        let mut exp_avg: Vec<_> = (0..LEN).map(|i| pattern(i, 40_503)).collect();
        let mut exp_avg_sq: Vec<_> = (0..LEN).map(|i| pattern(i, 2_246_822_519).abs()).collect();
        let mut copy = vec![bf16::ZERO; LEN];
        let (params_, grads_) = (&mut params[..], &grads[..]);
        Streams { params: params_, grads: grads_, exp_avg: &mut exp_avg, exp_avg_sq: &mut exp_avg_sq, copy: &mut copy }
            .run_chunk(coeffs, level);
        let values = params.iter().map(|p| p.widen()).chain(exp_avg).chain(exp_avg_sq);
        let values = values.chain(copy.iter().map(|c| c.widen()));
        values.map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
    }

    fn same_bits<P: Element, G: GradOf<P>>(coeffs: &StepCoeffs) {
        let portable = bits::<P, G>(Level::Portable, coeffs);
        assert_eq!(
            bits::<P, G>(Level::detect(), coeffs),
            portable,
            "{}/{} at {:?}",
            P::DTYPE,
            G::DTYPE,
            Level::detect()
        );
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let dual = DualAdamConfig::default().with_weight_decay(WeightDecay::L2(0.1));
        for config in [dual, DualAdamConfig::adamw(0.1), DualAdamConfig::authors_code()] {
            let coeffs = config.coeffs(7).unwrap();
            same_bits::<f32, f32>(&coeffs);
            same_bits::<f32, bf16>(&coeffs);
            same_bits::<f32, f16>(&coeffs);
            same_bits::<bf16, bf16>(&coeffs);
            same_bits::<bf16, f32>(&coeffs);
            same_bits::<f16, f16>(&coeffs);
            same_bits::<f16, f32>(&coeffs);
        }
    }
}
