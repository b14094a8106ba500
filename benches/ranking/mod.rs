//! Ranks several ways to do the same by their speed relative to the first, and tells real
//! differences from noise.

use std::path::Path;

use serde::Serialize;
use testkit::stats::{median, quantile};

use crate::attempt;
use crate::device::{Device, Facts};

/// A smaller difference is never called real: clocks have steps.
const SMALLEST: f64 = 0.002;
/// Fewer rounds say nothing about the noise.
const FEWEST_TO_JUDGE: usize = 6;

/// One way, and its time.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    shape: String,
    types: &'static str,
    what: String,
    us: f64,
    us_low: f64,
    us_high: f64,
    /// The first one's time over this one's, the median of the rounds' ratios, and their quartiles.
    speedup: f64,
    speedup_low: f64,
    speedup_high: f64,
    /// Whether there are enough rounds to judge, and the speedup is further from 1 than twice its
    /// interquartile range and than [`SMALLEST`].
    is_real: bool,
    rounds: usize,
}

/// What a sweep has found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    device: Facts,
    build: String,
    rows: Vec<Row>,
    /// What did not run, and why.
    pub(crate) skipped: Vec<String>,
}

impl Report {
    pub(crate) fn new(device: &Device, build: &str) -> Self {
        Self { device: device.facts.clone(), build: build.to_owned(), rows: vec![], skipped: vec![] }
    }

    /// Adds a case, and prints its ranking.
    pub(crate) fn add(&mut self, case: &str, rows: Result<Vec<Row>, String>, sweep: &str, first: &str) {
        match rows {
            Ok(rows) => {
                print(sweep, first, &rows);
                self.rows.extend(rows);
            }
            Err(reason) => self.skipped.push(format!("{case}: {reason}")),
        }
    }

    /// Prints what did not run. Returns whether anything failed.
    pub(crate) fn end(&self, sweep: &str) -> bool {
        self.skipped.iter().for_each(|skipped| println!("did not run: {skipped}"));
        attempt::end(sweep, &self.skipped)
    }
}

/// Replaces a file in one step, so that it is whole at any time.
pub(crate) fn write_json(file: &Path, report: &impl Serialize) {
    let text = serde_json::to_string_pretty(report).expect("the report is plain data");
    let new = file.with_extension("new");
    std::fs::write(&new, text + "\n")
        .and_then(|()| std::fs::rename(&new, file))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// The rows of ways that took turns; `rounds` has the seconds of each way in each round.
pub(crate) fn rows(
    shape: &str,
    types: &'static str,
    names: impl IntoIterator<Item = String>,
    rounds: &[Vec<f64>],
) -> Vec<Row> {
    names.into_iter().enumerate().map(|(i, what)| row(shape, types, what, i, rounds)).collect()
}

fn row(shape: &str, types: &'static str, what: String, i: usize, rounds: &[Vec<f64>]) -> Row {
    let us = |part| quantile(rounds.iter().map(|round| round[i] * 1e6), part);
    let speedups: Vec<f64> = rounds.iter().map(|round| round[0] / round[i]).collect();
    let speedup = |part| quantile(speedups.iter().copied(), part);
    let middle = median(speedups.iter().copied());
    let noise = (2.0 * (speedup(0.75) - speedup(0.25))).max(SMALLEST);
    Row {
        shape: shape.to_owned(),
        types,
        what,
        us: us(0.5),
        us_low: us(0.25),
        us_high: us(0.75),
        speedup: middle,
        speedup_low: speedup(0.25),
        speedup_high: speedup(0.75),
        is_real: rounds.len() >= FEWEST_TO_JUDGE && (middle - 1.0).abs() > noise,
        rounds: rounds.len(),
    }
}

/// Prints a ranking for each case, and a line with its winners, which the bundle's closing table
/// repeats. `sweep` is the sweep's name, and `first` is what all are compared with.
fn print(sweep: &str, first: &str, rows: &[Row]) {
    let mut cases: Vec<_> = rows.iter().map(|row| (&row.shape, row.types)).collect();
    cases.dedup();
    for (shape, types) in cases {
        let mut rows: Vec<_> = rows.iter().filter(|row| &row.shape == shape && row.types == types).collect();
        rows.sort_by(|a, b| b.speedup.total_cmp(&a.speedup));
        println!("\n{shape} {types}: speed over {first}, median and quartiles of {} rounds", rows[0].rounds);
        for row in &rows {
            let real = if row.is_real { "" } else { ", not beyond the noise" };
            println!(
                "  {:.3} ({:.3} to {:.3}), {:.1} µs: {}{real}",
                row.speedup, row.speedup_low, row.speedup_high, row.us, row.what
            );
        }
        let real: Vec<_> = rows.iter().filter(|row| row.is_real && row.speedup > 1.0).take(2).collect();
        let best: Vec<_> = real.iter().map(|row| format!("{:.3} {}", row.speedup, row.what)).collect();
        let best = if best.is_empty() { "nothing faster beyond the noise".to_owned() } else { best.join("; ") };
        println!("key: {sweep} {shape} {types}: {best}");
    }
}
