//! From the CUDA sources to PTX: which modules of which files, which flags, which compiler. Shared
//! by the build script and `cargo xtask`.

#[path = "nvrtc.rs"]
mod nvrtc;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::variants::{ROLES, Variant};

pub(crate) type Result<T> = std::result::Result<T, String>;

/// The kernels' sources, in the order of the source hash. Two are translation units.
pub(crate) const SOURCES: [&str; 8] =
    ["dual_adam.cu", "control.cu", "control.cuh", "pack.cuh", "step.cuh", "sync.cuh", "tuning.cuh", "update.cuh"];

/// The oldest architecture that the current compilers support. Drivers compile its PTX to the same
/// loop for newer ones.
pub(crate) const FLAGS: [&str; 2] = ["-std=c++17", "-arch=compute_75"];

/// Replaces the compiler's own PTX version, which only a driver as new as the compiler would load.
/// It is the oldest version with `sm_75`.
pub(crate) const PTX_VERSION: &str = "6.3";

/// The sources and flags of one PTX text, which a driver loads and compiles by itself.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// The translation unit first; the others are what it may include.
    pub(crate) sources: Vec<&'static str>,
    pub(crate) flags: Vec<String>,
    pub(crate) ptx_version: &'static str,
}

impl Module {
    pub(crate) fn new(name: &str, folder: &Path, sources: &[&'static str]) -> Self {
        let (name, folder, sources) = (name.to_owned(), folder.to_owned(), sources.to_vec());
        Self { name, folder, sources, flags: FLAGS.map(str::to_owned).to_vec(), ptx_version: PTX_VERSION }
    }

    /// Selects the variant that the sources are compiled for.
    pub(crate) fn for_variant(mut self, variant: &Variant) -> Self {
        self.define("VARIANT", &variant.name);
        for role in ROLES {
            self.define(&role.to_uppercase(), type_of(variant.format(role)));
        }
        if variant.format("master").is_some() {
            self.define("WITH_MASTER", "1");
        }
        self
    }

    pub(crate) fn define(&mut self, name: &str, value: &str) {
        self.flags.push(format!("-D{name}={value}"));
    }
}

/// What the kernels call a format. Only a master can be absent.
fn type_of(format: Option<&str>) -> &str {
    match format {
        Some("f32") => "float",
        Some("bf16") => "Bf16",
        Some("f16") => "F16",
        Some(other) => other,
        None => "NoMaster",
    }
}

/// The module of a variant's kernels.
pub(crate) fn module_of(variant: &Variant, kernels: &Path) -> Module {
    Module::new(&variant.name, kernels, &SOURCES).for_variant(variant)
}

/// The library's modules: one for each variant, in the table's order, and last the one that
/// prepares controlled steps.
pub(crate) fn modules(kernels: &Path, variants: &[Variant]) -> Vec<Module> {
    let control = ["control.cu", "control.cuh", "pack.cuh", "tuning.cuh", "update.cuh"];
    let of_variants = variants.iter().map(|variant| module_of(variant, kernels));
    of_variants.chain([Module::new("control", kernels, &control)]).collect()
}

pub(crate) fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// SHA-256 of a folder's sources, one after the other, and of the table of variants. Line ends
/// count as LF.
pub(crate) fn source_hash(folder: &Path, sources: &[&str], variants: &[Variant]) -> Result<String> {
    let mut hash = Sha256::new();
    for name in sources {
        hash.update(read(&folder.join(name))?.replace("\r\n", "\n"));
    }
    for variant in variants {
        let formats = ROLES.map(|role| variant.format(role).unwrap_or("-"));
        hash.update(format!("{} {}\n", variant.name, formats.join(" ")));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The version, such as `13.0.88`, that a compiler writes into its PTX.
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

/// The folders of NVIDIA's wheels in a Python virtual environment:
/// `lib/python*/site-packages/nvidia/*`.
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

    /// The PTX of a module. Temporary files go into `scratch`.
    pub(crate) fn compile(&self, module: &Module, scratch: &Path) -> Result<String> {
        let ptx = match self {
            Self::Nvcc(nvcc) => run_nvcc(nvcc, module, scratch)?,
            Self::Nvrtc(library) => {
                let mut sources = vec![];
                for &name in &module.sources {
                    let text = read(&module.folder.join(name))?;
                    // Sources of this folder include a source of another folder by its path, and
                    // sources of that folder include it by its name.
                    if let Some((_, short)) = name.rsplit_once('/') {
                        sources.push((short, text.clone()));
                    }
                    sources.push((name, text));
                }
                let flags: Vec<_> = module.flags.iter().map(String::as_str).collect();
                nvrtc::compile(library, &sources, &flags)?
            }
        };
        lower_version(&ptx, module.ptx_version).ok_or_else(|| format!("{} gave no PTX", self.path().display()))
    }
}

fn run_nvcc(nvcc: &Path, module: &Module, scratch: &Path) -> Result<String> {
    let (out, source) = (scratch.join(format!("{}.ptx", module.name)), module.folder.join(module.sources[0]));
    let _ = fs::remove_file(&out); // else an old file could pass for the result
    let mut command = Command::new(nvcc);
    command.args(&module.flags).arg("-ptx").arg("-o").arg(&out).arg(source).env("TMPDIR", scratch);
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
fn lower_version(ptx: &str, version: &str) -> Option<String> {
    let start = ptx.find("\n.version ")? + 1;
    let length = ptx[start..].find('\n')?;
    Some(format!("{}.version {version}{}", &ptx[..start], &ptx[start + length..]))
}
