//! Variants by name and in turns.

pub use dualadam::{Formats, Variant};

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
