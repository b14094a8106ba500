//! `cargo xtask wasm`: the library for the browser, on whichever toolchain can build it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::root;

const TARGET: &str = "wasm32-unknown-unknown";
/// Debian's compiler, of the packages `rustc-web` and `cargo-web`. It lacks the target's standard
/// library, whose sources are in `rust-web-src`.
const DEBIANS_CARGO: &str = "/usr/bin/cargo";
const DEBIANS_RUSTC: &str = "/usr/bin/rustc";
const DEBIANS_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/Cargo.toml";

/// Builds the library for the browser.
///
/// # Errors
///
/// Says what to install where no toolchain has the target.
pub(crate) fn run() -> Result<()> {
    let mut cargo = if has_target()? {
        Command::new("cargo")
    } else {
        let is_there = |path: &&str| Path::new(path).is_file();
        let is_debian = [DEBIANS_CARGO, DEBIANS_RUSTC, DEBIANS_SOURCES].iter().all(is_there);
        ensure!(
            is_debian,
            "no toolchain builds {TARGET}: run `rustup target add {TARGET}`, or on Debian \
             `apt-get install rustc-web cargo-web rust-web-src`"
        );
        let mut cargo = Command::new(DEBIANS_CARGO);
        // Building the standard library is a feature of nightly compilers.
        cargo.arg("-Zbuild-std=std,panic_abort").env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIANS_RUSTC);
        // It names the libraries of the toolchain that this program runs with.
        cargo.env_remove("LD_LIBRARY_PATH");
        cargo
    };
    // A folder of its own: in a shared one, two compilers would rebuild each other's work.
    cargo.args(["build", "--target", TARGET, "--target-dir", "target/wasm"]);
    let status = cargo.args(["--no-default-features", "--features", "webgpu"]).current_dir(root()).status()?;
    ensure!(status.success(), "the library does not build for {TARGET}");
    Ok(())
}

/// Whether the toolchain of this program has the target's standard library.
fn has_target() -> Result<bool> {
    let rustc = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    Ok(rustc.status.success() && Path::new(String::from_utf8(rustc.stdout)?.trim()).is_dir())
}
