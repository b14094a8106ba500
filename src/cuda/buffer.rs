//! Views of device memory whose element types are known at run time.

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
            /// Elements in the buffer.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(view) => view.len(),)+ }
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

            /// The stream that the view's memory belongs to.
            pub(super) fn own_stream(&self) -> &CudaStream {
                match self { $(Self::$variant(view) => view.stream(),)+ }
            }

            /// The address, and what tells cudarc when it is dropped that the work has been
            /// enqueued.
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
    /// A buffer of one tensor that a step writes, borrowed for the step.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::cuda::{BufferMut, cudarc::driver::CudaSlice};
    /// # fn example(weights: &mut CudaSlice<f32>) {
    /// let param = BufferMut::from(weights);
    /// assert_eq!(param.dtype(), dualadam::Dtype::F32);
    /// # }
    /// ```
    BufferMut of CudaViewMut, by as_view_mut and device_ptr_mut as mut:
    F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)
}
views! {
    /// A buffer of one tensor that a step only reads, borrowed for the step: the gradients.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::cuda::{Buffer, cudarc::driver::CudaSlice};
    /// # fn example(gradients: &CudaSlice<dualadam::half::bf16>) {
    /// let grad = Buffer::from(gradients);
    /// assert_eq!(grad.dtype(), dualadam::Dtype::Bf16);
    /// # }
    /// ```
    Buffer of CudaView, by as_view and device_ptr: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}

/// One tensor for a flat [`step`](super::step): its buffers in device memory, all of one length.
///
/// # Example
///
/// bf16 parameters and gradients with f32 masters:
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{self, Kernels};
/// use dualadam::half::bf16;
///
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
}

/// What tells cudarc, when it is dropped, that the work with a tensor's buffers has been enqueued.
pub(super) type Guards<'a> = [Option<SyncOnDrop<'a>>; Role::COUNT];

impl<'a> Tensor<'a> {
    /// A tensor without masters.
    pub fn new(
        param: impl Into<BufferMut<'a>>,
        grad: impl Into<Buffer<'a>>,
        exp_avg: impl Into<BufferMut<'a>>,
        exp_avg_sq: impl Into<BufferMut<'a>>,
    ) -> Self {
        let (param, grad, exp_avg, exp_avg_sq) = (param.into(), grad.into(), exp_avg.into(), exp_avg_sq.into());
        Self { param, grad, exp_avg, exp_avg_sq, master: None }
    }

    /// With masters.
    #[must_use]
    pub fn with_master(self, master: impl Into<BufferMut<'a>>) -> Self {
        Self { master: Some(master.into()), ..self }
    }

    /// Each buffer that is there: its role, its length, and the stream that it belongs to.
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

    /// The tensor by address, of its parameters' length.
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
