//! The Rust samples of the book in `docs/`, as documentation tests.
//!
//! The build script finds the pages, so that a page with a block of Rust is tested as soon as it
//! exists: `cargo test --doc --package book`. Each page is a module of its name here, which the
//! name of a test shows.
//!
//! rustdoc takes a block without a language for Rust, and an indented block as well. A page with a
//! block of Rust marks its other blocks, such as with `text`.

#[cfg(doctest)]
mod pages {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"));
}
