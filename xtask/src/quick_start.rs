//! `cargo xtask quick-start`: the commands and programs of the README's quick starts, as a newcomer
//! copies them.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use tempfile::TempDir;

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

/// Runs the README's commands unchanged, in an empty folder beside the repository.
///
/// # Errors
///
/// If a command fails, if the README lacks the commands, and if what it shows in Rust is no part of
/// the programs.
pub(crate) fn run(what: QuickStart) -> Result<()> {
    let program = what.program();
    ensure_shown("rust", &QuickStart::value_variants().iter().map(|what| what.program()).collect::<Vec<_>>())?;
    let block = commands_with(program)?;
    let lines: Vec<_> = block.lines().collect();
    let last = lines.iter().position(|line| line.contains(program)).context("a line")?;
    // The first makes the project, and the one before the last adds what the program uses.
    let mut commands = vec![lines[0]];
    commands.extend(&lines[last.saturating_sub(1).max(1)..=last]);

    let target = root().join("target/quick-start");
    let folder = Folder::new()?;
    let mut shell = folder.shell(&commands.join("\n"));
    shell.env("CARGO_TARGET_DIR", &target);
    if what == QuickStart::Cuda {
        shell.env("LD_LIBRARY_PATH", stand_in::folder(&target)?);
    }
    let status = shell.status().context("sh")?;
    ensure!(status.success(), "the README's commands with {program} failed: {status}");
    Ok(())
}

/// A folder that has nothing but the repository, as `dualadam`. It is outside of the repository,
/// where cargo would make new projects members of the workspace.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    /// Runs commands there, and ends with the first that fails.
    pub(crate) fn shell(&self, commands: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-euxc", &format!("ln -s \"$1\" dualadam\n{commands}"), "sh"]).arg(root());
        shell.current_dir(self.0.path());
        shell
    }
}

/// Asserts that each of the README's blocks of a language is one of the programs, or a part of one.
///
/// # Errors
///
/// Shows the block that is not.
pub(crate) fn ensure_shown(language: &str, programs: &[&str]) -> Result<()> {
    let lines = |text: &str| -> Vec<String> { text.lines().map(|line| line.trim().to_owned()).collect() };
    let read = |path: &&str| fs::read_to_string(root().join(path)).with_context(|| (*path).to_owned());
    let programs: Vec<_> = programs.iter().map(|path| read(path).map(|text| lines(&text))).collect::<Result<_>>()?;
    for block in blocks(&readme()?, language).map(lines) {
        let is_shown = programs.iter().any(|program| program.windows(block.len().max(1)).any(|part| part == block));
        ensure!(is_shown, "the README shows what no program has:\n{}", block.join("\n"));
    }
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
