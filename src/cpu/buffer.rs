//! Tensors as slices whose formats are known at run time.

use half::{bf16, f16};

use crate::tensor::{Dtype, Element, RawBuffer, RawTensor, Role, TensorError, TensorProblem, Variant};

use super::kernels::Job;

/// The address of a slice, with its provenance exposed. Valid while the slice is borrowed.
pub(super) fn raw<T: Element>(buffer: &[T]) -> RawBuffer {
    RawBuffer::new(buffer.as_ptr().expose_provenance() as u64, T::DTYPE)
}

/// [`raw`] of a slice that a step writes.
pub(super) fn raw_mut<T: Element>(buffer: &mut [T]) -> RawBuffer {
    RawBuffer::new(buffer.as_mut_ptr().expose_provenance() as u64, T::DTYPE)
}

/// Returns an error unless every buffer that the tensor has is of length `expected`, that of
/// `param`. `lens` is in the order of [`Role::ALL`] from `grad` on.
pub(super) fn check_lens(
    tensor: usize,
    expected: usize,
    lens: [Option<usize>; Role::COUNT - 1],
) -> Result<(), TensorError> {
    for (role, len) in Role::ARRAY.into_iter().skip(1).zip(lens) {
        if let Some(actual) = len.filter(|&actual| actual != expected) {
            return Err(TensorError::of_buffer(tensor, role, TensorProblem::Length { expected, actual }));
        }
    }
    Ok(())
}

/// Defines an enum of borrowed slices, with one variant for each element type, and conversions from
/// slices, arrays and vectors.
macro_rules! buffers {
    ($(#[$doc:meta])* $name:ident by $raw:ident $(as $mut:tt)?: $($variant:ident($element:ty, $($borrow:tt)+)),+) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum $name<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($element), ".")] $variant($($borrow)+ [$element]),)+
        }

        impl $name<'_> {
            /// The number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(buffer) => buffer.len(),)+ }
            }

            /// Whether the buffer has no elements.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The format of the elements.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => <$element>::DTYPE,)+ }
            }

            /// The buffer by address. Valid while the slice is borrowed.
            pub(super) fn raw(&$($mut)? self) -> RawBuffer {
                match self { $(Self::$variant(buffer) => $raw(buffer),)+ }
            }
        }

        $(
            impl<'a> From<$($borrow)+ [$element]> for $name<'a> {
                fn from(buffer: $($borrow)+ [$element]) -> Self {
                    Self::$variant(buffer)
                }
            }

            impl<'a> From<$($borrow)+ Vec<$element>> for $name<'a> {
                fn from(buffer: $($borrow)+ Vec<$element>) -> Self {
                    Self::$variant(buffer)
                }
            }

            impl<'a, const N: usize> From<$($borrow)+ [$element; N]> for $name<'a> {
                fn from(buffer: $($borrow)+ [$element; N]) -> Self {
                    Self::$variant(buffer)
                }
            }
        )+
    };
}

buffers! {
    /// A mutable slice of f32, bf16 or f16: a buffer that a step reads and writes.
    ///
    /// `From` converts a mutable reference to a slice, an array or a vector.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{Dtype, cpu::BufferMut};
    ///
    /// let mut weights = vec![0.5_f32; 8];
    /// let param = BufferMut::from(&mut weights);
    /// assert_eq!((param.len(), param.dtype()), (8, Dtype::F32));
    /// ```
    BufferMut by raw_mut as mut: F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)
}
buffers! {
    /// A slice of f32, bf16 or f16: a buffer that a step only reads, which the gradients are.
    ///
    /// `From` converts a reference to a slice, an array or a vector.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{Dtype, cpu::Buffer, half::bf16};
    ///
    /// assert_eq!(Buffer::from(&[bf16::ONE; 4]).dtype(), Dtype::Bf16);
    /// ```
    Buffer by raw: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}

/// One tensor of a [`step_list`](super::step_list): its buffers, all of one length, and the index
/// of its coefficients.
///
/// # Examples
///
/// bf16 parameters and gradients with f32 masters:
///
/// ```
/// use dualadam::{DualAdamConfig, cpu, half::bf16};
///
/// let (mut model, grad, mut master) = ([bf16::ONE], [bf16::ONE], [1.0_f32]);
/// let (mut exp_avg, mut exp_avg_sq) = ([0.0_f32], [0.0_f32]);
/// let tensor = cpu::Tensor::new(&mut model, &grad, &mut exp_avg, &mut exp_avg_sq).with_master(&mut master);
/// cpu::step_list(&mut [tensor], &[DualAdamConfig::adam().coeffs(1)?])?;
/// assert_eq!(master, [0.999]);
/// assert_eq!(model, [bf16::ONE]); // bf16 is too coarse for this step; the master keeps it
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// The parameters. Written; also read, unless there are masters.
    pub param: BufferMut<'a>,
    /// The gradients. Only read.
    pub grad: Buffer<'a>,
    /// The first moment. Read and written.
    pub exp_avg: BufferMut<'a>,
    /// The second moment. Read and written.
    pub exp_avg_sq: BufferMut<'a>,
    /// The f32 masters of 16-bit parameters. Read and written.
    pub master: Option<BufferMut<'a>>,
    /// The index of the tensor's coefficients in the slice that the step is given.
    pub coeffs_index: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor without masters, with `coeffs_index` 0.
    pub fn new(
        param: impl Into<BufferMut<'a>>,
        grad: impl Into<Buffer<'a>>,
        exp_avg: impl Into<BufferMut<'a>>,
        exp_avg_sq: impl Into<BufferMut<'a>>,
    ) -> Self {
        let (param, grad, exp_avg, exp_avg_sq) = (param.into(), grad.into(), exp_avg.into(), exp_avg_sq.into());
        Self { param, grad, exp_avg, exp_avg_sq, master: None, coeffs_index: 0 }
    }

    /// Sets [`master`](Self::master).
    #[must_use]
    pub fn with_master(self, master: impl Into<BufferMut<'a>>) -> Self {
        Self { master: Some(master.into()), ..self }
    }

    /// Sets [`coeffs_index`](Self::coeffs_index).
    #[must_use]
    pub fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// The variant of the tensor's formats. An error if there is none, or if a buffer has another
    /// length than the parameters.
    pub(super) fn check(&mut self, tensor: usize) -> Result<Variant, TensorError> {
        let (grad, master) = (Some(self.grad.len()), self.master.as_ref().map(BufferMut::len));
        let lens = [grad, Some(self.exp_avg.len()), Some(self.exp_avg_sq.len()), master];
        check_lens(tensor, self.param.len(), lens)?;
        self.raw().variant(tensor)
    }

    fn raw(&mut self) -> RawTensor {
        let len = self.param.len() as u64;
        let moments = (self.exp_avg.raw(), self.exp_avg_sq.raw());
        let tensor = RawTensor::new(len, self.param.raw(), self.grad.raw(), moments.0, moments.1);
        let tensor = tensor.with_coeffs_index(self.coeffs_index);
        match &mut self.master {
            Some(master) => tensor.with_master(master.raw()),
            None => tensor,
        }
    }

    /// The job of stepping the tensor, if [`check`](Self::check) passes.
    pub(super) fn job(&mut self, tensor: usize) -> Result<Job, TensorError> {
        let variant = self.check(tensor)?;
        Ok(Job { tensor: self.raw(), variant, sets_master: false })
    }
}
