//! Variants by name, and in turns.

pub use dualadam::{Formats, Variant};

/// The variant of this name.
pub fn named(name: &str) -> Variant {
    Variant::all().find(|variant| variant.name() == name).unwrap_or_else(|| panic!("no variant {name}"))
}

/// The formats of the variant of this name.
pub fn formats(name: &str) -> Formats {
    named(name).formats()
}

/// The formats of variant `number`; the count starts again after the last variant.
pub fn in_turns(number: usize) -> Formats {
    let mut variants = Variant::all();
    variants.nth(number % variants.len()).expect("there are variants").formats()
}
