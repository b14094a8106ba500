//! The parameters and gradients of a model, for tests of any backend's optimizer.

use dualadam::{ArgumentError, TensorSpec, cpu};

use crate::data::{Inputs, Noise};
use crate::values::Values;
use crate::variant::Formats;

#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub formats: Formats,
    pub len: usize,
    pub group: usize,
}

impl Spec {
    pub fn of_tensor(&self) -> TensorSpec {
        let spec = TensorSpec::new(self.len).in_group(self.group);
        if self.formats.master.is_some() { spec.with_master() } else { spec }
    }
}

#[derive(Debug, Clone)]
pub struct Model {
    pub specs: Vec<Spec>,
    pub params: Vec<Values>,
    draw: Draw,
}

/// Makes the given number of values from a seed.
pub type Draw = fn(u64, usize) -> Vec<f32>;

/// Of magnitudes from 1e-6 to 1e2.
pub fn wide(seed: u64, len: usize) -> Vec<f32> {
    Inputs::random(seed, len).p
}

/// In -1..1.
pub fn small(seed: u64, len: usize) -> Vec<f32> {
    let mut noise = Noise(seed);
    (0..len).map(|_| noise.unit()).collect()
}

impl Model {
    pub fn new(specs: &[Spec], draw: Draw) -> Self {
        let params = |(seed, spec): (u64, &Spec)| Values::new(spec.formats.param, &draw(seed, spec.len));
        Self { specs: specs.to_vec(), params: (0..).zip(specs).map(params).collect(), draw }
    }

    pub fn tensor_specs(&self) -> Vec<TensorSpec> {
        self.specs.iter().map(Spec::of_tensor).collect()
    }

    /// The gradients of a round, of the tensors for which `has` is true. They depend on the round
    /// and the tensor alone.
    pub fn grads(&self, round: u64, has: impl Fn(usize) -> bool) -> Vec<Option<Values>> {
        let of = |(tensor, spec): (usize, &Spec)| {
            let seed = (round + 1) << 32 | (tensor as u64) << 16;
            has(tensor).then(|| Values::new(spec.formats.grad, &(self.draw)(seed, spec.len)))
        };
        self.specs.iter().enumerate().map(of).collect()
    }

    /// A step of the CPU backend's optimizer.
    pub fn step(
        &mut self,
        optimizer: &mut cpu::DualAdam,
        grads: &[Option<Values>],
        multiplier: f64,
    ) -> Result<(), ArgumentError> {
        let grads = grads.iter().map(|grads| grads.as_ref().map(|values| values.buffer(0..values.len())));
        optimizer.step_scaled(self.params.iter_mut().map(Values::all_mut), grads, multiplier)
    }
}
