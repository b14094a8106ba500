//! Tensors whose types are known at run time, on the host, and their twins on the device.

use std::ops::Range;

use dualadam::cpu;
use dualadam::half::{bf16, f16};
use dualadam::{Dtype, Element, Formats, RawBuffer, RawTensor, StepCoeffs};

use crate::common::contract::same;
use crate::common::data::{Inputs, narrow};

use super::gpu::{Gpu, Memory};

/// The formats of every combination that there is.
pub(crate) const COMBINATIONS: [Formats; 11] = {
    use Dtype::{Bf16, F16, F32};
    [
        Formats::new(F32, F32),
        Formats::new(F32, Bf16),
        Formats::new(F32, F16),
        Formats::new(Bf16, Bf16),
        Formats::new(Bf16, F32),
        Formats::new(F16, F16),
        Formats::new(F16, F32),
        Formats::new(Bf16, F32).with_master(F32),
        Formats::new(Bf16, Bf16).with_master(F32),
        Formats::new(F16, F32).with_master(F32),
        Formats::new(F16, F16).with_master(F32),
    ]
};

/// What stands around a buffer's elements.
const FILL: f32 = 77.0;
/// Elements of it behind a buffer.
const BEHIND: usize = 5;

#[derive(Debug, Clone)]
pub(crate) enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

macro_rules! each {
    ($buffer:expr, $values:ident => $result:expr) => {
        match $buffer {
            Buffer::F32($values) => $result,
            Buffer::Bf16($values) => $result,
            Buffer::F16($values) => $result,
        }
    };
}

impl Buffer {
    pub(crate) fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(narrow(values)),
            Dtype::F16 => Self::F16(narrow(values)),
            other => panic!("no buffer has the format {other}"),
        }
    }

    /// Values with some of the filling before and behind.
    pub(crate) fn padded(dtype: Dtype, before: usize, values: &[f32]) -> Self {
        Self::new(dtype, &[&vec![FILL; before], values, &[FILL; BEHIND]].concat())
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F16(_) => Dtype::F16,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, values => bytemuck::cast_slice_mut(values))
    }

    pub(crate) fn wide(&self) -> Vec<f32> {
        each!(self, values => values.iter().map(|value| value.widen()).collect())
    }

    pub(crate) fn params(&mut self, range: Range<usize>) -> cpu::BufferMut<'_> {
        each!(self, values => (&mut values[range]).into())
    }

    pub(crate) fn grads(&self, range: Range<usize>) -> cpu::Buffer<'_> {
        each!(self, values => (&values[range]).into())
    }

    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        for (i, (a, b)) in self.wide().into_iter().zip(other.wide()).enumerate() {
            assert!(same(a, b), "{what}[{i}]: {a:e} on the device, {b:e} on the CPU");
        }
    }
}

/// One tensor on the host: p, grad, m, v, master, each with filling around.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) buffers: [Buffer; 5],
    pub(crate) has_master: bool,
    pub(crate) offsets: [usize; 5],
    pub(crate) len: usize,
    pub(crate) set: usize,
}

impl Host {
    pub(crate) fn new(formats: Formats, inputs: &Inputs, offsets: [usize; 5], set: usize) -> Self {
        let [p, g, m, v, c] = offsets;
        let buffers = [
            Buffer::padded(formats.param, p, &inputs.p),
            Buffer::padded(formats.grad, g, &inputs.grad),
            Buffer::padded(Dtype::F32, m, &inputs.m),
            Buffer::padded(Dtype::F32, v, &inputs.v),
            Buffer::padded(Dtype::F32, c, &inputs.p),
        ];
        Self { buffers, has_master: formats.master.is_some(), offsets, len: inputs.len(), set }
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, sets: &[StepCoeffs]) {
        let [p, g, m, v, c] = self.offsets.map(|offset| offset..offset + self.len);
        let [param, grad, exp_avg, exp_avg_sq, master] = &mut self.buffers;
        let (exp_avg, exp_avg_sq) = (exp_avg.params(m), exp_avg_sq.params(v));
        let mut tensor = cpu::Tensor::new(param.params(p), grad.grads(g), exp_avg, exp_avg_sq);
        tensor.master = self.has_master.then(|| master.params(c));
        tensor.coeffs_index = self.set;
        cpu::step_list(&mut [tensor], sets).unwrap();
    }

    pub(crate) fn upload(&self, gpu: &Gpu) -> Device {
        let memory = self.buffers.each_ref().map(|buffer| gpu.memory(buffer.bytes()));
        if let Some(stand_in) = &gpu.stand_in {
            assert!(stand_in.set_read_only(memory[1].address, self.buffers[1].bytes().len(), true));
        }
        Device { memory }
    }
}

/// The same tensor on the device.
pub(crate) struct Device {
    pub(crate) memory: [Memory; 5],
}

impl Device {
    pub(crate) fn raw(&self, host: &Host) -> RawTensor {
        let at = |i: usize| {
            let dtype = host.buffers[i].dtype();
            RawBuffer::new(self.memory[i].address + (host.offsets[i] * dtype.size()) as u64, dtype)
        };
        let mut tensor = RawTensor::new(host.len as u64, at(0), at(1), at(2), at(3));
        tensor.master = host.has_master.then(|| at(4));
        tensor.with_coeffs_index(host.set)
    }

    /// Compares everything, the filling as well.
    pub(crate) fn assert_same(&self, gpu: &Gpu, expected: &Host, what: &str) {
        self.assert_same_buffers(gpu, expected, &[0, 1, 2, 3, 4], what);
    }

    /// The same where the gradient is somewhere else.
    pub(crate) fn assert_same_but_grads(&self, gpu: &Gpu, expected: &Host, what: &str) {
        self.assert_same_buffers(gpu, expected, &[0, 2, 3, 4], what);
    }

    fn assert_same_buffers(&self, gpu: &Gpu, expected: &Host, buffers: &[usize], what: &str) {
        for &buffer in buffers {
            let (memory, expected) = (&self.memory[buffer], &expected.buffers[buffer]);
            let name = ["p", "g", "m", "v", "master"][buffer];
            let mut found = expected.clone();
            gpu.read(memory, found.bytes_mut());
            found.assert_same(expected, &format!("{what}, {name}"));
        }
    }
}
