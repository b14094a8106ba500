//! Buffers that can have more elements than 32 bits count.
//!
//! Their content repeats, so that the host holds one period of it: it steps the period, and compares the device's results with that,
//! piece by piece. The period is odd, so that an index that loses its upper bits meets other values.

use std::collections::BTreeSet;
use std::env;
use std::ops::Range;

use dualadam::cuda::TensorList;
use dualadam::cuda::cudarc::driver::result;
use dualadam::{Dtype, DualAdamConfig, Formats, RawBuffer, RawTensor};

use crate::common::data::Inputs;

use super::Body;
use super::buffers::Host;
use super::gpu::{Gpu, Memory};

pub(crate) const TESTS: &[Body] = bodies!["large":
    periods_are_compared_to_the_end,
];

/// The large tests themselves, at a size that takes no time.
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

const BF16: usize = 2;
const SIZES: [usize; 4] = [BF16, BF16, 4, 4];
const NAMES: [&str; 4] = ["p", "g", "m", "v"];
/// What stands before and behind a buffer's elements.
const FILL: u8 = 0x5a;
const BEHIND: usize = 64;
/// So many repetitions of the pattern are all compared.
const FEW: usize = 24;

impl Large {
    /// A flat step; the buffers begin so many elements after an aligned address.
    pub(crate) fn flat_step(&self, gpu: &Gpu, offsets: [usize; 4]) {
        let (mut host, config) = (self.host(), DualAdamConfig::default());
        let buffers = self.upload(gpu, &host, offsets);
        let coeffs = config.coeffs(3).unwrap();
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        unsafe { gpu.kernels.step_raw(&self.raw(&buffers), &coeffs, gpu.raw_stream()) }.unwrap();
        host.step(&[coeffs]);
        self.compare(gpu, &host, &buffers);
    }

    /// A step of a list in which small tensors stand before and behind.
    pub(crate) fn list_step(&self, gpu: &Gpu) {
        let mut host = self.host();
        let buffers = self.upload(gpu, &host, [0; 4]);
        let small = |set| Host::new(Formats::new(Dtype::Bf16, Dtype::Bf16), &Inputs::random(5, 4100), [0; 5], set);
        let mut hosts = [small(1), small(2)];
        let devices = hosts.each_ref().map(|host| host.upload(gpu));
        let sets = [1, 2, 3].map(|step| DualAdamConfig::default().coeffs(step).unwrap());
        let raw = [devices[0].raw(&hosts[0]), self.raw(&buffers), devices[1].raw(&hosts[1])];
        let mut list = TensorList::new(&gpu.kernels, &raw).unwrap();
        // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
        unsafe { list.step_raw(&sets, gpu.raw_stream()) }.unwrap();
        host.step(&sets);
        self.compare(gpu, &host, &buffers);
        for (host, device) in hosts.iter_mut().zip(&devices) {
            host.step(&sets);
            device.assert_same(gpu, host, "a small tensor beside");
        }
    }

    /// One period.
    fn host(&self) -> Host {
        Host::new(Formats::new(Dtype::Bf16, Dtype::Bf16), &Inputs::random(3, self.period), [0; 5], 0)
    }

    fn upload(&self, gpu: &Gpu, host: &Host, offsets: [usize; 4]) -> [Repeated; 4] {
        let of = |i: usize| {
            let (size, pattern) = (SIZES[i], &host.buffers[i].bytes()[..self.period * SIZES[i]]);
            Repeated::new(gpu, pattern, offsets[i] * size, self.len as usize * size)
        };
        [0, 1, 2, 3].map(of)
    }

    fn raw(&self, [p, g, m, v]: &[Repeated; 4]) -> RawTensor {
        let bf16_at = |buffer: &Repeated| RawBuffer::new(buffer.address(), Dtype::Bf16);
        let f32_at = |buffer: &Repeated| RawBuffer::f32(buffer.address());
        RawTensor::new(self.len, bf16_at(p), bf16_at(g), f32_at(m), f32_at(v))
    }

    fn compare(&self, gpu: &Gpu, expected: &Host, buffers: &[Repeated; 4]) {
        for i in 0..4 {
            let expected = &expected.buffers[i].bytes()[..self.period * SIZES[i]];
            buffers[i].assert_repeats(gpu, expected, SIZES[i], NAMES[i]);
        }
    }
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
        // SAFETY: a context is current; each fill and copy is within the memory, and between bytes that do not overlap.
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

    /// Where the repetitions begin that are compared: all of them where they are few, or if the environment variable `DUALADAM_WHOLE` is
    /// set; else those at both ends, around the elements that 31 and 32 bits count, and some between.
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
