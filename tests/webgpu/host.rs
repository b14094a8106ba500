//! One tensor whose types are known at run time: on the host, stepped by the CPU, and its twin on a device.

use dualadam::half::{bf16, f16};
use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList, wgpu};
use dualadam::{Dtype, Element, StepCoeffs, cpu};

use crate::gpu::Device;
use testkit::data::{Inputs, narrow};

pub(crate) type Types = (Dtype, Dtype, Option<Dtype>);

/// Parameters, gradients and copy of every combination that there is.
pub(crate) const COMBINATIONS: [Types; 11] = {
    use Dtype::{Bf16, F16, F32};
    [
        (F32, F32, None),
        (F32, Bf16, None),
        (F32, F16, None),
        (Bf16, Bf16, None),
        (Bf16, F32, None),
        (F16, F16, None),
        (F16, F32, None),
        (F32, F32, Some(Bf16)),
        (F32, Bf16, Some(Bf16)),
        (F32, F32, Some(F16)),
        (F32, F16, Some(F16)),
    ]
};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

macro_rules! each {
    ($buffer:expr, $values:ident => $result:expr) => {
        match $buffer {
            Values::F32($values) => $result,
            Values::Bf16($values) => $result,
            Values::F16($values) => $result,
        }
    };
}

impl Values {
    pub(crate) fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(narrow(values)),
            _ => Self::F16(narrow(values)),
        }
    }

    pub(crate) fn from_bits(dtype: Dtype, bits: &[u16]) -> Self {
        let mut values = Self::new(dtype, &vec![0.0; bits.len()]);
        values.bytes_mut().copy_from_slice(bytemuck::cast_slice(bits));
        values
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

    pub(crate) fn at(&self, i: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(vec![values[i]]),
            Self::Bf16(values) => Self::Bf16(vec![values[i]]),
            Self::F16(values) => Self::F16(vec![values[i]]),
        }
    }

    fn floats(&mut self) -> &mut [f32] {
        match self {
            Self::F32(values) => values,
            _ => panic!("a moment has 32 bits"),
        }
    }
}

/// One tensor on the host: p, grad, m, v and, if there is one, the copy.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) p: Values,
    pub(crate) grad: Values,
    pub(crate) m: Values,
    pub(crate) v: Values,
    pub(crate) copy: Option<Values>,
    pub(crate) len: usize,
    pub(crate) set: usize,
}

impl Host {
    pub(crate) fn new((params, grads, copy): Types, inputs: &Inputs, set: usize) -> Self {
        Self {
            p: Values::new(params, &inputs.p),
            grad: Values::new(grads, &inputs.grad),
            m: Values::new(Dtype::F32, &inputs.m),
            v: Values::new(Dtype::F32, &inputs.v),
            copy: copy.map(|copy| Values::new(copy, &vec![77.0; inputs.len()])),
            len: inputs.len(),
            set,
        }
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, sets: &[StepCoeffs]) {
        let (exp_avg, exp_avg_sq) = (self.m.floats(), self.v.floats());
        let grad: cpu::Buffer<'_> = each!(&self.grad, values => values.into());
        let updated: cpu::BufferMut<'_> = each!(&mut self.p, values => values.into());
        let tensor = match &mut self.copy {
            None => cpu::Tensor::new(updated, grad, exp_avg, exp_avg_sq),
            Some(copy) => {
                let param: cpu::BufferMut<'_> = each!(copy, values => values.into());
                cpu::Tensor::new(param, grad, exp_avg, exp_avg_sq).with_master(updated)
            }
        };
        let tensor = tensor.with_coeffs_index(self.set);
        cpu::step_list(&mut [tensor], sets).unwrap();
    }

    /// The step on a device, alone, with coefficients of its own.
    pub(crate) fn stepped(&self, device: &Device, pipelines: &Pipelines, coeffs: &StepCoeffs) -> Self {
        let uploaded = self.upload(device);
        let list = TensorList::new(pipelines, &[uploaded.tensor().with_coeffs_index(0)]).unwrap();
        device.submit(|pass| list.encode(pass, &[*coeffs]).unwrap());
        uploaded.download(device, self)
    }

    /// The bytes of p, grad, m, v and the copy, if there is one.
    pub(crate) fn contents(&self) -> Vec<&[u8]> {
        let four = [&self.p, &self.grad, &self.m, &self.v];
        four.into_iter().chain(&self.copy).map(Values::bytes).collect()
    }

    pub(crate) fn upload(&self, device: &Device) -> Uploaded {
        let buffer = |values: &Values| (device.buffer(values.bytes()), values.dtype());
        Uploaded {
            params: buffer(&self.p),
            grads: buffer(&self.grad),
            exp_avg: buffer(&self.m).0,
            exp_avg_sq: buffer(&self.v).0,
            copy: self.copy.as_ref().map(buffer),
            len: self.len as u64,
            set: self.set,
        }
    }
}

/// The same tensor on a device, each of its buffers a wgpu buffer of its own.
pub(crate) struct Uploaded {
    pub(crate) params: (wgpu::Buffer, Dtype),
    pub(crate) grads: (wgpu::Buffer, Dtype),
    pub(crate) exp_avg: wgpu::Buffer,
    pub(crate) exp_avg_sq: wgpu::Buffer,
    pub(crate) copy: Option<(wgpu::Buffer, Dtype)>,
    pub(crate) len: u64,
    pub(crate) set: usize,
}

impl Uploaded {
    pub(crate) fn tensor(&self) -> Tensor<'_> {
        fn view((buffer, dtype): &(wgpu::Buffer, Dtype)) -> Binding<'_> {
            Binding::new(buffer, *dtype)
        }
        let (updated, grad) = (view(&self.params), Some(view(&self.grads)));
        let [exp_avg, exp_avg_sq] = [&self.exp_avg, &self.exp_avg_sq].map(|buffer| Binding::new(buffer, Dtype::F32));
        let tensor = match &self.copy {
            None => Tensor::new(self.len, updated, grad, exp_avg, exp_avg_sq),
            Some(copy) => Tensor::new(self.len, view(copy), grad, exp_avg, exp_avg_sq).with_master(updated),
        };
        tensor.with_coeffs_index(self.set)
    }

    /// The tensor with other parameters.
    pub(crate) fn tensor_with<'a>(&'a self, param: Binding<'a>) -> Tensor<'a> {
        let mut tensor = self.tensor();
        tensor.param = param;
        tensor
    }

    /// What is there now. Bytes behind the last element must be as they were.
    pub(crate) fn download(&self, device: &Device, like: &Host) -> Host {
        let read = |buffer: &wgpu::Buffer, like: &Values| {
            let mut values = like.clone();
            let found = device.read(buffer);
            let (content, behind) = found.split_at(values.bytes().len());
            values.bytes_mut().copy_from_slice(content);
            assert!(behind.iter().all(|&byte| byte == 0xa5), "behind the last element: {behind:x?}");
            values
        };
        Host {
            p: read(&self.params.0, &like.p),
            grad: read(&self.grads.0, &like.grad),
            m: read(&self.exp_avg, &like.m),
            v: read(&self.exp_avg_sq, &like.v),
            copy: self.copy.as_ref().zip(like.copy.as_ref()).map(|((buffer, _), like)| read(buffer, like)),
            ..like.clone()
        }
    }
}
