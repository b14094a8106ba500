//! What the buffers hold: a periodic pattern, so that the host can compute what any element must
//! become.

use dualadam::half::bf16;
use dualadam::{Dtype, StepCoeffs, Variant};
use testkit::{Inputs, Tensor, Values};

pub(crate) use testkit::variant::named;

/// Elements of a pattern; a prime.
pub(crate) const PERIOD: usize = 65_521;

/// Bytes of an element of each role's buffer: param, grad, the moments, master.
pub(crate) fn sizes(variant: Variant) -> [usize; 5] {
    let formats = variant.formats();
    let master = formats.master.map_or(0, Dtype::size);
    [formats.param.size(), formats.grad.size(), formats.exp_avg.size(), formats.exp_avg_sq.size(), master]
}

/// Bytes that a step moves for an element: it writes all but the gradient, and reads all but the
/// parameter of a master.
pub(crate) fn bytes_moved(variant: Variant) -> usize {
    let [param, grad, exp_avg, exp_avg_sq, master] = sizes(variant);
    2 * (exp_avg + exp_avg_sq) + grad + if master > 0 { 2 * master + param } else { 2 * param }
}

/// Converts values as the triad does: to bf16 by cutting bits off.
fn cut(dtype: Dtype, values: &[f32]) -> Values {
    match dtype {
        Dtype::Bf16 => Values::Bf16(values.iter().map(|x| bf16::from_bits((x.to_bits() >> 16) as u16)).collect()),
        _ => Values::new(dtype, values),
    }
}

/// One period of each role's buffer.
#[derive(Clone)]
pub(crate) struct Pattern(Tensor);

impl Pattern {
    pub(crate) fn new(variant: Variant) -> Self {
        // Between -1 and 1; neighbours are far apart.
        let value = |i: usize, factor: usize| ((i * factor) % 2003) as f32 / 1001.5 - 1.0;
        let values = |factor| (0..PERIOD).map(|i| value(i, factor)).collect::<Vec<_>>();
        let v = values(13).iter().map(|value| value * value).collect();
        Self(Tensor::new(variant.formats(), &Inputs { p: values(7), grad: values(1201), m: values(11), v }))
    }

    /// The step on the CPU.
    pub(crate) fn step(&mut self, coeffs: &StepCoeffs) {
        self.0.step(&[*coeffs]);
    }

    /// The triad on the CPU.
    pub(crate) fn triad(&mut self, factor: f32) {
        let grad = self.0.grad.wide();
        let blend = |values: &Values| -> Vec<f32> {
            values.wide().iter().zip(&grad).map(|(value, grad)| factor.mul_add(*grad, *value)).collect()
        };
        let updated = blend(self.0.updated());
        let Tensor { param, exp_avg, exp_avg_sq, master, .. } = &mut self.0;
        (*exp_avg, *exp_avg_sq) = (Values::F32(blend(exp_avg)), Values::F32(blend(exp_avg_sq)));
        *param = cut(param.dtype(), &updated);
        *master = master.take().map(|_| Values::F32(updated));
    }

    /// In the order of [`sizes`].
    pub(crate) fn bytes(&self) -> [&[u8]; 5] {
        let contents = self.0.contents();
        [0, 1, 2, 3, 4].map(|role| contents.get(role).copied().unwrap_or_default())
    }
}
