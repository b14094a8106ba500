//! Development tasks of dualadam. `cargo xtask test` runs everything that can be tested on this machine.

mod bundle;
mod prebuilt;
mod test;

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
    /// Run every test that this machine can run, and say in a closing table which ran and which did not, and why.
    Test,
    /// Compile the CUDA kernels with the pinned compiler and write `kernels/prebuilt/`, and `benches/cuda/prebuilt/`.
    Prebuilt {
        /// Only compare with what is there.
        #[arg(long)]
        check: bool,
    },
    /// Pack the tests and benchmarks for a real GPU into `target/bundle`, for a machine without Rust.
    Bundle,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Test => test::run(),
        Task::Bundle => bundle::run(),
        Task::Prebuilt { check } => prebuilt::run(check),
    }
}
