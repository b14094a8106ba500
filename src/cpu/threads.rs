//! How work is shared out among threads: rayon's, or the caller's alone without the feature
//! `rayon`.

/// Elements that one task takes at most: large enough that a steal costs little beside it, small
/// enough to balance. A step of up to so many elements stays on the calling thread, since waking
/// another costs more than it saves.
pub(super) const CHUNK: usize = 1 << 15;

/// Does both, at the same time if there is a thread for it.
#[cfg(feature = "rayon")]
pub(super) fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    rayon::join(left, right);
}

#[cfg(not(feature = "rayon"))]
pub(super) fn join(left: impl FnOnce(), right: impl FnOnce()) {
    left();
    right();
}

/// Does something with each item, of which there are `elements` elements in all.
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

/// [`for_each`], of items that the work changes.
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
