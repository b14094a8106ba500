//! With the feature `cuda`: the kernels as PTX. Writes nothing outside `OUT_DIR`.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "cuda")]
#[path = "build/ptx.rs"]
mod ptx;

use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    if let Err(message) = cuda::embed_ptx() {
        eprintln!("error: {message}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
