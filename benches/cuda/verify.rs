//! That every variant does what it should, before it is timed.

use std::ops::Range;

use crate::device::Device;
use crate::group::{ALIGN, Group};
use crate::values::{PERIOD, Pattern};
use crate::variant::Variant;

/// The triad's, where its result counts: no value stays as it is.
const FACTOR: f32 = 1e-3;
/// So many tensors at each end of a list are looked at.
const TENSORS: usize = 8;

/// Fails unless each variant does what the CPU backend does, to the bit, in the first replica's tensors and not beside them.
///
/// The unfused step has the same roundings as the fused one, each result being stored in f32, so no tolerance either.
pub(crate) fn verify(device: &Device, group: &mut Group<'_>) {
    for variant in group.variants.clone().into_iter().filter(|variant| !variant.is_copy()) {
        group.fill(group.stride(), group.offsets_of(variant));
        group.enqueue_on(0, variant, FACTOR);
        device.synchronize();
        verify_variant(group, variant);
    }
    group.fill_for_timing(group.stride());
}

pub(crate) fn verify_variant(group: &Group<'_>, variant: Variant) {
    let before = Pattern::new(&group.types);
    let lens = group.lens_of(variant);
    let mut start = 0;
    for (i, &len) in lens.iter().enumerate() {
        let end = start + len;
        if i < TENSORS || i + TENSORS >= lens.len() {
            let expected = after(variant, &before, i % variant.sets(lens.len()));
            verify_range(group, variant, start..end.min(start + PERIOD), &expected);
            verify_range(group, variant, start.max(end.saturating_sub(PERIOD))..end, &expected);
            verify_range(group, variant, end..end.next_multiple_of(ALIGN), &before);
        }
        start = end.next_multiple_of(ALIGN);
    }
}

/// What the pattern becomes by the CPU.
fn after(variant: Variant, before: &Pattern, set: usize) -> Pattern {
    let mut pattern = before.clone();
    match variant {
        Variant::Triad => pattern.triad(FACTOR),
        _ => pattern.step(&variant.coeffs(set)),
    }
    pattern
}

/// Compares elements of the first replica with a repeated pattern.
fn verify_range(group: &Group<'_>, variant: Variant, range: Range<usize>, expected: &Pattern) {
    let buffers = group.offsets_of(variant).into_iter().zip(expected.bytes()).zip(group.types.sizes());
    for (buffer, ((offset, expected), size)) in buffers.enumerate() {
        let found = group.read(buffer, offset + range.start, range.len());
        let pattern = expected.iter().cycle().skip(range.start % PERIOD * size);
        let same = found.iter().zip(pattern).all(|(a, b)| a == b);
        let (shape, types, alignment) = (&group.shape, group.types.name, group.alignment.name);
        assert!(same, "{shape} {types}, {alignment}, {}: elements {range:?} are wrong", variant.name());
    }
}
