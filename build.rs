//! With the feature `cuda`: the kernels as PTX. With the feature `webgpu`: the shaders, checked. Writes nothing outside `OUT_DIR`.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "cuda")]
#[path = "build/ptx.rs"]
mod ptx;
#[path = "build/table.rs"]
mod table;
#[cfg(any(feature = "cuda", feature = "webgpu"))]
#[path = "build/variants.rs"]
mod variants;
#[cfg(feature = "webgpu")]
#[path = "build/webgpu.rs"]
mod webgpu;
#[cfg(feature = "webgpu")]
#[path = "build/wgsl.rs"]
mod wgsl;

use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-changed=variants.txt");
    let out = std::env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    let rust = table::rust(&table::read(std::path::Path::new("."))?);
    std::fs::write(std::path::Path::new(&out).join("variants.rs"), rust)
        .map_err(|error| format!("variants.rs: {error}"))?;
    #[cfg(feature = "cuda")]
    cuda::embed_ptx()?;
    #[cfg(feature = "webgpu")]
    webgpu::embed_shaders()?;
    Ok(())
}
