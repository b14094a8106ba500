//! Tensors as slices whose element types are known at run time.

use half::{bf16, f16};

use crate::tensor::{Dtype, Element, RawBuffer, RawTensor, Role, TensorError, TensorProblem, Variant};

use super::kernels::Job;

/// A slice by address, which is good for as long as the slice is borrowed.
pub(super) fn raw<T: Element>(buffer: &[T]) -> RawBuffer {
    RawBuffer::new(buffer.as_ptr().expose_provenance() as u64, T::DTYPE)
}

/// [`raw`], of a slice that is written.
pub(super) fn raw_mut<T: Element>(buffer: &mut [T]) -> RawBuffer {
    RawBuffer::new(buffer.as_mut_ptr().expose_provenance() as u64, T::DTYPE)
}

/// Fails unless each of a tensor's buffers that is there has as many elements as `param`; in the
/// order of [`Role::ALL`], from `grad` on.
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

/// Defines an enum of borrowed slices, one variant per element type, with conversions from slices,
/// arrays and vectors.
macro_rules! buffers {
    ($(#[$doc:meta])* $name:ident by $raw:ident $(as $mut:tt)?: $($variant:ident($element:ty, $($borrow:tt)+)),+) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum $name<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($element), ".")] $variant($($borrow)+ [$element]),)+
        }

        impl $name<'_> {
            /// Elements in the buffer.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(buffer) => buffer.len(),)+ }
            }

            /// Whether the buffer has no element.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The format of the elements.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => <$element>::DTYPE,)+ }
            }

            /// The buffer by address, which is good for as long as the borrow.
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
    /// A buffer of one tensor that a step writes, borrowed for the step.
    ///
    /// # Example
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
    /// A buffer of one tensor that a step only reads, borrowed for the step: the gradients.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{Dtype, cpu::Buffer, half::bf16};
    ///
    /// assert_eq!(Buffer::from(&[bf16::ONE; 4]).dtype(), Dtype::Bf16);
    /// ```
    Buffer by raw: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}

/// One tensor of a list: its buffers, all of one length, and the index of its coefficients.
///
/// # Example
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
/// assert_eq!(model, [bf16::ONE]); // the step is smaller than bf16 can show; the master kept it
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// The parameters.
    pub param: BufferMut<'a>,
    /// The gradients.
    pub grad: Buffer<'a>,
    /// The first moment.
    pub exp_avg: BufferMut<'a>,
    /// The second moment.
    pub exp_avg_sq: BufferMut<'a>,
    /// The f32 masters of 16-bit parameters.
    pub master: Option<BufferMut<'a>>,
    /// The index of the tensor's coefficients in the list of coefficients.
    pub coeffs_index: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor without masters, which uses the first coefficients.
    pub fn new(
        param: impl Into<BufferMut<'a>>,
        grad: impl Into<Buffer<'a>>,
        exp_avg: impl Into<BufferMut<'a>>,
        exp_avg_sq: impl Into<BufferMut<'a>>,
    ) -> Self {
        let (param, grad, exp_avg, exp_avg_sq) = (param.into(), grad.into(), exp_avg.into(), exp_avg_sq.into());
        Self { param, grad, exp_avg, exp_avg_sq, master: None, coeffs_index: 0 }
    }

    /// With masters.
    #[must_use]
    pub fn with_master(self, master: impl Into<BufferMut<'a>>) -> Self {
        Self { master: Some(master.into()), ..self }
    }

    /// With other coefficients.
    #[must_use]
    pub fn with_coeffs_index(self, coeffs_index: usize) -> Self {
        Self { coeffs_index, ..self }
    }

    /// Fails unless all buffers have the parameters' length and there is a variant with their
    /// formats. Gives the variant.
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

    /// The tensor's step, if [`check`](Self::check) passes.
    pub(super) fn job(&mut self, tensor: usize) -> Result<Job, TensorError> {
        let variant = self.check(tensor)?;
        Ok(Job { tensor: self.raw(), variant, sets_master: false })
    }
}
