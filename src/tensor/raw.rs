//! Tensors by address.

use super::dtype::Dtype;
use super::error::{TensorError, TensorProblem};
use super::role::Role;
use super::variant::{Formats, Variant};

/// A buffer by address: in the host's memory for [`cpu::TensorList`](crate::cpu::TensorList), in a
/// device's for the `cuda` backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawBuffer {
    /// The address of the first element; a multiple of the element's size.
    pub address: u64,
    /// The format of the elements.
    pub dtype: Dtype,
}

impl RawBuffer {
    /// The buffer at an address.
    #[must_use]
    pub const fn new(address: u64, dtype: Dtype) -> Self {
        Self { address, dtype }
    }

    /// The buffer of f32 at an address.
    #[must_use]
    pub const fn f32(address: u64) -> Self {
        Self::new(address, Dtype::F32)
    }
}

/// One tensor's buffers by address, all of one length.
///
/// Nothing is owned. The addresses of an empty tensor are not looked at, nor are those of a tensor
/// in a list whose gradient has address 0: it is skipped.
///
/// # Example
///
/// bf16 parameters and gradients with f32 masters:
///
/// ```
/// use dualadam::{Dtype, RawBuffer, RawTensor};
///
/// let bf16 = |address| RawBuffer::new(address, Dtype::Bf16);
/// let tensor = RawTensor::new(100, bf16(0x1000), bf16(0x2000), RawBuffer::f32(0x3000), RawBuffer::f32(0x4000))
///     .with_master(RawBuffer::f32(0x5000))
///     .with_coeffs_index(1);
/// assert_eq!(tensor.master, Some(RawBuffer::f32(0x5000)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawTensor {
    /// Elements.
    pub len: u64,
    /// The parameters, written; read where there is no master.
    pub param: RawBuffer,
    /// The gradients, only read. In a list, address 0 skips the tensor.
    pub grad: RawBuffer,
    /// The first moment, read and written.
    pub exp_avg: RawBuffer,
    /// The second moment, read and written.
    pub exp_avg_sq: RawBuffer,
    /// The f32 masters of 16-bit parameters, read and written.
    pub master: Option<RawBuffer>,
    /// The index of the tensor's coefficients in the list of coefficients; 0 for a step of one
    /// tensor.
    pub coeffs_index: usize,
}

impl RawTensor {
    /// A tensor of `len` elements without masters, which uses the first coefficients.
    #[must_use]
    pub const fn new(len: u64, param: RawBuffer, grad: RawBuffer, exp_avg: RawBuffer, exp_avg_sq: RawBuffer) -> Self {
        Self { len, param, grad, exp_avg, exp_avg_sq, master: None, coeffs_index: 0 }
    }

    /// With masters.
    #[must_use]
    pub const fn with_master(self, master: RawBuffer) -> Self {
        Self { master: Some(master), ..self }
    }

    /// With other coefficients.
    #[must_use]
    pub const fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// With other gradients.
    #[must_use]
    pub const fn with_grad(self, grad: RawBuffer) -> Self {
        Self { grad, ..self }
    }

    /// The format of each role.
    #[must_use]
    pub fn formats(&self) -> Formats {
        Formats {
            param: self.param.dtype,
            grad: self.grad.dtype,
            exp_avg: self.exp_avg.dtype,
            exp_avg_sq: self.exp_avg_sq.dtype,
            master: self.master.map(|master| master.dtype),
        }
    }

    /// The variant that steps the tensor, which is the `tensor`-th of a list.
    pub(crate) fn variant(&self, tensor: usize) -> Result<Variant, TensorError> {
        let formats = self.formats();
        Variant::of(formats).ok_or_else(|| TensorError::of_tensor(tensor, TensorProblem::Formats { formats }))
    }

    /// Whether a list's step skips the tensor, or has nothing to do in it.
    pub(crate) fn is_skipped(&self) -> bool {
        self.len == 0 || self.grad.address == 0
    }

    /// The buffers in the order of [`Role::ALL`].
    pub(crate) fn buffers(&self) -> [Option<RawBuffer>; Role::COUNT] {
        [Some(self.param), Some(self.grad), Some(self.exp_avg), Some(self.exp_avg_sq), self.master]
    }

    /// The addresses in the order of [`Role::ALL`]; 0 where there is no master.
    #[cfg(feature = "cuda")]
    pub(crate) fn addresses(&self) -> [u64; Role::COUNT] {
        self.buffers().map(|buffer| buffer.map_or(0, |buffer| buffer.address))
    }
}
