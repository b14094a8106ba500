//! The lengths that are timed. `shapes.json` and `models.json` are also read by `peers.py`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Tensors that are stepped together; one alone is a flat buffer.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) lens: Vec<usize>,
}

/// Lengths that are repeated.
#[derive(Deserialize)]
struct Pattern {
    name: String,
    repeat: usize,
    lens: Vec<usize>,
}

/// A network's parameters, in its order.
#[derive(Deserialize)]
struct Model {
    elements: usize,
    tensors: Vec<usize>,
}

impl Shape {
    /// The same shape, cut to what an interpreter can run. A long list keeps so many tensors that a
    /// coefficient set for each does not fit in an argument.
    pub(crate) fn cut(mut self) -> Self {
        let most = if self.lens.len() == 1 { 5003 } else { 50 };
        self.name += ", cut";
        self.lens.truncate(100);
        self.lens.iter_mut().for_each(|len| *len = (*len).min(most));
        self
    }
}

/// All shapes, flat ones and lists.
pub(crate) fn all() -> Vec<Shape> {
    let patterns: Vec<Pattern> = serde_json::from_str(include_str!("../shapes.json")).expect("the file is valid");
    let models: BTreeMap<String, Model> =
        serde_json::from_str(include_str!("../models.json")).expect("the file is valid");
    let patterns = patterns.into_iter().map(|Pattern { name, repeat, lens }| Shape { name, lens: lens.repeat(repeat) });
    let models = models.into_iter().map(|(name, Model { elements, tensors })| {
        assert_eq!(tensors.iter().sum::<usize>(), elements, "the tensors of {name}");
        Shape { name, lens: tensors }
    });
    patterns.chain(models).collect()
}
