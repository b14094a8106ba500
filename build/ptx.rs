//! From the CUDA sources to PTX: which files, which flags, which compiler. Shared by the build script and `cargo xtask prebuilt`.

#[path = "nvrtc.rs"]
mod nvrtc;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

pub(crate) type Result<T> = std::result::Result<T, String>;

/// The kernels' translation unit and what it includes, in the order of the source hash.
pub(crate) const SOURCES: [&str; 5] = ["dual_adam.cu", "control.cuh", "pack.cuh", "step.cuh", "update.cuh"];

/// The oldest architecture of the current compilers. Its PTX becomes the same loop on newer ones.
pub(crate) const FLAGS: [&str; 2] = ["-std=c++17", "-arch=compute_75"];

/// Written over the compiler's own version, which only a driver as new as the compiler would load. The oldest that has `sm_75`.
pub(crate) const PTX_VERSION: &str = "6.3";

pub(crate) fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// SHA-256 of a folder's sources one after the other, whatever line ends a checkout gave them.
pub(crate) fn source_hash(folder: &Path, sources: &[&str]) -> Result<String> {
    let mut hash = Sha256::new();
    for name in sources {
        hash.update(read(&folder.join(name))?.replace("\r\n", "\n"));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The version, such as `13.0.88`, that a compiler leaves in its PTX.
pub(crate) fn compiler_version(ptx: &str) -> String {
    let line = ptx.lines().find(|line| line.contains("Cuda compilation tools"));
    let version = line.and_then(|line| line.rsplit_once(", V"));
    version.map_or("unknown version", |(_, version)| version).to_owned()
}

pub(crate) enum Compiler {
    Nvcc(PathBuf),
    Nvrtc(PathBuf),
}

pub(crate) fn nvrtc_in(folder: &Path) -> Option<Compiler> {
    nvrtc::library_in(folder).map(Compiler::Nvrtc)
}

/// The folders of NVIDIA's wheels in a Python virtual environment: `lib/python*/site-packages/nvidia/*`.
pub(crate) fn wheels_in(environment: &Path) -> Vec<PathBuf> {
    let pythons = entries(&environment.join("lib"));
    pythons.iter().flat_map(|python| entries(&python.join("site-packages/nvidia"))).collect()
}

/// The entries of a folder in order of their names; none where there is no folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = found.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

impl Compiler {
    pub(crate) fn path(&self) -> &Path {
        let (Self::Nvcc(path) | Self::Nvrtc(path)) = self;
        path
    }

    /// The PTX of the first of a folder's sources, which may include the others. Temporary files go into `scratch`.
    pub(crate) fn compile(&self, folder: &Path, sources: &[&str], scratch: &Path) -> Result<String> {
        let ptx = match self {
            Self::Nvcc(nvcc) => run_nvcc(nvcc, &folder.join(sources[0]), scratch)?,
            Self::Nvrtc(library) => {
                let sources = sources.iter().map(|&name| read(&folder.join(name)).map(|text| (name, text)));
                let sources = sources.collect::<Result<Vec<_>>>()?;
                nvrtc::compile(library, &sources, &FLAGS)?
            }
        };
        lower_version(&ptx).ok_or_else(|| format!("{} gave no PTX", self.path().display()))
    }
}

fn run_nvcc(nvcc: &Path, source: &Path, scratch: &Path) -> Result<String> {
    let out = scratch.join("compiled.ptx");
    let _ = fs::remove_file(&out); // an old one would pass for the result
    let mut command = Command::new(nvcc);
    command.args(FLAGS).arg("-ptx").arg("-o").arg(&out).arg(source).env("TMPDIR", scratch);
    let shown = format!("{command:?}");
    let failed =
        |what: &str, stderr: &str| format!("the CUDA compiler failed: {what}\ncommand: {shown}\nstderr:\n{stderr}");

    let run = command.output().map_err(|error| failed(&error.to_string(), ""))?;
    let stderr = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        return Err(failed(&run.status.to_string(), &stderr));
    }
    read(&out).map_err(|error| failed(&error, &stderr))
}

/// The PTX with the lower `.version`, or nothing if it has no such line.
fn lower_version(ptx: &str) -> Option<String> {
    let start = ptx.find("\n.version ")? + 1;
    let length = ptx[start..].find('\n')?;
    Some(format!("{}.version {PTX_VERSION}{}", &ptx[..start], &ptx[start + length..]))
}
