//! A tensor on the host, of any variant.

use std::ops::Range;

use bytemuck::Pod;
use dualadam::{Element, GradOf, HalfElement, RawBuffer, RawTensor, Role, StepCoeffs, TensorError, cpu};

use crate::contract::{self, Element as Contract};
use crate::data::{Inputs, Noise};
use crate::values::{BEHIND, FILL, Values};
use crate::variant::Formats;

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub param: Values,
    pub grad: Values,
    pub exp_avg: Values,
    pub exp_avg_sq: Values,
    pub master: Option<Values>,
    /// Elements of filling before each buffer.
    pub offsets: [usize; 5],
    /// Elements of filling behind each buffer.
    pub behind: usize,
    /// The index of its coefficient set.
    pub set: usize,
}

impl Tensor {
    /// A tensor without filling. Parameters that have a master are only written, so they hold
    /// [`FILL`] and not the inputs.
    pub fn new(formats: Formats, inputs: &Inputs) -> Self {
        let param = if formats.master.is_some() { &vec![FILL; inputs.len()] } else { &inputs.p };
        Self {
            param: Values::new(formats.param, param),
            grad: Values::new(formats.grad, &inputs.grad),
            exp_avg: Values::new(formats.exp_avg, &inputs.m),
            exp_avg_sq: Values::new(formats.exp_avg_sq, &inputs.v),
            master: formats.master.map(|dtype| Values::new(dtype, &inputs.p)),
            offsets: [0; 5],
            behind: 0,
            set: 0,
        }
    }

    /// These parameters before their first step. Masters, if any, are set.
    pub fn fresh(formats: Formats, param: &Values) -> Self {
        Self { param: param.clone(), ..Self::new(formats, &Inputs::parameters(param.wide())) }
    }

    /// A tensor with filling around its buffers, which no step may change.
    pub fn padded(formats: Formats, inputs: &Inputs, offsets: [usize; 5]) -> Self {
        let mut tensor = Self { offsets, behind: BEHIND, ..Self::new(formats, inputs) };
        for (values, offset) in tensor.buffers_mut().into_iter().zip(offsets) {
            *values = values.padded(offset);
        }
        tensor
    }

    /// Makes filling of all elements of a tensor without filling, except these. No step may change
    /// filling.
    pub fn window(self, part: Range<usize>) -> Self {
        Self { offsets: [part.start; 5], behind: self.len() - part.end, ..self }
    }

    /// Numbers that any step would change.
    pub fn filled(formats: Formats, len: usize) -> Self {
        let values = filled(len);
        Self::new(formats, &Inputs { p: values.clone(), grad: values.clone(), m: values.clone(), v: values })
    }

    /// Random values, special ones included.
    pub fn random(formats: Formats, len: usize, seed: u64) -> Self {
        let noise = &mut Noise(seed);
        let mut values = || (0..len).map(|_| noise.any()).collect::<Vec<_>>();
        let inputs = Inputs { p: values(), grad: values(), m: values(), v: values().iter().map(|v| v.abs()).collect() };
        Self::new(formats, &inputs)
    }

    pub fn with_set(self, set: usize) -> Self {
        Self { set, ..self }
    }

    pub fn len(&self) -> usize {
        self.range(0).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its buffers in the order of [`Role::ALL`], with the master only if there is one.
    pub fn buffers(&self) -> Vec<&Values> {
        [&self.param, &self.grad, &self.exp_avg, &self.exp_avg_sq].into_iter().chain(&self.master).collect()
    }

    pub fn buffers_mut(&mut self) -> Vec<&mut Values> {
        let Self { param, grad, exp_avg, exp_avg_sq, master, .. } = self;
        [param, grad, exp_avg, exp_avg_sq].into_iter().chain(master).collect()
    }

    /// The buffer that a step updates: the masters if there are any, else the parameters.
    pub fn updated(&self) -> &Values {
        self.master.as_ref().unwrap_or(&self.param)
    }

    /// Where the elements of a buffer are.
    pub fn range(&self, buffer: usize) -> Range<usize> {
        self.offsets[buffer]
            ..self.buffers().get(buffer).map_or(self.offsets[buffer], |values| values.len() - self.behind)
    }

    fn ranges(&self) -> [Range<usize>; 5] {
        [0, 1, 2, 3, 4].map(|buffer| self.range(buffer))
    }

    /// Replaces its gradients, with the same filling around them.
    pub fn set_grads(&mut self, values: &[f32]) {
        let grad = Values::new(self.grad.dtype(), values);
        self.grad = if self.behind > 0 { grad.padded(self.offsets[1]) } else { grad };
    }

    /// The tensor as the CPU backend's list takes it.
    pub fn cpu(&mut self) -> cpu::Tensor<'_> {
        let [param, grad, exp_avg, exp_avg_sq, master] = self.ranges();
        let moments = (self.exp_avg.buffer_mut(exp_avg), self.exp_avg_sq.buffer_mut(exp_avg_sq));
        let tensor = cpu::Tensor::new(self.param.buffer_mut(param), self.grad.buffer(grad), moments.0, moments.1);
        let tensor = tensor.with_coeffs_index(self.set);
        match &mut self.master {
            Some(values) => tensor.with_master(values.buffer_mut(master)),
            None => tensor,
        }
    }

