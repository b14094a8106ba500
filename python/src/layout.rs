//! Whether tensors fill their memory, and in the same order.

use crate::dlpack::Tensor;

/// Dimensions that tensors have at most: torch's limit is 64.
const MOST: usize = 64;

/// Whether every element lies at an address of its own and there is no gap between them.
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

fn is_row_major(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == expected;
        expected *= extent;
        fits
    })
}

/// Dimensions of a layout that is remembered at most; others are looked at each time.
const REMEMBERED: usize = 5;

/// A shape, and the places of its elements.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    ndim: usize,
    shape: [i64; REMEMBERED],
    strides: [i64; REMEMBERED],
}

impl Layout {
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        let (shape, strides) = (tensor.shape(), tensor.strides()?);
        let mut layout = Self { ndim: shape.len(), ..Self::default() };
        layout.shape.get_mut(..shape.len())?.copy_from_slice(shape);
        layout.strides.get_mut(..shape.len())?.copy_from_slice(strides);
        Some(layout)
    }

    /// Whether a tensor has this very shape and these strides.
    #[inline]
    pub(crate) fn is_of(&self, tensor: &Tensor) -> bool {
        let ndim = self.ndim;
        is_equal(&self.shape[..ndim], tensor.shape())
            && tensor.strides().is_some_and(|strides| is_equal(&self.strides[..ndim], strides))
    }
}

/// Of a few numbers, for which a call of memcmp is long.
#[inline]
fn is_equal(a: &[i64], b: &[i64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

/// Whether two tensors have one shape, and the same place in memory for each element.
#[inline]
pub(crate) fn is_same(a: &Tensor, b: &Tensor) -> bool {
    if !is_equal(a.shape(), b.shape()) {
        return false;
    }
    match (a.strides(), b.strides()) {
        (Some(a_strides), Some(b_strides)) if is_equal(a_strides, b_strides) => true,
        (None, None) => true,
        (a_strides, b_strides) => {
            // Strides along one element mean nothing, and a tensor may leave those of row-major order out.
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
