//! Development tasks of dualadam. `cargo xtask test` runs everything that can be tested on this
//! machine.

mod bundle;
mod c_programs;
mod cuda_tools;
mod fuzz;
mod header;
mod house;
mod install;
mod practice;
mod prebuilt;
#[path = "../../build/ptx.rs"]
mod ptx;
mod python;
mod quick_start;
#[path = "../../testkit/src/require.rs"]
#[expect(unreachable_pub, reason = "it is public there")]
mod require;
mod stand_in;
mod test;
mod tune;
#[path = "../../build/variants.rs"]
mod variants;
mod wasm;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of dualadam.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test that this machine can run, and print a table of which ran, which did not, and
    /// why.
    Test,
    /// Fail unless the environment variable `DUALADAM_REQUIRE`, a list with commas, has this name.
    Required { name: String },
    /// Compile the CUDA kernels with the pinned compiler and write `kernels/prebuilt/`, and
    /// `benches/cuda/prebuilt/`.
    Prebuilt {
        /// Write nothing, and fail if the files are out of date.
        #[arg(long)]
        check: bool,
    },
    /// Try the bundle's `run` on the stand-in driver: with deadlines that are too short, and by
    /// killing it.
    Practice,
    /// Compile the kernels with other constants into `target/tune`, for the benchmark's sweep.
    Tune,
    /// Pack the tests and benchmarks for a real GPU into `target/bundle`, for a machine without
    /// Rust.
    Bundle,
    /// Build the C library and install it with its header and pkg-config file.
    Install {
        /// The folder of `lib` and `include`, which are made if they do not exist.
        #[arg(long)]
        prefix: PathBuf,
    },
    /// Install the C library and build and run the C programs with it, with every compiler and
    /// checker that is installed.
    CPrograms,
    /// Run the commands of one of the README's quick starts unchanged.
    QuickStart { what: quick_start::QuickStart },
    /// Call all functions of the C library with generated arguments, under the address sanitizer.
    Fuzz {
        /// For how many seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Install the Python package into an environment below `target/`, and run its tests.
    Python,
    /// Build the Python package into `target/wheels`, as a manylinux wheel and an sdist, then
    /// install and test both.
    Wheel,
    /// Build the library for the browser, with rustup's target or with Debian's compiler.
    Wasm,
    /// Count what the rules of the source limit: lines, lists of types, circles of imports, wide
    /// comments, phrases to avoid, long sentences, dead links, samples that no test runs.
    House {
        /// Print the places that break a limit, but do not fail.
        #[arg(long)]
        report: bool,
    },
    /// Make `include/dualadam.h` from `capi/src/`.
    Header {
        /// Write nothing, and fail if the files are out of date.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a backtrace: what went wrong is in the command's own output.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Test => test::run(),
        Task::Required { name } => {
            anyhow::ensure!(require::is_required(&name), "DUALADAM_REQUIRE does not name {name}");
            Ok(())
        }
        Task::Bundle => bundle::run(),
        Task::Prebuilt { check } => prebuilt::run(check),
        Task::Practice => practice::run(&root()),
        Task::Tune => tune::write(&root(), &root().join("target/tune")),
        Task::Install { prefix } => install::run(&prefix),
        Task::CPrograms => c_programs::run(),
        Task::QuickStart { what } => quick_start::run(what),
        Task::Fuzz { seconds } => fuzz::run(seconds),
        Task::Python => python::run(),
        Task::Wheel => wheel::run(),
        Task::Wasm => wasm::run(),
        Task::House { report } => house::run(report),
        Task::Header { check } => header::run(check),
    }
}

/// The repository's root.
fn root() -> PathBuf {
    // Without ending in `..`: a link to it would be followed in another way by each program.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