    /// Parameters and gradients as the CPU backend's optimizer takes them.
    pub fn param_and_grad(&mut self) -> (cpu::BufferMut<'_>, cpu::Buffer<'_>) {
        let [param, grad, ..] = self.ranges();
        (self.param.buffer_mut(param), self.grad.buffer(grad))
    }

    /// Steps it as a list of the CPU backend.
    pub fn step(&mut self, sets: &[StepCoeffs]) {
        cpu::step_list(&mut [self.cpu()], sets).unwrap();
    }

    /// Steps it by the CPU backend's flat call for its types.
    pub fn step_flat(&mut self, coeffs: &StepCoeffs) -> Result<(), TensorError> {
        type Step = fn(&mut Tensor, &StepCoeffs) -> Option<Result<(), TensorError>>;
        let steps: &[Step] = &for_each_variant!(step, step_master);
        steps.iter().find_map(|step| step(self, coeffs)).expect("the types are those of a variant")
    }

    /// Brings its masters up to date by the CPU backend's call for its types.
    pub fn sync_master(&mut self) -> Result<(), TensorError> {
        let [param, .., master] = self.ranges();
        let masters = &mut self.master.as_mut().expect("the tensor has masters").floats()[master];
        match &self.param {
            Values::Bf16(params) => cpu::sync_master(&params[param], masters),
            Values::F16(params) => cpu::sync_master(&params[param], masters),
            Values::F32(_) => panic!("f32 has no masters"),
        }
    }

    /// Steps it exactly as the contract states.
    pub fn step_by_contract(&mut self, coeffs: &StepCoeffs) {
        let [param, grads, exp_avg, exp_avg_sq, master] = self.offsets;
        let (values, start) = self.master.as_ref().map_or((&self.param, param), |values| (values, master));
        let (old, grad, mut new) = (values.wide(), self.grad.wide(), vec![]);
        for i in 0..self.len() {
            let (m, v) = (&mut self.exp_avg.floats()[exp_avg + i], &mut self.exp_avg_sq.floats()[exp_avg_sq + i]);
            let x = contract::update(coeffs, Contract { p: old[start + i], m: *m, v: *v }, grad[grads + i]);
            (*m, *v) = (x.m, x.v);
            new.push(x.p);
        }
        self.param.write(param, &new);
        self.master.iter_mut().for_each(|values| values.write(master, &new));
    }

    /// The tensor by its addresses in the host's memory.
    pub fn raw(&mut self) -> RawTensor {
        let mut addresses = [0; 5];
        for (values, address) in self.buffers_mut().into_iter().zip(&mut addresses) {
            *address = values.bytes_mut().as_mut_ptr().expose_provenance() as u64;
        }
        self.raw_at(addresses)
    }

    /// The tensor by these addresses, at which its buffers begin with their filling.
    pub fn raw_at(&self, addresses: [u64; 5]) -> RawTensor {
        let buffer = |i: usize, values: &Values| {
            RawBuffer::new(addresses[i] + (self.offsets[i] * values.dtype().size()) as u64, values.dtype())
        };
        let [param, grad] = [buffer(0, &self.param), buffer(1, &self.grad)];
        let [exp_avg, exp_avg_sq] = [buffer(2, &self.exp_avg), buffer(3, &self.exp_avg_sq)];
        let mut tensor = RawTensor::new(self.len() as u64, param, grad, exp_avg, exp_avg_sq);
        tensor.master = self.master.as_ref().map(|values| buffer(4, values));
        tensor.with_coeffs_index(self.set)
    }

