//! That every variant does what it should, before it is timed.

use dualadam::webgpu::{Pipelines, wgpu};
use dualadam::{Dtype, half};

use crate::device::Device;
use crate::group::{Replica, Variant};
use crate::triad::Pipeline;
use crate::values::{PERIOD, Pattern, Types};

/// The triad's, where its result counts: no value stays as it is.
const FACTOR: f32 = 1e-3;
/// Below this the error counts in absolute terms: there a parameter is the difference of larger values.
const SMALL: f32 = 1e-2;
/// Two periods and a tail, which the triad leaves out.
const LEN: usize = 2 * PERIOD / 4 * 4 + 3;

/// Fails unless each variant does what the CPU backend does, but for a rounding.
pub(crate) fn verify(device: &Device, pipelines: &Pipelines, types: &Types) {
    let before = Pattern::new(types);
    let triad = Pipeline::new(device, types, FACTOR.into());
    for variant in Variant::ALL {
        let replica = Replica::new(device, pipelines, &triad, types, &before, LEN).expect("there is memory");
        let mut encoder = device.device.create_command_encoder(&Default::default());
        replica.encode(variant, &[variant.coeffs()], &mut encoder.begin_compute_pass(&Default::default()));
        device.queue.submit([encoder.finish()]);
        let mut after = before.clone();
        match variant {
            Variant::Triad => after.triad(FACTOR),
            Variant::Dual | Variant::Adam => after.step(&variant.coeffs()),
        }
        let checked = if variant == Variant::Triad { LEN / 4 * 4 } else { LEN };
        compare(device, types, &replica.buffers, &after, checked, variant.name());
    }
}

/// Fails unless the first elements of each buffer repeat the expected pattern, but for a rounding.
pub(crate) fn compare(
    device: &Device,
    types: &Types,
    buffers: &[wgpu::Buffer],
    expected: &Pattern,
    checked: usize,
    what: &str,
) {
    let dtypes = [types.params, types.grads, Dtype::F32, Dtype::F32, types.copy.unwrap_or(Dtype::F32)];
    for ((buffer, expected), dtype) in buffers.iter().zip(expected.bytes()).zip(dtypes) {
        let found = widen(dtype, &device.read(buffer, buffer.size()));
        let expected = widen(dtype, expected);
        let error = if dtype == Dtype::F32 { 1e-6 } else { 1.0 / 128.0 };
        for (i, (found, expected)) in found.iter().zip(expected.iter().cycle()).take(checked).enumerate() {
            let same = (found - expected).abs() <= error * expected.abs().max(SMALL);
            assert!(same, "{what} {}: element {i} is {found}, not {expected}", types.name);
        }
    }
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let words = bytes.chunks_exact(dtype.size());
    words
        .map(|word| match *word {
            [a, b] if dtype == Dtype::Bf16 => half::bf16::from_le_bytes([a, b]).to_f32(),
            [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
            _ => bytemuck::pod_read_unaligned(word),
        })
        .collect()
}
