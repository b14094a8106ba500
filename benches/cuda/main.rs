//! The CUDA step against a copy and a triad of the same bytes, all jobs in turns:
//! `cargo bench --features cuda --bench cuda`.
//!
//! Times are those of CUDA events, medians over rounds. `cases` says what is timed: each case, a
//! shape in one variant and with one alignment, is checked against the CPU backend before it is
//! timed. A case that fails is reported, and the others go on. A case has several replicas of its
//! buffers, at most 256, and uses them in turns: together they are several times as large as the
//! device's cache, if 256 are enough. The host's time for a step is measured separately.
//! `--json FILE` writes the results as JSON, and rewrites them after each case.
//!
//! `--core` times only the most informative cases, `--deadline SECONDS` begins no case after that
//! time, and `--jit` only measures how long the driver takes to load the kernels. `--quick` runs
//! small shapes for a few rounds. `--stand-in` runs on the stand-in driver of the tests, to try the
//! program: its times mean nothing.
//!
//! Predicted, not measured, for an H200: the core cases take about 25 s. All cases take about a
//! minute and 56 GB of memory: 68 TB at 4.8 TB/s and what fills the queue take 22 s, and the
//! allocation of the buffers is guessed at 24 s.

#[path = "../attempt/mod.rs"]
mod attempt;
mod cases;
mod device;
mod group;
mod host;
mod jit;
mod job;
#[path = "../ranking/mod.rs"]
mod ranking;
mod report;
mod shapes;
mod timer;
mod tune;
mod values;
mod verify;
mod yardsticks;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use stand_in_cuda::client::StandIn;

use attempt::NO_TIME_LEFT;
use cases::Case;
use device::{Device, Memory};
use group::Group;
use job::Job;
use report::{Report, Row};
use shapes::Shape;
use timer::Timer;
use values::Pattern;

/// Times DualAdam on a CUDA device.
#[derive(Parser)]
#[command(name = "cargo bench --features cuda --bench cuda --")]
struct Arguments {
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the program was built from, for the JSON.
    #[arg(long, default_value = "")]
    build: String,
    /// Only the most informative cases.
    #[arg(long)]
    core: bool,
    /// Begin no case after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// Only measure how long the driver takes to load the kernels.
    #[arg(long)]
    jit: bool,
    /// Time kernels with other constants, which `cargo xtask tune` has put into this folder.
    #[arg(long, value_name = "FOLDER")]
    tune: Option<PathBuf>,
    /// Small shapes and few rounds, to try the program.
    #[arg(long)]
    quick: bool,
    /// Run on the stand-in driver of the tests instead of a device.
    #[arg(long)]
    stand_in: bool,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let (arguments, start) = (Arguments::parse(), Instant::now());
    // Before anything else opens libcuda.
    let stand_in = arguments.stand_in.then(|| StandIn::start().unwrap_or_else(|error| panic!("{error}")));
    if stand_in.is_some() {
        println!("on the stand-in driver: no time below means anything\n");
    }
    let has_failed = match run(&arguments, start) {
        Ok(has_failed) => has_failed,
        Err(reason) => {
            println!("the CUDA benchmark did not run: {reason}");
            testkit::require::is_required("cuda")
        }
    };
    if let Some(stand_in) = stand_in {
        assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
    }
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs what the arguments ask for. Returns whether something failed; the error says why there is
/// no device.
fn run(arguments: &Arguments, start: Instant) -> Result<bool, String> {
    if arguments.jit {
        jit::measure(&device::find_kernels()?);
        return Ok(false);
    }
    let device = Device::find()?;
    if let Some(folder) = &arguments.tune {
        return Ok(tune::run(&device, folder, arguments, start));
    }
    let report = time_cases(&device, arguments, start);
    println!("{report}");
    Ok(attempt::end("CUDA benchmark", &report.skipped))
}

const DEVICE_IS_LOST: &str = "the device is lost";

/// The shapes that the host's time is measured for.
const WITH_HOST_TIMES: [&str; 3] = ["2^16", "300 tensors", "10,000 x 1,000"];

fn time_cases(device: &Device, arguments: &Arguments, start: Instant) -> Report {
    let rounds = if arguments.quick { 3 } else { 21 };
    let mut report = Report::new(device, &arguments.build);
    let timer = Timer::new(device, arguments.quick);
    let is_late = || arguments.deadline.is_some_and(|deadline| start.elapsed().as_secs_f64() > deadline);
    let write = |report: &Report| arguments.json.iter().for_each(|file| ranking::write_json(file, report));
    let cases = if arguments.core { cases::core(arguments.quick) } else { cases::all(arguments.quick) };
    for case in cases {
        if is_late() {
            report.cut(&case);
            continue;
        }
        if device.is_lost() {
            report.skipped.push(format!("all further cases: {DEVICE_IS_LOST}"));
            break;
        }
        let timed = attempt::attempt(|| {
            let mut group = Group::new(device, &case)?;
            verify::verify(device, &mut group);
            Ok(time(&timer, &mut group, rounds))
        });
        match timed {
            Ok(rows) => {
                report::print_key_numbers(&rows);
                report.rows.extend(rows);
            }
            Err(reason) => {
                let (shape, variant, alignment) = (case.shape.name, case.variant.name(), case.alignment.name);
                report.skipped.push(format!("{shape} {variant}, {alignment}: {reason}"));
            }
        }
        write(&report);
    }
    for shape in shapes::all().into_iter().filter(|shape| WITH_HOST_TIMES.contains(&shape.name.as_str())) {
        if is_late() || device.is_lost() {
            let reason = if is_late() { NO_TIME_LEFT } else { DEVICE_IS_LOST };
            report.skipped.push(format!("the host's times, {}: {reason}", shape.name));
            report.is_whole = false;
            continue;
        }
        let shape = if arguments.quick { shape.cut() } else { shape };
        match attempt::attempt(|| Ok(host::times(device, &shape, 10 * rounds))) {
            Ok(times) => report.host.extend(times),
            Err(reason) => report.skipped.push(format!("the host's times, {}: {reason}", shape.name)),
        }
        write(&report);
    }
    write(&report);
    report
}

/// Times the jobs of a group in turns.
fn time(timer: &Timer<'_>, group: &mut Group<'_>, rounds: usize) -> Vec<Row> {
    let jobs = group.jobs.clone();
    let plans: Vec<_> = jobs.iter().map(|&job| (job, timer.plan(|| group.enqueue(job)))).collect();
    let mut round = || plans.iter().map(|(job, plan)| timer.seconds(plan, || group.enqueue(*job))).collect::<Vec<_>>();
    let rounds: Vec<_> = (0..rounds).map(|_| round()).collect();
    report::rows(group, &rounds)
}