    /// The bytes of each buffer.
    pub fn contents(&self) -> Vec<&[u8]> {
        self.buffers().into_iter().map(Values::bytes).collect()
    }

    /// Where a buffer or its filling differs. All NaNs count as the same.
    pub fn difference(&self, expected: &Self) -> Option<String> {
        let mut pairs = self.buffers().into_iter().zip(expected.buffers()).zip(Role::ALL.iter().copied());
        let differs = |((found, expected), name): ((&Values, &Values), _)| {
            Some(format!("{}: {name}{}", self.types(), found.difference(expected)?))
        };
        pairs.find_map(differs)
    }

    #[track_caller]
    pub fn assert_same(&self, expected: &Self, what: &str) {
        let difference = self.difference(expected);
        assert!(difference.is_none(), "{what}, {}", difference.unwrap_or_default());
    }

    /// Refills one of its buffers, of the same type, with this many elements of the values of
    /// [`Tensor::filled`].
    pub fn resize(&mut self, buffer: usize, len: usize) {
        let values = &mut *self.buffers_mut()[buffer];
        *values = Values::new(values.dtype(), &filled(len));
    }

    /// A description for messages.
    pub fn types(&self) -> String {
        let dtypes: Vec<_> = self.buffers().iter().map(|values| values.dtype().to_string()).collect();
        format!("{}, {} elements, offsets {:?}", dtypes.join("/"), self.len(), self.offsets)
    }

    /// Cuts a tensor without filling in two.
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut rest = self.clone();
        for (rest, values) in rest.buffers_mut().into_iter().zip(self.buffers_mut()) {
            *rest = values.split_off(at);
        }
        rest
    }
}

/// The tensor with each address replaced by `change` of that address and the size of an element.
pub fn map_addresses(tensor: RawTensor, change: impl Fn(u64, usize) -> u64) -> RawTensor {
    let at = |buffer: RawBuffer| RawBuffer::new(change(buffer.address, buffer.dtype.size()), buffer.dtype);
    let RawTensor { len, param, grad, exp_avg, exp_avg_sq, master, coeffs_index, .. } = tensor;
    let mut tensor = RawTensor::new(len, at(param), at(grad), at(exp_avg), at(exp_avg_sq));
    (tensor.master, tensor.coeffs_index) = (master.map(at), coeffs_index);
    tensor
}

fn filled(len: usize) -> Vec<f32> {
    (0..len).map(|i| 0.5 + i as f32).collect()
}

fn step<P: Element + Pod, G: GradOf<P> + Pod>(
    tensor: &mut Tensor,
    coeffs: &StepCoeffs,
) -> Option<Result<(), TensorError>> {
    let [param, grad, exp_avg, exp_avg_sq, _] = tensor.ranges();
    let Tensor { param: p, grad: g, exp_avg: m, exp_avg_sq: v, master: None, .. } = tensor else { return None };
    let (p, g) = (p.typed_mut::<P>()?, g.typed::<G>()?);
    Some(cpu::step(&mut p[param], &g[grad], &mut m.floats()[exp_avg], &mut v.floats()[exp_avg_sq], coeffs))
}

fn step_master<P: HalfElement + Pod, G: GradOf<P> + Pod>(
    tensor: &mut Tensor,
    coeffs: &StepCoeffs,
) -> Option<Result<(), TensorError>> {
    let [param, grad, exp_avg, exp_avg_sq, master] = tensor.ranges();
    let Tensor { param: p, grad: g, exp_avg: m, exp_avg_sq: v, master: Some(w), .. } = tensor else { return None };
    let (p, g, w) = (p.typed_mut::<P>()?, g.typed::<G>()?, &mut w.floats()[master]);
    let (m, v) = (&mut m.floats()[exp_avg], &mut v.floats()[exp_avg_sq]);
    Some(cpu::step_with_master(&mut p[param], &g[grad], m, v, w, coeffs))
}
