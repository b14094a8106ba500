//! The buffers of one combination of types, in as many replicas as outgrow a cache, and the work over them.

use dualadam::webgpu::{BufferView, Moment, Pipelines, Tensor, TensorList, wgpu};
use dualadam::{DualAdamConfig, StepCoeffs};

use crate::device::Device;
use crate::triad::{Pipeline, Triad};
use crate::values::{Pattern, TYPES, Types};

/// Together the replicas have at least so many bytes, several times the cache of a large GPU,
const BYTES: usize = 256 << 20;
/// but are no more than this: below 2^16 elements only the dispatch counts.
const MOST_REPLICAS: usize = 64;
/// After the first steps, and before the switch at 12,500, so that both branches of the rule count.
const STEP: u64 = 2000;
/// Small enough that no value moves far, however long the triad runs.
const FACTOR: f64 = 1e-9;

/// The types of plain, of 16-bit and of mixed training.
pub(crate) fn main_types() -> [Types; 3] {
    let types = |name| TYPES.into_iter().find(|types| types.name == name).expect("the combination is there");
    [types("f32_f32"), types("bf16_bf16"), types("f32_bf16_bf16")]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// A multiply and an add for each written value, over the step's streams.
    Triad,
    Dual,
    Adam,
}

impl Variant {
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
    pub(crate) types: Types,
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
    /// The buffers with their content, or why they cannot be had.
    pub(crate) fn new(device: &Device, pipelines: &Pipelines, types: Types, len: usize) -> Result<Self, String> {
        let pattern = Pattern::new(&types);
        let triad = Pipeline::new(device, &types, FACTOR);
        let replica = |_| Replica::new(device, pipelines, &triad, &types, &pattern, len);
        let replicas = (0..replicas(&types, len)).map(replica).collect::<Result<_, _>>()?;
        Ok(Self { types, coeffs: Variant::ALL.map(|variant| [variant.coeffs()]), replicas, next: 0 })
    }

    pub(crate) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Encodes a variant over the next replica.
    pub(crate) fn encode(&mut self, variant: Variant, pass: &mut wgpu::ComputePass<'_>) {
        self.replicas[self.next].encode(variant, &self.coeffs[variant as usize], pass);
        self.next = (self.next + 1) % self.replicas.len();
    }
}

/// How many replicas of so many elements are used in turns.
pub(crate) fn replicas(types: &Types, len: usize) -> usize {
    BYTES.div_ceil(len * types.sizes().iter().sum::<usize>()).min(MOST_REPLICAS)
}

impl Replica {
    pub(crate) fn new(
        device: &Device,
        pipelines: &Pipelines,
        triad: &Pipeline,
        types: &Types,
        pattern: &Pattern,
        len: usize,
    ) -> Result<Self, String> {
        let sizes = types.sizes().into_iter().zip(pattern.bytes()).filter(|&(size, _)| size > 0);
        let buffers: Vec<_> = sizes.map(|(size, bytes)| device.repeat(bytes, len * size)).collect::<Result<_, _>>()?;
        let triad = Triad::new(device, triad, types, &buffers, len as u64);
        let list = TensorList::new(pipelines, &[tensor(types, &buffers, len as u64)]).expect("the tensor is valid");
        Ok(Self { buffers, list, triad })
    }

    pub(crate) fn encode(&self, variant: Variant, coeffs: &[StepCoeffs], pass: &mut wgpu::ComputePass<'_>) {
        match variant {
            Variant::Triad => self.triad.encode(pass),
            Variant::Dual | Variant::Adam => self.list.encode(pass, coeffs).expect("the set is there"),
        }
    }
}

/// The tensor that fills these buffers.
pub(crate) fn tensor<'a>(types: &Types, buffers: &'a [wgpu::Buffer], len: u64) -> Tensor<'a> {
    Tensor {
        params: BufferView::new(&buffers[0], types.params),
        grads: Some(BufferView::new(&buffers[1], types.grads)),
        exp_avg: Moment::new(&buffers[2]),
        exp_avg_sq: Moment::new(&buffers[3]),
        copy: types.copy.map(|dtype| BufferView::new(&buffers[4], dtype)),
        len,
        set: 0,
    }
}
