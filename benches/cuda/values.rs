//! What the buffers hold: patterns of a period, so that the host can tell what any element must become.

use dualadam::half::bf16;
use dualadam::{Dtype, StepCoeffs, cpu};

/// Elements of a pattern; a prime.
pub(crate) const PERIOD: usize = 65_521;

/// A combination of element types.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Types {
    pub(crate) name: &'static str,
    pub(crate) params: Dtype,
    pub(crate) grads: Dtype,
    pub(crate) copy: Option<Dtype>,
}

/// What is timed. A copy makes the parameters masters.
pub(crate) const TYPES: [Types; 3] = [
    Types { name: "f32_f32", params: Dtype::F32, grads: Dtype::F32, copy: None },
    Types { name: "bf16_bf16", params: Dtype::Bf16, grads: Dtype::Bf16, copy: None },
    Types { name: "f32_bf16_bf16", params: Dtype::F32, grads: Dtype::Bf16, copy: Some(Dtype::Bf16) },
];

impl Types {
    /// Bytes of an element of each buffer: parameters, gradients, moments, and the copy.
    pub(crate) fn sizes(&self) -> [usize; 5] {
        [self.params.size(), self.grads.size(), 4, 4, self.copy.map_or(0, Dtype::size)]
    }

    /// Bytes that a step moves for an element: all but the gradient is written, all but the copy is read.
    pub(crate) fn bytes_moved(&self) -> usize {
        let [params, grads, exp_avg, exp_avg_sq, copy] = self.sizes();
        2 * (params + exp_avg + exp_avg_sq) + grads + copy
    }
}

enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Values {
    fn new(dtype: Dtype, values: impl Iterator<Item = f32>) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
            _ => Self::F32(values.collect()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::Bf16(values) => bytemuck::cast_slice(values),
        }
    }
}

/// One period of each buffer.
pub(crate) struct Pattern {
    params: Values,
    grads: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    copy: Option<Vec<bf16>>,
}

impl Pattern {
    pub(crate) fn new(types: &Types) -> Self {
        // Between -1 and 1; neighbours are far apart.
        let value = |i: usize, factor: usize| ((i * factor) % 2003) as f32 / 1001.5 - 1.0;
        let values = |factor| (0..PERIOD).map(move |i| value(i, factor));
        Self {
            params: Values::new(types.params, values(7)),
            grads: Values::new(types.grads, values(1201)),
            exp_avg: values(11).collect(),
            exp_avg_sq: values(13).map(|value| value * value).collect(),
            copy: types.copy.map(|_| vec![bf16::ZERO; PERIOD]),
        }
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, coeffs: &StepCoeffs) {
        let params = match &mut self.params {
            Values::F32(values) => values.into(),
            Values::Bf16(values) => values.into(),
        };
        let grads = match &self.grads {
            Values::F32(values) => values.into(),
            Values::Bf16(values) => values.into(),
        };
        let (exp_avg, exp_avg_sq) = (&mut self.exp_avg[..], &mut self.exp_avg_sq[..]);
        let copy = self.copy.as_mut().map(Into::into);
        let tensor = cpu::Tensor { params, grads, exp_avg, exp_avg_sq, copy, set: 0 };
        cpu::step_list(&mut [tensor], std::slice::from_ref(coeffs)).expect("the lengths agree");
    }

    /// In the order of [`Types::sizes`].
    pub(crate) fn bytes(&self) -> [&[u8]; 5] {
        let copy = self.copy.as_deref().map_or(&[][..], bytemuck::cast_slice);
        let moment = |values| bytemuck::cast_slice::<f32, u8>(values);
        [self.params.bytes(), self.grads.bytes(), moment(&self.exp_avg), moment(&self.exp_avg_sq), copy]
    }
}
