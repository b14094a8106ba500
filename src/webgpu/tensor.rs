//! Tensors in the caller's wgpu buffers.

use crate::tensor::{Dtype, Formats, Role, TensorError, TensorProblem, Variant};

/// The elements of one role in a wgpu buffer.
///
/// # Example
///
/// ```no_run
/// use dualadam::Dtype;
/// use dualadam::webgpu::{Binding, wgpu};
///
/// # fn example(buffer: &wgpu::Buffer) {
/// let whole = Binding::new(buffer, Dtype::Bf16);
/// let from_4096_on = whole.with_offset(4096);
/// let within_a_slice = Binding::from_slice(buffer.slice(4096..8192), Dtype::Bf16);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding<'a> {
    /// The buffer, with [`wgpu::BufferUsages::STORAGE`].
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements begin, in bytes from the beginning of the buffer; a multiple of the
    /// device's `min_storage_buffer_offset_alignment`.
    pub offset: u64,
    /// The format of the elements. 16-bit ones lie in pairs, the first in the lower half of a
    /// 32-bit word.
    pub dtype: Dtype,
    /// Where the caller's slice begins and ends, in bytes from the beginning of the buffer.
    pub(super) slice: Option<(u64, u64)>,
}

impl<'a> Binding<'a> {
    /// The elements from the buffer's beginning on.
    #[must_use]
    pub const fn new(buffer: &'a wgpu::Buffer, dtype: Dtype) -> Self {
        Self { buffer, offset: 0, dtype, slice: None }
    }

    /// The elements of a slice, from its beginning on. All of the tensor must lie within the slice.
    #[must_use]
    pub fn from_slice(slice: wgpu::BufferSlice<'a>, dtype: Dtype) -> Self {
        let (buffer, offset) = (slice.buffer(), slice.offset());
        Self { buffer, offset, dtype, slice: Some((offset, offset + slice.size())) }
    }

    /// The elements from this byte of the buffer on.
    #[must_use]
    pub const fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }
}

/// One tensor's buffers on the device, all of one length.
///
/// An odd number of 16-bit elements ends in the middle of a word: the buffer must have the whole
/// word, whose other half stays as it is. An empty tensor's buffers are not looked at, nor are
/// those of a tensor without a gradient: it is skipped.
///
/// Two tensors, or several buffers of one, may lie in one [`wgpu::Buffer`] if they do not overlap.
///
/// # Example
///
/// bf16 parameters and gradients with f32 masters, all in one buffer:
///
/// ```no_run
/// use dualadam::Dtype;
/// use dualadam::webgpu::{Binding, Tensor, wgpu};
///
/// # fn example(buffer: &wgpu::Buffer) {
/// let len = 1024;
/// let f32_at = |offset| Binding::new(buffer, Dtype::F32).with_offset(offset);
/// let bf16_at = |offset| Binding::new(buffer, Dtype::Bf16).with_offset(offset);
/// let (param, grad) = (bf16_at(0), Some(bf16_at(2 * len)));
/// let (exp_avg, exp_avg_sq, master) = (f32_at(4 * len), f32_at(8 * len), f32_at(12 * len));
/// let tensor = Tensor::new(len, param, grad, exp_avg, exp_avg_sq).with_master(master);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// Elements.
    pub len: u64,
    /// The parameters, written; read where there is no master.
    pub param: Binding<'a>,
    /// The gradients, only read. Without any, the tensor is skipped.
    pub grad: Option<Binding<'a>>,
    /// The first moment, read and written.
    pub exp_avg: Binding<'a>,
    /// The second moment, read and written.
    pub exp_avg_sq: Binding<'a>,
    /// The f32 masters of 16-bit parameters, read and written.
    pub master: Option<Binding<'a>>,
    /// The index of the tensor's coefficients in the list of coefficients.
    pub coeffs_index: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor of `len` elements without masters, which uses the first coefficients.
    #[must_use]
    pub const fn new(
        len: u64,
        param: Binding<'a>,
        grad: Option<Binding<'a>>,
        exp_avg: Binding<'a>,
        exp_avg_sq: Binding<'a>,
    ) -> Self {
        Self { len, param, grad, exp_avg, exp_avg_sq, master: None, coeffs_index: 0 }
    }

    /// With masters.
    #[must_use]
    pub const fn with_master(self, master: Binding<'a>) -> Self {
        Self { master: Some(master), ..self }
    }

    /// With other coefficients.
    #[must_use]
    pub const fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// With other gradients, or none.
    #[must_use]
    pub const fn with_grad(self, grad: Option<Binding<'a>>) -> Self {
        Self { grad, ..self }
    }

    /// The format of each role. Missing gradients count as of the parameters' format.
    pub(super) fn formats(&self) -> Formats {
        Formats {
            param: self.param.dtype,
            grad: self.grad.unwrap_or(self.param).dtype,
            exp_avg: self.exp_avg.dtype,
            exp_avg_sq: self.exp_avg_sq.dtype,
            master: self.master.map(|master| master.dtype),
        }
    }

    /// The variant that steps the tensor, which is the `tensor`-th of a list; none if nothing does.
    pub(super) fn variant(&self, tensor: usize) -> Result<Option<Variant>, TensorError> {
        if self.grad.is_none() {
            return Ok(None);
        }
        let formats = self.formats();
        match Variant::of(formats) {
            Some(variant) => Ok(Some(variant).filter(|_| self.len > 0)),
            None => Err(TensorError::of_tensor(tensor, TensorProblem::Formats { formats })),
        }
    }

    /// The buffers in the order of [`Role::ALL`], which is that of the shaders' bindings.
    pub(super) fn bindings(&self) -> [Option<Binding<'a>>; Role::COUNT] {
        [Some(self.param), self.grad, Some(self.exp_avg), Some(self.exp_avg_sq), self.master]
    }
}
