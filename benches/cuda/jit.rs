//! How long the driver takes to load the kernels: to compile them, or to find them in its cache.

use std::time::Instant;

use crate::device::Device;
use crate::values::TYPES;

/// Prints the times of one module and of all, in a process that has loaded none of them.
pub(crate) fn measure(device: &Device) {
    let load = |i: usize| {
        let start = Instant::now();
        let loaded = device.kernels.prepare(TYPES[i].params, TYPES[i].grads, TYPES[i].copy);
        loaded.expect("the driver takes the kernels");
        start.elapsed().as_secs_f64()
    };
    let first = load(0);
    let all = first + (1..TYPES.len()).map(load).sum::<f64>();
    let cache = match (std::env::var("CUDA_CACHE_DISABLE").as_deref(), std::env::var("CUDA_CACHE_PATH")) {
        (Ok("1"), _) => "cache disabled".to_owned(),
        (_, Ok(path)) => format!("cache in {path}"),
        _ => "the user's cache".to_owned(),
    };
    println!("key: loading the kernels, {cache}: one module {first:.3} s, all {} {all:.3} s", TYPES.len());
}
