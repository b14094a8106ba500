//! Handles: numbers for the objects that the library keeps, each with a generation. So a stale one
//! is known until its place has been given out some 2^31 times more.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use dualadam::State;
use dualadam::cuda::{Control, Kernels};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use crate::cuda::List;
use crate::status::Failure;

/// A handle of a state: `dualadam_state_new` and `dualadam_state_load` give one out,
/// `dualadam_state_free` takes it back. Never 0.
pub type dualadam_state = u64;
/// A handle of the CUDA kernels in one context: `dualadam_cuda_kernels_new` and
/// `dualadam_cuda_kernels_in_current_context` give one out, `dualadam_cuda_kernels_free` takes it
/// back. Never 0.
pub type dualadam_cuda_kernels = u64;
/// A handle of a list of tensors: `dualadam_cuda_list_new` gives one out, `dualadam_cuda_list_free`
/// takes it back. Never 0.
pub type dualadam_cuda_list = u64;
/// A handle of a control: `dualadam_cuda_control_new` gives one out, `dualadam_cuda_control_free`
/// takes it back. Never 0.
///
/// For the calls that take a control and a stream, other than steps:
///
/// - The stream must not be under capture (`DUALADAM_STATUS_CUDA_CAPTURED`): change a control
///   between the launches of a graph.
/// - An array has an entry for each set of the control (`DUALADAM_STATUS_COUNT`).
/// - Required: steps with the control on other streams, or of graphs there, are ordered before or
///   after, and the caller's own counters are live memory of the kernels' context.
pub type dualadam_cuda_control = u64;

/// An object whose calls wait for each other.
pub(crate) type Locked<T> = Arc<Mutex<T>>;

/// What calls ask for by handle. A call holds a share of the object: what is freed meanwhile lives
/// until the call ends.
pub(crate) trait Shared: Clone {
    /// What arguments that are its handles are called.
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

/// Keeps an object and gives out its handle.
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

/// Takes a handle back.
pub(crate) fn remove<T: Shared>(handle: u64) -> Result<(), Failure> {
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let (key, _) = find::<T>(&objects, handle)?;
    let object = objects.remove(key);
    // Other calls go on while the driver takes its time to free something.
    drop(objects);
    drop(object);
    Ok(())
}

fn find<T: Shared>(objects: &Objects, handle: u64) -> Result<(DefaultKey, &T), Failure> {
    let place = T::NAME.into();
    let key = DefaultKey::from(KeyData::from_ffi(handle));
    // slotmap changes numbers that are no keys into keys.
    let object = objects.get(key).filter(|_| key.data().as_ffi() == handle);
    let object = object.ok_or(Failure::StaleHandle { place, handle })?;
    let (expected, actual) = (T::KIND, object.kind());
    let shared = T::of(object).ok_or(Failure::HandleKind { place, handle, expected, actual })?;
    Ok((key, shared))
}

/// Waits for the other calls with the same handle. After a panic of one of them, which is a bug,
/// the object is still there to be read and freed.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
