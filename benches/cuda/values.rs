//! What the buffers hold: patterns of a period, so that the host can tell what any element must become.

use dualadam::half::{bf16, f16};
use dualadam::{Dtype, Element, StepCoeffs, Variant, cpu};

use Dtype::{Bf16, F16, F32};

/// Elements of a pattern; a prime.
pub(crate) const PERIOD: usize = 65_521;

/// The variant of a name.
pub(crate) fn named(name: &str) -> Variant {
    Variant::all().find(|variant| variant.name() == name).expect("the variant is there")
}

/// Bytes of an element of each role's buffer: param, grad, the moments, master.
pub(crate) fn sizes(variant: Variant) -> [usize; 5] {
    let formats = variant.formats();
    let master = formats.master.map_or(0, Dtype::size);
    [formats.param.size(), formats.grad.size(), formats.exp_avg.size(), formats.exp_avg_sq.size(), master]
}

/// Bytes that a step moves for an element: all but the gradient is written, all but a master's
/// parameter is read.
pub(crate) fn bytes_moved(variant: Variant) -> usize {
    let [param, grad, exp_avg, exp_avg_sq, master] = sizes(variant);
    2 * (exp_avg + exp_avg_sq) + grad + if master > 0 { 2 * master + param } else { 2 * param }
}

/// A variant as the backends' calls have it: the type of what is updated, of the gradient, and of its copy.
pub(crate) fn types(variant: Variant) -> (Dtype, Dtype, Option<Dtype>) {
    let formats = variant.formats();
    (formats.master.unwrap_or(formats.param), formats.grad, formats.master.map(|_| formats.param))
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

/// One period of each role's buffer. The moments are f32, and so is a master.
#[derive(Clone)]
pub(crate) struct Pattern {
    param: Values,
    grad: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    master: Option<Vec<f32>>,
}

impl Pattern {
    pub(crate) fn new(variant: Variant) -> Self {
        let formats = variant.formats();
        // Between -1 and 1; neighbours are far apart.
        let value = |i: usize, factor: usize| ((i * factor) % 2003) as f32 / 1001.5 - 1.0;
        let values = |factor| (0..PERIOD).map(move |i| value(i, factor));
        let (param, master) = match formats.master {
            None => (Values::new(formats.param, values(7)), None),
            Some(_) => (Values::new(formats.param, std::iter::repeat_n(0.0, PERIOD)), Some(values(7).collect())),
        };
        Self {
            param,
            grad: Values::new(formats.grad, values(1201)),
            exp_avg: values(11).collect(),
            exp_avg_sq: values(13).map(|value| value * value).collect(),
            master,
        }
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, coeffs: &StepCoeffs) {
        let (exp_avg, exp_avg_sq) = (&mut self.exp_avg[..], &mut self.exp_avg_sq[..]);
        let grads = with!(&self.grad, values => values.into());
        let (params, copy) = match (&mut self.master, &mut self.param) {
            (None, param) => (with!(param, values => values.into()), None),
            (Some(master), Values::Bf16(values)) => (master.into(), Some(values.into())),
            (Some(master), Values::F16(values)) => (master.into(), Some(values.into())),
            (Some(_), Values::F32(_)) => panic!("the parameter of a master has 16 bits"),
        };
        let tensor = cpu::Tensor { params, grads, exp_avg, exp_avg_sq, copy, set: 0 };
        cpu::step_list(&mut [tensor], std::slice::from_ref(coeffs)).expect("the lengths agree");
    }

    /// The triad on the CPU.
    pub(crate) fn triad(&mut self, factor: f32) {
        let grad = self.grad.widened();
        let blend = |values: &[f32]| -> Vec<f32> {
            values.iter().zip(&grad).map(|(value, grad)| factor.mul_add(*grad, *value)).collect()
        };
        (self.exp_avg, self.exp_avg_sq) = (blend(&self.exp_avg), blend(&self.exp_avg_sq));
        self.master = self.master.take().map(|master| blend(&master));
        let param = self.master.clone().unwrap_or_else(|| blend(&self.param.widened()));
        self.param = Values::cut(self.param.dtype(), param.into_iter());
    }

    /// In the order of [`sizes`].
    pub(crate) fn bytes(&self) -> [&[u8]; 5] {
        let floats = |values| bytemuck::cast_slice::<f32, u8>(values);
        let master = self.master.as_deref().map_or(&[][..], floats);
        [self.param.bytes(), self.grad.bytes(), floats(&self.exp_avg), floats(&self.exp_avg_sq), master]
    }
}
