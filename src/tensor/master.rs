//! 16-bit parameters and their masters, without the other buffers of their tensor.

use super::error::{TensorError, TensorProblem};
use super::overlap::Span;
use super::raw::RawBuffer;
use super::role::Role;
use super::variant::Variant;

/// The parameters and the masters of one tensor, by address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MasterPair {
    /// The number of elements of each.
    pub(crate) len: u64,
    pub(crate) param: RawBuffer,
    pub(crate) master: RawBuffer,
}

impl MasterPair {
    /// Checks the formats and, unless the tensor is empty, the addresses. Returns the first variant
    /// with these formats.
    pub(crate) fn check(&self, tensor: usize) -> Result<Variant, TensorError> {
        let Self { len, param, master } = *self;
        let variant = self.variants().next().ok_or_else(|| self.without_kernel(tensor))?;
        if len > 0 {
            let param = Span::of_buffer(tensor, Role::Param, param, len)?;
            let master = Span::of_buffer(tensor, Role::Master, master, len)?;
            if param.start < master.end && master.start < param.end {
                return Err(master.overlap(&param));
            }
        }
        Ok(variant)
    }

    /// The variants with these formats, whatever their other formats.
    pub(crate) fn variants(&self) -> impl Iterator<Item = Variant> {
        Variant::with_master(self.param.dtype, self.master.dtype)
    }

    /// The error if there is no such variant.
    pub(crate) fn without_kernel(&self, tensor: usize) -> TensorError {
        let (param, master) = (self.param.dtype, self.master.dtype);
        TensorError::of_tensor(tensor, TensorProblem::MasterFormats { param, master })
    }
}
