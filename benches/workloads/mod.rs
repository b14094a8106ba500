//! What is timed: the step in its variants, and the streams that bound its speed. Each workload
//! reports the bytes that it must move.

use std::ops::{Deref, DerefMut};

use dualadam::{DualAdamConfig, Element, GradOf, StepCoeffs, cpu};
use half::bf16;
use rayon::prelude::*;

/// Elements of a task in the streams that the step is compared with. The step splits its work in
/// the same way.
const CHUNK: usize = 1 << 15;

/// One thing to time, over buffers of its own.
pub(crate) struct Workload {
    /// Runs once.
    pub(crate) run: Box<dyn FnMut() + Send>,
    /// Bytes that one run must move.
    pub(crate) bytes: u64,
    /// Floating-point operations of one run as the paper counts them: 18 an element for DualAdam,
    /// 14 for Adam.
    pub(crate) flops: u64,
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
pub(crate) fn workload(name: &str, len: usize) -> Option<Workload> {
    let (kind, buffers) = name.split_once(' ')?;
    let is_adam = kind == "adam";
    let c = if is_adam { DualAdamConfig::adam() } else { DualAdamConfig::default() }.coeffs(3).ok()?;
    let flops = len as u64 * if is_adam { 14 } else { 18 };
    Some(match (kind, buffers) {
        ("copy", _) => {
            let (from, mut to) = (ramp(len), Buffer::filled(0.0, len));
            Workload { run: Box::new(move || copy(&from, &mut to)), bytes: 8 * len as u64, flops: 0 }
        }
        ("triad", "f32") => Buffers::<f32, f32>::new(len).workload(0, triad),
        ("triad", "bf16") => Buffers::<bf16, bf16>::new(len).workload(0, triad),
        ("triad", "master") => Buffers::with_masters(len).workload(0, master_triad),
        ("list", "f32") => {
            let mut tensors = list(len);
            let (bytes, flops) = (tensors.iter().map(Buffers::bytes).sum(), 18 * 1000 * tensors.len() as u64);
            Workload { run: Box::new(move || step_list(&mut tensors, &c)), bytes, flops }
        }
        ("unfused", "f32") => {
            let mut between = between(len);
            // The bytes are those that the fused step would move, so that the speed is the one that
            // a user sees.
            Buffers::<f32, f32>::new(len).workload(flops, move |buffers| unfused(buffers, &mut between, &c))
        }
        (_, "f32") => Buffers::<f32, f32>::new(len).workload(flops, move |buffers| step(buffers, &c)),
        (_, "bf16") => Buffers::<bf16, bf16>::new(len).workload(flops, move |buffers| step(buffers, &c)),
        (_, "master") => Buffers::with_masters(len).workload(flops, move |buffers| master_step(buffers, &c)),
        _ => return None,
    })
}

/// Panics unless every step gives the result of plain f32 arithmetic, so that no benchmark times a
/// wrong one.
pub(crate) fn verify() {
    let len = 100_000;
    let c = DualAdamConfig::default().coeffs(3).expect("the defaults are valid");
    let [mut unfused, mut fused] = [0; 2].map(|_| Buffers::<f32, f32>::new(len));
    let mut tensors = list(len);
    self::unfused(&mut unfused, &mut between(len), &c);
    step(&mut fused, &c);
    step_list(&mut tensors, &c);
    let same = |a: &[f32], b: &[f32], error: f32| {
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() <= error, "{a} and {b} differ"));
    };
    same(&fused.params, &unfused.params, 1e-6);
    same(&fused.exp_avg, &unfused.exp_avg, 1e-6);
    same(&fused.exp_avg_sq, &unfused.exp_avg_sq, 1e-6);
    // The list's tensors begin alike, as the flat buffer does.
    same(&tensors[len / 1000 - 1].params, &fused.params[..1000], 0.0);
    // The 16-bit inputs differ by their rounding, half a unit of 8 bits.
    let (mut master, mut bf16) = (Buffers::with_masters(len), Buffers::<bf16, bf16>::new(len));
    master_step(&mut master, &c);
    step(&mut bf16, &c);
    same(&master.params, &fused.params, 1.0 / 256.0);
    let widened = |values: &[bf16]| values.iter().map(|value| value.widen()).collect::<Vec<f32>>();
    same(&widened(&master.model), &master.params, 1.0 / 256.0);
    same(&widened(&bf16.params), &fused.params, 1.0 / 64.0);
}

