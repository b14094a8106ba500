//! The sharing of work among threads: rayon's, or, without the feature `rayon`, the caller's alone.

#[cfg(feature = "rayon")]
use std::cell::Cell;

/// The most elements of a call that always stays on the calling thread.
///
/// Waking another thread would cost more than it saves. Calls with more elements run on the current
/// rayon pool, apart from those in [`sequential`].
pub const MAX_SEQUENTIAL: u64 = 1 << 15;

/// The largest number of elements of a task: large enough that stealing a task costs little beside
/// it, small enough to balance the threads.
pub(super) const CHUNK: usize = MAX_SEQUENTIAL as usize;

#[cfg(feature = "rayon")]
thread_local! {
    static IS_SEQUENTIAL: Cell<bool> = const { Cell::new(false) };
}

/// Sets [`IS_SEQUENTIAL`] back when it is dropped, also if code panics.
#[cfg(feature = "rayon")]
struct Restore(bool);

#[cfg(feature = "rayon")]
impl Drop for Restore {
    fn drop(&mut self) {
        IS_SEQUENTIAL.set(self.0);
    }
}

/// Runs `work`. The calls of this module that it makes stay on the calling thread, whatever their
/// size.
///
/// They neither use nor start a rayon pool. A process made by `fork` needs this, or a pool of its
/// own: the pools of its parent have no threads there.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
///
/// let len = cpu::MAX_SEQUENTIAL as usize + 1;
/// let (mut p, g, mut m, mut v) = (vec![1.0_f32; len], vec![1.0_f32; len], vec![0.0; len], vec![0.0; len]);
/// let coeffs = DualAdamConfig::adam().coeffs(1)?;
/// cpu::sequential(|| cpu::step(&mut p, &g, &mut m, &mut v, &coeffs))?;
/// assert_eq!(p, vec![0.999; len]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn sequential<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    let _restore = Restore(IS_SEQUENTIAL.replace(true));
    work()
}

/// Runs both, at the same time if a thread is free.
#[cfg(feature = "rayon")]
pub(super) fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    if IS_SEQUENTIAL.get() {
        left();
        right();
    } else {
        rayon::join(left, right);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn join(left: impl FnOnce(), right: impl FnOnce()) {
    left();
    right();
}

/// Whether a call with this many elements stays on this thread.
#[cfg(feature = "rayon")]
fn is_sequential(elements: u64) -> bool {
    elements <= MAX_SEQUENTIAL || IS_SEQUENTIAL.get()
}

/// Calls `work` with each item. The items have `elements` elements in all.
#[cfg(feature = "rayon")]
pub(super) fn for_each<T: Sync>(items: &[T], elements: u64, work: impl Fn(&T) + Send + Sync) {
    use rayon::prelude::*;

    if is_sequential(elements) {
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

    if is_sequential(elements) {
        items.iter_mut().for_each(work);
    } else {
        items.par_iter_mut().for_each(work);
    }
}

#[cfg(not(feature = "rayon"))]
pub(super) fn for_each_mut<T>(items: &mut [T], _: u64, work: impl Fn(&mut T)) {
    items.iter_mut().for_each(work);
}
