//! Tensors as views of the caller's buffers.

use crate::{Dtype, Error};

use crate::combination::Variant;

/// The elements of a parameter, a gradient or a copy in a buffer of the caller's.
///
/// # Example
///
/// ```no_run
/// use dualadam::Dtype;
/// use dualadam::webgpu::{BufferView, wgpu};
///
/// # fn example(buffer: &wgpu::Buffer) {
/// let whole = BufferView::new(buffer, Dtype::Bf16);
/// let behind = BufferView { offset: 4096, ..whole };
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferView<'a> {
    /// The buffer, with [`wgpu::BufferUsages::STORAGE`].
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements begin, in bytes; a multiple of the device's `min_storage_buffer_offset_alignment`.
    pub offset: u64,
    /// The type of the elements. 16-bit ones lie in pairs, the first in the lower half of a 32-bit word.
    pub dtype: Dtype,
}

impl<'a> BufferView<'a> {
    /// The elements from the buffer's beginning.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, dtype: Dtype) -> Self {
        Self { buffer, offset: 0, dtype }
    }
}

/// The f32 elements of a moment in a buffer of the caller's.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{Moment, wgpu};
///
/// # fn example(moments: &wgpu::Buffer) {
/// let exp_avg = Moment::new(moments);
/// let exp_avg_sq = Moment { buffer: moments, offset: moments.size() / 2 };
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment<'a> {
    /// The buffer, with [`wgpu::BufferUsages::STORAGE`].
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements begin, in bytes; a multiple of the device's `min_storage_buffer_offset_alignment`.
    pub offset: u64,
}

impl<'a> Moment<'a> {
    /// The elements from the buffer's beginning.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0 }
    }
}

/// One tensor's buffers on the device, all of one length.
///
/// An odd number of 16-bit elements ends in the middle of a word: the buffer must have the whole word, whose other half stays as it
/// is. An empty tensor's buffers are not looked at, nor are those of a tensor without a gradient.
///
/// Two tensors, or several buffers of one, may lie in one [`wgpu::Buffer`], if they do not overlap.
///
/// # Example
///
/// f32 masters with bf16 gradients and a bf16 copy, all in one buffer:
///
/// ```no_run
/// use dualadam::Dtype;
/// use dualadam::webgpu::{BufferView, Moment, Tensor, wgpu};
///
/// # fn example(buffer: &wgpu::Buffer) {
/// let len = 1024;
/// let view = |offset, dtype| BufferView { buffer, offset, dtype };
/// let moment = |offset| Moment { buffer, offset };
/// let tensor = Tensor {
///     params: view(0, Dtype::F32),
///     exp_avg: moment(4 * len),
///     exp_avg_sq: moment(8 * len),
///     grads: Some(view(12 * len, Dtype::Bf16)),
///     copy: Some(view(14 * len, Dtype::Bf16)),
///     len,
///     set: 0,
/// };
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// The parameters, read and written; the f32 masters where there is a copy.
    pub params: BufferView<'a>,
    /// The gradients, only read. Without any the tensor is left alone.
    pub grads: Option<BufferView<'a>>,
    /// The first moment, read and written.
    pub exp_avg: Moment<'a>,
    /// The second moment, read and written.
    pub exp_avg_sq: Moment<'a>,
    /// The 16-bit copy that f32 masters keep of the new parameters, only written.
    pub copy: Option<BufferView<'a>>,
    /// Elements.
    pub len: u64,
    /// Index of the tensor's coefficients in the list of sets.
    pub set: usize,
}

impl<'a> Tensor<'a> {
    /// The combination of types that steps the tensor, or none if nothing does.
    pub(super) fn variant(&self, tensor: usize) -> Result<Option<Variant>, Error> {
        let of = |grads: BufferView<'_>| {
            Variant::of(tensor, self.params.dtype, grads.dtype, self.copy.map(|copy| copy.dtype))
        };
        Ok(self.grads.map(of).transpose()?.filter(|_| self.len > 0))
    }

    /// The buffers in the order of `overlap::BUFFERS`.
    pub(super) fn views(&self) -> [Option<BufferView<'a>>; 5] {
        let moment = |moment: Moment<'a>| {
            let Moment { buffer, offset } = moment;
            Some(BufferView { buffer, offset, dtype: Dtype::F32 })
        };
        [Some(self.params), self.grads, moment(self.exp_avg), moment(self.exp_avg_sq), self.copy]
    }

    /// The buffers by role, in the order of their bindings.
    pub(super) fn by_role(&self) -> [Option<BufferView<'a>>; 5] {
        let [params, grad, exp_avg, exp_avg_sq, copy] = self.views();
        let (param, master) = if copy.is_some() { (copy, params) } else { (params, None) };
        [param, grad, exp_avg, exp_avg_sq, master]
    }
}
