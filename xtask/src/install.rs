//! `cargo xtask install`: the C library, its header and its pkg-config file below a prefix.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::root;

/// Builds the library and installs it below `prefix`.
pub(crate) fn run(prefix: &Path) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "the C library can be installed on Linux only");
    fs::create_dir_all(prefix).with_context(|| prefix.display().to_string())?;
    let prefix = prefix.canonicalize()?;
    let version = version()?;
    let soname = soname(&version);
    let library = build(&soname)?;

    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    let pkgconfig = lib.join("pkgconfig");
    [&include, &pkgconfig].into_iter().try_for_each(fs::create_dir_all)?;
    copy(&root().join("include/dualadam.h"), &include.join("dualadam.h"))?;
    copy(&library.archive, &lib.join("libdualadam.a"))?;
    let real_name = format!("libdualadam.so.{version}");
    copy(&library.shared, &lib.join(&real_name))?;
    link(&real_name, &lib.join(&soname))?;
    link(&soname, &lib.join("libdualadam.so"))?;
    let file = pkgconfig.join("dualadam.pc");
    fs::write(&file, pkg_config(&prefix, &version, &library.needs)?).with_context(|| file.display().to_string())?;
    println!("dualadam {version} is installed in {}", prefix.display());
    Ok(())
}

/// What the build made.
struct Library {
    shared: PathBuf,
    archive: PathBuf,
    /// The other libraries that a program with the archive must link.
    needs: String,
}

/// Both kinds of library are asked for here, so that no other build makes them.
fn build(soname: &str) -> Result<Library> {
    let output = Command::new("cargo")
        .args(["rustc", "--release", "--package", "dualadam-capi", "--lib"])
        .args(["--crate-type", "cdylib,staticlib", "--message-format", "json-render-diagnostics", "--"])
        .args(["-C", "strip=debuginfo", "--print", "native-static-libs"])
        .arg(format!("-Clink-arg=-Wl,-soname,{soname}"))
        .current_dir(root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    let report = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the C library does not build:\n{report}");
    let files = artifacts(&output.stdout)?;
    let needs = report.lines().find_map(|line| line.split_once("native-static-libs: "));
    Ok(Library {
        shared: with_extension(&files, "so")?,
        archive: with_extension(&files, "a")?,
        needs: needs.context("the compiler does not say what the archive needs")?.1.trim().to_owned(),
    })
}

/// The files that a cargo command with JSON messages made or found up to date.
pub(crate) fn artifacts(messages: &[u8]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in messages.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line)?;
        let names = message["filenames"].as_array().into_iter().flatten();
        files.extend(names.filter_map(Value::as_str).map(PathBuf::from));
    }
    Ok(files)
}

/// The last of the files with this extension: the package's own comes after those of its
/// dependencies.
pub(crate) fn with_extension(files: &[PathBuf], extension: &str) -> Result<PathBuf> {
    let found = files.iter().rfind(|file| file.extension().is_some_and(|found| found == extension));
    found.cloned().with_context(|| format!("cargo made no .{extension} file"))
}

fn version() -> Result<String> {
    let output = Command::new("cargo").args(["pkgid", "--package", "dualadam-capi"]).current_dir(root()).output()?;
    let id = String::from_utf8(output.stdout)?;
    let (_, version) = id.trim().rsplit_once(['@', '#']).with_context(|| format!("no version in {id:?}"))?;
    Ok(version.to_owned())
}

/// Before 1.0 each minor version may break what was linked with another one.
fn soname(version: &str) -> String {
    let parts = if version.starts_with("0.") { 2 } else { 1 };
    let compatible: Vec<_> = version.split('.').take(parts).collect();
    format!("libdualadam.so.{}", compatible.join("."))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

fn link(target: &str, name: &Path) -> Result<()> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => bail!("{}: {error}", name.display()),
        _ => symlink(target, name).with_context(|| name.display().to_string()),
    }
}

fn pkg_config(prefix: &Path, version: &str, needs: &str) -> Result<String> {
    let prefix = prefix.to_str().context("the prefix must be UTF-8")?;
    Ok(format!(
        "prefix={prefix}\n\
         libdir=${{prefix}}/lib\n\
         includedir=${{prefix}}/include\n\n\
         Name: dualadam\n\
         Description: Fused steps of the DualAdam optimizer, on the CPU and on CUDA\n\
         Version: {version}\n\
         Cflags: -I${{includedir}}\n\
         Libs: -L${{libdir}} -ldualadam\n\
         Libs.private: {needs}\n"
    ))
}
