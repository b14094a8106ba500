//! Buffers that can have more than 2³² elements.
//!
//! Their content repeats, so that the host holds one period of it: it steps the period, and
//! compares the device's results with that, piece by piece. The period is odd, so that an index
//! that loses its upper bits reads other values.

use std::collections::BTreeSet;
use std::env;
use std::ops::Range;

use dualadam::cuda::TensorList;
use dualadam::cuda::cudarc::driver::result;
use dualadam::{DualAdamConfig, RawTensor, Role};
use testkit::{Formats, Inputs, Tensor, Values, formats};

use super::{Body, Gpu, Memory, Twin, with_len};

pub(crate) const TESTS: &[Body] = bodies!["large":
    periods_are_compared_to_the_end,
];

/// The code of the large tests, at a small size.
fn periods_are_compared_to_the_end(gpu: &Gpu) {
    for len in [1, 1020, 1021, 1022, 7 * 1021 + 5] {
        let small = Large { len, period: 1021 };
        small.flat_step(gpu, [0; 4]);
        small.flat_step(gpu, [1, 2, 3, 0]);
        small.list_step(gpu);
    }
}

/// A tensor of bf16 parameters and gradients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Large {
    pub(crate) len: u64,
    /// Elements after which the content repeats.
    pub(crate) period: usize,
}

/// The filling before and behind a buffer's elements.
const FILL: u8 = 0x5a;
const BEHIND: usize = 64;
/// Up to this many repetitions of the pattern are all compared.
const FEW: usize = 24;

impl Large {
    /// A flat step whose buffers begin `offsets` elements after an aligned address.
    pub(crate) fn flat_step(&self, gpu: &Gpu, offsets: [usize; 4]) {
        let mut host = Tensor::new(types(), &Inputs::random(3, self.period));
        let buffers = self.upload(gpu, &host, offsets);
        let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
        gpu.step(&self.raw(&host, &buffers), &coeffs).unwrap();
        host.step(&[coeffs]);
        self.compare(gpu, &host, &buffers);
    }

    /// A step of a list in which small tensors stand before and behind.
    pub(crate) fn list_step(&self, gpu: &Gpu) {
        let mut host = Tensor::new(types(), &Inputs::random(3, self.period));
        let buffers = self.upload(gpu, &host, [0; 4]);
        let small = |set| Twin::new(gpu, Tensor::padded(types(), &Inputs::random(5, 4100), [0; 5]).with_set(set));
        let mut twins = [small(1), small(2)];
        let sets = [1, 2, 3].map(|step| DualAdamConfig::default().coeffs(step).unwrap());
        let raw = [twins[0].raw(), self.raw(&host, &buffers), twins[1].raw()];
        gpu.step_list(&mut TensorList::new(&gpu.kernels, &raw).unwrap(), &sets).unwrap();
        host.step(&sets);
        self.compare(gpu, &host, &buffers);
        for twin in &mut twins {
            twin.expect(&sets);
            twin.assert_same(gpu, "a small tensor beside");
        }
    }

    fn upload(&self, gpu: &Gpu, host: &Tensor, offsets: [usize; 4]) -> Vec<Repeated> {
        let of = |(values, offset): (&Values, usize)| {
            let size = values.dtype().size();
            Repeated::new(gpu, values.bytes(), offset * size, self.len as usize * size)
        };
        host.buffers().into_iter().zip(offsets).map(of).collect()
    }

    fn raw(&self, host: &Tensor, buffers: &[Repeated]) -> RawTensor {
        let mut addresses = [0; 5];
        buffers.iter().zip(&mut addresses).for_each(|(buffer, address)| *address = buffer.address());
        with_len(host.raw_at(addresses), self.len)
    }

    fn compare(&self, gpu: &Gpu, expected: &Tensor, buffers: &[Repeated]) {
        for ((buffer, values), role) in buffers.iter().zip(expected.buffers()).zip(Role::ALL.iter().copied()) {
            buffer.assert_repeats(gpu, values.bytes(), values.dtype().size(), role.name());
        }
    }
}

fn types() -> Formats {
    formats("bf16_bf16")
}

/// Device memory that repeats a pattern, with filling around.
struct Repeated {
    memory: Memory,
    /// The bytes of the pattern's repetitions.
    range: Range<usize>,
}

impl Repeated {
    fn new(gpu: &Gpu, pattern: &[u8], before: usize, bytes: usize) -> Self {
        let range = before..before + bytes;
        let all = range.end + BEHIND;
        // SAFETY: a context is current; each fill and copy is within the memory, and between bytes
        // that do not overlap.
        unsafe {
            let memory = Memory { address: result::malloc_sync(all).unwrap() };
            result::memset_d8_sync(memory.address, FILL, all).unwrap();
            let buffer = Self { memory, range };
            let start = buffer.address();
            let mut done = pattern.len().min(bytes);
            result::memcpy_htod_sync(start, &pattern[..done]).unwrap();
            while done < bytes {
                let more = done.min(bytes - done);
                result::memcpy_dtod_sync(start + done as u64, start, more).unwrap();
                done += more;
            }
            gpu.context.synchronize().unwrap();
            buffer
        }
    }

    fn address(&self) -> u64 {
        self.memory.address + self.range.start as u64
    }

    fn read(&self, from: usize, into: &mut [u8]) {
        // SAFETY: a context is current, and the memory has these bytes.
        unsafe { result::memcpy_dtoh_sync(into, self.memory.address + from as u64) }.unwrap();
    }

    /// The starts of the repetitions to compare: all of them if they are few or if the environment
    /// variable `DUALADAM_WHOLE` is set. Else those at both ends, around elements 2³¹ and 2³², and
    /// some between.
    fn looked_at(&self, pattern: usize, size: usize) -> Vec<usize> {
        let count = self.range.len().div_ceil(pattern);
        let mut chosen: BTreeSet<usize> = if count <= FEW || env::var_os("DUALADAM_WHOLE").is_some() {
            (0..count).collect()
        } else {
            let edges = [1_usize << 31, 1 << 32].map(|element| element * size / pattern);
            let around = edges.into_iter().flat_map(|edge| edge.saturating_sub(1)..=edge + 1);
            // Steps of the golden section come near every place.
            let between = (1..=FEW).map(|i| (i as f64 * 0.618_033_988_749_895).fract() * count as f64);
            around.chain(between.map(|place| place as usize)).chain([0, 1, count - 2, count - 1]).collect()
        };
        chosen.retain(|&repetition| repetition < count);
        chosen.into_iter().map(|repetition| self.range.start + repetition * pattern).collect()
    }

    fn assert_repeats(&self, gpu: &Gpu, pattern: &[u8], size: usize, what: &str) {
        gpu.context.synchronize().unwrap();
        let mut found = vec![0; pattern.len()];
        for start in self.looked_at(pattern.len(), size) {
            let found = &mut found[..pattern.len().min(self.range.end - start)];
            self.read(start, found);
            if *found != pattern[..found.len()] {
                let byte = found.iter().zip(pattern).position(|(a, b)| a != b).unwrap();
                panic!("{what}: element {} is wrong", (start - self.range.start + byte) / size);
            }
        }
        for around in [0..self.range.start, self.range.end..self.range.end + BEHIND] {
            let mut found = vec![0; around.len()];
            if !found.is_empty() {
                self.read(around.start, &mut found);
            }
            assert!(
                found.iter().all(|&byte| byte == FILL),
                "{what} was written outside of its elements, at {around:?}"
            );
        }
    }
}
