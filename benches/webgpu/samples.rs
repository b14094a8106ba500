//! criterion's view of the step and of its triad, by the same clock.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use dualadam::webgpu::Pipelines;

use crate::device::Device;
use crate::group::{Group, Variant, main_types};
use crate::timer::Timer;

pub(crate) fn run(device: &Device, pipelines: &Pipelines, timer: &Timer<'_>, exponents: &[u32]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    for exponent in exponents {
        let mut benchmarks = criterion.benchmark_group(format!("{}, 2^{exponent} elements", device.facts.name));
        for types in main_types() {
            let mut group = Group::new(device, pipelines, types, 1 << exponent).expect("there is memory");
            benchmarks.throughput(Throughput::Bytes((types.bytes_moved() as u64) << exponent));
            for variant in Variant::ALL {
                benchmarks.bench_function(format!("{} {}", variant.name(), types.name), |bencher| {
                    bencher.iter_custom(|runs| {
                        let seconds = timer.seconds(runs as usize, |pass| group.encode(variant, pass));
                        Duration::from_secs_f64(seconds.on_device * runs as f64)
                    });
                });
            }
        }
        benchmarks.finish();
    }
}
