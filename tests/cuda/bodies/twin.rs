//! Tensors on the device with copies on the host, and models that optimizers of both step.

use std::sync::Arc;

use dualadam::cuda::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use dualadam::cuda::{Buffer, BufferMut, CapturableDualAdam, CudaError, DualAdam, Kernels, RawScalars, Scalars};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, RawBuffer, RawTensor, State, StepCoeffs, cpu};
use testkit::model::{Model, Spec, wide};
use testkit::state::bits;
use testkit::{Inputs, Tensor, Values, formats};

use super::gpu::{Gpu, Memory};

/// A tensor on the host and its copy in device memory, with the same filling around.
pub(crate) struct Twin {
    pub(crate) host: Tensor,
    pub(crate) memory: Vec<Memory>,
}

impl Twin {
    pub(crate) fn new(gpu: &Gpu, host: Tensor) -> Self {
        let memory: Vec<_> = host.buffers().iter().map(|values| gpu.memory(values.bytes())).collect();
        if let Some(stand_in) = &gpu.stand_in {
            assert!(stand_in.set_read_only(memory[1].address, host.grad.bytes().len(), true));
        }
        Self { host, memory }
    }

    /// A tensor of the variant of this name.
    pub(crate) fn of(gpu: &Gpu, name: &str, len: usize) -> Self {
        Self::new(gpu, Tensor::padded(formats(name), &Inputs::random(1, len), [0; 5]))
    }

    pub(crate) fn all(gpu: &Gpu, hosts: impl IntoIterator<Item = Tensor>) -> Vec<Self> {
        hosts.into_iter().map(|host| Self::new(gpu, host)).collect()
    }

    pub(crate) fn raw(&self) -> RawTensor {
        let mut addresses = [0; 5];
        self.memory.iter().zip(&mut addresses).for_each(|(memory, address)| *address = memory.address);
        self.host.raw_at(addresses)
    }

    /// Steps the host's tensor on the CPU.
    pub(crate) fn expect(&mut self, sets: &[StepCoeffs]) {
        self.host.step(sets);
    }

    /// The tensor as it is on the device.
    pub(crate) fn found(&self, gpu: &Gpu) -> Tensor {
        let mut found = self.host.clone();
        for (values, memory) in found.buffers_mut().into_iter().zip(&self.memory) {
            gpu.read(memory, values.bytes_mut());
        }
        found
    }

    /// Compares everything, the filling as well.
    #[track_caller]
    pub(crate) fn assert_same(&self, gpu: &Gpu, what: &str) {
        self.found(gpu).assert_same(&self.host, what);
    }

    /// The same without the gradient, which is elsewhere.
    #[track_caller]
    pub(crate) fn assert_same_but_grads(&self, gpu: &Gpu, what: &str) {
        let grad = self.host.grad.clone();
        Tensor { grad, ..self.found(gpu) }.assert_same(&self.host, what);
    }
}

pub(crate) fn raw(twins: &[Twin]) -> Vec<RawTensor> {
    twins.iter().map(Twin::raw).collect()
}

#[track_caller]
pub(crate) fn assert_all_same(gpu: &Gpu, twins: &[Twin], what: &str) {
    twins.iter().enumerate().for_each(|(i, twin)| twin.assert_same(gpu, &format!("{what}, tensor {i}")));
}

/// The tensor with another length.
pub(crate) fn with_len(mut tensor: RawTensor, len: u64) -> RawTensor {
    tensor.len = len;
    tensor
}

