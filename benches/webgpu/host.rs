//! The host's time for a step, piece by piece. Nothing else is in the queue.

use std::time::Instant;

use dualadam::webgpu::{Pipelines, Tensor, TensorList};
use testkit::stats::quantile;

use crate::device::Device;
use crate::group::{Job, tensor};
use crate::report::HostRow;
use crate::values::{Pattern, named};

/// Lists, and steps of each that share a pass.
const LISTS: [(&str, usize, usize, usize); 2] = [("2^16", 1, 1 << 16, 100), ("1,000 x 1,000", 1000, 1000, 10)];
const PIECES: [&str; 4] = ["encode", "end of the pass", "finish", "submit"];

/// The rows of a device.
pub(crate) fn times(device: &Device, rounds: usize) -> Vec<HostRow> {
    let pipelines = Pipelines::new(&device.device).expect("the device is there");
    let variant = named("f32_f32");
    let pattern = Pattern::new(variant);
    let mut rows = vec![];
    for (shape, count, len, steps) in LISTS {
        let buffer = |bytes: &&[u8]| device.repeat(bytes, 4 * len).expect("there is memory");
        let buffers = (0..count).map(|_| pattern.bytes()[..4].iter().map(buffer).collect());
        let buffers: Vec<Vec<_>> = buffers.collect();
        let tensors: Vec<Tensor<'_>> = buffers.iter().map(|buffers| tensor(variant, buffers, len as u64)).collect();
        let list = TensorList::new(&pipelines, &tensors).expect("the tensors are valid");
        let times: Vec<_> = (0..rounds).map(|_| pieces(device, &list, steps)).collect();
        for (i, piece) in PIECES.into_iter().enumerate() {
            let us = |part| quantile(times.iter().map(|times| times[i] * 1e6 / (steps * count) as f64), part);
            rows.push(HostRow {
                shape: shape.to_owned(),
                tensors: count,
                coefficients: if device.facts.immediates { "immediates" } else { "uniform" },
                piece,
                us: us(0.5),
                us_low: us(0.25),
                us_high: us(0.75),
            });
        }
    }
    rows
}

/// Seconds of each piece.
fn pieces(device: &Device, list: &TensorList, steps: usize) -> [f64; 4] {
    let sets = [Job::Dual.coeffs()];
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let start = Instant::now();
    (0..steps).for_each(|_| list.encode(&mut pass, &sets).expect("the coefficients are there"));
    let encoded = Instant::now();
    drop(pass);
    let ended = Instant::now();
    let commands = encoder.finish();
    let finished = Instant::now();
    device.queue.submit([commands]);
    let submitted = Instant::now();
    device.wait();
    let between = |from: Instant, to: Instant| (to - from).as_secs_f64();
    [between(start, encoded), between(encoded, ended), between(ended, finished), between(finished, submitted)]
}
