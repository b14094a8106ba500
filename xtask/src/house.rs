//! `cargo xtask house`: counts what the project's rules limit, and fails if a limit is broken.

mod circles;
mod combinations;
mod comments;
mod links;
mod phrases;
mod prose;
mod samples;
mod sentences;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;

use crate::root;

/// The folders whose files are limited in length, so that each has one job.
const SHORT_FILES: [&str; 7] =
    ["src/", "kernels/", "shaders/", "capi/", "python/src/", "python/dualadam/", "candle/src/"];
const MOST_LINES_OF_A_FILE: usize = 400;
/// The library and its C surface.
const LIBRARY: [&str; 2] = ["src/", "capi/src/"];
/// The tests of both.
const TESTS: [&str; 2] = ["tests/", "capi/tests/"];
const STAND_IN: [&str; 1] = ["stand_in_cuda/"];
const CODE: [&str; 9] = ["rs", "cu", "cuh", "wgsl", "py", "pyi", "c", "cpp", "h"];
/// Documents, and files whose comments are looked at.
const TEXTS: [&str; 5] = ["md", "toml", "yml", "cff", "txt"];

/// A file of the repository that is written by hand.
struct Source {
    /// From the root, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    fn is_code(&self) -> bool {
        CODE.contains(&self.extension())
    }

    fn lines(&self) -> usize {
        self.text.lines().count()
    }

    fn is_in(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }
}

/// A row of the table.
struct Count {
    what: String,
    found: usize,
    /// The most that may be found, where there is a limit.
    limit: Option<usize>,
    /// What to look at, a line each.
    details: Vec<String>,
}

impl Count {
    fn is_broken(&self) -> bool {
        self.limit.is_some_and(|limit| self.found > limit)
    }
}

/// Prints the table, and below it the places that break a limit.
///
/// # Errors
///
/// Names the broken limits, unless they are only to be reported.
pub(crate) fn run(only_report: bool) -> Result<()> {
    let sources = sources()?;
    let is_stand_in = |source: &Source| source.is_in(&STAND_IN);
    let mut counts = vec![
        long_files(&sources),
        lines("the library and its C surface", &sources, |source| source.is_in(&LIBRARY)),
        lines_of_code("the library and its C surface", &sources, |source| source.is_in(&LIBRARY)),
        lines("tests", &sources, |source| source.is_in(&TESTS)),
        lines("the kit for tests", &sources, |source| source.is_in(&["testkit/"])),
        lines("the stand-in for CUDA", &sources, is_stand_in),
        lines("benchmarks", &sources, |source| source.is_in(&["benches/"])),
        combinations::count(&sources)?,
    ];
    counts.extend(circles::counts(&sources)?);
    counts.extend([
        comments::count(&sources),
        phrases::count(&sources)?,
        sentences::count(&sources),
        links::count(&sources),
    ]);
    counts.extend(samples::counts(&sources));

    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(["what", "found", "limit", ""]);
    for count in &counts {
        let limit = count.limit.map_or_else(String::new, |limit| limit.to_string());
        let verdict = if count.is_broken() { "BROKEN" } else { "" };
        table.add_row([&count.what, &count.found.to_string(), &limit, verdict]);
    }
    println!("{table}");
    for count in counts.iter().filter(|count| !count.details.is_empty()) {
        println!("\n{}:\n  {}", count.what, count.details.join("\n  "));
    }
    let broken: Vec<_> = counts.iter().filter(|count| count.is_broken()).map(|count| count.what.as_str()).collect();
    ensure!(only_report || broken.is_empty(), "limits are broken: {}", broken.join("; "));
    Ok(())
}

/// The source files that git tracks or would add.
fn sources() -> Result<Vec<Source>> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
        .current_dir(root())
        .output()
        .context("git")?;
    ensure!(git.status.success(), "git cannot list the files: {}", String::from_utf8_lossy(&git.stderr));
    // By `-z` they are as they are, also those that git would quote.
    let paths = String::from_utf8(git.stdout)?;
    let wanted = |path: &&str| {
        let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
        // The manifests of compiled kernels are not written by hand.
        !path.ends_with("MANIFEST.toml")
            && extension.is_some_and(|extension| CODE.contains(&extension) || TEXTS.contains(&extension))
    };
    // Git also lists a file whose deletion is not yet committed.
    let paths = paths.split_terminator('\0').filter(wanted).filter(|path| root().join(path).is_file());
    let text = |path: &str| fs::read_to_string(root().join(path)).with_context(|| path.to_owned());
    paths.map(|path| Ok(Source { path: path.to_owned(), text: text(path)? })).collect()
}

fn long_files(sources: &[Source]) -> Count {
    let long =
        |source: &&Source| source.is_in(&SHORT_FILES) && source.is_code() && source.lines() > MOST_LINES_OF_A_FILE;
    let mut long: Vec<_> = sources.iter().filter(long).map(|source| (source.lines(), source.path.as_str())).collect();
    long.sort_unstable_by(|a, b| b.cmp(a));
    Count {
        what: format!("files over {MOST_LINES_OF_A_FILE} lines"),
        found: long.len(),
        limit: Some(0),
        details: long.iter().map(|(lines, path)| format!("{lines:5} {path}")).collect(),
    }
}

/// The lines of the files that are wanted.
fn lines(of: &str, sources: &[Source], is_wanted: impl Fn(&Source) -> bool) -> Count {
    count_lines(format!("lines of {of}"), sources, is_wanted, Source::lines)
}

/// [`lines`], without comments and blank lines.
fn lines_of_code(of: &str, sources: &[Source], is_wanted: impl Fn(&Source) -> bool) -> Count {
    count_lines(format!("lines of code in {of}"), sources, is_wanted, |source| {
        let lines = source.text.lines().map(str::trim_start);
        lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count()
    })
}

fn count_lines(
    what: String,
    sources: &[Source],
    is_wanted: impl Fn(&Source) -> bool,
    lines: impl Fn(&Source) -> usize,
) -> Count {
    let wanted = sources.iter().filter(|source| source.is_code() && is_wanted(source));
    Count { what, found: wanted.map(lines).sum(), limit: None, details: vec![] }
}
