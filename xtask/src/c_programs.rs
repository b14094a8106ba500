//! `cargo xtask c-programs`: tests the C library as a new user meets it. It installs the library
//! and runs the README's commands unchanged. Then it builds the examples against the installed
//! library with every compiler that is installed, and runs them under every checker that is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;

use crate::{install, quick_start, root, stand_in};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
/// A compiler, and the options that choose its language.
type Compiler = (&'static str, [&'static str; 3]);
const COMPILERS: [Compiler; 4] = [
    ("gcc", ["-std=c11", "-x", "c"]),
    ("g++", ["-std=c++17", "-x", "c++"]),
    ("clang", ["-std=c11", "-x", "c"]),
    ("clang++", ["-std=c++17", "-x", "c++"]),
];
const SANITIZERS: [&str; 3] = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
const VALGRIND: [&str; 5] =
    ["-q", "--error-exitcode=1", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"];
/// A false report: in an iterator adapter of the stand-in's interpreter, optimised code also tests
/// a value that may be uninitialised, which does not decide the result.
const SUPPRESSED: &str = "{\n stand-in\n Memcheck:Cond\n fun:*FlatMap*next*\n obj:*/stand-in/libcuda.so\n}\n";

/// Runs everything that can be run, and says in a table what ran and what did not, and why.
///
/// # Errors
///
/// Names what failed.
pub(crate) fn run() -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "the C library is tested on Linux only");
    let programs = Programs::new()?;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(["what", "outcome"]);
    let mut failed = Vec::new();
    let mut note = |what: String, outcome: Option<Result<()>>| {
        let outcome = match outcome {
            Some(Ok(())) => "passed".to_owned(),
            Some(Err(error)) => {
                println!("{what}: {error:#}");
                failed.push(what.clone());
                "FAILED".to_owned()
            }
            None => "not run: it is not installed".to_owned(),
        };
        table.add_row([what, outcome]);
    };

    note("the README's commands".to_owned(), Some(programs.readme()));
    for compiler @ (name, [standard, ..]) in COMPILERS {
        let there = is_there(name);
        let what = format!("{name} {standard}");
        note(what.clone(), there.then(|| programs.each(compiler, &[], None)));
        let what = format!("{what}, address and undefined behaviour sanitizers");
        note(what, there.then(|| programs.each(compiler, &SANITIZERS, None)));
    }
    let first = COMPILERS[0];
    note("the static library".to_owned(), is_there(first.0).then(|| programs.linked_statically(first)));
    let valgrind = is_there("valgrind") && is_there(first.0);
    note("valgrind".to_owned(), valgrind.then(|| programs.under_valgrind(first)));
    println!("\n{table}");
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

fn is_there(program: &str) -> bool {
    let probe = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// The examples, the installed library, and a stand-in for the CUDA driver.
struct Programs {
    folder: PathBuf,
    prefix: PathBuf,
    /// The folder that has the stand-in under the names of libcuda.
    driver: PathBuf,
}

impl Programs {
    fn new() -> Result<Self> {
        let folder = root().canonicalize()?.join("target/c-programs");
        let prefix = folder.join("installed");
        install::run(&prefix)?;
        let driver = stand_in::folder(&folder)?;
        Ok(Self { folder, prefix, driver })
    }

    /// Runs the README's commands for C unchanged, and asserts that it shows their program.
    fn readme(&self) -> Result<()> {
        let folder = quick_start::Folder::new()?;
        succeed(&mut folder.shell(&quick_start::c_commands()?))
    }

    /// Builds the examples against the shared library and runs them, under a checker if one is
    /// given.
    fn each(&self, compiler: Compiler, more: &[&str], checker: Option<&[&str]>) -> Result<()> {
        for name in ["quick_start", "train_cpu", "clamp_masters", "step_cuda"] {
            let program = self.folder.join(name);
            let mut build = self.compiler(compiler, name)?;
            build.args(more).args(self.pkg_config(&["--libs"])?).arg("-L").arg(&self.driver);
            build.args((name == "step_cuda").then_some("-lcuda"));
            succeed(build.arg("-o").arg(&program)).with_context(|| name.to_owned())?;
            let mut run = match checker {
                None => Command::new(&program),
                Some(checker) => {
                    let mut run = Command::new(checker[0]);
                    run.args(&checker[1..]).arg(&program);
                    run
                }
            };
            let folders = std::env::join_paths([self.prefix.join("lib"), self.driver.clone()])?;
            succeed(run.current_dir(&self.folder).env("LD_LIBRARY_PATH", folders)).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    /// Builds the CPU's example with the archive, so that the program runs without the shared
    /// library.
    fn linked_statically(&self, compiler: Compiler) -> Result<()> {
        let program = self.folder.join("train_cpu_static");
        let libraries = self.pkg_config(&["--static", "--libs"])?;
        let needs = libraries.iter().filter(|word| !word.starts_with("-L") && *word != "-ldualadam");
        let mut build = self.compiler(compiler, "train_cpu")?;
        build.args(["-x", "none"]).arg(self.prefix.join("lib/libdualadam.a")).args(needs);
        succeed(build.arg("-o").arg(&program))?;
        succeed(Command::new(&program).current_dir(&self.folder))
    }

    fn under_valgrind(&self, compiler: Compiler) -> Result<()> {
        let file = self.folder.join("valgrind.supp");
        fs::write(&file, SUPPRESSED)?;
        let suppressions = format!("--suppressions={}", file.display());
        let checker: Vec<_> = ["valgrind", &suppressions].into_iter().chain(VALGRIND).collect();
        self.each(compiler, &["-g"], Some(&checker))
    }

    fn compiler(&self, (compiler, language): Compiler, name: &str) -> Result<Command> {
        let mut command = Command::new(compiler);
        command.args(language).args(STRICT).args(self.pkg_config(&["--cflags"])?);
        command.arg(root().join("examples/c").join(name).with_extension("c"));
        Ok(command)
    }

    fn pkg_config(&self, what: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", self.prefix.join("lib/pkgconfig")).args(what).arg("dualadam");
        let output = command.output().context("pkg-config")?;
        ensure!(output.status.success(), "pkg-config: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::to_owned).collect())
    }
}

/// Runs a program and prints its output, which is in the error if it fails.
fn succeed(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("")).display().to_string();
    let run = command.output().with_context(|| program.clone())?;
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(run.status.success(), "{program}: {}\n{said}", run.status);
    print!("{said}");
    Ok(())
}
