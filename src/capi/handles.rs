//! Handles: numbers for what the library keeps, each with a generation, so that one is known as stale for good.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use crate::State;

use super::status::Failure;

/// A handle of a state: `dualadam_state_new` and `dualadam_state_load` give one out, `dualadam_state_free` takes it back. Never 0.
pub type dualadam_state = u64;
/// A handle of the CUDA kernels in one context: `dualadam_cuda_kernels_new` gives one out, `dualadam_cuda_kernels_free` takes it back.
/// Never 0.
pub type dualadam_cuda_kernels = u64;
/// A handle of a list of tensors: `dualadam_cuda_list_new` gives one out, `dualadam_cuda_list_free` takes it back. Never 0.
pub type dualadam_cuda_list = u64;
/// A handle of a control: `dualadam_cuda_control_new` gives one out, `dualadam_cuda_control_free` takes it back. Never 0.
pub type dualadam_cuda_control = u64;

/// What a handle stands for. A call holds a share of it: what is freed meanwhile lives until the call ends.
pub(super) enum Object {
    State(Arc<Mutex<State>>),
    #[cfg(feature = "cuda")]
    Kernels(crate::cuda::Kernels),
    #[cfg(feature = "cuda")]
    List(Arc<Mutex<super::cuda::List>>),
    #[cfg(feature = "cuda")]
    Control(Arc<Mutex<crate::cuda::Control>>),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Self::State(_) => "a state",
            #[cfg(feature = "cuda")]
            Self::Kernels(_) => "CUDA kernels",
            #[cfg(feature = "cuda")]
            Self::List(_) => "a CUDA list",
            #[cfg(feature = "cuda")]
            Self::Control(_) => "a CUDA control",
        }
    }
}

/// What calls ask for by handle.
pub(super) trait Shared: Clone {
    /// As [`Object::kind`] names it.
    const KIND: &str;

    fn of(object: &Object) -> Option<&Self>;
}

impl Shared for Arc<Mutex<State>> {
    const KIND: &str = "a state";

    fn of(object: &Object) -> Option<&Self> {
        match object {
            Object::State(state) => Some(state),
            #[cfg(feature = "cuda")]
            _ => None,
        }
    }
}

#[cfg(feature = "cuda")]
impl Shared for crate::cuda::Kernels {
    const KIND: &str = "CUDA kernels";

    fn of(object: &Object) -> Option<&Self> {
        if let Object::Kernels(kernels) = object { Some(kernels) } else { None }
    }
}

#[cfg(feature = "cuda")]
impl Shared for Arc<Mutex<super::cuda::List>> {
    const KIND: &str = "a CUDA list";

    fn of(object: &Object) -> Option<&Self> {
        if let Object::List(list) = object { Some(list) } else { None }
    }
}

#[cfg(feature = "cuda")]
impl Shared for Arc<Mutex<crate::cuda::Control>> {
    const KIND: &str = "a CUDA control";

    fn of(object: &Object) -> Option<&Self> {
        if let Object::Control(control) = object { Some(control) } else { None }
    }
}

type Objects = SlotMap<DefaultKey, Object>;

static OBJECTS: LazyLock<RwLock<Objects>> = LazyLock::new(RwLock::default);

/// Keeps an object and gives out its handle.
pub(super) fn insert(object: Object) -> u64 {
    OBJECTS.write().unwrap_or_else(PoisonError::into_inner).insert(object).data().as_ffi()
}

/// A share of the object that a handle stands for.
pub(super) fn get<T: Shared>(name: &'static str, handle: u64) -> Result<T, Failure> {
    let objects = OBJECTS.read().unwrap_or_else(PoisonError::into_inner);
    find::<T>(&objects, name, handle).map(|(_, shared)| shared.clone())
}

/// Takes a handle back.
pub(super) fn remove<T: Shared>(name: &'static str, handle: u64) -> Result<(), Failure> {
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let (key, _) = find::<T>(&objects, name, handle)?;
    let object = objects.remove(key);
    // Other calls go on while the driver takes its time to free something.
    drop(objects);
    drop(object);
    Ok(())
}

fn find<'a, T: Shared>(objects: &'a Objects, name: &'static str, handle: u64) -> Result<(DefaultKey, &'a T), Failure> {
    let key = DefaultKey::from(KeyData::from_ffi(handle));
    // Not every number is a key: some are changed into one.
    let object = objects.get(key).filter(|_| key.data().as_ffi() == handle);
    let object = object.ok_or(Failure::StaleHandle { place: name.into(), handle })?;
    let (expected, actual) = (T::KIND, object.kind());
    let shared = T::of(object).ok_or(Failure::HandleKind { place: name.into(), handle, expected, actual })?;
    Ok((key, shared))
}

/// Waits for the other calls with the same handle.
pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
