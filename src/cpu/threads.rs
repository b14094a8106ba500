//! The sharing of work among threads: rayon's, or, without the feature `rayon`, the caller's alone.

/// The largest number of elements of a task: large enough that stealing a task costs little beside
/// it, small enough to balance the threads. A step of no more elements stays on the calling thread,
/// since waking another thread would cost more than it saves.
pub(super) const CHUNK: usize = 1 << 15;

/// Runs both, at the same time if a thread is free.
#[cfg(feature = "rayon")]
pub(super) fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    rayon::join(left, right);
}

#[cfg(not(feature = "rayon"))]
pub(super) fn join(left: impl FnOnce(), right: impl FnOnce()) {
    left();
    right();
}

/// Calls `work` with each item. The items have `elements` elements in all.
#[cfg(feature = "rayon")]
pub(super) fn for_each<T: Sync>(items: &[T], elements: u64, work: impl Fn(&T) + Send + Sync) {
    use rayon::prelude::*;

    if elements <= CHUNK as u64 {
        items.iter().for_each(work);
    } else {
        items.par_iter().for_each(work);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn for_each<T>(items: &[T], _: u64, work: impl Fn(&T)) {
    items.iter().for_each(work);
}

/// [`for_each`] for items that `work` changes.
#[cfg(feature = "rayon")]
pub(super) fn for_each_mut<T: Send>(items: &mut [T], elements: u64, work: impl Fn(&mut T) + Send + Sync) {
    use rayon::prelude::*;

    if elements <= CHUNK as u64 {
        items.iter_mut().for_each(work);
    } else {
        items.par_iter_mut().for_each(work);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn for_each_mut<T>(items: &mut [T], _: u64, work: impl Fn(&mut T)) {
    items.iter_mut().for_each(work);
}
