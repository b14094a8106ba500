//! The loops over a tensor's elements, compiled for each instruction set.

use crate::rule::{FloatEnv, StepCoeffs};
use crate::tensor::{Dtype, Element};

use super::threads::{CHUNK, join};
use super::update::update;

/// The number of elements whose new parameters are kept as f32, to be narrowed in a second loop.
///
/// In a single loop, the dozen instructions of narrowing wait for the division and fill the
/// processor's queue, so that the next division starts late. In bf16 on a Zen 3 core, an element
/// took 1.13 ns in a single loop, 0.74 ns with blocks of 512 and 0.87 ns with blocks of 64.
const BLOCK: usize = 512;

/// The alignment of the body of a step, in bytes: a cache line.
const ALIGNMENT: usize = 64;

/// The buffers of one tensor, all of one length. Without masters, `master` is a slice of `()`.
pub(super) struct Streams<'a, P, G, M, V, W> {
    pub(super) param: &'a mut [P],
    pub(super) grad: &'a [G],
    pub(super) exp_avg: &'a mut [M],
    pub(super) exp_avg_sq: &'a mut [V],
    pub(super) master: &'a mut [W],
}

/// The element type of masters, or `()` where the parameter itself is updated.
pub(super) trait Master: Copy + Send {
    /// Whether there are masters.
    const IS_THERE: bool;
    /// The value that the rule updates: the master, or `param` without masters.
    fn current(self, param: f32) -> f32;
    /// The new value in the master's format.
    fn of(new: f32) -> Self;
}

impl Master for () {
    const IS_THERE: bool = false;
    #[inline(always)]
    fn current(self, param: f32) -> f32 {
        param
    }
    #[inline(always)]
    fn of(_: f32) {}
}

impl<W: Element> Master for W {
    const IS_THERE: bool = true;
    #[inline(always)]
    fn current(self, _: f32) -> f32 {
        self.widen()
    }
    #[inline(always)]
    fn of(new: f32) -> Self {
        Self::narrow(new)
    }
}

