//! Trains a small network on real handwritten digits with Adam, AdamW, InvAdam and DualAdam, and
//! compares them.

mod backend;
mod data;
mod network;
#[cfg(feature = "cuda")]
mod on_cuda;
#[cfg(feature = "webgpu")]
mod on_webgpu;
mod optimizers;
mod picture;
mod plot;
mod report;
mod train;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use crate::backend::{Backend, Error};
use crate::data::Digits;
use crate::optimizers::{Contender, contenders, switch_step};
use crate::train::{Dtype, Run, Setting, train};

/// Trains a 64-128-10 network on 8×8 handwritten digits with six optimizers and a control, prints a
/// table and draws the curves.
#[derive(Debug, Parser)]
struct Args {
    /// Runs of each optimizer, which differ in split, initialisation and order of the images
    #[arg(long, default_value_t = 5, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
    /// Passes over the training set
    #[arg(long, default_value_t = 60, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,
    /// Learning rate of all optimizers
    #[arg(long, default_value_t = 1e-3, allow_negative_numbers = true, value_parser = learning_rate)]
    lr: f64,
    /// Type of the model's parameters and gradients
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Where the optimizer's steps run
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// File that the picture is written to
    #[arg(long, value_name = "PATH", default_value = "digits.png", value_parser = png_path)]
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

fn compare(args: &Args) -> Result<(), Error> {
    let Args { epochs, dtype, backend, .. } = *args;
    let setting = Setting { digits: Digits::bundled(), epochs, dtype, device: backend.open()? };
    let switch = switch_step(setting.steps());
    let contenders = contenders(args.lr, switch);

    let start = Instant::now();
    let runs = run_all(&setting, &contenders, args.seeds)?;
    let seconds = start.elapsed().as_secs_f64();

    // Not `println!`, which panics where the reader has gone, as `head` does.
    let mut out = std::io::stdout();
    writeln!(out, "{}", report::text(&setting, &contenders, &runs, args.lr, switch))?;
    plot::draw(&args.png, &setting, &contenders, &runs, args.lr, switch)
        .map_err(|error| format!("cannot write {}: {error}", args.png.display()))?;
    writeln!(out, "{} runs in {seconds:.1} s; curves in {}", contenders.len() as u64 * args.seeds, args.png.display())?;
    Ok(())
}

/// The runs of each contender, in the order of the seeds. Whole runs are spread over the threads.
fn run_all(setting: &Setting, contenders: &[Contender], seeds: u64) -> Result<Vec<Vec<Run>>, Error> {
    let jobs: Vec<(&Contender, u64)> =
        contenders.iter().flat_map(|contender| (0..seeds).map(move |seed| (contender, seed))).collect();
    // It hides itself where stderr is not a terminal.
    let bar = ProgressBar::new(jobs.len() as u64 * setting.epochs).with_style(
        ProgressStyle::with_template("training {wide_bar} {pos}/{len} epochs, {eta} left")
            .expect("the template is valid"),
    );
    let runs: Result<Vec<Run>, Error> =
        jobs.into_par_iter().map(|(contender, seed)| train(setting, contender, seed, &bar)).collect();
    bar.finish_and_clear();
    let mut runs = runs?.into_iter();
    Ok(contenders.iter().map(|_| runs.by_ref().take(seeds as usize).collect()).collect())
}

/// A learning rate that every contender takes.
fn learning_rate(text: &str) -> Result<f64, String> {
    let lr: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    contenders(lr, 1)
        .iter()
        .try_for_each(|contender| contender.config.validate())
        .map_err(|error| error.to_string())?;
    Ok(lr)
}

/// A file that can be a picture, so that a slip shows before the training and not after it.
fn png_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Err("its name must end in .png".to_owned());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("there is no folder {}", folder.display()));
    }
    if path.is_dir() {
        return Err("it is a folder".to_owned());
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_refused_by_name() {
        for (option, value) in [
            ("--seeds", "0"),
            ("--epochs", "0"),
            ("--epochs", "-3"),
            ("--epochs", "many"),
            ("--lr", "-0.001"),
            ("--lr", "nan"),
            ("--lr", "inf"),
            ("--lr", "1e300"),
            ("--lr", "fast"),
            ("--dtype", "f64"),
            ("--backend", "abacus"),
            ("--png", "no/such/folder/curves.png"),
            ("--png", "curves.txt"),
            ("--png", ""),
        ] {
            let error = Args::try_parse_from(["digits", option, value]).expect_err(value).to_string();
            assert!(error.contains(option), "{option} {value}: {error}");
        }
    }

    /// The whole job, on few seeds and epochs.
    #[test]
    fn small_runs_end_with_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        for (seeds, epochs, dtype) in [(1, 1, Dtype::F32), (2, 2, Dtype::Bf16)] {
            let png = folder.path().join(format!("{seeds}.png"));
            let args = Args { seeds, epochs, lr: 1e-2, dtype, backend: Backend::Cpu, png };
            compare(&args).unwrap();
            assert!(std::fs::read(&args.png).unwrap().starts_with(b"\x89PNG"));
        }
    }

    #[test]
    fn good_values_are_taken() {
        let args = Args::try_parse_from(["digits"]).unwrap();
        assert_eq!((args.seeds, args.epochs, args.lr), (5, 60, 1e-3));
        for lr in ["0", "1e-2", "10"] {
            assert!(Args::try_parse_from(["digits", "--lr", lr]).is_ok());
        }
    }
}
