//! Views of device memory whose element types are known at run time.

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};
use half::{bf16, f16};

use crate::dtype::Element;
use crate::{Dtype, RawBuffer};

/// Defines an enum of views, one variant per element type, with conversions from views and slices.
macro_rules! views {
    (
        $(#[$doc:meta])* $name:ident of $view:ident, by $as_view:ident and $pointer:ident $(as $mut:tt)?:
        $($variant:ident($element:ty, $($borrow:tt)+)),+
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
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

            /// The type of the elements.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => <$element>::DTYPE,)+ }
            }

            /// The stream that the view's memory belongs to.
            pub(super) fn own_stream(&self) -> &CudaStream {
                match self { $(Self::$variant(view) => view.stream(),)+ }
            }

            /// The address, and what tells cudarc when it is dropped that the work has been enqueued.
            pub(super) fn raw<'s>(&'s $($mut)? self, stream: &'s CudaStream) -> (RawBuffer, SyncOnDrop<'s>) {
                let dtype = self.dtype();
                let (address, guard) = match self { $(Self::$variant(view) => view.$pointer(stream),)+ };
                (RawBuffer { address, dtype }, guard)
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
    /// The parameters of one tensor, borrowed for a step.
    ParamsMut of CudaViewMut, by as_view_mut and device_ptr_mut as mut:
    F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)
}
views! {
    /// The gradients of one tensor, borrowed for a step.
    Grads of CudaView, by as_view and device_ptr: F32(f32, &'a), Bf16(bf16, &'a), F16(f16, &'a)
}
