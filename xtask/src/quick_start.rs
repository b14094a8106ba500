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
    let readme = readme()?;
    let programs = QuickStart::value_variants().iter().map(|what| {
        let path = root().join(what.program());
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    });
    ensure_programs_are_shown(&readme, &programs.collect::<Result<Vec<_>>>()?)?;
    ensure_each_command_runs(&readme)?;
    let commands = commands(&readme, program)?;

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

/// Asserts that the README's blocks of Rust are parts of the programs, and that a whole program is
/// shown.
fn ensure_programs_are_shown(readme: &str, programs: &[String]) -> Result<()> {
    ensure_parts_are_shown(readme, "rust", programs)?;
    let is_head = |line: &&String| line.is_empty() || line.starts_with("//!");
    let without_head = |text: &String| lines(text).iter().skip_while(is_head).cloned().collect::<Vec<_>>();
    let programs: Vec<_> = programs.iter().map(without_head).collect();
    let mut is_whole_shown = false;
    for block in blocks(readme, "rust").map(lines) {
        let is_whole = programs.contains(&block);
        let has_main = block.iter().any(|line| line.starts_with("fn main("));
        ensure!(is_whole || !has_main, "the README shows a program without some of it:\n{}", block.join("\n"));
        is_whole_shown |= is_whole;
    }
    ensure!(is_whole_shown, "the README shows no program in Rust");
    Ok(())
}

/// Asserts that each of the README's blocks of a language is a part of one of the programs, or all
/// of it.
fn ensure_parts_are_shown(readme: &str, language: &str, programs: &[String]) -> Result<()> {
    let programs: Vec<_> = programs.iter().map(|program| lines(program)).collect();
    for block in blocks(readme, language).map(lines) {
        let is_shown = programs.iter().any(|program| program.windows(block.len().max(1)).any(|part| part == block));
        ensure!(is_shown, "the README shows what no program has:\n{}", block.join("\n"));
    }
    Ok(())
}

/// Without indentation.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Asserts that one of the quick starts runs each line of the blocks of commands that make a
/// project.
fn ensure_each_command_runs(readme: &str) -> Result<()> {
    let runs = QuickStart::value_variants().iter().map(|what| commands(readme, what.program()));
    let run = runs.collect::<Result<Vec<_>>>()?.concat();
    for line in blocks(readme, "sh").filter(|block| block.contains("cargo new")).flat_map(str::lines) {
        ensure!(run.contains(&line), "no quick start runs the README's {line:?}");
    }
    Ok(())
}

/// The README's commands for a program: the first of its block makes the project, and the one
/// before the last adds what the program uses.
fn commands<'a>(readme: &'a str, program: &str) -> Result<Vec<&'a str>> {
    let lines: Vec<_> = block_with(readme, program)?.lines().collect();
    let last = lines.iter().position(|line| line.contains(program)).context("a line")?;
    Ok([&lines[..1], &lines[last.saturating_sub(1).max(1)..=last]].concat())
}

/// The README's commands for the C program.
///
/// # Errors
///
/// If the README lacks them, or if what it shows in C is no part of the program.
pub(crate) fn c_commands() -> Result<String> {
    let (readme, program) = (readme()?, "examples/c/quick_start.c");
    let text = fs::read_to_string(root().join(program)).context(program)?;
    ensure_parts_are_shown(&readme, "c", &[text])?;
    block_with(&readme, program).map(str::to_owned)
}

fn block_with<'a>(readme: &'a str, name: &str) -> Result<&'a str> {
    let found = blocks(readme, "sh").find(|block| block.contains(name));
    found.with_context(|| format!("no commands of the README name {name}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_readme_shows_is_a_program() {
        let program = "//! To use b.\n\nuse a::b;\n\nfn main() {\n    b();\n    c();\n}\n";
        let is_fine = |readme: &str| ensure_programs_are_shown(readme, &[program.to_owned()]).is_ok();
        let whole = "```rust\nuse a::b;\n\nfn main() {\n    b();\n    c();\n}\n```\n";
        assert!(is_fine(whole));
        assert!(is_fine(&format!("{whole}```rust\nb();\nc();\n```\n")));
        assert!(!is_fine(&format!("{whole}```rust\nc();\nb();\n```\n")));
        assert!(!is_fine(&whole.replace("use a::b;\n\n", "")));
        assert!(!is_fine(&whole.replace("    c();\n}\n", "")));
        assert!(!is_fine("```rust\nb();\n```\n"));
        assert!(!is_fine(&whole.replace("```rust", "```rust,ignore")));
    }

    #[test]
    fn each_command_is_run() {
        let readme = readme().unwrap();
        ensure_each_command_runs(&readme).unwrap();
        let webgpu = QuickStart::Webgpu.program();
        assert_eq!(commands(&readme, webgpu).unwrap().len(), 3);
        assert_eq!(commands(&readme, QuickStart::Candle.program()).unwrap().len(), 3);
        let line = readme.lines().find(|line| line.contains(webgpu)).unwrap();
        let more = readme.replace(line, &format!("{line}\ncargo rum"));
        assert!(more != readme && ensure_each_command_runs(&more).is_err());
        let twice = readme.replace("cargo add --quiet pollster && ", "cargo add --quiet pollster\n");
        assert!(twice != readme && ensure_each_command_runs(&twice).is_err());
    }
}
