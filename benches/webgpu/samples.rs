//! Times the step and its triad with criterion, by the same clock.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use dualadam::webgpu::Pipelines;

use crate::values::bytes_moved;
use crate::{Device, Group, Job, Timer, main_variants};

pub(crate) fn run(device: &Device, pipelines: &Pipelines, timer: &Timer<'_>, exponents: &[u32]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    for exponent in exponents {
        let mut benchmarks = criterion.benchmark_group(format!("{}, 2^{exponent} elements", device.facts.name));
        for variant in main_variants() {
            let mut group = Group::new(device, pipelines, variant, 1 << exponent).expect("there is memory");
            benchmarks.throughput(Throughput::Bytes((bytes_moved(variant) as u64) << exponent));
            for job in Job::ALL {
                benchmarks.bench_function(format!("{} {}", job.name(), variant.name()), |bencher| {
                    bencher.iter_custom(|runs| {
                        let seconds = timer.seconds(runs as usize, |pass| group.encode(job, pass));
                        Duration::from_secs_f64(seconds.on_device * runs as f64)
                    });
                });
            }
        }
        benchmarks.finish();
    }
}
