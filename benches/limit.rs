//! The step against the machine's limit, all variants in turns: `cargo bench --bench limit`.
//!
//! criterion times one thing after the other, and the speed of a shared machine drifts between
//! them. Here the variants take turns, each round gives one ratio to the triad over the same
//! streams and one to the f32 step, and the table shows the medians. The largest length takes some
//! 12 GB of memory. `--quick` runs fewer rounds over fewer sizes. The records in `benches/results/`
//! are this table.

mod workloads;

use std::hint::black_box;
use std::time::Instant;

use testkit::stats::median;
use workloads::{NAMES, Workload, verify, workload};

/// A timing lasts at least this long, in seconds, by repeating short runs.
const SHORTEST: f64 = 2e-3;

fn main() {
    verify();
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { 5 } else { 15 };
    let lens: &[usize] = if quick {
        &[1 << 16, 300_000]
    } else {
        &[1 << 12, 1 << 14, 1 << 16, 300_000, 1 << 20, 1 << 22, 1 << 24, 1 << 26]
    };
    println!("| threads | elements | what | ms | GB/s | GFLOP/s | of the triad | time of dual f32 |");
    println!("| ---: | ---: | :--- | ---: | ---: | ---: | ---: | ---: |");
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        for &len in lens {
            pool.install(|| table(threads, len, rounds));
        }
    }
}

/// Prints the rows of one length.
fn table(threads: usize, len: usize, rounds: usize) {
    let mut variants: Vec<_> = NAMES.iter().filter_map(|name| workload(name, len)).collect();
    let repeats: Vec<_> = variants.iter_mut().map(repeats).collect();
    let round = |_| {
        let variants = variants.iter_mut().zip(&repeats);
        variants.map(|(variant, &repeats)| seconds(variant, repeats)).collect::<Vec<f64>>()
    };
    let times: Vec<_> = (0..rounds).map(round).collect();
    for (i, (name, variant)) in NAMES.iter().zip(&variants).enumerate() {
        let streams = name.split(' ').next_back().unwrap_or_default();
        let limit = position(&format!("triad {streams}"));
        let seconds = median(times.iter().map(|round| round[i]));
        let of_limit = median(times.iter().map(|round| round[limit] / round[i]));
        let of_dual = median(times.iter().map(|round| round[i] / round[position("dual f32")]));
        let per_second = |amount: u64| amount as f64 / seconds / 1e9;
        let (bytes, flops) = (per_second(variant.bytes), per_second(variant.flops));
        let ms = seconds * 1e3;
        // A copy moves other streams than a triad.
        let of_limit = if name.starts_with("copy") { String::new() } else { format!("{of_limit:.3}") };
        println!("| {threads} | {len} | {name} | {ms:.4} | {bytes:.1} | {flops:.1} | {of_limit} | {of_dual:.3} |");
    }
}

fn position(name: &str) -> usize {
    NAMES.iter().position(|&other| other == name).expect("the name is in the table")
}

/// Runs that make one timing long enough; the first run also warms the caches and the pages.
fn repeats(variant: &mut Workload) -> u32 {
    seconds(variant, 2);
    (SHORTEST / seconds(variant, 1)).ceil() as u32
}

/// Seconds of one run, as the mean of some.
fn seconds(variant: &mut Workload, repeats: u32) -> f64 {
    let start = Instant::now();
    (0..repeats).for_each(|_| (black_box(&mut *variant).run)());
    start.elapsed().as_secs_f64() / f64::from(repeats)
}
