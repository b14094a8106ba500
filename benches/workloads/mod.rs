//! What is timed: the step in its variants, and the streams that bound it. All of them move the
//! bytes that they report.

use std::ops::{Deref, DerefMut};

use dualadam::{DualAdamConfig, Element, GradOf, StepCoeffs, cpu};
use half::bf16;
use rayon::prelude::*;

/// Elements that a task takes in the streams that are compared with the step, which splits its work
/// alike.
const CHUNK: usize = 1 << 15;

/// One thing to time, over buffers of its own.
pub(crate) trait Workload: Send {
    /// Runs once.
    fn run(&mut self);
    /// Bytes that one run must move.
    fn bytes(&self) -> u64;
    /// Floating-point operations of one run as the paper counts them: 18 an element for DualAdam,
    /// 14 for Adam.
    fn flops(&self) -> u64 {
        0
    }
}

/// The names of all workloads, in the order of the tables. "list" is a list of tensors of 1,000
/// elements.
pub(crate) const NAMES: [&str; 12] = [
    "copy f32",
    "triad f32",
    "triad bf16",
    "triad master",
    "dual f32",
    "adam f32",
    "dual bf16",
    "adam bf16",
    "dual master",
    "adam master",
    "unfused f32",
    "list f32",
];

/// The workload of a name, over `len` elements; `None` if there is none.
pub(crate) fn workload(name: &str, len: usize) -> Option<Box<dyn Workload>> {
    let (kind, buffers) = name.split_once(' ')?;
    let coeffs = |kind| {
        let config = if kind == "dual" { DualAdamConfig::default() } else { DualAdamConfig::adam() };
        config.coeffs(3).ok()
    };
    Some(match (kind, buffers) {
        ("copy", _) => Box::new(PlainCopy { from: ramp(len), to: Buffer::filled(0.0, len) }),
        ("triad", "f32") => Box::new(Triad(Buffers::<f32, f32>::new(len))),
        ("triad", "bf16") => Box::new(Triad(Buffers::<bf16, bf16>::new(len))),
        ("triad", "master") => Box::new(MasterTriad(MasterBuffers::new(len))),
        ("list", "f32") => Box::new(List::new(len)),
        ("unfused", "f32") => Box::new(Unfused::new(len)),
        (_, "f32") => Box::new(Step(Buffers::<f32, f32>::new(len), coeffs(kind)?)),
        (_, "bf16") => Box::new(Step(Buffers::<bf16, bf16>::new(len), coeffs(kind)?)),
        (_, "master") => Box::new(MasterStep(MasterBuffers::new(len), coeffs(kind)?)),
        _ => return None,
    })
}

/// Fails unless every step does what plain f32 arithmetic does, so that no benchmark times a wrong
/// result.
pub(crate) fn verify() {
    let len = 100_000;
    let mut unfused = Unfused::new(len);
    let mut fused = Step(Buffers::<f32, f32>::new(len), unfused.coeffs);
    let mut list = List::new(len);
    unfused.run();
    fused.run();
    list.run();
    let same = |a: &[f32], b: &[f32], error: f32| {
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() <= error, "{a} and {b} differ"));
    };
    same(&fused.0.params, &unfused.buffers.params, 1e-6);
    same(&fused.0.exp_avg, &unfused.buffers.exp_avg, 1e-6);
    same(&fused.0.exp_avg_sq, &unfused.buffers.exp_avg_sq, 1e-6);
    // The list's tensors begin alike, as the flat buffer does.
    let tensor = &list.tensors[len / 1000 - 1];
    same(&tensor.params, &fused.0.params[..1000], 0.0);
    // The 16-bit inputs differ by their rounding, half a unit of 8 bits.
    let mut master = MasterStep(MasterBuffers::new(len), unfused.coeffs);
    let mut bf16 = Step(Buffers::<bf16, bf16>::new(len), unfused.coeffs);
    master.run();
    bf16.run();
    same(&master.0.buffers.params, &fused.0.params, 1.0 / 256.0);
    let widened = |values: &[bf16]| values.iter().map(|value| value.widen()).collect::<Vec<f32>>();
    same(&widened(&master.0.model), &master.0.buffers.params, 1.0 / 256.0);
    same(&widened(&bf16.0.params), &fused.0.params, 1.0 / 64.0);
}

