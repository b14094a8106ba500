//! Tensors whose buffers are addresses.

use super::dtype::Dtype;
use super::error::{TensorError, TensorProblem};
use super::role::Role;
use super::variant::{Formats, Variant};

/// The address of a buffer and the format of its elements.
///
/// The address is one of the host's memory for [`cpu::step_raw`](crate::cpu::step_raw) and
/// [`cpu::TensorList`](crate::cpu::TensorList), and one of the device's for the `cuda` backend.
///
/// # Examples
///
/// ```
/// use dualadam::{Dtype, RawBuffer};
///
/// let mut exp_avg = vec![0.0_f32; 8];
/// let buffer = RawBuffer::f32(exp_avg.as_mut_ptr().expose_provenance() as u64);
/// assert_eq!(buffer.dtype, Dtype::F32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawBuffer {
    /// The address of the first element. A multiple of the element's size.
    pub address: u64,
    /// The format of the elements.
    pub dtype: Dtype,
}

impl RawBuffer {
    /// The buffer of elements of `dtype` at `address`.
    #[must_use]
    pub const fn new(address: u64, dtype: Dtype) -> Self {
        Self { address, dtype }
    }

    /// The buffer of f32 elements at `address`.
    #[must_use]
    pub const fn f32(address: u64) -> Self {
        Self::new(address, Dtype::F32)
    }
}

/// The buffers of one tensor by address, all of one length.
///
/// The type owns nothing and reads nothing; the functions that use the addresses are `unsafe`. A
/// list skips a tensor that is empty or whose gradient has address 0, and does not check its
/// addresses.
///
/// # Examples
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
    /// The number of elements of each buffer.
    pub len: u64,
    /// The parameters. Written; also read, unless there are masters.
    pub param: RawBuffer,
    /// The gradients. Only read. In a list, address 0 skips the tensor.
    pub grad: RawBuffer,
    /// The first moment. Read and written.
    pub exp_avg: RawBuffer,
    /// The second moment. Read and written.
    pub exp_avg_sq: RawBuffer,
    /// The f32 masters of 16-bit parameters. Read and written.
    pub master: Option<RawBuffer>,
    /// The index of the tensor's coefficients in the slice that the step is given. 0 for a step of
    /// one tensor.
    pub coeffs_index: usize,
}

impl RawTensor {
    /// A tensor of `len` elements without masters, with `coeffs_index` 0.
    #[must_use]
    pub const fn new(len: u64, param: RawBuffer, grad: RawBuffer, exp_avg: RawBuffer, exp_avg_sq: RawBuffer) -> Self {
        Self { len, param, grad, exp_avg, exp_avg_sq, master: None, coeffs_index: 0 }
    }

    /// Sets [`master`](Self::master).
    #[must_use]
    pub const fn with_master(self, master: RawBuffer) -> Self {
        Self { master: Some(master), ..self }
    }

    /// Sets [`coeffs_index`](Self::coeffs_index).
    #[must_use]
    pub const fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// Sets [`grad`](Self::grad).
    #[must_use]
    pub const fn with_grad(self, grad: RawBuffer) -> Self {
        Self { grad, ..self }
    }

    /// The format of each buffer.
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

    /// The variant of the tensor's formats. Errors call the tensor by the index `tensor`.
    pub(crate) fn variant(&self, tensor: usize) -> Result<Variant, TensorError> {
        let formats = self.formats();
        Variant::of(formats).ok_or_else(|| TensorError::of_tensor(tensor, TensorProblem::Formats { formats }))
    }

    /// Whether a list's step skips the tensor: it has no gradient or is empty.
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
