//! The step in WGSL against a triad of the same streams, all jobs in turns:
//! `cargo bench --features webgpu-native --bench webgpu`.
//!
//! Times are those of timestamp queries where the device has them, medians over rounds; each
//! variant is compared with the CPU backend before it is timed, and the CPU backend's own time
//! stands beside it. The buffers are several times the size of a GPU's cache and are used in turns.
//! The host's time for a step is measured separately.
//!
//! The largest length takes 4 GB of memory on a software adapter, as much again for the CPU
//! backend, and 12 GB on a GPU. The variable `WGPU_ADAPTER_NAME` chooses an adapter by a part of
//! its name; software ones are taken only if it names them, or with `--software`. `--json FILE`
//! writes the results as JSON, `--cuda FILE` sets them beside the JSON of the CUDA benchmark,
//! `--quick` runs small lengths for a few rounds, `--core` only the most informative lengths, and
//! `--deadline SECONDS` begins no length after that time. The JSON file is rewritten after each
//! length. `--sweep` runs the step with other workgroups instead, `--criterion` times with
//! criterion.

#[path = "../attempt/mod.rs"]
mod attempt;
mod device;
mod group;
mod host;
#[path = "../ranking/mod.rs"]
mod ranking;
mod report;
mod samples;
mod sweep;
mod timer;
mod triad;
#[path = "../cuda/values.rs"]
mod values;
mod verify;
#[path = "../workloads/mod.rs"]
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dualadam::Variant;
use dualadam::webgpu::Pipelines;
use testkit::stats::{median, quantile};

use attempt::{NO_TIME_LEFT, attempt};
use device::Device;
use group::{Group, Job, main_variants};
use report::{Report, Row};
use timer::{Seconds, Timer};
use values::{Pattern, bytes_moved};
use workloads::Workload;

