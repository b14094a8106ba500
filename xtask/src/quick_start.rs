//! `cargo xtask quick-start`: the commands and programs of the README's quick starts, as a newcomer
//! copies them.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{root, stand_in};

/// The quick starts that begin with a new cargo project.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuickStart {
    Cpu,
    /// On the stand-in for the CUDA driver.
    Cuda,
    Webgpu,
    Candle,
}

impl QuickStart {
    /// The program, from the repository's root.
    const fn program(self) -> &'static str {
        match self {
            Self::Cpu => "examples/quick_start/cpu.rs",
            Self::Cuda => "examples/quick_start/cuda.rs",
            Self::Webgpu => "examples/quick_start/webgpu.rs",
            Self::Candle => "candle/examples/quick_start.rs",
        }
    }
}

/// Runs the README's commands unchanged, in an empty folder beside the repository, and asserts that
/// the README shows the program.
///
/// # Errors
///
/// If the README shows another program or no commands, and if a command fails.
pub(crate) fn run(what: QuickStart) -> Result<()> {
    let program = what.program();
    ensure_shown(program, "rust")?;
    let folder =
        root().canonicalize()?.join("target/quick-start").join(what.to_possible_value().context("a name")?.get_name());
    let project = folder.join("project");
    if project.exists() {
        fs::remove_dir_all(&project)?;
    }
    fs::create_dir_all(&project)?;
    let commands = format!("ln -s '{}' dualadam\n{}", root().canonicalize()?.display(), commands_with(program)?);
    let mut shell = Command::new("sh");
    shell.args(["-euc", &commands]).current_dir(&project).env("CARGO_TARGET_DIR", folder.join("target"));
    if what == QuickStart::Cuda {
        shell.env("LD_LIBRARY_PATH", stand_in::folder(&folder)?);
    }
    let status = shell.status().context("sh")?;
    ensure!(status.success(), "the README's commands with {program} failed: {status}");
    Ok(())
}

/// Asserts that one of the README's blocks of this language is the program.
pub(crate) fn ensure_shown(program: &str, language: &str) -> Result<()> {
    let text = fs::read_to_string(root().join(program)).with_context(|| program.to_owned())?;
    let is_shown = blocks(&readme()?, language).any(|block| block == text);
    ensure!(is_shown, "no block of the README is {program}");
    Ok(())
}

/// The README's commands that name this.
pub(crate) fn commands_with(name: &str) -> Result<String> {
    let readme = readme()?;
    let found = blocks(&readme, "sh").find(|block| block.contains(name));
    found.map(str::to_owned).with_context(|| format!("no commands of the README name {name}"))
}

fn readme() -> Result<String> {
    fs::read_to_string(root().join("README.md")).context("README.md")
}

/// The texts of the fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let parts: Vec<_> = text.split(fence.as_str()).skip(1).collect();
    parts.into_iter().filter_map(|rest| rest.split("```").next())
}
