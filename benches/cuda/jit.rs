//! How long the driver takes to load the kernels: to compile them, or to find them in its cache.

use std::time::Instant;

use dualadam::Variant;
use dualadam::cuda::Kernels;

/// Prints the times of one module and of all, in a process that has loaded no other. The first time
/// includes what the driver does only once, such as loading its compiler.
pub(crate) fn measure(kernels: &Kernels) {
    let load = |variant: Variant| {
        let start = Instant::now();
        kernels.prepare(variant.formats()).expect("the driver takes the kernels");
        start.elapsed().as_secs_f64()
    };
    let seconds: Vec<_> = Variant::all().map(load).collect();
    let (first, second, all) = (seconds[0], seconds[1], seconds.iter().sum::<f64>());
    let cache = match (std::env::var("CUDA_CACHE_DISABLE").as_deref(), std::env::var("DUALADAM_CACHE")) {
        (Ok("1"), _) => "no cache".to_owned(),
        (_, Ok(cache)) => cache,
        _ => "the user's cache".to_owned(),
    };
    println!(
        "key: loading, {cache}: one module {first:.3} s, the second {second:.3} s, all {} {all:.3} s",
        seconds.len()
    );
}
