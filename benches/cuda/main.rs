//! The CUDA step against a device-to-device copy of as many bytes, all variants in turns: `cargo bench --bench cuda`.
//!
//! Times are those of CUDA events, medians over rounds. Each group, a shape with one combination of types, is checked against the CPU
//! backend before it is timed. Its buffers are as many as it takes to be several times the size of the device's cache, and are used in
//! turns. The host's time for a step is measured apart. `--json FILE` writes the results as JSON. `--quick` runs small shapes for a
//! few rounds, and `--stand-in` runs on the stand-in driver of the tests: that tries the program, its times mean nothing.

mod device;
mod group;
mod host;
mod report;
#[path = "../../tests/common/require.rs"]
mod require;
mod shapes;
mod timer;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stand_in_cuda::client::StandIn;

use device::Device;
use group::{Group, VARIANTS};
use report::{Report, Row};
use shapes::Shape;
use timer::Timer;
use values::TYPES;

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
    for shape in shapes::all(arguments.quick) {
        for types in TYPES {
            match Group::new(device, &shape, types) {
                Ok(mut group) => {
                    group.verify();
                    report.rows.extend(time(&timer, &mut group, rounds));
                }
                Err(reason) => report.skipped.push(format!("{} {}: {reason}", shape.name, types.name)),
            }
        }
    }
    let is_wanted = |shape: &Shape| WITH_HOST_TIMES.iter().any(|name| shape.name.starts_with(name));
    for shape in shapes::all(arguments.quick).into_iter().filter(is_wanted) {
        report.host.extend(host::times(device, &shape, 10 * rounds));
    }
    report
}

/// Times the variants of a group in turns.
fn time(timer: &Timer<'_>, group: &mut Group<'_>, rounds: usize) -> Vec<Row> {
    let plans = VARIANTS.map(|variant| timer.plan(|| group.enqueue(variant)));
    let mut round = || {
        let mut plans = plans.iter();
        VARIANTS.map(|variant| plans.next().map_or(0.0, |plan| timer.seconds(plan, || group.enqueue(variant))))
    };
    let rounds: Vec<_> = (0..rounds).map(|_| round()).collect();
    report::rows(group, &rounds)
}
