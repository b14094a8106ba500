//! Handles: numbers of the objects that the library keeps. Each number has a generation, so that a
//! stale handle is recognised until its slot has been used some 2^31 times more.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use dualadam::State;
use dualadam::cuda::{Control, Kernels};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use crate::cuda::List;
use crate::status::Failure;

/// The handle of a state: configs of parameter groups, and the step count, moments and masters of
/// each tensor. `dualadam_state_new` and `dualadam_state_load` make it, `dualadam_state_free` frees
/// it. Never 0.
pub type dualadam_state = u64;
/// The handle of the kernels in one CUDA context. `dualadam_cuda_kernels_new` and
/// `dualadam_cuda_kernels_in_current_context` make it, `dualadam_cuda_kernels_free` frees it. Never
/// 0.
pub type dualadam_cuda_kernels = u64;
/// The handle of a list of tensors in device memory. `dualadam_cuda_list_new` makes it,
/// `dualadam_cuda_list_free` frees it. Never 0.
pub type dualadam_cuda_list = u64;
/// The handle of a control: learning rates, hyperparameters and step counters in device memory.
/// `dualadam_cuda_control_new` makes it, `dualadam_cuda_control_free` frees it. Never 0.
///
/// Functions with a control and a stream, other than steps, share these errors:
///
/// - `DUALADAM_STATUS_CUDA_CAPTURED` for a stream under capture. Change a control between the
///   launches of a graph.
/// - `DUALADAM_STATUS_COUNT` for an array whose count is not the control's number of sets.
///
/// They require this of the caller:
///
/// - Steps with the control on other streams, also in launched graphs, are ordered before or after
///   the call's work.
/// - The caller's own counters are live memory of the kernels' context.
pub type dualadam_cuda_control = u64;

/// An object whose calls wait for each other.
pub(crate) type Locked<T> = Arc<Mutex<T>>;

/// What calls ask for by handle. A call has a share of the object, so that an object which another
/// thread frees lives until the call ends.
pub(crate) trait Shared: Clone {
    /// The name of arguments that are its handles.
    const NAME: &'static str;
    const KIND: &'static str;

    fn of(object: &Object) -> Option<&Self>;
    fn into_object(self) -> Object;
}

macro_rules! kinds {
    ($($name:ident($shared:ty): $argument:literal, $kind:literal;)+) => {
        /// What a handle stands for.
        pub(crate) enum Object {
            $($name($shared),)+
        }

        impl Object {
            fn kind(&self) -> &'static str {
                match self { $(Self::$name(_) => $kind,)+ }
            }
        }

        $(impl Shared for $shared {
            const NAME: &'static str = $argument;
            const KIND: &'static str = $kind;

            fn of(object: &Object) -> Option<&Self> {
                if let Object::$name(shared) = object { Some(shared) } else { None }
            }

            fn into_object(self) -> Object {
                Object::$name(self)
            }
        })+
    };
}

kinds! {
    State(Locked<State>): "state", "a state";
    Kernels(Kernels): "kernels", "CUDA kernels";
    List(Locked<List>): "list", "a CUDA list";
    Control(Locked<Control>): "control", "a CUDA control";
}

type Objects = SlotMap<DefaultKey, Object>;

static OBJECTS: LazyLock<RwLock<Objects>> = LazyLock::new(RwLock::default);

/// Keeps an object and returns its handle.
pub(crate) fn insert(object: impl Shared) -> u64 {
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    objects.insert(object.into_object()).data().as_ffi()
}

/// [`insert`] of an object whose calls wait for each other.
pub(crate) fn insert_locked<T>(object: T) -> u64
where
    Locked<T>: Shared,
{
    insert(Arc::new(Mutex::new(object)))
}

/// A share of the object that a handle stands for.
pub(crate) fn get<T: Shared>(handle: u64) -> Result<T, Failure> {
    let objects = OBJECTS.read().unwrap_or_else(PoisonError::into_inner);
    find::<T>(&objects, handle).map(|(_, shared)| shared.clone())
}

/// Makes a handle stale, and drops its share of the object.
pub(crate) fn remove<T: Shared>(handle: u64) -> Result<(), Failure> {
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let (key, _) = find::<T>(&objects, handle)?;
    let object = objects.remove(key);
    // Other calls can go on while the driver frees memory.
    drop(objects);
    drop(object);
    Ok(())
}

fn find<T: Shared>(objects: &Objects, handle: u64) -> Result<(DefaultKey, &T), Failure> {
    let place = T::NAME.into();
    let key = DefaultKey::from(KeyData::from_ffi(handle));
    // slotmap makes a key of any number, also of one that it never gave out.
    let object = objects.get(key).filter(|_| key.data().as_ffi() == handle);
    let object = object.ok_or(Failure::StaleHandle { place, handle })?;
    let (expected, actual) = (T::KIND, object.kind());
    let shared = T::of(object).ok_or(Failure::HandleKind { place, handle, expected, actual })?;
    Ok((key, shared))
}

/// Waits for the other calls with the same handle. After one of them panicked, which is a bug, the
/// object can still be read and freed.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
