//! Layouts: whether tensors fill their memory, and in the same order.

use crate::dlpack::Tensor;

/// The most dimensions that a tensor can have. It is torch's limit.
const MOST: usize = 64;

/// Whether every element has an address of its own, with no gaps between them.
pub(crate) fn is_dense(tensor: &Tensor) -> bool {
    let Some(strides) = tensor.strides() else { return true };
    if is_row_major(tensor.shape(), strides) || tensor.len() == 0 {
        return true;
    }
    let mut places = [(0_i64, 0_i64); MOST];
    let mut count = 0;
    for (&extent, &stride) in tensor.shape().iter().zip(strides).filter(|&(&extent, _)| extent != 1) {
        let Some(place) = places.get_mut(count) else { return false };
        *place = (stride, extent);
        count += 1;
    }
    let places = &mut places[..count];
    places.sort_unstable();
    let mut expected = 1;
    places.iter().all(|&(stride, extent)| {
        let fits = stride == expected;
        expected *= extent;
        fits
    })
}

/// The strides, also those of a producer that leaves them out.
pub(crate) fn strides_of(tensor: &Tensor) -> Vec<i64> {
    let row_major = || {
        let shape = tensor.shape();
        let mut strides = vec![1_i64; shape.len()];
        for index in (1..shape.len()).rev() {
            strides[index - 1] = strides[index].saturating_mul(shape[index]);
        }
        strides
    };
    tensor.strides().map_or_else(row_major, <[i64]>::to_vec)
}

fn is_row_major(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == expected;
        expected *= extent;
        fits
    })
}

/// The most dimensions that a [`Layout`] has. Each step looks at tensors with more as at new ones.
const REMEMBERED: usize = 5;

/// A shape and its strides.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    ndim: usize,
    shape: [i64; REMEMBERED],
    strides: [i64; REMEMBERED],
}

impl Layout {
    /// The layout of a tensor, if it has strides and few enough dimensions.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        let (shape, strides) = (tensor.shape(), tensor.strides()?);
        let mut layout = Self { ndim: shape.len(), ..Self::default() };
        layout.shape.get_mut(..shape.len())?.copy_from_slice(shape);
        layout.strides.get_mut(..shape.len())?.copy_from_slice(strides);
        Some(layout)
    }

    /// Whether a tensor has this shape and these strides.
    #[inline]
    pub(crate) fn is_of(&self, tensor: &Tensor) -> bool {
        let ndim = self.ndim;
        is_equal(&self.shape[..ndim], tensor.shape())
            && tensor.strides().is_some_and(|strides| is_equal(&self.strides[..ndim], strides))
    }
}

/// Whether two short slices are equal. A call of memcmp would take longer.
#[inline]
fn is_equal(a: &[i64], b: &[i64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

/// Whether two tensors have the same shape, and each element at the same offset.
#[inline]
pub(crate) fn is_same(a: &Tensor, b: &Tensor) -> bool {
    if !is_equal(a.shape(), b.shape()) {
        return false;
    }
    match (a.strides(), b.strides()) {
        (Some(a_strides), Some(b_strides)) if is_equal(a_strides, b_strides) => true,
        (None, None) => true,
        (a_strides, b_strides) => {
            // The stride of a dimension with one element does not matter, and a tensor in row-major
            // order may have no strides.
            let (mut row_major, mut same) = (1, true);
            for (index, &extent) in a.shape().iter().enumerate().rev() {
                let of = |strides: Option<&[i64]>| strides.map_or(row_major, |strides| strides[index]);
                same &= extent == 1 || of(a_strides) == of(b_strides);
                row_major *= extent;
            }
            same || a.len() == 0
        }
    }
}
