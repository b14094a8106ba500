//! The table of variants as Rust. With the feature `cuda`: the kernels as PTX. With the feature
//! `webgpu`: the shaders, checked. Writes nothing outside `OUT_DIR`.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "cuda")]
#[path = "build/ptx.rs"]
mod ptx;
#[path = "build/rust.rs"]
mod rust;
#[path = "build/variants.rs"]
mod variants;
#[cfg(feature = "webgpu")]
#[path = "build/webgpu.rs"]
mod webgpu;
#[cfg(feature = "webgpu")]
#[path = "build/wgsl.rs"]
mod wgsl;

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=variants.txt");
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let out = env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    let out = Path::new(&out);
    let variants = variants::read(Path::new("."))?;
    write(&out.join("variants.rs"), &rust::table(&variants))?;
    #[cfg(feature = "cuda")]
    cuda::embed_ptx(&variants, out)?;
    #[cfg(feature = "webgpu")]
    webgpu::embed_shaders(&variants, out)?;
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}
