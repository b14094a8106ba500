//! `cargo xtask bundle`: the tests and benchmarks for a real GPU in one folder, `target/bundle`,
//! for a Linux machine on x86-64 that has an NVIDIA driver and needs neither Rust nor this
//! repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{python, tune};

/// A program of the bundle, and how cargo builds it.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) cargo: &'static [&'static str],
}

pub(crate) const PROGRAMS: [Program; 4] = [
    Program { name: "cuda_device", cargo: &["test", "--release", "--features", "cuda", "--test", "cuda_device"] },
    Program { name: "cuda_bench", cargo: &["bench", "--features", "cuda", "--bench", "cuda"] },
    Program { name: "webgpu_device", cargo: &["test", "--release", "--features", "webgpu-native", "--test", "webgpu"] },
    Program { name: "webgpu_bench", cargo: &["bench", "--features", "webgpu-native", "--bench", "webgpu"] },
];

/// Files that are copied into the bundle's folder unchanged.
pub(crate) const FILES: [&str; 7] = [
    "xtask/bundle/run",
    "benches/peers.py",
    "benches/peers_on_cpu.py",
    "benches/peers_on_cuda.py",
    "benches/triad.c",
    "benches/shapes.json",
    "benches/models.json",
];

/// Folders and files that keep their paths in the bundle, since the Python package's tests find
/// them by relative paths.
const PYTHON_TESTS: [&str; 6] =
    ["python/tests", "python/pyproject.toml", "python/README.md", "README.md", "tests/golden", "variants.txt"];

/// What the Python package's tests need beside torch and NumPy, which the machine must have.
const PYTHON_PACKAGES: [&str; 2] = ["pytest", "safetensors"];

/// Debian's packages of the Vulkan loader and of the libraries that NVIDIA's Vulkan driver opens.
const VULKAN_PACKAGES: [&str; 7] =
    ["libvulkan1", "libegl1", "libglvnd0", "libopengl0", "libgl1", "libglx0", "libgles2"];

/// The newest glibc that the programs may need, Ubuntu 22.04's.
const GLIBC: Version = Version { major: 2, minor: 35 };
/// The most bytes of the bundle, so that its upload takes seconds; compressed it has a third.
const MOST_BYTES: u64 = 48 << 20;

pub(crate) fn run() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "a bundle can only be made on and for Linux on x86-64"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    let folder = root.join("target/bundle");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for program in PROGRAMS {
        let file = folder.join(program.name);
        output(Command::new("strip").arg("-o").arg(&file).arg(program.build(root)?))?;
        let needed = needed_glibc(&file)?;
        println!("{}: needs glibc {}.{}", program.name, needed.major, needed.minor);
        ensure!(needed <= GLIBC, "{} must run with glibc {}.{}", program.name, GLIBC.major, GLIBC.minor);
    }
    add_python(root, &folder)?;
    tune::write(root, &folder.join("tune"))?;
    add_vulkan_loader(root, &folder.join("lib"))?;
    add_files(root, &folder)?;
    fs::write(folder.join("about.txt"), about(root)?)?;
    let bytes = bytes_in(&folder)?;
    println!(
        "{}: {:.1} MiB; take it to the machine and start `run`",
        folder.display(),
        bytes as f64 / f64::from(1 << 20)
    );
    ensure!(bytes < MOST_BYTES, "{} must be smaller than {} MiB", folder.display(), MOST_BYTES >> 20);
    Ok(())
}

impl Program {
    /// Builds the program with the PTX of the repository, and returns its path.
    pub(crate) fn build(&self, root: &Path) -> Result<PathBuf> {
        let mut cargo = Command::new("cargo");
        cargo.args(self.cargo).args(["--no-run", "--message-format=json-render-diagnostics"]);
        let messages = output(cargo.current_dir(root).env("DUALADAM_PTX", "prebuilt"))?;
        let executable = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        };
        messages.lines().find_map(executable).with_context(|| format!("cargo built no {}", self.name))
    }
}

