//! `cargo xtask test`: all tests, and a table of what ran.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use comfy_table::Table;

/// A group of tests that runs as one command.
struct Stage {
    name: &'static str,
    command: &'static str,
    /// What must hold for the stage to run, and what is said where it does not.
    needs: Option<(Need, &'static str)>,
}

enum Need {
    /// This command succeeds.
    Command(&'static str),
    /// The environment variable `DUALADAM_REQUIRE`, a list with commas between, has this name.
    Required(&'static str),
}

impl Need {
    fn holds(&self) -> bool {
        match *self {
            Self::Command(probe) => {
                let probe = command(probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
                probe.is_ok_and(|status| status.success())
            }
            Self::Required(wanted) => {
                std::env::var("DUALADAM_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name.trim() == wanted))
            }
        }
    }
}

const STAGES: [Stage; 9] = [
    Stage {
        name: "unit, integration and documentation tests",
        command: "cargo test --workspace --exclude dualadam-python --all-features",
        needs: None,
    },
    Stage {
        name: "the digits example, two epochs",
        command: "cargo run --release --example digits -- --seeds 1 --epochs 2 --png target/digits-test.png",
        needs: None,
    },
    Stage { name: "the C programs, from an installed library", command: "cargo xtask c-programs", needs: None },
    Stage {
        name: "the C library, a minute of fuzzing",
        command: "cargo xtask fuzz --seconds 60",
        needs: Some((Need::Command("cargo +nightly fuzz --version"), "no nightly toolchain with cargo-fuzz")),
    },
    Stage {
        name: "the Python package, against torch and NumPy",
        command: "cargo xtask python",
        needs: Some((Need::Required("python"), "DUALADAM_REQUIRE does not name python; it installs 3 GB, once")),
    },
    Stage { name: "the benchmarks, a quick round", command: "cargo bench --bench limit -- --quick", needs: None },
    Stage {
        name: "the CUDA benchmark on the stand-in driver, a quick round",
        command: "cargo bench --bench cuda -- --quick --stand-in",
        needs: None,
    },
    Stage {
        name: "the CUDA tests on a real device",
        command: "env DUALADAM_REQUIRE=cuda cargo test --release --test cuda_device",
        needs: Some((Need::Command("nvidia-smi"), "no NVIDIA driver with a device (nvidia-smi)")),
    },
    Stage {
        name: "the library's unit tests under Miri",
        command: "cargo +nightly miri test --lib",
        needs: Some((Need::Command("cargo +nightly miri --version"), "no nightly toolchain with the component miri")),
    },
];

enum Outcome {
    Passed(Duration),
    Failed(Duration),
    NotRun(&'static str),
}

/// Runs all stages, also after one that fails.
///
/// # Errors
///
/// Names the stages that failed.
pub(crate) fn run() -> anyhow::Result<()> {
    let outcomes: Vec<_> = STAGES.iter().map(run_stage).collect::<Result<_, _>>()?;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(["what", "outcome", "seconds"]);
    for (stage, outcome) in STAGES.iter().zip(&outcomes) {
        let (outcome, seconds) = match outcome {
            Outcome::Passed(time) => ("passed".to_owned(), format!("{:.0}", time.as_secs_f64())),
            Outcome::Failed(time) => ("FAILED".to_owned(), format!("{:.0}", time.as_secs_f64())),
            Outcome::NotRun(reason) => (format!("not run: {reason}"), String::new()),
        };
        table.add_row([stage.name, &outcome, &seconds]);
    }
    println!("\n{table}");
    let failed = STAGES.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    let failed: Vec<_> = failed.map(|(stage, _)| stage.name).collect();
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

fn run_stage(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some((need, reason)) = &stage.needs
        && !need.holds()
    {
        return Ok(Outcome::NotRun(reason));
    }
    println!("\n==> {}: {}", stage.name, stage.command);
    let start = Instant::now();
    let status = command(stage.command).status()?;
    let time = start.elapsed();
    Ok(if status.success() { Outcome::Passed(time) } else { Outcome::Failed(time) })
}

/// A command of words that hold no spaces, run at the repository's root.
fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}
