//! The stand-in for the CUDA driver, as a library for other programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::{install, root};

/// Builds it; returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    let built = Command::new("cargo")
        .args(["build", "--release", "--package", "stand_in_cuda", "--message-format", "json-render-diagnostics"])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the stand-in for the CUDA driver does not build");
    install::with_extension(&install::artifacts(&built.stdout)?, "so")
}
