//! Views of device memory with an element type that is known at run time, for safe calls.

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};
use half::{bf16, f16};

use crate::tensor::{Dtype, Element, RawBuffer, RawTensor, Role};

/// Defines an enum of views, one variant per element type, with conversions from views and slices.
macro_rules! views {
    (
        $(#[$doc:meta])* $name:ident of $view:ident, by $as_view:ident and $pointer:ident $(as $mut:tt)?:
        $($variant:ident($element:ty, $($borrow:tt)+)),+
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum $name<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($element), ".")] $variant($view<'a, $element>),)+
        }

        impl $name<'_> {
            /// The number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(view) => view.len(),)+ }
            }

            /// Whether there are no elements.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The element type.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => <$element>::DTYPE,)+ }
            }

            /// The stream on which cudarc allocated the memory.
            pub(super) fn own_stream(&self) -> &CudaStream {
                match self { $(Self::$variant(view) => view.stream(),)+ }
            }

            /// The address, and a guard. Drop the guard once the work is enqueued: cudarc then
            /// records what later uses of the memory must wait for.
            pub(super) fn raw<'s>(&'s $($mut)? self, stream: &'s CudaStream) -> (RawBuffer, SyncOnDrop<'s>) {
                let dtype = self.dtype();
                let (address, guard) = match self { $(Self::$variant(view) => view.$pointer(stream),)+ };
                (RawBuffer::new(address, dtype), guard)
            }
        }

        $(
            impl<'a> From<$view<'a, $element>> for $name<'a> {
                fn from(view: $view<'a, $element>) -> Self {
                    Self::$variant(view)
                }
            }

            impl<'a> From<$($borrow)+ CudaSlice<$element>> for $name<'a> {
                fn from(slice: $($borrow)+ CudaSlice<$element>) -> Self {
                    Self::$variant(slice.$as_view())
                }
            }
        )+
    };
}

views! {
    /// Device memory of one role of a tensor that a step writes, borrowed for the call: cudarc's
    /// view or slice of `f32`, `bf16` or `f16`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::Dtype;
    /// use dualadam::cuda::{BufferMut, Kernels};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let stream = Kernels::new(0)?.context().default_stream();
    /// let mut weights = stream.alloc_zeros::<f32>(1024)?;
    /// let head = BufferMut::from(weights.slice_mut(..16));
    /// assert_eq!((head.dtype(), head.len()), (Dtype::F32, 16));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    BufferMut of CudaViewMut, by as_view_mut and device_ptr_mut as mut:
    F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)
}
views! {
    /// Device memory of a tensor's gradients, which a step only reads, borrowed for the call:
    /// cudarc's view or slice of `f32`, `bf16` or `f16`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Buffer, Kernels};
    /// use dualadam::{Dtype, half::bf16};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let stream = Kernels::new(0)?.context().default_stream();
    /// let gradients = stream.alloc_zeros::<bf16>(1024)?;
    /// let grad = Buffer::from(&gradients);
    /// assert_eq!((grad.dtype(), grad.len()), (Dtype::Bf16, 1024));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Buffer of CudaView, by as_view and device_ptr: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}

/// The buffers of one tensor for a flat [`step`](super::step): device memory, all of one length.
///
/// # Examples
///
/// bf16 parameters and gradients with f32 masters:
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{self, Kernels};
/// use dualadam::half::bf16;
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let (mut param, grad) = (stream.clone_htod(&[bf16::ONE])?, stream.clone_htod(&[bf16::ONE])?);
/// let mut exp_avg = stream.alloc_zeros::<f32>(1)?;
/// let mut exp_avg_sq = stream.alloc_zeros::<f32>(1)?;
/// let mut master = stream.clone_htod(&[1.0_f32])?;
/// let tensor = cuda::Tensor::new(&mut param, &grad, &mut exp_avg, &mut exp_avg_sq);
/// let coeffs = DualAdamConfig::adam().coeffs(1)?;
/// cuda::step(&kernels, &stream, &mut tensor.with_master(&mut master), &coeffs)?;
/// assert_eq!(stream.clone_dtoh(&master)?, [0.999]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// The parameters: f32, bf16 or f16. Written; read unless there are masters.
    pub param: BufferMut<'a>,
    /// The gradients: f32, or the type of `param`, or bf16 or f16 beside f32. Read.
    pub grad: Buffer<'a>,
    /// The first moment: f32. Read and written.
    pub exp_avg: BufferMut<'a>,
    /// The second moment: f32. Read and written.
    pub exp_avg_sq: BufferMut<'a>,
    /// The f32 masters of bf16 or f16 parameters, if there are any. Read and written.
    pub master: Option<BufferMut<'a>>,
}

/// cudarc's guards of a tensor's buffers. Dropping one tells cudarc that the work is enqueued.
pub(super) type Guards<'a> = [Option<SyncOnDrop<'a>>; Role::COUNT];

impl<'a> Tensor<'a> {
    /// A tensor without masters.
    ///
    /// The lengths and types are checked by the step.
    pub fn new(
        param: impl Into<BufferMut<'a>>,
        grad: impl Into<Buffer<'a>>,
        exp_avg: impl Into<BufferMut<'a>>,
        exp_avg_sq: impl Into<BufferMut<'a>>,
    ) -> Self {
        let (param, grad, exp_avg, exp_avg_sq) = (param.into(), grad.into(), exp_avg.into(), exp_avg_sq.into());
        Self { param, grad, exp_avg, exp_avg_sq, master: None }
    }

    /// Adds f32 masters.
    #[must_use]
    pub fn with_master(self, master: impl Into<BufferMut<'a>>) -> Self {
        Self { master: Some(master.into()), ..self }
    }

    /// The role, the length and cudarc's stream of each buffer that is there.
    pub(super) fn buffers(&self) -> impl Iterator<Item = (Role, usize, &CudaStream)> {
        fn of<'s>(buffer: &'s BufferMut<'_>) -> (usize, &'s CudaStream) {
            (buffer.len(), buffer.own_stream())
        }
        let buffers = [
            Some(of(&self.param)),
            Some((self.grad.len(), self.grad.own_stream())),
            Some(of(&self.exp_avg)),
            Some(of(&self.exp_avg_sq)),
            self.master.as_ref().map(of),
        ];
        Role::ARRAY.into_iter().zip(buffers).filter_map(|(role, buffer)| buffer.map(|(len, own)| (role, len, own)))
    }

    /// The tensor by address, with the length of its parameters.
    pub(super) fn raw<'s>(&'s mut self, stream: &'s CudaStream) -> (RawTensor, Guards<'s>) {
        let len = self.param.len() as u64;
        let (param, of_param) = self.param.raw(stream);
        let (grad, of_grad) = self.grad.raw(stream);
        let (exp_avg, of_exp_avg) = self.exp_avg.raw(stream);
        let (exp_avg_sq, of_exp_avg_sq) = self.exp_avg_sq.raw(stream);
        let (master, of_master) = self.master.as_mut().map(|master| master.raw(stream)).unzip();
        let tensor = RawTensor { master, ..RawTensor::new(len, param, grad, exp_avg, exp_avg_sq) };
        (tensor, [Some(of_param), Some(of_grad), Some(of_exp_avg), Some(of_exp_avg_sq), of_master])
    }
}
