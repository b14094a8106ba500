//! The CUDA step against a copy and a triad of the same bytes, all variants in turns: `cargo bench --bench cuda`.
//!
//! Times are those of CUDA events, medians over rounds. `cases` says what is timed: each case, a shape with one combination of types
//! and one alignment, is checked against the CPU backend before it is timed. Its buffers are as many as it takes to be several times
//! the size of the device's cache, where 256 are enough, and are used in turns. The host's time for a step is measured apart.
//!
//! All cases take about a minute on an H200, and 56 GB of its memory. The time is reckoned, not measured: 68 TB at 4.8 TB/s, and what
//! fills the queue, take 22 s, and the allocation of the buffers is guessed at 24 s. `--json FILE` writes the results as JSON. `--quick`
//! runs small shapes for a few rounds, and `--stand-in` runs on the stand-in driver of the tests: that tries the program, its times
//! mean nothing.

mod cases;
mod device;
mod group;
mod host;
mod report;
#[path = "../../tests/common/require.rs"]
mod require;
mod shapes;
mod timer;
mod values;
mod variant;
mod verify;
mod yardsticks;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stand_in_cuda::client::StandIn;

use device::Device;
use group::Group;
use report::{Report, Row};
use timer::Timer;

/// Times DualAdam on a CUDA device.
#[derive(Parser)]
#[command(name = "cargo bench --bench cuda --")]
struct Arguments {
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the program was built from, for the JSON.
    #[arg(long, default_value = "")]
    build: String,
    /// Small shapes and few rounds, to try the program.
    #[arg(long)]
    quick: bool,
    /// Run on the stand-in driver of the tests instead of a device.
    #[arg(long)]
    stand_in: bool,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before anything else opens libcuda.
    let stand_in = arguments.stand_in.then(|| StandIn::start().unwrap_or_else(|error| panic!("{error}")));
    let device = match Device::find() {
        Ok(device) => device,
        Err(reason) => {
            println!("the CUDA benchmark did not run: {reason}");
            return if require::is_required("cuda") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if stand_in.is_some() {
        println!("on the stand-in driver: no time below means anything\n");
    }
    let report = run(&device, &arguments);
    println!("{report}");
    if let Some(file) = &arguments.json {
        report.write(file);
    }
    if let Some(stand_in) = stand_in {
        assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
    }
    ExitCode::SUCCESS
}

/// The shapes that the host's time is measured for.
const WITH_HOST_TIMES: [&str; 3] = ["2^16", "300 tensors", "10,000 x 1,000"];

fn run(device: &Device, arguments: &Arguments) -> Report {
    let rounds = if arguments.quick { 3 } else { 21 };
    let mut report = Report::new(device, &arguments.build);
    let timer = Timer::new(device, arguments.quick);
    for case in cases::all(arguments.quick) {
        match Group::new(device, &case) {
            Ok(mut group) => {
                verify::verify(device, &mut group);
                report.rows.extend(time(&timer, &mut group, rounds));
            }
            Err(reason) => {
                let (shape, types, alignment) = (case.shape.name, case.types.name, case.alignment.name);
                report.skipped.push(format!("{shape} {types}, {alignment}: {reason}"));
            }
        }
    }
    for shape in shapes::all().into_iter().filter(|shape| WITH_HOST_TIMES.contains(&shape.name.as_str())) {
        let shape = if arguments.quick { shape.cut() } else { shape };
        report.host.extend(host::times(device, &shape, 10 * rounds));
    }
    report
}

/// Times the variants of a group in turns.
fn time(timer: &Timer<'_>, group: &mut Group<'_>, rounds: usize) -> Vec<Row> {
    let variants = group.variants.clone();
    let plans: Vec<_> = variants.iter().map(|&variant| (variant, timer.plan(|| group.enqueue(variant)))).collect();
    let mut round =
        || plans.iter().map(|(variant, plan)| timer.seconds(plan, || group.enqueue(*variant))).collect::<Vec<_>>();
    let rounds: Vec<_> = (0..rounds).map(|_| round()).collect();
    report::rows(group, &rounds)
}
