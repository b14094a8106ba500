//! What an optimizer must know of a tensor before it can keep anything for it.

use std::sync::Arc;

/// What an optimizer must know of a tensor beforehand.
///
/// # Example
///
/// ```
/// use dualadam::TensorSpec;
///
/// let spec = TensorSpec::new(1024).in_group(1).with_master().with_name("embedding.weight");
/// assert_eq!((spec.len, spec.group, spec.has_master, spec.name.as_deref()), (1024, 1, true, Some("embedding.weight")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// Elements.
    pub len: usize,
    /// The index of the parameter group.
    pub group: usize,
    /// Whether the optimizer keeps f32 masters of this tensor's 16-bit parameters.
    pub has_master: bool,
    /// What errors call the tensor, and files too, which are compared with it. Without a name,
    /// errors give its position.
    pub name: Option<Arc<str>>,
}

impl TensorSpec {
    /// A tensor of `len` elements in group 0, without masters and name.
    #[must_use]
    pub const fn new(len: usize) -> Self {
        Self { len, group: 0, has_master: false, name: None }
    }

    /// Puts the tensor into a group.
    #[must_use]
    pub fn in_group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Keeps f32 masters of the tensor, whose parameters are then bf16 or f16.
    #[must_use]
    pub fn with_master(self) -> Self {
        Self { has_master: true, ..self }
    }

    /// Names the tensor.
    #[must_use]
    pub fn with_name(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}
