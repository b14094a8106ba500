//! Checks that every job gives the right result, before it is timed.

use std::ops::Range;

use crate::group::ALIGN;
use crate::values::{PERIOD, sizes};
use crate::{Device, Group, Job, Pattern};

/// The triad's factor for the check: it changes every value.
const FACTOR: f32 = 1e-3;
/// How many tensors at each end of a list are checked.
const TENSORS: usize = 8;

/// Panics unless each job gives the CPU backend's bits in the first replica's tensors, and changes
/// nothing beside them.
///
/// The unfused step has the same roundings as the fused one, since each result is stored in f32. So
/// it gets no tolerance either.
pub(crate) fn verify(device: &Device, group: &mut Group<'_>) {
    for job in group.jobs.clone().into_iter().filter(|job| !job.is_copy()) {
        group.fill(group.stride, group.offsets_of(job));
        group.enqueue_on(0, job, FACTOR);
        device.synchronize();
        verify_job(group, job);
    }
    group.fill_for_timing(group.stride);
}

pub(crate) fn verify_job(group: &Group<'_>, job: Job) {
    let before = Pattern::new(group.variant);
    let lens = group.lens_of(job);
    let mut start = 0;
    for (i, &len) in lens.iter().enumerate() {
        let end = start + len;
        if i < TENSORS || i + TENSORS >= lens.len() {
            let expected = after(job, &before, i % job.sets(lens.len()));
            verify_range(group, job, start..end.min(start + PERIOD), &expected);
            verify_range(group, job, start.max(end.saturating_sub(PERIOD))..end, &expected);
            verify_range(group, job, end..end.next_multiple_of(ALIGN), &before);
        }
        start = end.next_multiple_of(ALIGN);
    }
}

/// What a job makes of the pattern on the CPU.
fn after(job: Job, before: &Pattern, set: usize) -> Pattern {
    let mut pattern = before.clone();
    match job {
        Job::Triad => pattern.triad(FACTOR),
        _ => pattern.step(&job.coeffs(set)),
    }
    pattern
}

/// Compares elements of the first replica with a repeated pattern.
fn verify_range(group: &Group<'_>, job: Job, range: Range<usize>, expected: &Pattern) {
    let buffers = group.offsets_of(job).into_iter().zip(expected.bytes()).zip(sizes(group.variant));
    for (buffer, ((offset, expected), size)) in buffers.enumerate() {
        let found = group.read(buffer, offset + range.start, range.len());
        let pattern = expected.iter().cycle().skip(range.start % PERIOD * size);
        let same = found.iter().zip(pattern).all(|(a, b)| a == b);
        let (shape, variant, alignment) = (&group.shape, group.variant.name(), group.alignment.name);
        assert!(same, "{shape} {variant}, {alignment}, {}: elements {range:?} are wrong", job.name());
    }
}
