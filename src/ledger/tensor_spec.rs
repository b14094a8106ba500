//! The description of a tensor that an optimizer is made with.

use std::sync::Arc;

/// The description of a tensor that an optimizer is made with.
///
/// # Examples
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
    /// The number of elements.
    pub len: usize,
    /// The index of the parameter group.
    pub group: usize,
    /// Whether the optimizer keeps f32 masters of the tensor's 16-bit parameters.
    pub has_master: bool,
    /// The name of the tensor. Errors show it beside the tensor's index. State files have it, too:
    /// a file in which the tensor has another name is refused.
    pub name: Option<Arc<str>>,
}

impl TensorSpec {
    /// A tensor of `len` elements in group 0, without masters and without a name.
    #[must_use]
    pub const fn new(len: usize) -> Self {
        Self { len, group: 0, has_master: false, name: None }
    }

    /// Sets [`group`](Self::group).
    #[must_use]
    pub fn in_group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Sets [`has_master`](Self::has_master). The tensor's parameters are then bf16 or f16.
    #[must_use]
    pub fn with_master(self) -> Self {
        Self { has_master: true, ..self }
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn with_name(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}