/// A buffer that starts at a cache line, as the allocators of frameworks give them; `Vec`'s large
/// ones start 16 bytes later.
struct Buffer<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy> Buffer<T> {
    fn filled(value: T, len: usize) -> Self {
        let storage = vec![value; len + 64];
        Self { start: storage.as_ptr().align_offset(64), storage, len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.storage[self.start..][..self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..][..self.len]
    }
}

/// Values between -1 and 1 that differ from element to element.
fn ramp<T: Element>(len: usize) -> Buffer<T> {
    let mut buffer = Buffer::filled(T::narrow(0.0), len);
    let values = buffer.par_iter_mut().enumerate();
    values.for_each(|(i, value)| *value = T::narrow((i % 8191) as f32 / 4096.0 - 0.9999));
    buffer
}

/// A tensor's buffers.
pub(crate) struct Buffers<P, G> {
    params: Buffer<P>,
    grads: Buffer<G>,
    exp_avg: Buffer<f32>,
    exp_avg_sq: Buffer<f32>,
}

impl<P: Element, G: Element> Buffers<P, G> {
    /// Buffers of `len` elements.
    pub(crate) fn new(len: usize) -> Self {
        Self { params: ramp(len), grads: ramp(len), exp_avg: ramp(len), exp_avg_sq: Buffer::filled(0.5, len) }
    }

    fn bytes(&self) -> u64 {
        (self.params.len() * (2 * size_of::<P>() + size_of::<G>() + 16)) as u64
    }
}

impl Buffers<f32, f32> {
    fn tensor(&mut self) -> cpu::Tensor<'_> {
        let Self { params, grads, exp_avg, exp_avg_sq } = self;
        cpu::Tensor::new(&mut **params, &**grads, &mut **exp_avg, &mut **exp_avg_sq)
    }
}

/// The masters with their moments and gradients, and the model's own parameters.
struct MasterBuffers {
    buffers: Buffers<f32, bf16>,
    model: Buffer<bf16>,
}

impl MasterBuffers {
    fn new(len: usize) -> Self {
        Self { buffers: Buffers::new(len), model: Buffer::filled(bf16::ZERO, len) }
    }

    fn bytes(&self) -> u64 {
        self.buffers.bytes() + 2 * self.model.len() as u64
    }
}

fn step_flops(len: usize, coeffs: &StepCoeffs) -> u64 {
    len as u64 * if coeffs.is_adam() { 14 } else { 18 }
}

struct Step<P, G>(Buffers<P, G>, StepCoeffs);

impl<P: Element, G: GradOf<P>> Workload for Step<P, G> {
    fn run(&mut self) {
        let Buffers { params, grads, exp_avg, exp_avg_sq } = &mut self.0;
        cpu::step(params, grads, exp_avg, exp_avg_sq, &self.1).expect("the lengths agree");
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn flops(&self) -> u64 {
        step_flops(self.0.params.len(), &self.1)
    }
}

struct MasterStep(MasterBuffers, StepCoeffs);

impl Workload for MasterStep {
    fn run(&mut self) {
        let MasterBuffers { buffers: Buffers { params, grads, exp_avg, exp_avg_sq }, model } = &mut self.0;
        cpu::step_with_master(model, grads, exp_avg, exp_avg_sq, params, &self.1).expect("the lengths agree");
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn flops(&self) -> u64 {
        step_flops(self.0.model.len(), &self.1)
    }
}

/// As many tensors of 1,000 elements as make up the length, stepped as one list.
struct List {
    tensors: Vec<Buffers<f32, f32>>,
    sets: [StepCoeffs; 1],
}

impl List {
    fn new(len: usize) -> Self {
        let sets = [DualAdamConfig::default().coeffs(3).expect("the defaults are valid")];
        Self { tensors: (0..len / 1000).map(|_| Buffers::new(1000)).collect(), sets }
    }
}

impl Workload for List {
    fn run(&mut self) {
        // Forming the list is part of the price.
        let mut tensors: Vec<_> = self.tensors.iter_mut().map(Buffers::tensor).collect();
        cpu::step_list(&mut tensors, &self.sets).expect("the lengths agree");
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(Buffers::bytes).sum()
    }

    fn flops(&self) -> u64 {
        step_flops(1000 * self.tensors.len(), &self.sets[0])
    }
}

struct PlainCopy {
    from: Buffer<f32>,
    to: Buffer<f32>,
}

impl Workload for PlainCopy {
    fn run(&mut self) {
        let chunks = self.to.par_chunks_mut(CHUNK).zip(self.from.par_chunks(CHUNK));
        chunks.for_each(|(to, from)| to.copy_from_slice(from));
    }

