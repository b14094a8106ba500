//! The buffers of one variant, in enough replicas to outgrow a cache, and the work over them.

use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList, wgpu};
use dualadam::{Dtype, DualAdamConfig, Role, StepCoeffs, Variant};

use crate::device::Device;
use crate::triad::{Pipeline, Triad};
use crate::values::{Pattern, named, sizes};

/// Together the replicas have at least this many bytes, several times the cache of a large GPU,
/// within [`MOST_REPLICAS`].
const BYTES: usize = 256 << 20;
/// The most replicas. Below 2^16 elements only the dispatch counts.
const MOST_REPLICAS: usize = 64;
/// After the first steps, and before the switch at 12,500, so that both branches of the rule count.
const STEP: u64 = 2000;
/// Small enough that no value moves far, however long the triad runs.
const FACTOR: f64 = 1e-9;

/// The variants of plain, of 16-bit and of mixed training.
pub(crate) fn main_variants() -> [Variant; 3] {
    ["f32_f32", "bf16_bf16", "bf16_bf16_master"].map(named)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// A multiply and an add for each written value, over the step's streams.
    Triad,
    Dual,
    Adam,
}

impl Job {
    pub(crate) const ALL: [Self; 3] = [Self::Triad, Self::Dual, Self::Adam];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Triad => "triad",
            Self::Dual => "dual",
            Self::Adam => "adam",
        }
    }

    /// Floating-point operations of an element, as the paper counts them.
    pub(crate) fn flops(self) -> u64 {
        match self {
            Self::Triad => 0,
            Self::Dual => 18,
            Self::Adam => 14,
        }
    }

    /// The coefficients of the step.
    pub(crate) fn coeffs(self) -> StepCoeffs {
        let config = if self == Self::Adam { DualAdamConfig::adam() } else { DualAdamConfig::default() };
        config.coeffs(STEP).expect("the configurations are valid")
    }
}

pub(crate) struct Group {
    pub(crate) variant: Variant,
    coeffs: [[StepCoeffs; 1]; 3],
    replicas: Vec<Replica>,
    next: usize,
}

pub(crate) struct Replica {
    pub(crate) buffers: Vec<wgpu::Buffer>,
    list: TensorList,
    triad: Triad,
}

impl Group {
    /// Creates and fills the buffers. Fails, with the reason, if the device does not allow them.
    pub(crate) fn new(device: &Device, pipelines: &Pipelines, variant: Variant, len: usize) -> Result<Self, String> {
        let pattern = Pattern::new(variant);
        let triad = Pipeline::new(device, variant, FACTOR);
        let replica = |_| Replica::new(device, pipelines, &triad, variant, &pattern, len);
        let replicas = (0..replicas(variant, len)).map(replica).collect::<Result<_, _>>()?;
        Ok(Self { variant, coeffs: Job::ALL.map(|job| [job.coeffs()]), replicas, next: 0 })
    }

    pub(crate) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Encodes a job over the next replica.
    pub(crate) fn encode(&mut self, job: Job, pass: &mut wgpu::ComputePass<'_>) {
        self.replicas[self.next].encode(job, &self.coeffs[job as usize], pass);
        self.next = (self.next + 1) % self.replicas.len();
    }
}

/// How many replicas of `len` elements are used in turns.
pub(crate) fn replicas(variant: Variant, len: usize) -> usize {
    BYTES.div_ceil(len * sizes(variant).iter().sum::<usize>()).min(MOST_REPLICAS)
}

impl Replica {
    pub(crate) fn new(
        device: &Device,
        pipelines: &Pipelines,
        triad: &Pipeline,
        variant: Variant,
        pattern: &Pattern,
        len: usize,
    ) -> Result<Self, String> {
        let sizes = sizes(variant).into_iter().zip(pattern.bytes()).filter(|&(size, _)| size > 0);
        let buffers: Vec<_> = sizes.map(|(size, bytes)| device.repeat(bytes, len * size)).collect::<Result<_, _>>()?;
        let triad = Triad::new(device, triad, variant, &buffers, len as u64);
        let list = TensorList::new(pipelines, &[tensor(variant, &buffers, len as u64)]).expect("the tensor is valid");
        Ok(Self { buffers, list, triad })
    }

    pub(crate) fn encode(&self, job: Job, coeffs: &[StepCoeffs], pass: &mut wgpu::ComputePass<'_>) {
        match job {
            Job::Triad => self.triad.encode(pass),
            Job::Dual | Job::Adam => self.list.encode(pass, coeffs).expect("the coefficients are there"),
        }
    }
}

/// The tensor that fills these buffers.
pub(crate) fn tensor<'a>(variant: Variant, buffers: &'a [wgpu::Buffer], len: u64) -> Tensor<'a> {
    tensor_at(variant, buffers, 0, len)
}

/// The tensor of `len` elements that begins at element `start` of the buffers.
pub(crate) fn tensor_at<'a>(variant: Variant, buffers: &'a [wgpu::Buffer], start: u64, len: u64) -> Tensor<'a> {
    let dtypes = Role::ALL.iter().copied().filter_map(|role| variant.formats().of(role));
    let binding =
        |(buffer, dtype): (&'a _, Dtype)| Binding::new(buffer, dtype).with_offset(start * dtype.size() as u64);
    let bindings: Vec<_> = buffers.iter().zip(dtypes).map(binding).collect();
    let [param, grad, exp_avg, exp_avg_sq] = [0, 1, 2, 3].map(|role: usize| bindings[role]);
    let mut tensor = Tensor::new(len, param, Some(grad), exp_avg, exp_avg_sq);
    tensor.master = bindings.get(4).copied();
    tensor
}
