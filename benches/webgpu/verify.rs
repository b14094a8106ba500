//! Checks that every job gives the right result, before it is timed.

use dualadam::webgpu::{Pipelines, wgpu};
use dualadam::{Dtype, Variant, half};

use crate::device::Device;
use crate::group::{Job, Replica};
use crate::triad::Pipeline;
use crate::values::{PERIOD, Pattern};

/// The triad's factor for the check: it changes every value.
const FACTOR: f32 = 1e-3;
/// Below this the error counts in absolute terms: there a parameter is the difference of larger
/// values.
const SMALL: f32 = 1e-2;
/// Two periods and a tail, which the triad leaves out.
const LEN: usize = 2 * PERIOD / 4 * 4 + 3;

/// Panics unless each job gives the CPU backend's result, up to a rounding.
pub(crate) fn verify(device: &Device, pipelines: &Pipelines, variant: Variant) {
    let before = Pattern::new(variant);
    let triad = Pipeline::new(device, variant, FACTOR.into());
    for job in Job::ALL {
        let replica = Replica::new(device, pipelines, &triad, variant, &before, LEN).expect("there is memory");
        let mut encoder = device.device.create_command_encoder(&Default::default());
        replica.encode(job, &[job.coeffs()], &mut encoder.begin_compute_pass(&Default::default()));
        device.queue.submit([encoder.finish()]);
        let mut after = before.clone();
        match job {
            Job::Triad => after.triad(FACTOR),
            Job::Dual | Job::Adam => after.step(&job.coeffs()),
        }
        let checked = if job == Job::Triad { LEN / 4 * 4 } else { LEN };
        compare(device, variant, &replica.buffers, &after, checked, job.name());
    }
}

/// Panics unless the first elements of each buffer repeat the expected pattern, up to a rounding.
pub(crate) fn compare(
    device: &Device,
    variant: Variant,
    buffers: &[wgpu::Buffer],
    expected: &Pattern,
    checked: usize,
    what: &str,
) {
    let formats = variant.formats();
    let master = formats.master.unwrap_or(Dtype::F32);
    let dtypes = [formats.param, formats.grad, formats.exp_avg, formats.exp_avg_sq, master];
    for ((buffer, expected), dtype) in buffers.iter().zip(expected.bytes()).zip(dtypes) {
        let found = widen(dtype, &device.read(buffer, buffer.size()));
        let expected = widen(dtype, expected);
        let error = if dtype == Dtype::F32 { 1e-6 } else { 1.0 / 128.0 };
        for (i, (found, expected)) in found.iter().zip(expected.iter().cycle()).take(checked).enumerate() {
            let same = (found - expected).abs() <= error * expected.abs().max(SMALL);
            assert!(same, "{what} {}: element {i} is {found}, not {expected}", variant.name());
        }
    }
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(dtype.size())
        .map(|word| match *word {
            [a, b] if dtype == Dtype::Bf16 => half::bf16::from_le_bytes([a, b]).to_f32(),
            [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
            _ => bytemuck::pod_read_unaligned(word),
        })
        .collect()
}
