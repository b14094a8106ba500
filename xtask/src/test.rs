//! `cargo xtask test`: all tests, and a table of what ran.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use comfy_table::Table;

/// A group of tests that runs as one command.
struct Stage {
    name: &'static str,
    command: &'static str,
    /// Commands that fail if the stage cannot run, each with the reason why it cannot.
    needs: &'static [(&'static str, &'static str)],
}

/// Fails if there is no adapter. It runs a test that the first stage has built and passed.
const NEEDS_ADAPTER: &[(&str, &str)] = &[(
    "env DUALADAM_REQUIRE=webgpu cargo test --workspace --exclude dualadam-candle --exclude dualadam-python --all-features --test webgpu -- --exact nothing_to_do",
    "no Vulkan, Metal or DX12 adapter",
)];
/// candle takes minutes to build.
const REQUIRED_CANDLE: &[(&str, &str)] = &[("cargo xtask required candle", "DUALADAM_REQUIRE does not name candle")];

const STAGES: [Stage; 21] = [
    Stage {
        name: "the limits of the source",
        command: "cargo xtask house",
        needs: &[("git rev-parse --is-inside-work-tree", "not a clone with git")],
    },
    Stage {
        name: "unit, integration and documentation tests",
        command: "cargo test --workspace --exclude dualadam-candle --exclude dualadam-python --all-features",
        needs: &[],
    },
    Stage {
        name: "the digits example, two epochs",
        command: "cargo run --release -p digits -- --seeds 1 --epochs 2 --png target/digits-test.png",
        needs: &[],
    },
    Stage {
        name: "the landscapes example",
        command: "cargo run --release -p landscapes -- --png target/landscapes-test.png",
        needs: &[],
    },
    Stage { name: "the README's quick start on the CPU", command: "cargo xtask quick-start cpu", needs: &[] },
    Stage {
        name: "the README's quick start on CUDA, on the stand-in driver",
        command: "cargo xtask quick-start cuda",
        needs: &[],
    },
    Stage {
        name: "the README's quick start on WebGPU",
        command: "cargo xtask quick-start webgpu",
        needs: NEEDS_ADAPTER,
    },
    Stage {
        name: "the README's quick start from candle",
        command: "cargo xtask quick-start candle",
        needs: REQUIRED_CANDLE,
    },
    Stage {
        name: "candle: the optimizer's tests",
        command: "cargo test --package dualadam-candle",
        needs: REQUIRED_CANDLE,
    },
    Stage {
        name: "candle: the example",
        command: "cargo run --profile test --package dualadam-candle --example train_digits",
        needs: REQUIRED_CANDLE,
    },
    Stage { name: "the C programs, from an installed library", command: "cargo xtask c-programs", needs: &[] },
    Stage {
        name: "the C library, a minute of fuzzing",
        command: "cargo xtask fuzz --seconds 60",
        needs: &[
            ("cargo +nightly fuzz --version", "no nightly toolchain with cargo-fuzz"),
            ("c++ --version", "no C++ compiler for libFuzzer (c++)"),
        ],
    },
    Stage {
        name: "the Python package, against torch and NumPy",
        command: "cargo xtask python",
        needs: &[("cargo xtask required python", "DUALADAM_REQUIRE does not name python; it installs 3 GB, once")],
    },
    Stage { name: "the benchmarks, a quick round", command: "cargo bench --bench limit -- --quick", needs: &[] },
    Stage {
        name: "the CUDA benchmark on the stand-in driver, a quick round",
        command: "cargo bench --features cuda --bench cuda -- --quick --stand-in",
        needs: &[],
    },
    Stage {
        name: "the bundle for a GPU machine, on the stand-in driver, with short deadlines and killed",
        command: "cargo xtask practice",
        needs: &[
            ("bash --version", "no bash"),
            ("timeout --version", "no timeout"),
            ("setsid --version", "no setsid (util-linux)"),
            ("pkill --version", "no pkill (procps)"),
            ("python3 -m ensurepip --version", "no python3 with venv, which installs the CUDA compilers"),
        ],
    },
    Stage {
        name: "steps in another program's compute pass",
        command: "cargo run --release --features webgpu-native --example external_wgpu",
        needs: NEEDS_ADAPTER,
    },
    Stage {
        name: "the WebGPU benchmark, a quick round",
        command: "cargo bench --features webgpu-native --bench webgpu -- --quick --software",
        needs: NEEDS_ADAPTER,
    },
    Stage {
        name: "the WebGPU benchmark's sweep, a quick round",
        command: "cargo bench --features webgpu-native --bench webgpu -- --quick --software --sweep",
        needs: NEEDS_ADAPTER,
    },
    Stage {
        name: "the CUDA tests on a real device",
        command: "env DUALADAM_REQUIRE=cuda cargo test --release --features cuda --test cuda_device",
        needs: &[("nvidia-smi", "no NVIDIA driver with a device (nvidia-smi)")],
    },
    Stage {
        name: "the library's unit tests under Miri",
        command: "cargo +nightly miri test --features cuda,webgpu-native --lib",
        needs: &[("cargo +nightly miri --version", "no nightly toolchain with the component miri")],
    },
];

/// How many of a failed stage's last lines are shown again below the table, since a long log is
/// read from its end.
const LAST_LINES: usize = 60;

enum Outcome {
    Passed(Duration),
    Failed(Duration, VecDeque<String>),
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
            Outcome::Failed(time, _) => ("FAILED".to_owned(), format!("{:.0}", time.as_secs_f64())),
            Outcome::NotRun(reason) => (format!("not run: {reason}"), String::new()),
        };
        table.add_row([stage.name, &outcome, &seconds]);
    }
    println!("\n{table}");
    let mut failed = Vec::new();
    for (stage, outcome) in STAGES.iter().zip(outcomes) {
        if let Outcome::Failed(_, last_lines) = outcome {
            println!("\n==> the last lines of: {}\n{}", stage.name, Vec::from(last_lines).join("\n"));
            failed.push(stage.name);
        }
    }
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

fn run_stage(stage: &Stage) -> anyhow::Result<Outcome> {
    let fails = |probe| {
        let status = command(probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
        !status.is_ok_and(|status| status.success())
    };
    if let Some((_, reason)) = stage.needs.iter().find(|(probe, _)| fails(probe)) {
        return Ok(Outcome::NotRun(reason));
    }
    println!("\n==> {}: {}", stage.name, stage.command);
    let start = Instant::now();
    let (status, last_lines) = run_shown(command(stage.command))?;
    let time = start.elapsed();
    Ok(if status.success() { Outcome::Passed(time) } else { Outcome::Failed(time, last_lines) })
}

/// Runs a command whose output is shown as it comes, and keeps the last of it.
fn run_shown(mut command: Command) -> io::Result<(ExitStatus, VecDeque<String>)> {
    let (reader, writer) = io::pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // `command` holds the pipe's writing ends, and the reader would wait for them.
    drop(command);
    let mut last_lines = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(io::stdout(), "{line}")?;
        last_lines.push_back(line);
        if last_lines.len() > LAST_LINES {
            last_lines.pop_front();
        }
    }
    Ok((child.wait()?, last_lines))
}

/// A command of words that hold no spaces, run at the repository's root.
fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}
