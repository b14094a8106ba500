//! criterion's view of the step and of the streams that bound it: `cargo bench --bench step`.
//!
//! Throughput is in bytes that the fused step must move, for the unfused version too, and in
//! "elements", which here are floating-point operations.

mod workloads;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::{Duration, Instant};
use workloads::{NAMES, Workload, verify, workload};

fn step(criterion: &mut Criterion) {
    verify();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        for exponent in (12..=26).step_by(2) {
            let mut group = criterion.benchmark_group(format!("{threads} threads, 2^{exponent} elements"));
            for name in NAMES {
                let Some(mut variant) = workload(name, 1 << exponent) else { continue };
                group.throughput(Throughput::ElementsAndBytes { elements: variant.flops, bytes: variant.bytes });
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|iterations| pool.install(|| time(&mut variant, iterations)));
                });
            }
            group.finish();
        }
    }
}

fn time(variant: &mut Workload, iterations: u64) -> Duration {
    let start = Instant::now();
    (0..iterations).for_each(|_| (black_box(&mut *variant).run)());
    start.elapsed()
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots()
}

criterion_group!(name = benches; config = settings(); targets = step);
criterion_main!(benches);
