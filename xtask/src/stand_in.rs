//! The stand-in for the CUDA driver, as a library for other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::{install, root};

/// Builds the stand-in and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    let built = Command::new("cargo")
        .args(["build", "--release", "--package", "stand_in_cuda", "--message-format", "json-render-diagnostics"])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the stand-in for the CUDA driver does not build");
    install::with_extension(&install::artifacts(&built.stdout)?, "so")
}

/// Builds the stand-in and copies it, under the driver's names, into a folder below `place`.
/// Returns that folder.
pub(crate) fn folder(place: &Path) -> Result<PathBuf> {
    let (library, folder) = (build()?, place.join("stand-in"));
    fs::create_dir_all(&folder)?;
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::copy(&library, folder.join(name))?;
    }
    Ok(folder)
}
