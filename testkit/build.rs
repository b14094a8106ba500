//! Writes the macro `for_each_variant!` from the library's table of variants.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

#[path = "../build/variants.rs"]
mod variants;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../build/variants.rs");
    println!("cargo::rerun-if-changed=../variants.txt");
    let mut functions = String::new();
    for variant in variants::read(Path::new(".."))? {
        let format = |role| variant.format(role).ok_or_else(|| format!("{} has no {role}", variant.name));
        let function = if variant.format("master").is_some() { "master" } else { "plain" };
        write!(functions, "${function}::<{}, {}>, ", format("param")?, format("grad")?)?;
    }
    let uses = "use dualadam::half::{bf16, f16};";
    let rust = format!(
        "/// An array with one function for each variant, in the order of the table: `$master` for variants with masters,\n\
         /// `$plain` for the others, with the types of the variant's parameters and gradients.\n\
         #[macro_export]\n\
         macro_rules! for_each_variant {{ ($plain:ident, $master:ident) => {{{{ {uses} [{functions}] }}}}; }}\n"
    );
    Ok(fs::write(Path::new(&env::var("OUT_DIR")?).join("variants.rs"), rust)?)
}
