//! `cargo xtask fuzz`: the whole C surface, called by libFuzzer under the address sanitizer.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{root, stand_in};

/// Fuzzes for this many seconds.
pub(crate) fn run(seconds: u32) -> Result<()> {
    let status = Command::new("cargo")
        .args(["+nightly", "fuzz", "run", "capi", "--", "-max_len=4096", "-len_control=0"])
        .arg(format!("-max_total_time={seconds}"))
        // The fuzzer's own, instrumented build of the stand-in cannot be loaded.
        .env("STAND_IN_CUDA_LIBRARY", stand_in::build()?)
        .current_dir(root())
        .status()?;
    ensure!(status.success(), "the fuzzer was not built, or it found something: see above");
    Ok(())
}