impl<P: Element, G: Element, M: Element, V: Element, W: Master> Streams<'_, P, G, M, V, W> {
    /// Sets the masters from the parameters.
    pub(super) fn set_masters(&mut self) {
        self.master.iter_mut().zip(&*self.param).for_each(|(master, param)| *master = W::of(param.widen()));
    }

    /// One step of all elements, on the current rayon pool.
    pub(super) fn run(self, coeffs: &StepCoeffs) {
        let level = Level::detect();
        // Vectors that straddle cache lines are slower. The allocator places large buffers 16 bytes
        // after a cache line, all in the same way, so that one head aligns all f32 buffers, which
        // are most of the traffic.
        let head = self.exp_avg.as_ptr().align_offset(ALIGNMENT).min(self.param.len());
        if head == 0 {
            return self.run_parallel(coeffs, level);
        }
        let (head, body) = self.split_at(head);
        head.run_chunk(coeffs, level);
        body.run_parallel(coeffs, level);
    }

    fn run_parallel(self, coeffs: &StepCoeffs, level: Level) {
        if self.param.len() <= CHUNK {
            return self.run_chunk(coeffs, level);
        }
        // A multiple of 64 elements, so that both halves start aligned and share no cache line.
        let middle = (self.param.len() / 2).next_multiple_of(64);
        let (left, right) = self.split_at(middle);
        join(|| left.run_parallel(coeffs, level), || right.run_parallel(coeffs, level));
    }

    fn split_at(self, middle: usize) -> (Self, Self) {
        let (param, param_right) = self.param.split_at_mut(middle);
        let (grad, grad_right) = self.grad.split_at(middle);
        let (exp_avg, exp_avg_right) = self.exp_avg.split_at_mut(middle);
        let (exp_avg_sq, exp_avg_sq_right) = self.exp_avg_sq.split_at_mut(middle);
        let (master, master_right) = self.master.split_at_mut(middle);
        (
            Self { param, grad, exp_avg, exp_avg_sq, master },
            Self {
                param: param_right,
                grad: grad_right,
                exp_avg: exp_avg_right,
                exp_avg_sq: exp_avg_sq_right,
                master: master_right,
            },
        )
    }

    /// One step on this thread, under the standard control word. Tests which terms are present once
    /// for all elements, so that the loop has no tests.
    fn run_chunk(self, coeffs: &StepCoeffs, level: Level) {
        let _standard = FloatEnv::standard();
        match (!coeffs.is_adam(), coeffs.l2 != 0.0, coeffs.decay != 0.0) {
            (false, false, false) => self.run_level::<false, false, false>(coeffs, level),
            (false, false, true) => self.run_level::<false, false, true>(coeffs, level),
            (false, true, false) => self.run_level::<false, true, false>(coeffs, level),
            (false, true, true) => self.run_level::<false, true, true>(coeffs, level),
            (true, false, false) => self.run_level::<true, false, false>(coeffs, level),
            (true, false, true) => self.run_level::<true, false, true>(coeffs, level),
            (true, true, false) => self.run_level::<true, true, false>(coeffs, level),
            (true, true, true) => self.run_level::<true, true, true>(coeffs, level),
        }
    }

    fn run_level<const DUAL: bool, const L2: bool, const DECAY: bool>(self, coeffs: &StepCoeffs, level: Level) {
        let Self { param, grad, exp_avg, exp_avg_sq, master } = self;
        match level {
            Level::Portable => {
                elements::<DUAL, L2, DECAY, _, _, _, _, _>(param, grad, exp_avg, exp_avg_sq, master, coeffs);
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has AVX2 and FMA, since `Level::detect` returned this level.
            Level::Avx2Fma => unsafe {
                elements_avx2_fma::<DUAL, L2, DECAY, _, _, _, _, _>(param, grad, exp_avg, exp_avg_sq, master, coeffs);
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn elements_avx2_fma<const DUAL: bool, const L2: bool, const DECAY: bool, P, G, M, V, W>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [M],
    exp_avg_sq: &mut [V],
    master: &mut [W],
    coeffs: &StepCoeffs,
) where
    P: Element,
    G: Element,
    M: Element,
    V: Element,
    W: Master,
{
    elements::<DUAL, L2, DECAY, P, G, M, V, W>(param, grad, exp_avg, exp_avg_sq, master, coeffs);
}

/// The loops. They vectorise because no branch depends on an element and because the buffers are
/// arguments, which the compiler knows not to overlap.
#[inline(always)]
fn elements<const DUAL: bool, const L2: bool, const DECAY: bool, P, G, M, V, W>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [M],
    exp_avg_sq: &mut [V],
    master: &mut [W],
    coeffs: &StepCoeffs,
) where
    P: Element,
    G: Element,
    M: Element,
    V: Element,
    W: Master,
{
    let coeffs = *coeffs;
    if P::DTYPE == Dtype::F32 && !W::IS_THERE {
        return in_place::<DUAL, L2, DECAY, P, G, M, V>(param, grad, exp_avg, exp_avg_sq, &coeffs);
    }
    let mut new = [0.0; BLOCK];
    let moments = exp_avg.chunks_mut(BLOCK).zip(exp_avg_sq.chunks_mut(BLOCK));
    let values = param.chunks_mut(BLOCK).zip(grad.chunks(BLOCK));
    for (((param, grad), (exp_avg, exp_avg_sq)), master) in values.zip(moments).zip(master.chunks_mut(BLOCK)) {
        let new = &mut new[..param.len()];
        aside::<DUAL, L2, DECAY, P, G, M, V, W>(param, grad, exp_avg, exp_avg_sq, master, new, &coeffs);
        master.iter_mut().zip(&*new).for_each(|(master, &new)| *master = W::of(new));
        param.iter_mut().zip(&*new).for_each(|(p, &new)| *p = P::narrow(new));
    }
}

#[inline(always)]
fn in_place<const DUAL: bool, const L2: bool, const DECAY: bool, P: Element, G: Element, M: Element, V: Element>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [M],
    exp_avg_sq: &mut [V],
    coeffs: &StepCoeffs,
) {
    for (((p, grad), exp_avg), exp_avg_sq) in param.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
        let (mut m, mut v) = (exp_avg.widen(), exp_avg_sq.widen());
        *p = P::narrow(update::<DUAL, L2, DECAY>(coeffs, p.widen(), grad.widen(), &mut m, &mut v));
        (*exp_avg, *exp_avg_sq) = (M::narrow(m), V::narrow(v));
    }
}

