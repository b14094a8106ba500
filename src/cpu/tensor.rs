//! Tensors whose element types are known at run time, and steps over lists of them.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::dtype::Element;
use crate::{Dtype, Error, StepCoeffs};

use super::launch::{CHUNK, NO_COPY, Streams};

/// Defines an enum of borrowed slices, one variant per element type, with conversions from slices, arrays and vectors.
macro_rules! buffers {
    ($(#[$doc:meta])* $name:ident: $($variant:ident($element:ty, $($borrow:tt)+)),+) => {
        $(#[$doc])*
        #[derive(Debug)]
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

            /// The type of the elements.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => <$element>::DTYPE,)+ }
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
    /// The parameters of one tensor, borrowed for a step.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{Dtype, cpu::ParamsMut};
    ///
    /// let mut weights = vec![0.5_f32; 8];
    /// let params = ParamsMut::from(&mut weights);
    /// assert_eq!((params.len(), params.dtype()), (8, Dtype::F32));
    /// ```
    ParamsMut: F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)
}
buffers! {
    /// The gradients of one tensor, borrowed for a step.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{Dtype, cpu::Grads, half::bf16};
    ///
    /// assert_eq!(Grads::from(&[bf16::ONE; 4]).dtype(), Dtype::Bf16);
    /// ```
    Grads: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}
buffers! {
    /// The 16-bit copy of f32 masters, written by a step.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{cpu::CopyMut, half::f16};
    ///
    /// let mut model = [f16::ZERO; 4];
    /// assert_eq!(CopyMut::from(&mut model).len(), 4);
    /// ```
    CopyMut: Bf16(bf16, &'a mut), F16(f16, &'a mut)
}

/// One tensor of a list: its buffers, all of one length, and the coefficient set that it uses.
#[derive(Debug)]
pub struct Tensor<'a> {
    /// The parameters; the f32 masters where there is a copy.
    pub params: ParamsMut<'a>,
    /// The gradients.
    pub grads: Grads<'a>,
    /// The first moment.
    pub exp_avg: &'a mut [f32],
    /// The second moment.
    pub exp_avg_sq: &'a mut [f32],
    /// The 16-bit copy that f32 masters keep of the new parameters.
    pub copy: Option<CopyMut<'a>>,
    /// Index of the tensor's coefficients in the list of sets.
    pub set: usize,
}

/// What differs between checking a tensor and stepping it, so that the table of type pairs stands once.
enum Job<'a> {
    Check { tensor: usize },
    Run(&'a StepCoeffs),
}

impl Tensor<'_> {
    /// Fails unless the types have a kernel and the lengths agree.
    pub(super) fn check(&mut self, tensor: usize) -> Result<(), Error> {
        self.dispatch(Job::Check { tensor })
    }

    /// One step over a tensor that [`check`](Self::check) has passed.
    pub(super) fn run(&mut self, coeffs: &StepCoeffs) {
        let outcome = self.dispatch(Job::Run(coeffs));
        debug_assert!(outcome.is_ok(), "the tensor was not checked: {outcome:?}");
    }

    fn dispatch(&mut self, job: Job<'_>) -> Result<(), Error> {
        let (exp_avg, exp_avg_sq) = (&mut *self.exp_avg, &mut *self.exp_avg_sq);
        macro_rules! streams {
            ($params:expr, $grads:expr, $copy:expr) => {{
                let streams = Streams { params: $params, grads: $grads, exp_avg, exp_avg_sq, copy: $copy };
                match job {
                    Job::Check { tensor } => streams.check(tensor),
                    Job::Run(coeffs) => {
                        streams.run(coeffs);
                        Ok(())
                    }
                }
            }};
            ($params:expr, $grads:expr) => {{
                let mut copy = NO_COPY;
                let copy = &mut copy[..$params.len()];
                streams!($params, $grads, copy)
            }};
        }
        use {CopyMut as C, Grads as G, ParamsMut as P};
        match (&mut self.params, &self.grads, &mut self.copy) {
            (P::F32(p), G::F32(g), None) => streams!(p, g),
            (P::F32(p), G::Bf16(g), None) => streams!(p, g),
            (P::F32(p), G::F16(g), None) => streams!(p, g),
            (P::Bf16(p), G::Bf16(g), None) => streams!(p, g),
            (P::Bf16(p), G::F32(g), None) => streams!(p, g),
            (P::F16(p), G::F16(g), None) => streams!(p, g),
            (P::F16(p), G::F32(g), None) => streams!(p, g),
            (P::F32(p), G::F32(g), Some(C::Bf16(c))) => streams!(p, g, c),
            (P::F32(p), G::Bf16(g), Some(C::Bf16(c))) => streams!(p, g, c),
            (P::F32(p), G::F32(g), Some(C::F16(c))) => streams!(p, g, c),
            (P::F32(p), G::F16(g), Some(C::F16(c))) => streams!(p, g, c),
            (params, grads, copy) => {
                let copy = copy.as_ref().map(CopyMut::dtype);
                let tensor = if let Job::Check { tensor } = job { tensor } else { 0 };
                Err(Error::Types { tensor, params: params.dtype(), grads: grads.dtype(), copy })
            }
        }
    }
}

/// One DualAdam step over a list of tensors of any sizes and types, each with the coefficients `sets[tensor.set]`.
///
/// Empty tensors and an empty list are fine. The bits are those of a [`step`](super::step) per tensor.
///
/// # Errors
///
/// [`Error::Types`], [`Error::Length`] or [`Error::Index`] for the first tensor that has no kernel, buffers of unequal length
/// or a set out of range. All tensors are checked before any is written.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
///
/// let sets = [DualAdamConfig::adam().coeffs(1)?, DualAdamConfig::adam().with_lr(0.0).coeffs(1)?];
/// let (mut w, mut w_m, mut w_v) = ([1.0_f32; 3], [0.0; 3], [0.0; 3]);
/// let (mut b, mut b_m, mut b_v) = ([half::bf16::ONE], [0.0], [0.0]);
/// cpu::step_list(
///     &mut [
///         cpu::Tensor {
///             params: (&mut w).into(),
///             grads: (&[1.0_f32; 3]).into(),
///             exp_avg: &mut w_m,
///             exp_avg_sq: &mut w_v,
///             copy: None,
///             set: 0,
///         },
///         cpu::Tensor {
///             params: (&mut b).into(),
///             grads: (&[1.0_f32]).into(),
///             exp_avg: &mut b_m,
///             exp_avg_sq: &mut b_v,
///             copy: None,
///             set: 1,
///         },
///     ],
///     &sets,
/// )?;
/// assert_eq!(w, [0.999; 3]);
/// assert_eq!(b, [half::bf16::ONE]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step_list(tensors: &mut [Tensor<'_>], sets: &[StepCoeffs]) -> Result<(), Error> {
    let mut elements = 0_usize;
    for (index, tensor) in tensors.iter_mut().enumerate() {
        tensor.check(index)?;
        if tensor.set >= sets.len() {
            return Err(Error::Index { tensor: index, index: "set", len: sets.len(), value: tensor.set });
        }
        elements = elements.saturating_add(tensor.params.len());
    }
    if elements <= CHUNK {
        tensors.iter_mut().for_each(|tensor| tensor.run(&sets[tensor.set]));
    } else {
        tensors.par_iter_mut().for_each(|tensor| tensor.run(&sets[tensor.set]));
    }
    Ok(())
}
