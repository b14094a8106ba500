//! Elements whose type is known at run time.

use std::ops::Range;

use bytemuck::Pod;
use dualadam::half::{bf16, f16};
use dualadam::{Dtype, Element, cpu};

use crate::contract::same;
use crate::data::narrow;

/// The filling around a buffer's elements, and the old content of buffers that a step only writes.
pub const FILL: f32 = 77.0;
/// Elements of filling behind a buffer.
pub const BEHIND: usize = 5;

#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// Runs the same expression on the vector, whatever its type.
macro_rules! each {
    ($values:expr, $vector:ident => $result:expr) => {
        match $values {
            Values::F32($vector) => $result,
            Values::Bf16($vector) => $result,
            Values::F16($vector) => $result,
        }
    };
}

impl Values {
    /// The values narrowed to the type.
    pub fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(narrow(values)),
            Dtype::F16 => Self::F16(narrow(values)),
            other => panic!("no values of {other}"),
        }
    }

    /// Values of a 16-bit type from their bits.
    pub fn from_bits(dtype: Dtype, bits: &[u16]) -> Self {
        let mut values = Self::new(dtype, &vec![0.0; bits.len()]);
        values.bytes_mut().copy_from_slice(bytemuck::cast_slice(bits));
        values
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F16(_) => Dtype::F16,
        }
    }

    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> &[u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, values => bytemuck::cast_slice_mut(values))
    }

    /// The values widened.
    pub fn wide(&self) -> Vec<f32> {
        each!(self, values => values.iter().map(|value| value.widen()).collect())
    }

    pub fn at(&self, index: usize) -> f32 {
        each!(self, values => values[index].widen())
    }

    /// Other values of the same type.
    pub fn map(&mut self, change: impl Fn(f32) -> f32) {
        *self = Self::new(self.dtype(), &self.wide().into_iter().map(change).collect::<Vec<_>>());
    }

    /// The values with filling around them.
    pub fn padded(&self, before: usize) -> Self {
        Self::new(self.dtype(), &[&vec![FILL; before], &self.wide()[..], &[FILL; BEHIND]].concat())
    }

    /// Narrows values into the elements from `start` on.
    pub fn write(&mut self, start: usize, values: &[f32]) {
        each!(self, own => own[start..].iter_mut().zip(values).for_each(|(own, value)| *own = Element::narrow(*value)));
    }

    /// The elements, or `None` if they are of another type.
    pub fn typed<T: Element + Pod>(&self) -> Option<&[T]> {
        (self.dtype() == T::DTYPE).then(|| bytemuck::cast_slice(self.bytes()))
    }

    pub fn typed_mut<T: Element + Pod>(&mut self) -> Option<&mut [T]> {
        (self.dtype() == T::DTYPE).then(|| bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    pub fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(values.split_off(at)),
            Self::Bf16(values) => Self::Bf16(values.split_off(at)),
            Self::F16(values) => Self::F16(values.split_off(at)),
        }
    }

    /// All elements, as the CPU backend writes them.
    pub fn all_mut(&mut self) -> cpu::BufferMut<'_> {
        self.buffer_mut(0..self.len())
    }

    pub fn buffer_mut(&mut self, range: Range<usize>) -> cpu::BufferMut<'_> {
        each!(self, values => (&mut values[range]).into())
    }

    pub fn buffer(&self, range: Range<usize>) -> cpu::Buffer<'_> {
        each!(self, values => (&values[range]).into())
    }

    pub fn floats(&mut self) -> &mut [f32] {
        match self {
            Self::F32(values) => values,
            _ => panic!("the values are not f32"),
        }
    }

    /// The first element that differs. All NaNs count as the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (found, expected) = (self.wide(), other.wide());
        let at = found.iter().zip(&expected).position(|(&a, &b)| !same(a, b));
        let lens =
            (found.len() != expected.len()).then(|| format!(": {} elements, not {}", found.len(), expected.len()));
        at.map(|at| format!("[{at}]: {:e}, not {:e}", found[at], expected[at])).or(lens)
    }
}
