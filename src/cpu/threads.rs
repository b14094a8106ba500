//! The sharing of work among threads: rayon's, or, without the feature `rayon`, the caller's alone.

/// Calls `work` with each number below `count`, at the same time if threads are free.
#[cfg(feature = "rayon")]
pub(super) fn for_each(count: usize, work: impl Fn(usize) + Send + Sync) {
    use rayon::prelude::*;

    if count <= 1 {
        (0..count).for_each(work);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(work);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn for_each(count: usize, work: impl Fn(usize)) {
    (0..count).for_each(work);
}

/// Calls `work` with each item, at the same time if threads are free and `is_shared` is set.
#[cfg(feature = "rayon")]
pub(super) fn for_each_mut<T: Send>(items: &mut [T], is_shared: bool, work: impl Fn(&mut T) + Send + Sync) {
    use rayon::prelude::*;

    if is_shared {
        items.par_iter_mut().for_each(work);
    } else {
        items.iter_mut().for_each(work);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn for_each_mut<T>(items: &mut [T], _: bool, work: impl Fn(&mut T)) {
    items.iter_mut().for_each(work);
}
