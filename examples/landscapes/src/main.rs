//! Steps 1,000 random starts with Adam and with DualAdam on a landscape with a sharp and a flat
//! minimum, counts where they end, and draws the ways.

mod landscape;
#[path = "../../digits/src/picture.rs"]
mod picture;
mod plot;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use comfy_table::{Table, presets};
use dualadam::{DualAdamConfig, SwitchSchedule, cpu};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::landscape::{BOX, grad, is_in_sharp_well};

const STARTS: usize = 1000;
const STEPS: u64 = 3000;
/// DualAdam is Adam from here on: 16% of the run, as in the paper.
const SWITCH: u64 = STEPS * 16 / 100;
const LEARNING_RATES: [f64; 4] = [0.03, 0.1, 0.3, 1.0];
/// The learning rate of the picture.
const DRAWN: f64 = 0.3;

/// Steps 1,000 random starts on a landscape with a sharp and a flat minimum, prints how many end in
/// the sharp one and draws their ways.
#[derive(Debug, Parser)]
struct Args {
    /// File that the picture is written to
    #[arg(long, value_name = "PATH", default_value = "landscapes.png")]
    png: PathBuf,
}

fn main() -> ExitCode {
    match compare(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The ways of all starts under one optimizer.
struct Run {
    name: &'static str,
    /// The points of each start, before the first step and after each.
    ways: Vec<Vec<[f32; 2]>>,
}

impl Run {
    /// How many of the starts end in the sharp well.
    fn in_sharp_well(&self) -> usize {
        self.ways.iter().filter(|way| way.last().is_some_and(|&end| is_in_sharp_well(end))).count()
    }
}

fn compare(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["learning rate", "Adam", "Adam, linear warm-up", "DualAdam"]);
    for lr in LEARNING_RATES {
        let runs = runs(lr)?;
        let mut row = vec![lr.to_string()];
        row.extend(runs.iter().map(|run| percent(run.in_sharp_well())));
        table.add_row(row);
        if lr == DRAWN {
            let [adam, _, dual] = &runs;
            plot::draw(&args.png, [adam, dual])
                .map_err(|error| format!("cannot write {}: {error}", args.png.display()))?;
        }
    }
    let mut out = std::io::stdout();
    writeln!(out, "{STARTS} starts, {STEPS} steps, DualAdam is Adam from step {SWITCH} on")?;
    writeln!(out, "starts that end in the sharp minimum:\n{table}")?;
    writeln!(out, "the ways at learning rate {DRAWN}: {}", args.png.display())?;
    Ok(())
}

/// Adam, Adam with the warm-up that DualAdam's schedule gives its Adam branch, and DualAdam.
fn runs(lr: f64) -> Result<[Run; 3], Box<dyn Error>> {
    let adam = DualAdamConfig::adam().with_lr(lr);
    let dual = DualAdamConfig::default().with_lr(lr).with_schedule(SwitchSchedule::linear_until(SWITCH));
    Ok([run("Adam", &adam, None)?, run("Adam, linear warm-up", &adam, Some(SWITCH))?, run("DualAdam", &dual, None)?])
}

/// Of the starts.
fn percent(starts: usize) -> String {
    format!("{:.1}%", 100.0 * starts as f64 / STARTS as f64)
}

/// Steps all starts as one flat tensor. During the first `warm_up` steps the learning rate rises
/// linearly.
fn run(name: &'static str, config: &DualAdamConfig, warm_up: Option<u64>) -> Result<Run, Box<dyn Error>> {
    let mut random = SmallRng::seed_from_u64(0);
    let mut params: Vec<f32> = (0..2 * STARTS).map(|_| random.random_range(-BOX..BOX)).collect();
    let mut grads = vec![0.0; params.len()];
    let mut optimizer = cpu::DualAdam::new(*config, &[params.len()])?;
    let mut ways = vec![vec![]; STARTS];
    for step in 0..=STEPS {
        let (points, _) = params.as_chunks::<2>();
        for (way, point) in ways.iter_mut().zip(points) {
            way.push(*point);
        }
        let (slopes, _) = grads.as_chunks_mut::<2>();
        for (slope, point) in slopes.iter_mut().zip(points) {
            *slope = grad(*point);
        }
        if let Some(warm_up) = warm_up {
            optimizer.set_lr(0, config.lr * ((step + 1) as f64 / warm_up as f64).min(1.0))?;
        }
        optimizer.step([(&mut params).into()], [Some((&grads).into())])?;
        for param in &mut params {
            *param = param.clamp(-BOX, BOX);
        }
    }
    Ok(Run { name, ways })
}