/// Times DualAdam on a WebGPU device.
#[derive(Parser)]
#[command(name = "cargo bench --features webgpu-native --bench webgpu --")]
struct Arguments {
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the JSON that the CUDA benchmark wrote on the same card.
    #[arg(long, value_name = "FILE")]
    cuda: Option<PathBuf>,
    /// What the program was built from, for the JSON.
    #[arg(long, default_value = "")]
    build: String,
    /// Take a software adapter where there is no other.
    #[arg(long)]
    software: bool,
    /// Time with criterion instead, without ratios and without the CPU backend.
    #[arg(long)]
    criterion: bool,
    /// Only the most informative lengths.
    #[arg(long)]
    core: bool,
    /// Begin no length after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// Run the sweep instead: other workgroups, more quads an invocation, and lists over shared
    /// buffers, against what the library does.
    #[arg(long)]
    sweep: bool,
    /// Small lengths and few rounds, to try the program.
    #[arg(long)]
    quick: bool,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let (arguments, start) = (Arguments::parse(), Instant::now());
    let device = match Device::find(arguments.software) {
        Ok(device) => device,
        Err(reason) => {
            println!("the WebGPU benchmark did not run: {reason}");
            return if testkit::require::is_required("webgpu") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    workloads::verify();
    if run(&device, &arguments, start) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The name of the CPU's workload for each of the main variants.
fn on_cpu() -> [&'static str; 3] {
    ["dual f32", "dual bf16", "dual master"]
        .map(|wanted| workloads::NAMES.into_iter().find(|name| *name == wanted).expect("the workload is there"))
}

/// A variant, and its workload on the CPU.
type Subject = (Variant, &'static str);

/// Runs what the arguments ask for. Returns whether something failed.
fn run(device: &Device, arguments: &Arguments, start: Instant) -> bool {
    let (rounds, exponents): (_, &[u32]) = match (arguments.quick, device.facts.software) {
        (true, _) => (3, &[12, 16]),
        (false, true) => (9, &[16, 20, 22, 24, 26]),
        (false, false) if arguments.core => (11, &[24, 28]),
        (false, false) => (21, &[16, 20, 22, 24, 26, 28]),
    };
    let is_late = || arguments.deadline.is_some_and(|deadline| start.elapsed().as_secs_f64() > deadline);
    let pipelines = Pipelines::new(&device.device).expect("the device is there");
    let timer = Timer::new(device, if arguments.quick || arguments.criterion { 0.0 } else { 2e-3 });
    if arguments.sweep {
        return sweep::run(device, &timer, arguments, is_late);
    }
    let mut report = Report::new(device, &arguments.build);
    let mut subjects: Vec<Subject> = main_variants().into_iter().zip(on_cpu()).collect();
    subjects.retain(|&(variant, _)| {
        let verified = attempt(|| {
            verify::verify(device, &pipelines, variant);
            Ok(())
        });
        verified.map_err(|reason| report.skipped.push(format!("{}: {reason}", variant.name()))).is_ok()
    });
    if arguments.criterion {
        samples::run(device, &pipelines, &timer, exponents);
        return attempt::end("WebGPU benchmark", &report.skipped);
    }
    // On a GPU the CPU would take most of the time.
    let with_cpu = device.facts.software || !arguments.core;
    for &exponent in exponents {
        if is_late() {
            report.skipped.push(format!("2^{exponent}: {NO_TIME_LEFT}"));
            continue;
        }
        match attempt(|| time(device, &timer, &pipelines, &subjects, exponent, rounds, with_cpu)) {
            Ok(rows) => report.add(rows, arguments.cuda.as_deref()),
            Err(reason) => report.skipped.push(format!("2^{exponent}: {reason}")),
        }
        arguments.json.iter().for_each(|file| ranking::write_json(file, &report));
    }
    if is_late() {
        report.skipped.push(format!("the host's times: {NO_TIME_LEFT}"));
    } else {
        let times = attempt(|| {
            let mut times = host::times(device, rounds);
            if device.facts.immediates {
                times.extend(host::times(&device.without_immediates(), rounds));
            }
            Ok(times)
        });
        match times {
            Ok(times) => report.host.extend(times),
            Err(reason) => report.skipped.push(format!("the host's times: {reason}")),
        }
    }
    arguments.json.iter().for_each(|file| ranking::write_json(file, &report));
    println!("{report}");
    attempt::end("WebGPU benchmark", &report.skipped)
}

/// Times all jobs of a length in turns. Fails if the device lacks the memory.
fn time(
    device: &Device,
    timer: &Timer<'_>,
    pipelines: &Pipelines,
    subjects: &[Subject],
    exponent: u32,
    rounds: usize,
    with_cpu: bool,
) -> Result<Vec<Row>, String> {
    let len = 1 << exponent;
    let mut timed = vec![];
    for &(variant, cpu) in subjects {
        let mut group = Group::new(device, pipelines, variant, len)?;
        let repeats = Job::ALL.map(|job| timer.repeats(group.replicas(), |pass| group.encode(job, pass)));
        timed.push((group, repeats, with_cpu.then(|| Cpu::new(cpu, variant, len))));
    }
    let mut times: Vec<Vec<Seconds>> = vec![];
    for _ in 0..rounds {
        let mut round = vec![];
        for (group, repeats, cpu) in &mut timed {
            for (job, &mut repeats) in Job::ALL.into_iter().zip(repeats) {
                round.push(timer.seconds(repeats, |pass| group.encode(job, pass)));
            }
            round.extend(cpu.as_mut().map(Cpu::seconds));
        }
        times.push(round);
    }
    let on_cpu = with_cpu.then_some("dual, CPU");
    let names = Job::ALL.map(Job::name).into_iter().chain(on_cpu).collect::<Vec<_>>();
    let has_f32 = subjects.first().is_some_and(|(variant, _)| variant.name() == "f32_f32");
    let mut rows = vec![];
    for (place, (group, _, cpu)) in timed.iter().enumerate() {
        let first = place * names.len();
        for (i, job) in names.iter().enumerate() {
            let of = |round: &[Seconds], i: usize| round[i].on_device;
            let us = |part| quantile(times.iter().map(|round| of(round, first + i) * 1e6), part);
            let ratio = |from: usize, to: usize| median(times.iter().map(|round| of(round, from) / of(round, to)));
            let from_submit = median(times.iter().map(|round| round[first + i].from_submit / of(round, first + i)));
            let per_second = |amount: u64| amount as f64 / us(0.5) * 1e-3;
            let bytes = (bytes_moved(group.variant) * len) as u64;
            let of_cpu = || cpu.as_ref().map_or(0, |cpu| cpu.replicas[0].flops);
            let flops = Job::ALL.get(i).map_or_else(of_cpu, |job| job.flops() * len as u64);
            rows.push(Row {
                shape: format!("2^{exponent}"),
                elements: len,
                types: group.variant.name(),
                variant: job,
                us: us(0.5),
                us_low: us(0.25),
                us_high: us(0.75),
                bytes_per_element: bytes_moved(group.variant),
                gb_per_s: per_second(cpu.as_ref().map_or(bytes, |cpu| cpu.replicas[0].bytes)),
                gflop_per_s: per_second(flops),
                of_triad: ratio(first, first + i),
                over_dual_f32: has_f32.then(|| ratio(first + i, Job::Dual as usize)),
                from_submit: (i < Job::ALL.len()).then_some(from_submit),
                replicas: group.replicas(),
                of_cuda: None,
            });
        }
    }
    Ok(rows)
}

/// The CPU backend over as many buffers, with rayon's global threads.
struct Cpu {
    replicas: Vec<Workload>,
    repeats: usize,
    next: usize,
}

impl Cpu {
    fn new(name: &str, variant: Variant, len: usize) -> Self {
        let replica = |_| workloads::workload(name, len).expect("the workload is there");
        let replicas: Vec<_> = (0..group::replicas(variant, len)).map(replica).collect();
        let mut cpu = Self { repeats: replicas.len(), replicas, next: 0 };
        cpu.seconds();
        cpu.repeats = (2e-3 / cpu.seconds().on_device).ceil() as usize;
        cpu
    }

    fn seconds(&mut self) -> Seconds {
        let start = Instant::now();
        for _ in 0..self.repeats {
            (self.replicas[self.next].run)();
            self.next = (self.next + 1) % self.replicas.len();
        }
        let seconds = start.elapsed().as_secs_f64() / self.repeats as f64;
        Seconds { on_device: seconds, from_submit: seconds }
    }
}
