//! `cargo xtask bundle`: the tests and benchmarks for a real GPU in one folder, `target/bundle`, for a Linux machine on x86-64 with an
//! NVIDIA driver, and neither Rust nor this repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A program of the bundle, and how cargo builds it.
struct Program {
    name: &'static str,
    cargo: &'static [&'static str],
}

const PROGRAMS: [Program; 4] = [
    Program { name: "cuda_device", cargo: &["test", "--release", "--test", "cuda_device"] },
    Program { name: "cuda_bench", cargo: &["bench", "--bench", "cuda"] },
    Program { name: "webgpu_device", cargo: &["test", "--release", "--test", "webgpu"] },
    Program { name: "webgpu_bench", cargo: &["bench", "--bench", "webgpu"] },
];

/// Files that go along as they are.
const FILES: [&str; 7] = [
    "xtask/bundle/run",
    "benches/peers.py",
    "benches/peers_on_cpu.py",
    "benches/peers_on_cuda.py",
    "benches/triad.c",
    "benches/shapes.json",
    "benches/models.json",
];

/// The newest glibc that the programs may need, Ubuntu 22.04's.
const GLIBC: Version = Version { major: 2, minor: 35 };
const MOST_BYTES: u64 = 40 << 20;

pub(crate) fn run() -> Result<()> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "a bundle is made on Linux on x86-64, and for it");
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
    for file in FILES {
        let name = Path::new(file).file_name().with_context(|| file.to_owned())?;
        fs::copy(root.join(file), folder.join(name)).with_context(|| file.to_owned())?;
    }
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
    /// Builds it, with the PTX of the repository, and says where it is.
    fn build(&self, root: &Path) -> Result<PathBuf> {
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

/// Runs a program and gives its standard output; its standard error is the user's to see.
fn output(command: &mut Command) -> Result<String> {
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

fn bytes_in(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
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
