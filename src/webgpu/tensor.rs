//! Tensors in wgpu buffers of the caller.

use crate::tensor::{Dtype, Formats, Role, TensorError, TensorProblem, Variant};

/// The elements of one role of a tensor, in a wgpu buffer.
///
/// # Examples
///
/// ```
/// use dualadam::Dtype;
/// use dualadam::webgpu::Binding;
///
/// # let (device, queue) = testkit::webgpu_or_return!();
/// # let buffer = testkit::webgpu_buffer!(device, [0.0_f32; 2048]);
/// // `buffer` has 8,192 bytes.
/// let from_start = Binding::new(&buffer, Dtype::Bf16);
/// let from_4096 = from_start.with_offset(4096);
/// let in_a_slice = Binding::from_slice(buffer.slice(4096..8192), Dtype::Bf16);
/// assert_eq!(in_a_slice.offset, from_4096.offset);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding<'a> {
    /// The buffer, with [`wgpu::BufferUsages::STORAGE`].
    pub buffer: &'a wgpu::Buffer,
    /// The offset of the first element in the buffer, in bytes: a multiple of the device's
    /// `min_storage_buffer_offset_alignment`.
    pub offset: u64,
    /// The type of the elements. 16-bit elements lie in pairs in 32-bit words, the first in the
    /// lower half.
    pub dtype: Dtype,
    /// The start and end of the caller's slice in the buffer, in bytes.
    pub(super) slice: Option<(u64, u64)>,
}

impl<'a> Binding<'a> {
    /// The elements from the start of a buffer on.
    #[must_use]
    pub const fn new(buffer: &'a wgpu::Buffer, dtype: Dtype) -> Self {
        Self { buffer, offset: 0, dtype, slice: None }
    }

    /// The elements from the start of a slice on. The tensor must lie within the slice.
    #[must_use]
    pub fn from_slice(slice: wgpu::BufferSlice<'a>, dtype: Dtype) -> Self {
        let (buffer, offset) = (slice.buffer(), slice.offset());
        Self { buffer, offset, dtype, slice: Some((offset, offset + slice.size())) }
    }

    /// Sets the offset of the first element in the buffer, in bytes.
    #[must_use]
    pub const fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }
}

/// The buffers of one tensor, all of one length.
///
/// - Several tensors, or several roles of one, may lie in one [`wgpu::Buffer`] if they do not
///   overlap.
/// - An odd number of 16-bit elements ends in the middle of a 32-bit word. The buffer must have the
///   whole word; its other half keeps its value.
/// - The buffers of an empty tensor, and of a tensor without a gradient, are not looked at.
///
/// # Examples
///
/// bf16 parameters and gradients with f32 masters, all in one buffer:
///
/// ```
/// use dualadam::Dtype;
/// use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList};
///
/// # let (device, queue) = testkit::webgpu_or_return!();
/// # let buffer = testkit::webgpu_buffer!(device, [0.0_f32; 4 * 1024]);
/// let len = 1024;
/// let f32_at = |offset| Binding::new(&buffer, Dtype::F32).with_offset(offset);
/// let bf16_at = |offset| Binding::new(&buffer, Dtype::Bf16).with_offset(offset);
/// let (param, grad) = (bf16_at(0), Some(bf16_at(2 * len)));
/// let (exp_avg, exp_avg_sq, master) = (f32_at(4 * len), f32_at(8 * len), f32_at(12 * len));
/// let tensor = Tensor::new(len, param, grad, exp_avg, exp_avg_sq).with_master(master);
/// let list = TensorList::new(&Pipelines::new(&device)?, &[tensor])?;
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// The number of elements.
    pub len: u64,
    /// The parameters: f32, bf16 or f16. Written; read unless there are masters.
    pub param: Binding<'a>,
    /// The gradients: f32, or the type of `param`, or bf16 or f16 beside f32. Read. `None` skips
    /// the tensor.
    pub grad: Option<Binding<'a>>,
    /// The first moment: f32. Read and written.
    pub exp_avg: Binding<'a>,
    /// The second moment: f32. Read and written.
    pub exp_avg_sq: Binding<'a>,
    /// The f32 masters of bf16 or f16 parameters, if there are any. Read and written.
    pub master: Option<Binding<'a>>,
    /// The index of the tensor's coefficients in the coefficients of a step.
    pub coeffs_index: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor of `len` elements without masters, which uses the coefficients with index 0.
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

    /// Adds f32 masters.
    #[must_use]
    pub const fn with_master(self, master: Binding<'a>) -> Self {
        Self { master: Some(master), ..self }
    }

    /// Sets the index of the coefficients.
    #[must_use]
    pub const fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// Replaces or removes the gradients.
    #[must_use]
    pub const fn with_grad(self, grad: Option<Binding<'a>>) -> Self {
        Self { grad, ..self }
    }

    /// The format of each role. Missing gradients count as gradients of the parameters' format.
    pub(super) fn formats(&self) -> Formats {
        Formats {
            param: self.param.dtype,
            grad: self.grad.unwrap_or(self.param).dtype,
            exp_avg: self.exp_avg.dtype,
            exp_avg_sq: self.exp_avg_sq.dtype,
            master: self.master.map(|master| master.dtype),
        }
    }

    /// The variant of the tensor at the position `tensor`. `None` if the tensor is skipped or
    /// empty.
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
