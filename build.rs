//! With the feature `cuda`: the kernels as PTX. Writes nothing outside `OUT_DIR`.

#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/ptx.rs"]
mod ptx;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(message) = cuda::embed_ptx()
    {
        eprintln!("error: {message}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
