//! How long the driver takes to load the kernels: to compile them, or to find them in its cache.

use std::time::Instant;

use dualadam::cuda::Kernels;

use crate::values::TYPES;

/// Prints the times of one module and of all, in a process that has loaded no other. The first one has what the driver does once, such
/// as loading its compiler.
pub(crate) fn measure(kernels: &Kernels) {
    let load = |i: usize| {
        let start = Instant::now();
        let loaded = kernels.prepare(TYPES[i].params, TYPES[i].grads, TYPES[i].copy);
        loaded.expect("the driver takes the kernels");
        start.elapsed().as_secs_f64()
    };
    let (first, second) = (load(0), load(1));
    let all = first + second + (2..TYPES.len()).map(load).sum::<f64>();
    let cache = match (std::env::var("CUDA_CACHE_DISABLE").as_deref(), std::env::var("DUALADAM_CACHE")) {
        (Ok("1"), _) => "no cache".to_owned(),
        (_, Ok(cache)) => cache,
        _ => "the user's cache".to_owned(),
    };
    println!(
        "key: loading, {cache}: one module {first:.3} s, the second {second:.3} s, all {} {all:.3} s",
        TYPES.len()
    );
}