/// Runs a program and returns its standard output; its standard error goes to the terminal.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let run = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    if !run.status.success() {
        bail!("{command:?}: {}", run.status);
    }
    Ok(String::from_utf8(run.stdout)?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

/// The newest version of glibc whose symbols a program needs.
fn needed_glibc(program: &Path) -> Result<Version> {
    let symbols = output(Command::new("objdump").arg("-T").arg(program))?;
    newest_glibc(&symbols).with_context(|| format!("{} needs no glibc", program.display()))
}

fn newest_glibc(symbols: &str) -> Option<Version> {
    let version = |text: &str| {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Version { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    };
    symbols.split("GLIBC_").skip(1).filter_map(version).max()
}

/// What the programs were made from, in one line.
fn about(root: &Path) -> Result<String> {
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(root));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = if git(&["status", "--porcelain"])?.is_empty() { "" } else { " with changes" };
    let rustc = output(Command::new("rustc").arg("--version"))?;
    Ok(format!("dualadam, commit {}{changes}, {}, prebuilt PTX\n", commit.trim(), rustc.trim()))
}

/// Copies [`FILES`] into the bundle's folder.
pub(crate) fn add_files(root: &Path, folder: &Path) -> Result<()> {
    for file in FILES {
        let name = Path::new(file).file_name().with_context(|| file.to_owned())?;
        fs::copy(root.join(file), folder.join(name)).with_context(|| file.to_owned())?;
    }
    Ok(())
}

/// Adds Debian's Vulkan loader and the libraries that NVIDIA's Vulkan driver opens, for machines
/// that have only the driver.
fn add_vulkan_loader(root: &Path, folder: &Path) -> Result<()> {
    let scratch = root.join("target/vulkan-loader");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    output(Command::new("apt-get").args(["download", "--quiet"]).args(VULKAN_PACKAGES).current_dir(&scratch))
        .context("apt-get must download Debian's packages of the Vulkan loader")?;
    for package in entries_of(&scratch)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb")) {
        output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&scratch))?;
    }
    for library in entries_of(&scratch.join("usr/lib/x86_64-linux-gnu"))? {
        // Programs open the file by the name with one number, which is a link.
        let name = library.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.split_once(".so.").is_some_and(|(_, version)| !version.contains('.')) {
            fs::copy(&library, folder.join(name)).with_context(|| library.display().to_string())?;
        }
    }
    ensure!(folder.join("libvulkan.so.1").exists(), "apt-get downloaded no Vulkan loader");
    Ok(())
}

/// The paths of what is in a folder.
pub(crate) fn entries_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect())
}

/// Adds the Python package and its tests, with what they import, so that nothing must be installed.
fn add_python(root: &Path, folder: &Path) -> Result<()> {
    let (pip, packages) = (python::venv(root, "target/python/pip")?.join("bin/pip"), folder.join("packages"));
    let pinned = python::pinned(&PYTHON_PACKAGES)?;
    // Wheels for all Pythons from 3.10 on, of the same glibc as the programs.
    let target = ["install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target"];
    output(Command::new(&pip).args(target).arg(&packages).args(pinned))?;
    output(Command::new(&pip).args(target).arg(&packages).arg("--no-deps").arg(root.join("python")))?;
    let module = packages.join("dualadam/_dualadam.abi3.so");
    let needed = needed_glibc(&module)?;
    println!("the Python module: needs glibc {}.{}", needed.major, needed.minor);
    ensure!(needed <= GLIBC, "the Python module must run with glibc {}.{}", GLIBC.major, GLIBC.minor);
    output(Command::new("strip").arg("--strip-unneeded").arg(module))?;
    for place in PYTHON_TESTS {
        copy_tracked(root, place, folder)?;
    }
    Ok(())
}

/// Copies a file, or those files of a folder that git tracks.
fn copy_tracked(root: &Path, place: &str, folder: &Path) -> Result<()> {
    let files = output(Command::new("git").args(["ls-files", place]).current_dir(root))?;
    for file in files.lines() {
        let to = folder.join(file);
        fs::create_dir_all(to.parent().with_context(|| file.to_owned())?).with_context(|| file.to_owned())?;
        fs::copy(root.join(file), to).with_context(|| file.to_owned())?;
    }
    Ok(())
}

fn bytes_in(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let bytes = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        if entry.file_type()?.is_dir() { bytes_in(&entry.path()) } else { Ok(entry.metadata()?.len()) }
    };
    entries.map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found() {
        let symbols =
            "0 DF *UND* 0 (GLIBC_2.9) open\n0 DF *UND* 0 (GLIBC_2.34) x\n0 DF *UND* 0 (GLIBC_2.2.5) y\n(GLIBC_ABI) z";
        assert_eq!(newest_glibc(symbols), Some(Version { major: 2, minor: 34 }));
        assert_eq!(newest_glibc("0 DF *UND* 0 (GCC_3.0) z"), None);
    }
}