/// What the tests use of both kinds of optimizer.
pub(crate) trait Optimizer {
    fn state(&self) -> Result<State, CudaError>;
    fn step_of(&self, tensor: usize) -> u64;
    /// A step without a multiplier and scalars.
    ///
    /// # Safety
    ///
    /// As for the optimizer's own `step_raw`.
    unsafe fn step_plainly(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError>;
    /// A step with a multiplier, or with the scalars.
    fn step_lists(&mut self, lists: Lists<'_>, multiplier: f64) -> Result<(), CudaError>;
    fn sync_masters(&mut self, params: Vec<Buffer<'_>>) -> Result<(), CudaError>;
}

/// Parameters, gradients, and scalars that give the device the multiplier that the host gets as a
/// number.
type Lists<'a> = (Vec<BufferMut<'a>>, Vec<Option<Buffer<'a>>>, Scalars<'a>);

macro_rules! optimizer {
    ($type:ty, $scalars:expr, $step_lists:expr) => {
        impl Optimizer for $type {
            fn state(&self) -> Result<State, CudaError> {
                self.state()
            }

            fn step_of(&self, tensor: usize) -> u64 {
                self.step_of(tensor).unwrap()
            }

            unsafe fn step_plainly(
                &mut self,
                params: &[RawBuffer],
                grads: &[Option<RawBuffer>],
            ) -> Result<(), CudaError> {
                // SAFETY: buffers and order are as `step_raw` requires (this function's
                // requirements).
                unsafe { self.step_raw(params, grads, $scalars) }
            }

            fn step_lists(&mut self, lists: Lists<'_>, multiplier: f64) -> Result<(), CudaError> {
                $step_lists(self, lists, multiplier)
            }

            fn sync_masters(&mut self, params: Vec<Buffer<'_>>) -> Result<(), CudaError> {
                self.sync_masters(params)
            }
        }
    };
}

optimizer!(DualAdam, 1.0, |own: &mut Self, (params, grads, _), multiplier| own.step_scaled(params, grads, multiplier));
optimizer!(CapturableDualAdam, &RawScalars::default(), |own: &mut Self, (params, grads, scalars): Lists<'_>, _| {
    own.step(params, grads, &scalars)
});

/// An optimizer's step of one tensor.
pub(crate) fn step_owner(optimizer: &mut impl Optimizer, raw: &RawTensor) -> Result<(), CudaError> {
    // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
    unsafe { optimizer.step_plainly(&[raw.param], &[Some(raw.grad)]) }
}

/// A slice whose type is known at run time.
enum Slice {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
    F16(CudaSlice<f16>),
}

macro_rules! each {
    ($slice:expr, $of_type:ident => $result:expr) => {
        match $slice {
            Slice::F32($of_type) => $result,
            Slice::Bf16($of_type) => $result,
            Slice::F16($of_type) => $result,
        }
    };
}

impl Slice {
    /// Takes one element if there are none, since CUDA has no empty buffers.
    fn new(stream: &Arc<CudaStream>, values: &Values) -> Self {
        fn upload<T: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, values: &[T]) -> CudaSlice<T> {
            if values.is_empty() { stream.alloc_zeros(1).unwrap() } else { stream.clone_htod(values).unwrap() }
        }
        match values {
            Values::F32(values) => Self::F32(upload(stream, values)),
            Values::Bf16(values) => Self::Bf16(upload(stream, values)),
            Values::F16(values) => Self::F16(upload(stream, values)),
        }
    }

    fn params(&mut self, len: usize) -> BufferMut<'_> {
        each!(self, slice => slice.slice_mut(..len).into())
    }

    fn read(&self, len: usize) -> Buffer<'_> {
        each!(self, slice => slice.slice(..len).into())
    }

    /// Replaces the first elements.
    fn write(&mut self, stream: &Arc<CudaStream>, values: &Values) {
        match (self, values) {
            (Self::F32(slice), Values::F32(values)) => stream.memcpy_htod(values, slice).unwrap(),
            (Self::Bf16(slice), Values::Bf16(values)) => stream.memcpy_htod(values, slice).unwrap(),
            (Self::F16(slice), Values::F16(values)) => stream.memcpy_htod(values, slice).unwrap(),
            _ => panic!("the values have another type"),
        }
        stream.synchronize().unwrap();
    }

    fn values(&self, stream: &Arc<CudaStream>) -> Values {
        match self {
            Self::F32(slice) => Values::F32(stream.clone_dtoh(slice).unwrap()),
            Self::Bf16(slice) => Values::Bf16(stream.clone_dtoh(slice).unwrap()),
            Self::F16(slice) => Values::F16(stream.clone_dtoh(slice).unwrap()),
        }
    }
}

/// A model on the device and on the host, where the CPU's optimizer steps it.
pub(crate) struct Models {
    pub(crate) host: Model,
    pub(crate) cpu: cpu::DualAdam,
    stream: Arc<CudaStream>,
    params: Vec<Slice>,
    grads: Vec<Slice>,
    host_grads: Vec<Option<Values>>,
    multiplier: f64,
    found_inf: CudaSlice<f32>,
    loss_scale: CudaSlice<f32>,
}

impl Models {
    pub(crate) fn new(stream: &Arc<CudaStream>, groups: &[DualAdamConfig], specs: &[(&str, usize, usize)]) -> Self {
        let specs = specs.iter().map(|&(name, len, group)| Spec { formats: formats(name), len, group });
        let host = Model::new(&specs.collect::<Vec<_>>(), wide);
        let mut models = Self {
            cpu: cpu::DualAdam::with_groups(groups, &host.tensor_specs()).unwrap(),
            stream: stream.clone(),
            params: host.params.iter().map(|values| Slice::new(stream, values)).collect(),
            grads: vec![],
            host_grads: vec![],
            multiplier: 1.0,
            found_inf: stream.clone_htod(&[0.0_f32]).unwrap(),
            loss_scale: stream.clone_htod(&[1.0_f32]).unwrap(),
            host,
        };
        models.set_grads(0);
        stream.synchronize().unwrap();
        models
    }

    pub(crate) fn optimizer(&self, kernels: &Kernels) -> DualAdam {
        DualAdam::with_groups(kernels, &self.stream, self.cpu.state().ledger.groups(), &self.host.tensor_specs())
            .unwrap()
    }

