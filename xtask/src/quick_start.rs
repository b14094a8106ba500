//! `cargo xtask quick-start`: the commands and programs of the README's quick starts, as a newcomer
//! copies them.

use std::fs;
use std::path::{Path, PathBuf};
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

/// Runs the commands as they stand in the README, in an empty folder beside the repository, and
/// asserts that the README shows the program.
///
/// # Errors
///
/// If the README shows another program or no commands, and if a command fails.
pub(crate) fn run(what: QuickStart) -> Result<()> {
    let program = what.program();
    ensure_shown(program, "rust")?;
    let block = commands_with(program)?;
    let lines: Vec<_> = block.lines().collect();
    let last = lines.iter().position(|line| line.contains(program)).context("a line")?;
    // The first makes the project, and the one before the last adds what the program uses.
    let mut commands = vec![lines[0]];
    commands.extend(&lines[last.saturating_sub(1).max(1)..=last]);

    let target = root().canonicalize()?.join("target/quick-start");
    let folder = Folder::new(&target, what.program())?;
    let mut shell = folder.shell(&commands.join("\n"));
    shell.env("CARGO_TARGET_DIR", target.join("target"));
    if what == QuickStart::Cuda {
        shell.env("LD_LIBRARY_PATH", stand_in::folder(&target)?);
    }
    let status = shell.status().context("sh")?;
    ensure!(status.success(), "the README's commands with {program} failed: {status}");
    Ok(())
}

/// A folder that has nothing but the repository, as `dualadam`.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Emptied if it is there.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn new(place: &Path, name: &str) -> Result<Self> {
        let folder = place.join(name.replace('/', "-"));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }

    /// Runs commands there, and ends with the first that fails.
    pub(crate) fn shell(&self, commands: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-euxc", &format!("ln -s \"$1\" dualadam\n{commands}"), "sh"]).arg(root()).current_dir(&self.0);
        shell
    }
}

/// Asserts that one of the README's blocks of this language is a part of the program, or all of it.
pub(crate) fn ensure_shown(program: &str, language: &str) -> Result<()> {
    let text = fs::read_to_string(root().join(program)).with_context(|| program.to_owned())?;
    let lines = |text: &str| -> Vec<String> { text.lines().map(|line| line.trim().to_owned()).collect() };
    let (program_lines, readme) = (lines(&text), readme()?);
    let is_shown = blocks(&readme, language).any(|block| {
        let block = lines(block);
        program_lines.windows(block.len().max(1)).any(|part| part == block)
    });
    ensure!(is_shown, "no block of the README is a part of {program}");
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
