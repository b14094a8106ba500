//! Tensors as the backends see them: buffers by role, their formats, and the checks of lists.

mod dtype;
mod error;
mod list;
mod master;
mod overlap;
mod raw;
mod role;
mod variant;

pub use dtype::{Dtype, Element, GradOf, HalfElement};
#[cfg(any(feature = "cuda", feature = "webgpu"))]
pub(crate) use error::Place;
pub use error::{ArgumentError, ListError, TensorError, TensorProblem};
pub(crate) use error::{check_count, check_len};
#[cfg(feature = "webgpu")]
pub(crate) use list::check_fixed;
pub(crate) use list::{CheckedList, check_coeffs_index};
pub(crate) use master::MasterPair;
#[cfg(feature = "webgpu")]
pub(crate) use overlap::Span;
#[cfg(feature = "webgpu")]
pub(crate) use overlap::check_overlap;
pub use raw::{RawBuffer, RawTensor};
pub use role::Role;
pub(crate) use variant::for_each_variant;
pub use variant::{Formats, Variant};