    fn bytes(&self) -> u64 {
        8 * self.from.len() as u64
    }
}

/// Runs a loop with the vectors that the step itself uses.
fn widest(run: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2_fma(run: impl FnOnce()) {
            run();
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both features.
            return unsafe { avx2_fma(run) };
        }
    }
    run();
}

/// A multiply and an add per written element, over the streams of a step.
struct Triad<P, G>(Buffers<P, G>);

/// The triad's operation, cheap enough that only memory counts.
trait Blend: Element {
    fn blend(self, with: impl Element) -> Self;
}

impl Blend for f32 {
    #[inline(always)]
    fn blend(self, with: impl Element) -> Self {
        self + 1e-9 * with.widen()
    }
}

impl Blend for bf16 {
    #[inline(always)]
    fn blend(self, with: impl Element) -> Self {
        // No rounding: the stream is measured, not the conversion.
        Self::from_bits(((self.widen() + 1e-9 * with.widen()).to_bits() >> 16) as u16)
    }
}

impl<P: Blend, G: Element> Workload for Triad<P, G> {
    fn run(&mut self) {
        let Buffers { params, grads, exp_avg, exp_avg_sq } = &mut self.0;
        let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
        let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).zip(moments);
        chunks.for_each(|((params, grads), (exp_avg, exp_avg_sq))| {
            widest(
                #[inline(always)]
                || {
                    for (((p, g), m), v) in params.iter_mut().zip(grads).zip(exp_avg).zip(exp_avg_sq) {
                        *m = m.blend(*g);
                        *v = v.blend(*g);
                        *p = p.blend(*g);
                    }
                },
            );
        });
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

struct MasterTriad(MasterBuffers);

impl Workload for MasterTriad {
    fn run(&mut self) {
        let MasterBuffers { buffers: Buffers { params, grads, exp_avg, exp_avg_sq }, model } = &mut self.0;
        let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
        let values = params.par_chunks_mut(CHUNK).zip(model.par_chunks_mut(CHUNK));
        let chunks = values.zip(grads.par_chunks(CHUNK)).zip(moments);
        chunks.for_each(|(((params, model), grads), (exp_avg, exp_avg_sq))| {
            widest(
                #[inline(always)]
                || {
                    for ((((p, c), g), m), v) in params.iter_mut().zip(model).zip(grads).zip(exp_avg).zip(exp_avg_sq) {
                        *m = m.blend(*g);
                        *v = v.blend(*g);
                        *p = p.blend(*g);
                        *c = bf16::from_bits((p.to_bits() >> 16) as u16);
                    }
                },
            );
        });
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

/// DualAdam as a framework without a fused kernel runs it: one pass through memory per operation.
struct Unfused {
    buffers: Buffers<f32, f32>,
    root: Buffer<f32>,
    factor: Buffer<f32>,
    coeffs: StepCoeffs,
}

impl Unfused {
    fn new(len: usize) -> Self {
        let coeffs = DualAdamConfig::default().coeffs(3).expect("the defaults are valid");
        Self { buffers: Buffers::new(len), root: Buffer::filled(0.0, len), factor: Buffer::filled(0.0, len), coeffs }
    }
}

/// One operation: every element of `to` from itself and that of `from`.
fn pass(to: &mut [f32], from: &[f32], operation: impl Fn(f32, f32) -> f32 + Sync) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = operation(*to, *from);
        }
    });
}

impl Workload for Unfused {
    fn run(&mut self) {
        let Buffers { params, grads, exp_avg, exp_avg_sq } = &mut self.buffers;
        let (root, factor, c) = (&mut self.root, &mut self.factor, &self.coeffs);
        pass(exp_avg, grads, |m, g| m + c.one_minus_beta1 * (g - m));
        let saturate = |x: f32| if x > f32::MAX { f32::MAX } else { x };
        pass(exp_avg_sq, grads, |v, g| saturate(v + c.one_minus_beta2 * (g * g - v)));
        pass(root, exp_avg_sq, |_, v| v.sqrt());
        pass(factor, root, |_, s| s * c.inv_sqrt_bc2);
        pass(root, factor, |_, s| c.adam_scale / (s + c.eps));
        pass(factor, root, |s, q| c.inverse_scale * s + q);
        pass(factor, exp_avg, |w, m| w * m);
        pass(params, factor, |p, u| p - u);
    }

    fn bytes(&self) -> u64 {
        // What the fused step would move: the quotient is then the speed that a user sees.
        self.buffers.bytes()
    }

    fn flops(&self) -> u64 {
        step_flops(self.root.len(), &self.coeffs)
    }
}
