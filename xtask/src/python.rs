//! `cargo xtask python`: the Python package, installed with pip as users install it, and its tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{install, root, stand_in};

/// The packages that the tests need.
pub(crate) const PACKAGES: &str = include_str!("../../python/tests/requirements.txt");

/// Folders of tests that each run in a process of their own: torch must not see the stand-in
/// driver.
const TESTS: [&str; 5] = ["optimizer", "arrays", "distributed", "recipes", "cuda"];

/// Installs the package into an environment below `target/`, checks its types and runs its tests.
pub(crate) fn run() -> Result<()> {
    let environment = environment(&root().join("target/python"), PACKAGES)?;
    let tool = |name: &str| environment.join("bin").join(name);
    // As a user installs from a clone: pip gets maturin, and maturin finds cargo.
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--force-reinstall"];
    succeed(Command::new(tool("pip")).args(pip).arg(root().join("python")))?;
    let driver = stand_in::build()?;
    let c_library = root().join("target/python/c");
    install::run(&c_library)?;
    for tests in TESTS {
        let mut pytest = pytest(&environment, tests);
        match tests {
            "cuda" => pytest.env("STAND_IN_CUDA_LIBRARY", &driver),
            _ => pytest.env("DUALADAM_C_LIBRARY", c_library.join("lib/libdualadam.so")),
        };
        succeed(&mut pytest)?;
    }
    // The installed package: its stubs and py.typed are in the wheel.
    let mypy = Command::new(tool("mypy")).args(["--strict", "-p", "dualadam"]).current_dir(&environment).status()?;
    ensure!(mypy.success(), "mypy finds errors in the package");
    Ok(())
}

/// The command that runs one folder of tests on the package that is installed in the environment.
pub(crate) fn pytest(environment: &Path, tests: &str) -> Command {
    println!("\n{tests}:");
    let mut pytest = Command::new(environment.join("bin/pytest"));
    pytest.args(["-q", "-rs", "-c", "pyproject.toml", "--rootdir", "."]).arg(format!("tests/{tests}"));
    pytest.current_dir(root().join("python"));
    pytest
}

/// The lines of [`PACKAGES`] that pin these packages.
pub(crate) fn pinned(names: &[&str]) -> Result<Vec<&'static str>> {
    let line = |name: &str| PACKAGES.lines().find(|line| line.split("==").next() == Some(name));
    names.iter().map(|name| line(name).with_context(|| format!("no version of {name} is pinned"))).collect()
}

/// A virtual environment in `venv` of the folder with these packages, one a line, kept until they
/// change.
pub(crate) fn environment(folder: &Path, packages: &str) -> Result<PathBuf> {
    let (environment, mark) = (folder.join("venv"), folder.join("requirements.txt"));
    if fs::read_to_string(&mark).is_ok_and(|kept| kept == packages) {
        return Ok(environment);
    }
    let packages_in_line = packages.lines().collect::<Vec<_>>().join(", ");
    println!("installing once, into {}: {packages_in_line}", environment.display());
    if environment.exists() {
        fs::remove_dir_all(&environment).with_context(|| environment.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    venv(folder, "venv")?;
    let pip = ["install", "--quiet", "--disable-pip-version-check"];
    succeed(Command::new(environment.join("bin/pip")).args(pip).args(packages.lines()))?;
    fs::write(&mark, packages).with_context(|| mark.display().to_string())?;
    Ok(environment)
}

/// An empty virtual environment at this place below a folder, made if there is none.
pub(crate) fn venv(folder: &Path, place: &str) -> Result<PathBuf> {
    let environment = folder.join(place);
    if !environment.join("bin/pip").exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    Ok(environment)
}

/// Runs a program, whose output goes to the terminal.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let status = command.status().with_context(|| name.clone())?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}
