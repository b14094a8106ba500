//! The table of variants, until the library has it.

use std::sync::LazyLock;

use dualadam::Dtype;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    pub param: Dtype,
    pub grad: Dtype,
    pub exp_avg: Dtype,
    pub exp_avg_sq: Dtype,
    pub master: Option<Dtype>,
}

static TABLE: LazyLock<Vec<(&'static str, Formats)>> = LazyLock::new(|| {
    let lines = include_str!("../../variants.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let dtype = |word: &str| match word {
        "f32" => Some(Dtype::F32),
        "bf16" => Some(Dtype::Bf16),
        "f16" => Some(Dtype::F16),
        _ => None,
    };
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap();
            let of: Vec<_> = words.map(dtype).collect();
            let need = |i: usize| of[i].unwrap();
            (name, Formats { param: need(0), grad: need(1), exp_avg: need(2), exp_avg_sq: need(3), master: of[4] })
        })
        .collect()
});

impl Variant {
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(Self)
    }

    pub fn name(self) -> &'static str {
        TABLE[self.0].0
    }

    pub fn formats(self) -> Formats {
        TABLE[self.0].1
    }
}

/// The formats of the variant of this name.
pub fn formats(name: &str) -> Formats {
    let found = Variant::all().find(|variant| variant.name() == name);
    found.unwrap_or_else(|| panic!("no variant {name}")).formats()
}

/// The formats of all variants in turns.
pub fn in_turns(number: usize) -> Formats {
    let variants: Vec<_> = Variant::all().collect();
    variants[number % variants.len()].formats()
}