/// A buffer that starts at a cache line, as those of frameworks do; a large `Vec` starts 16 bytes
/// later.
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
    buffer.par_iter_mut().enumerate().for_each(|(i, value)| *value = T::narrow((i % 8191) as f32 / 4096.0 - 0.9999));
    buffer
}

/// A tensor's buffers.
struct Buffers<P, G> {
    params: Buffer<P>,
    grads: Buffer<G>,
    exp_avg: Buffer<f32>,
    exp_avg_sq: Buffer<f32>,
    /// The model's own parameters if those above are masters; otherwise empty.
    model: Buffer<bf16>,
}

impl<P: Element, G: Element> Buffers<P, G> {
    /// Buffers of `len` elements.
    fn new(len: usize) -> Self {
        let (exp_avg, exp_avg_sq) = (ramp(len), Buffer::filled(0.5, len));
        Self { params: ramp(len), grads: ramp(len), exp_avg, exp_avg_sq, model: Buffer::filled(bf16::ZERO, 0) }
    }

    fn bytes(&self) -> u64 {
        (self.params.len() * (2 * size_of::<P>() + size_of::<G>() + 16) + 2 * self.model.len()) as u64
    }

    fn workload(mut self, flops: u64, mut run: impl FnMut(&mut Self) + Send + 'static) -> Workload {
        Workload { bytes: self.bytes(), flops, run: Box::new(move || run(&mut self)) }
    }
}

impl Buffers<f32, bf16> {
    fn with_masters(len: usize) -> Self {
        Self { model: Buffer::filled(bf16::ZERO, len), ..Self::new(len) }
    }
}

fn step<P: Element, G: GradOf<P>>(buffers: &mut Buffers<P, G>, c: &StepCoeffs) {
    let Buffers { params, grads, exp_avg, exp_avg_sq, .. } = buffers;
    cpu::step(params, grads, exp_avg, exp_avg_sq, c).expect("the lengths agree");
}

fn master_step(Buffers { params, grads, exp_avg, exp_avg_sq, model }: &mut Buffers<f32, bf16>, c: &StepCoeffs) {
    cpu::step_with_master(model, grads, exp_avg, exp_avg_sq, params, c).expect("the lengths agree");
}

/// As many tensors of 1,000 elements as make up the length.
fn list(len: usize) -> Vec<Buffers<f32, f32>> {
    (0..len / 1000).map(|_| Buffers::new(1000)).collect()
}

/// The time includes forming the list.
fn step_list(tensors: &mut [Buffers<f32, f32>], c: &StepCoeffs) {
    let mut formed = vec![];
    for Buffers { params, grads, exp_avg, exp_avg_sq, .. } in tensors {
        formed.push(cpu::Tensor::new(&mut **params, &**grads, &mut **exp_avg, &mut **exp_avg_sq));
    }
    cpu::step_list(&mut formed, std::slice::from_ref(c)).expect("the lengths agree");
}

fn copy(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
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

/// A multiply and an add per written element, over the streams of a step.
fn triad<P: Blend, G: Element>(buffers: &mut Buffers<P, G>) {
    let Buffers { params, grads, exp_avg, exp_avg_sq, .. } = buffers;
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

fn master_triad(Buffers { params, grads, exp_avg, exp_avg_sq, model }: &mut Buffers<f32, bf16>) {
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

/// The intermediate results of the unfused step: a root, and a factor.
fn between(len: usize) -> [Buffer<f32>; 2] {
    [0; 2].map(|_| Buffer::filled(0.0, len))
}

/// One operation: every element of `to` from itself and that of `from`.
fn pass(to: &mut [f32], from: &[f32], operation: impl Fn(f32, f32) -> f32 + Sync) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = operation(*to, *from);
        }
    });
}

/// DualAdam as a framework without a fused kernel runs it: one pass through memory per operation.
fn unfused(buffers: &mut Buffers<f32, f32>, [root, factor]: &mut [Buffer<f32>; 2], c: &StepCoeffs) {
    let Buffers { params, grads, exp_avg, exp_avg_sq, .. } = buffers;
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
