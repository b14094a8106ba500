//! The tensors of one shape with one combination of types, in as many replicas as outgrow the cache, and the variants that are timed.

use dualadam::cuda::cudarc::driver::sys;
use dualadam::cuda::{RawBuffer, RawTensor, TensorList};
use dualadam::{Dtype, DualAdamConfig, StepCoeffs};

use crate::device::{Device, Memory};
use crate::shapes::Shape;
use crate::values::{PERIOD, Pattern, Types};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Moves as many bytes as the step.
    Copy,
    Dual,
    Adam,
}

pub(crate) const VARIANTS: [Variant; 3] = [Variant::Copy, Variant::Dual, Variant::Adam];

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Dual => "dual",
            Self::Adam => "adam",
        }
    }

    /// Floating-point operations of an element, as the paper counts them.
    pub(crate) fn flops(self) -> usize {
        match self {
            Self::Copy => 0,
            Self::Dual => 18,
            Self::Adam => 14,
        }
    }

    fn coeffs(self) -> StepCoeffs {
        let config = if self == Self::Dual { DualAdamConfig::default() } else { DualAdamConfig::adam() };
        config.coeffs(3).expect("the configurations are valid")
    }
}

/// Together the replicas have so many times the size of the cache.
const TIMES_CACHE: usize = 4;
/// Each tensor begins at a multiple of so many elements, as an allocation does.
const ALIGN: usize = 128;

pub(crate) struct Group<'a> {
    device: &'a Device,
    pub(crate) shape: String,
    pub(crate) types: Types,
    lens: Vec<usize>,
    /// Elements of a replica, those between tensors too.
    stride: usize,
    replicas: Vec<Replica>,
    memory: [Memory; 5],
    copies: [Memory; 2],
    next: usize,
}

struct Replica {
    tensors: Vec<RawTensor>,
    /// Where there is more than one tensor.
    list: Option<TensorList>,
}

impl<'a> Group<'a> {
    /// The buffers with their content, or why they cannot be had.
    pub(crate) fn new(device: &'a Device, shape: &Shape, types: Types) -> Result<Self, String> {
        let lens = shape.lens();
        let stride: usize = lens.iter().map(|len| len.next_multiple_of(ALIGN)).sum();
        let sizes = types.sizes();
        let replicas = (TIMES_CACHE * device.facts.l2_bytes).div_ceil(stride * sizes.iter().sum::<usize>());
        let elements = replicas * stride;
        let allocate = |i: usize| device.memory(elements * sizes[i]);
        let memory = [allocate(0)?, allocate(1)?, allocate(2)?, allocate(3)?, allocate(4)?];
        let moved = lens.iter().sum::<usize>() * types.bytes_moved();
        let copies = [device.memory(replicas * moved / 2)?, device.memory(replicas * moved / 2)?];
        copies[0].repeat(&[1; 1 << 16], replicas * moved / 2);
        let pattern = Pattern::new(&types);
        for ((memory, bytes), size) in memory.iter().zip(pattern.bytes()).zip(sizes) {
            memory.repeat(bytes, elements * size);
        }
        device.synchronize();
        let mut group =
            Self { device, shape: shape.name.clone(), types, lens, stride, replicas: vec![], memory, copies, next: 0 };
        group.replicas = (0..replicas).map(|replica| group.replica(replica)).collect();
        Ok(group)
    }

    fn replica(&self, replica: usize) -> Replica {
        let tensors = self.tensors(replica);
        let list = || TensorList::new(&self.device.kernels, &tensors).expect("the tensors are valid");
        let list = (tensors.len() > 1).then(list);
        Replica { tensors, list }
    }

    /// The tensors of a replica, by address.
    pub(crate) fn tensors(&self, replica: usize) -> Vec<RawTensor> {
        let sizes = self.types.sizes();
        let mut element = replica * self.stride;
        let tensor = |&len: &usize| {
            let at = |i: usize| self.memory[i].address + (element * sizes[i]) as u64;
            let buffer = |i: usize, dtype: Dtype| RawBuffer { address: at(i), dtype };
            let tensor = RawTensor {
                params: buffer(0, self.types.params),
                grads: buffer(1, self.types.grads),
                exp_avg: at(2),
                exp_avg_sq: at(3),
                copy: self.types.copy.map(|dtype| buffer(4, dtype)),
                len: len as u64,
                set: 0,
            };
            element += len.next_multiple_of(ALIGN);
            tensor
        };
        self.lens.iter().map(tensor).collect()
    }

    pub(crate) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    pub(crate) fn lens(&self) -> &[usize] {
        &self.lens
    }

    pub(crate) fn elements(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Bytes that each variant moves.
    pub(crate) fn bytes(&self) -> usize {
        self.elements() * self.types.bytes_moved()
    }

    /// Enqueues a variant over the next replica.
    pub(crate) fn enqueue(&mut self, variant: Variant) {
        let replica = self.next;
        self.next = (self.next + 1) % self.replicas.len();
        self.enqueue_on(replica, variant);
    }

    fn enqueue_on(&mut self, replica: usize, variant: Variant) {
        let stream = self.device.stream.cu_stream();
        if variant == Variant::Copy {
            let bytes = self.bytes() / 2;
            let [from, to] = self.copies.each_ref().map(|memory| memory.address + (replica * bytes) as u64);
            // SAFETY: both parts are within their memory, which lives until the work has ended.
            let answer = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
            return answer.result().expect("the copy can be enqueued");
        }
        let coeffs = variant.coeffs();
        let Replica { tensors, list } = &mut self.replicas[replica];
        // SAFETY: the buffers are as long as the tensors and live until the work has ended; all work is in one stream.
        let stepped = unsafe {
            match list {
                Some(list) => list.step_raw(&[coeffs], stream.cast()),
                None => self.device.kernels.step_raw(&tensors[0], &coeffs, stream.cast()),
            }
        };
        stepped.expect("the step can be enqueued");
    }

    /// Fails unless a step of each kind does what the CPU backend does, to the bit, in the first replica's tensors and not beside them.
    /// Must come before any other step.
    pub(crate) fn verify(&mut self) {
        let mut pattern = Pattern::new(&self.types);
        let before = pattern.bytes().map(<[u8]>::to_vec);
        for variant in [Variant::Dual, Variant::Adam] {
            self.enqueue_on(0, variant);
            pattern.step(&variant.coeffs());
        }
        self.device.synchronize();
        let before = before.each_ref().map(Vec::as_slice);
        let mut start = 0;
        for (i, &len) in self.lens.iter().enumerate() {
            let end = start + len;
            // Some of many tensors, and the ends of long ones.
            if i < 8 || i + 8 > self.lens.len() {
                self.verify_range(start..end.min(start + PERIOD), pattern.bytes());
                self.verify_range(start.max(end.saturating_sub(PERIOD))..end, pattern.bytes());
                self.verify_range(end..end.next_multiple_of(ALIGN), before);
            }
            start = end.next_multiple_of(ALIGN);
        }
    }

    /// Compares elements of the first replica with a repeated pattern.
    fn verify_range(&self, range: std::ops::Range<usize>, expected: [&[u8]; 5]) {
        for ((memory, expected), size) in self.memory.iter().zip(expected).zip(self.types.sizes()) {
            let found = memory.read(range.start * size, range.len() * size);
            let pattern = expected.iter().cycle().skip(range.start % PERIOD * size);
            let same = found.iter().zip(pattern).all(|(a, b)| a == b);
            assert!(same, "{} {}: the step is wrong in elements {range:?}", self.shape, self.types.name);
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.device.synchronize();
    }
}
