//! The results, as tables and as JSON in the form of the CUDA benchmark's.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::device::{Device, Facts};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    program: String,
    build: String,
    device: Facts,
    pub(crate) rows: Vec<Row>,
    pub(crate) host: Vec<HostRow>,
    /// What did not run, and why.
    pub(crate) skipped: Vec<String>,
}

/// One variant's time on the device, or the CPU backend's beside it.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) shape: String,
    pub(crate) elements: usize,
    pub(crate) types: &'static str,
    pub(crate) variant: &'static str,
    /// Microseconds of a step: the median over the rounds, and the quartiles.
    pub(crate) us: f64,
    pub(crate) us_low: f64,
    pub(crate) us_high: f64,
    /// Bytes that must be moved for an element.
    pub(crate) bytes_per_element: usize,
    pub(crate) gb_per_s: f64,
    pub(crate) gflop_per_s: f64,
    /// The triad's time over this one's, the median of the rounds' ratios.
    pub(crate) of_triad: f64,
    /// This time over that of the f32 step, the median of the rounds' ratios.
    pub(crate) over_dual_f32: Option<f64>,
    /// The time from the submit to the end over that by timestamps, the median of the rounds'
    /// ratios.
    pub(crate) from_submit: Option<f64>,
    /// Replicas of the buffers, which were used in turns.
    pub(crate) replicas: usize,
    /// This speed over that of the CUDA kernel.
    pub(crate) of_cuda: Option<f64>,
}

impl Row {
    /// The name of the same measurement in the CUDA benchmark's results.
    fn key(&self) -> (String, String, String) {
        (self.shape.clone(), self.types.to_owned(), self.variant.to_owned())
    }
}

/// The host's time for one piece of a step, for each tensor.
#[derive(Debug, Serialize)]
pub(crate) struct HostRow {
    pub(crate) shape: String,
    pub(crate) tensors: usize,
    /// Where the coefficients are.
    pub(crate) coefficients: &'static str,
    pub(crate) piece: &'static str,
    /// Microseconds: the median, and the quartiles.
    pub(crate) us: f64,
    pub(crate) us_low: f64,
    pub(crate) us_high: f64,
}

/// What is read of the CUDA benchmark's results.
#[derive(Deserialize)]
struct Cuda {
    rows: Vec<CudaRow>,
}

#[derive(Deserialize)]
struct CudaRow {
    shape: String,
    types: String,
    alignment: String,
    variant: String,
    gb_per_s: f64,
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
        }
    }

    /// Divides each speed by that in the CUDA benchmark's results for the same card.
    fn compare_with_cuda(&mut self, file: &Path) -> Result<(), String> {
        let failed = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
        let cuda: Cuda = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        let aligned = cuda.rows.into_iter().filter(|row| row.alignment == "aligned");
        let speeds: HashMap<_, _> = aligned.map(|row| ((row.shape, row.types, row.variant), row.gb_per_s)).collect();
        for row in &mut self.rows {
            row.of_cuda = speeds.get(&row.key()).map(|speed| row.gb_per_s / speed);
        }
        Ok(())
    }

    /// Adds the rows of a length, compares them with the CUDA benchmark's results for the same
    /// card, and prints a line for each of the main rows, which the bundle's closing table repeats.
    pub(crate) fn add(&mut self, rows: Vec<Row>, cuda: Option<&Path>) {
        let first = self.rows.len();
        self.rows.extend(rows);
        if let Some(Err(error)) = cuda.map(|file| self.compare_with_cuda(file)) {
            let reason = format!("the comparison with CUDA: {error}");
            if !self.skipped.contains(&reason) {
                self.skipped.push(reason);
            }
        }
        for row in self.rows[first..].iter().filter(|row| row.variant == "dual_adam" || row.variant == "dual") {
            let of_cuda = row.of_cuda.map_or(String::new(), |of| format!(", {of:.3} of CUDA's speed"));
            println!(
                "key: {}, {} {}: {:.1} µs, {:.0} GB/s, {:.3} of the triad{of_cuda}",
                self.device.api, row.shape, row.types, row.us, row.gb_per_s, row.of_triad
            );
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { name, api, driver, immediates, timestamps, .. } = &self.device;
        let coefficients = if *immediates { "immediates" } else { "a uniform buffer" };
        let clock = if *timestamps { "timestamps" } else { "the host, from the submit to the end" };
        writeln!(f, "{} on {name}, {api}, {driver}", self.program)?;
        writeln!(f, "coefficients in {coefficients}; times by {clock}; compared with the CPU backend before\n")?;
        let mut table = Table::new();
        let header = "shape|types|what|µs|GB/s|GFLOP/s|of the triad|time of dual f32|submit to end|of CUDA".split('|');
        table.load_style(presets::ASCII_MARKDOWN).set_header(header);
        let optional = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        for row in &self.rows {
            table.add_row([
                row.shape.clone(),
                row.types.to_owned(),
                row.variant.to_owned(),
                format!("{:.1}", row.us),
                format!("{:.1}", row.gb_per_s),
                format!("{:.1}", row.gflop_per_s),
                format!("{:.3}", row.of_triad),
                row.over_dual_f32.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
                optional(row.from_submit),
                optional(row.of_cuda),
            ]);
        }
        writeln!(f, "{table}\n")?;
        let mut table = Table::new();
        let header = ["shape", "tensors", "coefficients", "the host's time for a tensor", "µs"];
        table.load_style(presets::ASCII_MARKDOWN).set_header(header);
        for row in &self.host {
            let (tensors, us) = (row.tensors.to_string(), format!("{:.2}", row.us));
            table.add_row([&row.shape, &tensors, row.coefficients, row.piece, &us]);
        }
        writeln!(f, "{table}")?;
        self.skipped.iter().try_for_each(|skipped| writeln!(f, "did not run: {skipped}"))
    }
}
