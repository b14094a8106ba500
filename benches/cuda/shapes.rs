//! The lengths that are timed. `shapes.json` is also read by `peers.py`.

use serde::Deserialize;

/// Tensors that are stepped together; one alone is a flat buffer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Shape {
    pub(crate) name: String,
    /// How often the lengths occur, one after the other.
    repeat: usize,
    lens: Vec<usize>,
}

impl Shape {
    pub(crate) fn lens(&self) -> Vec<usize> {
        self.lens.repeat(self.repeat)
    }
}

/// All shapes; with `quick` cut to what an interpreter can run.
pub(crate) fn all(quick: bool) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = serde_json::from_str(include_str!("../shapes.json")).expect("the file is valid");
    if quick {
        shapes.retain(|shape| shape.lens.iter().sum::<usize>() * shape.repeat < 1 << 18 || shape.repeat > 1);
        for shape in &mut shapes {
            shape.name += ", cut";
            shape.repeat = shape.repeat.min(3);
            shape.lens.iter_mut().for_each(|len| *len = (*len).min(5003));
        }
    }
    shapes
}
