//! Tensors on the host, and their twins on a device.

use dualadam::StepCoeffs;
use dualadam::webgpu::{Binding, Tensor, TensorList, wgpu};
use testkit::{Inputs, Tensor as Host, Values, formats};

use crate::gpu::Device;

/// A tensor of the variant of this name.
pub(crate) fn host(name: &str, len: usize) -> Host {
    Host::new(formats(name), &Inputs::random(1, len))
}

/// The tensor whose buffers are in these places, in the order of `Role::ALL`.
pub(crate) fn bound<'a>(host: &Host, places: &[(&'a wgpu::Buffer, u64)]) -> Tensor<'a> {
    let binding =
        |(values, &(buffer, offset)): (&Values, &(_, _))| Binding::new(buffer, values.dtype()).with_offset(offset);
    let bindings: Vec<_> = host.buffers().into_iter().zip(places).map(binding).collect();
    let [param, grad, exp_avg, exp_avg_sq] = [0, 1, 2, 3].map(|role: usize| bindings[role]);
    let mut tensor = Tensor::new(host.len() as u64, param, Some(grad), exp_avg, exp_avg_sq);
    tensor.master = bindings.get(4).copied();
    tensor.with_coeffs_index(host.set)
}

/// A tensor that was uploaded, each of its buffers into a wgpu buffer of its own.
pub(crate) struct Uploaded {
    pub(crate) host: Host,
    pub(crate) buffers: Vec<wgpu::Buffer>,
}

impl Uploaded {
    pub(crate) fn new(device: &Device, host: &Host) -> Self {
        let buffers = host.buffers().iter().map(|values| device.buffer(values.bytes())).collect();
        Self { host: host.clone(), buffers }
    }

    pub(crate) fn tensor(&self) -> Tensor<'_> {
        bound(&self.host, &self.buffers.iter().map(|buffer| (buffer, 0)).collect::<Vec<_>>())
    }

    /// The tensor with other parameters.
    pub(crate) fn tensor_with<'a>(&'a self, param: Binding<'a>) -> Tensor<'a> {
        let mut tensor = self.tensor();
        tensor.param = param;
        tensor
    }

    /// The tensor as it is on the device. The bytes behind the last element must be unchanged.
    pub(crate) fn download(&self, device: &Device) -> Host {
        let mut found = self.host.clone();
        for (values, buffer) in found.buffers_mut().into_iter().zip(&self.buffers) {
            let bytes = device.read(buffer);
            let (content, behind) = bytes.split_at(values.bytes().len());
            values.bytes_mut().copy_from_slice(content);
            assert!(behind.iter().all(|&byte| byte == 0xa5), "behind the last element: {behind:x?}");
        }
        found
    }

    /// Fails unless the device has these bits.
    #[track_caller]
    pub(crate) fn assert_is(&self, device: &Device, expected: &Host) {
        assert_eq!(self.download(device).contents(), expected.contents(), "{}", expected.types());
    }
}

impl Device {
    /// A list's step in a pass of its own.
    pub(crate) fn step(&self, list: &TensorList, sets: &[StepCoeffs]) {
        self.submit(|pass| list.encode(pass, sets).unwrap());
    }

    pub(crate) fn list(&self, tensors: &[Tensor<'_>]) -> TensorList {
        TensorList::new(self.pipelines(), tensors).unwrap()
    }

    /// The tensors after a step, all in one list.
    pub(crate) fn stepped_together(&self, hosts: &[Host], sets: &[StepCoeffs]) -> Vec<Host> {
        let uploaded: Vec<_> = hosts.iter().map(|host| Uploaded::new(self, host)).collect();
        self.step(&self.list(&uploaded.iter().map(Uploaded::tensor).collect::<Vec<_>>()), sets);
        uploaded.iter().map(|uploaded| uploaded.download(self)).collect()
    }

    /// The tensor after a step, alone, with coefficients of its own.
    pub(crate) fn stepped(&self, host: &Host, coeffs: &StepCoeffs) -> Host {
        self.stepped_together(&[host.clone().with_set(0)], &[*coeffs]).remove(0).with_set(host.set)
    }
}
