//! The handwritten digits and their split.

use ndarray::{Array2, Axis};
use rand::seq::SliceRandom;

/// Pixels of one image.
pub(crate) const PIXELS: usize = 64;

/// Values that a label can have.
pub(crate) const CLASSES: usize = 10;

/// Images, one to a row, with their labels.
pub(crate) struct Digits {
    pub(crate) pixels: Array2<f32>,
    pub(crate) labels: Vec<usize>,
}

impl Digits {
    /// All images of the bundled file, their pixels scaled from 0..=16 to 0..=1.
    pub(crate) fn bundled() -> Self {
        let text = include_str!("../optdigits.csv");
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for row in reader.deserialize::<Vec<u8>>() {
            let row = row.expect("the bundled file holds small integers");
            let (label, image) = row.split_last().expect("its rows are not empty");
            pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / 16.0));
            labels.push(usize::from(*label));
        }
        let pixels =
            Array2::from_shape_vec((labels.len(), PIXELS), pixels).expect("its rows have 64 pixels and a label");
        Self { pixels, labels }
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The given rows, in that order.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self { pixels: self.pixels.select(Axis(0), rows), labels: rows.iter().map(|&row| self.labels[row]).collect() }
    }

    /// A training set of four fifths and a test set of the rest, drawn at random.
    pub(crate) fn split(&self, rng: &mut impl rand::Rng) -> (Self, Self) {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.shuffle(rng);
        let (train, test) = rows.split_at(train_len(self.len()));
        (self.select(train), self.select(test))
    }
}

/// Of `len` digits, how many the training set has.
pub(crate) fn train_len(len: usize) -> usize {
    len * 4 / 5
}
