//! `cargo xtask wheel`: the Python package as two files for pip, in `target/wheels`. The wheel
//! needs no Rust; the sdist needs Rust and pip. Both are installed and tested here.
//!
//! This machine's glibc may be newer than that of the machines that the wheel is for. So zig links
//! the module, against the symbols of one version of glibc, and auditwheel confirms the version.

use std::collections::BTreeSet;
use std::env::{self, consts::ARCH};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bundle::{entries_of, output};
use crate::{python, root};

/// maturin builds both files, with ziglang's linker; the others check them.
const TOOLS: &str = "\
abi3audit==0.0.26
auditwheel==6.8.2
maturin==1.16.0
twine==7.0.0
ziglang==0.17.1";

/// The second number of the newest glibc that the wheel may need, 2.28: RHEL 8's, and that of the
/// wheels of torch.
const GLIBC_MINOR: u32 = 28;

/// Prints the installed package's metadata and the paths of its files, as JSON.
const DESCRIBE: &str = "
import importlib.metadata, json
package = importlib.metadata.distribution('dualadam')
print(json.dumps([package.read_text('METADATA'), [str(file) for file in package.files]]))";

/// Makes both files and checks them.
pub(crate) fn run() -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "a manylinux wheel can be made on Linux only");
    let tools = python::environment(&root().join("target/wheel/tools"), TOOLS)?.join("bin");
    let (wheel, sdist) = build(&tools)?;
    check_tag(&tools, &wheel)?;
    python::succeed(Command::new(tools.join("abi3audit")).arg("--strict").arg(&wheel))?;
    python::succeed(Command::new(tools.join("twine")).args(["check", "--strict"]).args([&wheel, &sdist]))?;

    let packages = python::pinned(&["numpy", "pytest"])?.join("\n");
    let environment = python::environment(&root().join("target/wheel/check"), &packages)?;
    let [of_wheel, of_sdist] = [install(&environment, &wheel)?, install(&environment, &sdist)?];
    let differing = of_wheel.lines().zip(of_sdist.lines()).find(|(wheel, sdist)| wheel != sdist);
    ensure!(of_wheel == of_sdist, "the metadata of wheel and sdist differ: {differing:?}");
    println!("\n{}\n{}", wheel.display(), sdist.display());
    Ok(())
}

/// Builds the wheel and the sdist, and returns their paths.
fn build(tools: &Path) -> Result<(PathBuf, PathBuf)> {
    let folder = root().join("target/wheels");
    // pip leaves a wheel for this machine here when it installs the package from a clone.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let platform = format!("manylinux_2_{GLIBC_MINOR}");
    let maturin = |task: &str| {
        let mut maturin = Command::new(tools.join("maturin"));
        maturin.args([task, "--out"]).arg(&folder).current_dir(root().join("python"));
        maturin
    };
    let mut build = maturin("build");
    build.args(["--release", "--locked", "--zig", "--auditwheel", "check", "--compatibility", &platform]);
    // The Python with which maturin looks for zig.
    build.env("CARGO_ZIGBUILD_PYTHON_PATH", tools.join("python3"));
    // The same on each machine: the tested PTX, although there may be a CUDA compiler; no flags of
    // the user, such as `-C target-cpu=native`; no path of the user's home in messages.
    let home = env::home_dir().context("no home directory")?;
    build.env("DUALADAM_PTX", "prebuilt");
    build.env("CARGO_ENCODED_RUSTFLAGS", format!("--remap-path-prefix={}=~", home.display()));
    python::succeed(&mut build)?;
    python::succeed(&mut maturin("sdist"))?;

    let made = entries_of(&folder)?;
    let ending_in = |end: &str| made.iter().find(|file| file.to_string_lossy().ends_with(end)).cloned();
    let wheel = ending_in(&format!("-cp310-abi3-{platform}_{ARCH}.whl"));
    let files = wheel.zip(ending_in(".tar.gz")).filter(|_| made.len() == 2);
    files.with_context(|| format!("not a wheel for {platform} and an sdist, but {made:?}"))
}

/// Checks that auditwheel finds no newer glibc, and no other library, in the wheel.
fn check_tag(tools: &Path, wheel: &Path) -> Result<()> {
    let report: Value =
        serde_json::from_str(&output(Command::new(tools.join("auditwheel")).args(["show", "--json"]).arg(wheel))?)?;
    let tag = report["overall_tag"].as_str().context("auditwheel names no tag")?;
    let is_allowed = glibc_minor(tag, ARCH).is_some_and(|minor| minor <= GLIBC_MINOR);
    ensure!(is_allowed, "auditwheel finds {tag}, not manylinux_2_{GLIBC_MINOR} or lower: {report:#}");
    println!("auditwheel: {tag}");
    Ok(())
}

/// The second number of the glibc that a manylinux tag names.
fn glibc_minor(tag: &str, architecture: &str) -> Option<u32> {
    tag.strip_prefix("manylinux_2_")?.strip_suffix(architecture)?.strip_suffix('_')?.parse().ok()
}

/// Installs a file as users do, checks what is installed, and runs the tests of arrays, which need
/// no torch. Returns the package's metadata.
fn install(environment: &Path, file: &Path) -> Result<String> {
    // Outside the repository, so that the sdist builds from its own files.
    let elsewhere = tempfile::tempdir()?;
    let command = |program: &str| {
        let mut command = Command::new(environment.join("bin").join(program));
        command.current_dir(&elsewhere);
        command
    };
    // Without its cache, where pip keeps what it built before from an sdist of the same name.
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-compile"];
    println!("\n{}", file.display());
    python::succeed(command("pip").args(pip).args(["--no-deps", "--force-reinstall"]).arg(file))?;
    let described = output(command("python3").args(["-c", DESCRIBE]))?;
    let (metadata, files): (String, Vec<String>) = serde_json::from_str(&described)?;
    check_files(files)?;
    python::succeed(&mut python::pytest(environment, "arrays"))?;
    Ok(metadata)
}

/// Checks that the package has the files of the repository, its module and both licences, and no
/// others but those that every package has directly in its `.dist-info`.
fn check_files(installed: Vec<String>) -> Result<()> {
    let name = |file: String| match file.split_once(".dist-info/") {
        Some((_, name)) => name.contains('/').then(|| name.to_owned()),
        None => Some(file),
    };
    let installed: BTreeSet<_> = installed.into_iter().filter_map(name).collect();
    let tracked = output(Command::new("git").args(["ls-files", "dualadam"]).current_dir(root().join("python")))?;
    let mut expected: BTreeSet<_> = tracked.lines().map(str::to_owned).collect();
    let others = ["dualadam/_dualadam.abi3.so", "licenses/LICENSE-APACHE", "licenses/LICENSE-MIT"];
    expected.extend(others.map(str::to_owned));
    let differing: Vec<_> = installed.symmetric_difference(&expected).collect();
    ensure!(differing.is_empty(), "the installed package lacks these files, or should not have them: {differing:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manylinux_tags_of_the_architecture_name_a_glibc() {
        assert_eq!(glibc_minor("manylinux_2_34_x86_64", "x86_64"), Some(34));
        assert_eq!(glibc_minor("manylinux_2_5_aarch64", "aarch64"), Some(5));
        for other in ["linux_x86_64", "musllinux_1_2_x86_64", "manylinux_2_28_aarch64", "manylinux_2_x86_64"] {
            assert_eq!(glibc_minor(other, "x86_64"), None, "{other}");
        }
    }
}
