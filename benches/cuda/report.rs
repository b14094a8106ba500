//! The results, as tables and as JSON. `peers.py` adds its own to the JSON, in the same form.

use std::fmt;

use comfy_table::{Table, presets};
use serde::Serialize;
use testkit::stats::{median, quantile};

use crate::device::Facts;
use crate::values::bytes_moved;
use crate::{Case, Device, Group, Job, NO_TIME_LEFT};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    program: String,
    build: String,
    device: Facts,
    pub(crate) rows: Vec<Row>,
    pub(crate) host: Vec<HostRow>,
    /// What did not run, and why.
    pub(crate) skipped: Vec<String>,
    /// Whether there was time for all.
    pub(crate) is_whole: bool,
}

/// One job's time on the device.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    shape: String,
    tensors: usize,
    elements: usize,
    types: &'static str,
    alignment: &'static str,
    variant: &'static str,
    /// Microseconds of a step: the median over the rounds, and the quartiles.
    us: f64,
    us_low: f64,
    us_high: f64,
    /// Bytes that must be moved for an element.
    bytes_per_element: usize,
    gb_per_s: f64,
    /// The faster copy's time over this one's, the median of the rounds' ratios.
    of_copy: Option<f64>,
    /// The same for the triad's time.
    of_triad: Option<f64>,
    /// The same for the time of the step of the elements as one flat buffer; only for lists.
    of_flat: Option<f64>,
    gflop_per_s: f64,
    /// This time over plain Adam's, the median of the rounds' ratios.
    over_adam: Option<f64>,
    /// Replicas of the buffers, which were used in turns.
    replicas: usize,
}

/// The host's time for one way to make a step.
#[derive(Debug, Serialize)]
pub(crate) struct HostRow {
    pub(crate) shape: String,
    pub(crate) tensors: usize,
    pub(crate) call: String,
    /// Microseconds: the median, and the quartiles.
    pub(crate) us: f64,
    pub(crate) us_low: f64,
    pub(crate) us_high: f64,
}

/// The rows of a group from the seconds of each job in each round.
pub(crate) fn rows(group: &Group<'_>, rounds: &[Vec<f64>]) -> Vec<Row> {
    let row = |(i, &job): (usize, &Job)| {
        let us = |part| quantile(rounds.iter().map(|round| round[i] * 1e6), part);
        let per_second = |amount: usize| amount as f64 / us(0.5) * 1e-3;
        // The faster copy's time over this one's.
        let copies: Vec<_> = (0..group.jobs.len()).filter(|&i| group.jobs[i].is_copy()).collect();
        let of_copy = || {
            let ratio = |round: &Vec<f64>| {
                let fastest = copies.iter().map(|&copy| round[copy]).min_by(f64::total_cmp)?;
                Some(fastest / round[i])
            };
            Some(median(rounds.iter().map(ratio).collect::<Option<Vec<_>>>()?))
        };
        // Another job's time over this one's.
        let of = |wanted| {
            let other = group.jobs.iter().position(|&job| job == wanted)?;
            Some(median(rounds.iter().map(|round| round[other] / round[i])))
        };
        Row {
            shape: group.shape.clone(),
            tensors: group.lens.len(),
            elements: group.elements(),
            types: group.variant.name(),
            alignment: group.alignment.name,
            variant: job.name(),
            us: us(0.5),
            us_low: us(0.25),
            us_high: us(0.75),
            bytes_per_element: bytes_moved(group.variant),
            gb_per_s: per_second(group.bytes()),
            of_copy: of_copy(),
            of_triad: of(Job::Triad),
            of_flat: of(Job::Flat),
            gflop_per_s: per_second(job.flops() * group.elements()),
            over_adam: of(Job::Adam).map(|ratio| 1.0 / ratio),
            replicas: group.replicas(),
        }
    };
    group.jobs.iter().enumerate().map(row).collect()
}

impl Report {
    pub(crate) fn new(device: &Device, build: &str) -> Self {
        Self {
            program: format!("dualadam {}", env!("CARGO_PKG_VERSION")),
            build: build.to_owned(),
            device: device.facts.clone(),
            rows: vec![],
            host: vec![],
            skipped: vec![],
            is_whole: true,
        }
    }

    /// Notes a case that was left out for lack of time.
    pub(crate) fn cut(&mut self, case: &Case) {
        let Case { shape, variant, alignment, .. } = case;
        self.skipped.push(format!("{} {}, {}: {NO_TIME_LEFT}", shape.name, variant.name(), alignment.name));
        self.is_whole = false;
    }
}

/// Prints a line for each of the main rows, which the bundle's closing table repeats.
pub(crate) fn print_key_numbers(rows: &[Row]) {
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    for row in rows.iter().filter(|row| row.variant == "dual" && row.alignment == "aligned") {
        println!(
            "key: {} {}: {:.1} µs, {:.0} GB/s; of copy {}, triad {}, flat {}, Adam's time {}",
            row.shape,
            row.types,
            row.us,
            row.gb_per_s,
            ratio(row.of_copy),
            ratio(row.of_triad),
            ratio(row.of_flat),
            ratio(row.over_adam)
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}, compared with the CPU backend before it was timed\n", self.program, self.device.name)?;
        let mut table = Table::new();
        let header =
            "shape|types|alignment|what|µs|GB/s|of the faster copy|of the triad|of flat|GFLOP/s|over Adam".split('|');
        table.load_style(presets::ASCII_MARKDOWN).set_header(header);
        let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        for row in &self.rows {
            table.add_row([
                row.shape.clone(),
                row.types.to_owned(),
                row.alignment.to_owned(),
                row.variant.to_owned(),
                format!("{:.1}", row.us),
                format!("{:.0}", row.gb_per_s),
                ratio(row.of_copy),
                ratio(row.of_triad),
                ratio(row.of_flat),
                format!("{:.0}", row.gflop_per_s),
                ratio(row.over_adam),
            ]);
        }
        writeln!(f, "{table}\n")?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(["shape", "tensors", "the host's time of a step", "µs"]);
        for row in &self.host {
            let (tensors, us) = (row.tensors.to_string(), format!("{:.1}", row.us));
            table.add_row([&row.shape, &tensors, &row.call, &us]);
        }
        writeln!(f, "{table}")?;
        self.skipped.iter().try_for_each(|skipped| writeln!(f, "did not run: {skipped}"))
    }
}