/// Writes the new parameters to `new` instead of `param` and `master`.
#[inline(always)]
fn aside<const DUAL: bool, const L2: bool, const DECAY: bool, P, G, M, V, W>(
    param: &[P],
    grad: &[G],
    exp_avg: &mut [M],
    exp_avg_sq: &mut [V],
    master: &[W],
    new: &mut [f32],
    coeffs: &StepCoeffs,
) where
    P: Element,
    G: Element,
    M: Element,
    V: Element,
    W: Master,
{
    let moments = exp_avg.iter_mut().zip(exp_avg_sq);
    let values = param.iter().zip(grad).zip(master);
    for ((((p, grad), master), (exp_avg, exp_avg_sq)), new) in values.zip(moments).zip(new) {
        let (mut m, mut v) = (exp_avg.widen(), exp_avg_sq.widen());
        let p = master.current(p.widen());
        *new = update::<DUAL, L2, DECAY>(coeffs, p, grad.widen(), &mut m, &mut v);
        (*exp_avg, *exp_avg_sq) = (M::narrow(m), V::narrow(v));
    }
}

/// An instruction set that the loops are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The instructions that every processor of the target has. On x86-64 these lack FMA, so each
    /// `mul_add` is a call.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2Fma,
}

impl Level {
    pub(super) fn detect() -> Self {
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
    use crate::rule::DualAdamConfig;
    use crate::tensor::{Variant, for_each_variant};

    const LEN: usize = 1003;

    /// The bits of all that a step at one level wrote. All NaNs count as one value.
    fn bits<P: Element, G: Element, M: Element, V: Element, W: Master>(level: Level, coeffs: &StepCoeffs) -> Vec<u32> {
        // Bit patterns from all of f32: normal and subnormal numbers, infinities and NaNs.
        let pattern = |i: usize, step: u32| f32::from_bits((i as u32).wrapping_mul(step));
        let mut param: Vec<_> = (0..LEN).map(|i| P::narrow(pattern(i, 4_282_663))).collect();
        let grad: Vec<_> = (0..LEN).map(|i| G::narrow(pattern(i, 2_654_435_761))).collect();
        let mut exp_avg: Vec<_> = (0..LEN).map(|i| M::narrow(pattern(i, 40_503))).collect();
        let mut exp_avg_sq: Vec<_> = (0..LEN).map(|i| V::narrow(pattern(i, 2_246_822_519).abs())).collect();
        let mut master: Vec<_> = (0..LEN).map(|i| W::of(pattern(i, 4_282_663))).collect();
        let streams = Streams {
            param: param.as_mut_slice(),
            grad: &grad,
            exp_avg: exp_avg.as_mut_slice(),
            exp_avg_sq: exp_avg_sq.as_mut_slice(),
            master: &mut master,
        };
        streams.run_chunk(coeffs, level);
        let values = param.iter().map(|p| p.widen()).chain(exp_avg.iter().map(|m| m.widen()));
        let values = values.chain(exp_avg_sq.iter().map(|v| v.widen())).chain(master.iter().map(|w| w.current(0.0)));
        values.map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let dual = DualAdamConfig::authors_code().coeffs(7).unwrap();
        let bits_of: [fn(Level, &StepCoeffs) -> Vec<u32>; Variant::COUNT] = for_each_variant!(bits);
        for terms in 0..8 {
            let present = |bit: u32, value| if terms >> bit & 1 == 1 { value } else { 0.0 };
            let inverse_scale = present(0, dual.inverse_scale);
            let coeffs = StepCoeffs { inverse_scale, l2: present(1, 0.1), decay: present(2, 1e-3), ..dual };
            for (variant, bits) in Variant::all().zip(bits_of) {
                let what = format!("{} with {coeffs:?}", variant.name());
                assert_eq!(bits(Level::detect(), &coeffs), bits(Level::Portable, &coeffs), "{what}");
            }
        }
    }
}