    /// Multiplies the gradients. A controlled step does this with a loss scale on the device.
    pub(crate) fn with_multiplier(self, multiplier: f64) -> Self {
        let loss_scale = self.stream.clone_htod(&[1.0 / multiplier as f32]).unwrap();
        self.stream.synchronize().unwrap();
        Self { multiplier, loss_scale, ..self }
    }

    /// Sets other parameters, with f32 gradients of 0.
    pub(crate) fn set_still(&mut self, params: [Values; 2]) {
        let zeros = |values: &Values| Slice::new(&self.stream, &Values::F32(vec![0.0; values.len()]));
        self.grads = params.iter().map(zeros).collect();
        self.params = params.iter().map(|values| Slice::new(&self.stream, values)).collect();
        self.host.params = params.into();
    }

    /// Sets the gradients of a round, in other memory than those before.
    pub(crate) fn set_grads(&mut self, round: u64) {
        self.host_grads = self.host.grads(round, |_| true);
        self.grads = self.host_grads.iter().flatten().map(|values| Slice::new(&self.stream, values)).collect();
    }

    pub(crate) fn set_found_inf(&mut self, value: f32) {
        self.stream.memcpy_htod(&[value], &mut self.found_inf).unwrap();
        self.stream.synchronize().unwrap();
    }

    /// The device's parameters, its gradients except those that are missing, and scalars.
    pub(crate) fn lists(&mut self, missing: impl Fn(usize) -> bool) -> Lists<'_> {
        let lens = || self.host.specs.iter().map(|spec| spec.len);
        let grads = self.grads.iter().zip(lens()).enumerate();
        let grads = grads.map(|(i, (slice, len))| (!missing(i)).then(|| slice.read(len)));
        let params = self.params.iter_mut().zip(lens()).map(|(slice, len)| slice.params(len));
        let scalars = Scalars::default().with_found_inf(self.found_inf.as_view());
        (params.collect(), grads.collect(), scalars.with_loss_scale(self.loss_scale.as_view()))
    }

    /// A step of the device's optimizer.
    pub(crate) fn launch(
        &mut self,
        optimizer: &mut impl Optimizer,
        missing: impl Fn(usize) -> bool,
    ) -> Result<(), CudaError> {
        let multiplier = self.multiplier;
        optimizer.step_lists(self.lists(missing), multiplier)
    }

    /// A step of both optimizers.
    pub(crate) fn step(&mut self, optimizer: &mut impl Optimizer, missing: impl Fn(usize) -> bool) {
        self.launch(optimizer, &missing).unwrap();
        self.expect(missing);
    }

    /// Steps the host's model on the CPU.
    pub(crate) fn expect(&mut self, missing: impl Fn(usize) -> bool) {
        let grads = self.host_grads.iter().enumerate();
        let grads: Vec<_> = grads.map(|(i, grads)| grads.clone().filter(|_| !missing(i))).collect();
        self.host.step(&mut self.cpu, &grads, self.multiplier).unwrap();
    }

    /// Clamps all parameters, on the device and on the host.
    pub(crate) fn clamp(&mut self, limit: f32) {
        for (slice, values) in self.params.iter_mut().zip(&mut self.host.params) {
            values.map(|x| x.clamp(-limit, limit));
            slice.write(&self.stream, values);
        }
    }

    /// Brings the masters of the device's optimizer up to date.
    pub(crate) fn sync_masters(&self, optimizer: &mut impl Optimizer) -> Result<(), CudaError> {
        let params = self.params.iter().zip(&self.host.specs).map(|(slice, spec)| slice.read(spec.len));
        optimizer.sync_masters(params.collect())
    }

    /// Brings the masters of the host's optimizer up to date.
    pub(crate) fn expect_synced(&mut self) {
        let params = self.host.params.iter().map(|values| values.buffer(0..values.len()));
        self.cpu.sync_masters(params).unwrap();
    }

    /// Compares states and parameters.
    #[track_caller]
    pub(crate) fn assert_same(&self, optimizer: &impl Optimizer, what: &str) {
        let (found, expected) = (optimizer.state().unwrap(), self.cpu.state());
        assert_eq!(found.ledger, expected.ledger, "{what}");
        for tensor in 0..expected.ledger.len() {
            assert_eq!(optimizer.step_of(tensor), expected.ledger.step(tensor).unwrap());
        }
        // `assert!`, so that a failure does not print thousands of numbers.
        assert!(bits(&found) == bits(expected), "{what}");
        self.assert_same_params(what);
    }

    #[track_caller]
    pub(crate) fn assert_same_params(&self, what: &str) {
        for (i, (slice, values)) in self.params.iter().zip(&self.host.params).enumerate() {
            let mut found = slice.values(&self.stream);
            found.split_off(values.len());
            assert!(found == *values, "{what}, parameters of tensor {i}");
        }
    }
}
