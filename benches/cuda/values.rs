//! What the buffers hold: patterns of a period, so that the host can tell what any element must become.

use dualadam::half::{bf16, f16};
use dualadam::{Dtype, Element, StepCoeffs, cpu};

use Dtype::{Bf16, F16, F32};

/// Elements of a pattern; a prime.
pub(crate) const PERIOD: usize = 65_521;

/// A combination of element types.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Types {
    /// As in the names of the kernels.
    pub(crate) name: &'static str,
    pub(crate) params: Dtype,
    pub(crate) grads: Dtype,
    pub(crate) copy: Option<Dtype>,
}

/// All combinations. A copy makes the parameters masters.
pub(crate) const TYPES: [Types; 11] = [
    types("f32_f32", F32, F32, None),
    types("f32_bf16", F32, Bf16, None),
    types("f32_f16", F32, F16, None),
    types("bf16_bf16", Bf16, Bf16, None),
    types("bf16_f32", Bf16, F32, None),
    types("f16_f16", F16, F16, None),
    types("f16_f32", F16, F32, None),
    types("f32_f32_bf16", F32, F32, Some(Bf16)),
    types("f32_bf16_bf16", F32, Bf16, Some(Bf16)),
    types("f32_f32_f16", F32, F32, Some(F16)),
    types("f32_f16_f16", F32, F16, Some(F16)),
];

const fn types(name: &'static str, params: Dtype, grads: Dtype, copy: Option<Dtype>) -> Types {
    Types { name, params, grads, copy }
}

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

#[derive(Clone)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// Does the same with the vector of any variant.
macro_rules! with {
    ($values:expr, $vector:ident => $result:expr) => {
        match $values {
            Values::F32($vector) => $result,
            Values::Bf16($vector) => $result,
            Values::F16($vector) => $result,
        }
    };
}

impl Values {
    fn new(dtype: Dtype, values: impl Iterator<Item = f32>) -> Self {
        match dtype {
            F32 => Self::F32(values.collect()),
            Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
            F16 => Self::F16(values.map(f16::from_f32).collect()),
        }
    }

    /// With the bits that f32 has beyond bf16 cut off, as the triad does it.
    fn cut(dtype: Dtype, values: impl Iterator<Item = f32>) -> Self {
        match dtype {
            Bf16 => Self::Bf16(values.map(|value| bf16::from_bits((value.to_bits() >> 16) as u16)).collect()),
            _ => Self::new(dtype, values),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => F32,
            Self::Bf16(_) => Bf16,
            Self::F16(_) => F16,
        }
    }

    fn widened(&self) -> Vec<f32> {
        with!(self, values => values.iter().map(|value| value.widen()).collect())
    }

    fn bytes(&self) -> &[u8] {
        with!(self, values => bytemuck::cast_slice(values))
    }
}

/// One period of each buffer.
#[derive(Clone)]
pub(crate) struct Pattern {
    params: Values,
    grads: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    copy: Option<Values>,
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
            copy: types.copy.map(|dtype| Values::new(dtype, std::iter::repeat_n(0.0, PERIOD))),
        }
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, coeffs: &StepCoeffs) {
        let (exp_avg, exp_avg_sq) = (&mut self.exp_avg[..], &mut self.exp_avg_sq[..]);
        let copy = match &mut self.copy {
            Some(Values::Bf16(values)) => Some(values.into()),
            Some(Values::F16(values)) => Some(values.into()),
            _ => None,
        };
        let params = with!(&mut self.params, values => values.into());
        let grads = with!(&self.grads, values => values.into());
        let tensor = cpu::Tensor { params, grads, exp_avg, exp_avg_sq, copy, set: 0 };
        cpu::step_list(&mut [tensor], std::slice::from_ref(coeffs)).expect("the lengths agree");
    }

    /// The triad on the CPU.
    pub(crate) fn triad(&mut self, factor: f32) {
        let grads = self.grads.widened();
        let blend = |values: &[f32]| -> Vec<f32> {
            values.iter().zip(&grads).map(|(value, grad)| factor.mul_add(*grad, *value)).collect()
        };
        (self.exp_avg, self.exp_avg_sq) = (blend(&self.exp_avg), blend(&self.exp_avg_sq));
        self.params = Values::cut(self.params.dtype(), blend(&self.params.widened()).into_iter());
        let params = self.params.widened();
        self.copy = self.copy.take().map(|copy| Values::cut(copy.dtype(), params.into_iter()));
    }

    /// In the order of [`Types::sizes`].
    pub(crate) fn bytes(&self) -> [&[u8]; 5] {
        let copy = self.copy.as_ref().map_or(&[][..], Values::bytes);
        let moment = |values| bytemuck::cast_slice::<f32, u8>(values);
        [self.params.bytes(), self.grads.bytes(), moment(&self.exp_avg), moment(&self.exp_avg_sq), copy]
    }
}
