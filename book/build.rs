//! Lists the pages of the book that have samples in Rust.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const PAGES: &str = "../docs/src";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PAGES}");
    let root = fs::canonicalize(PAGES)?;
    let mut pages = vec![];
    find(&root, &mut pages)?;
    pages.sort();
    let mut modules = String::new();
    for page in pages {
        let name = page.strip_prefix(&root).unwrap_or(&page).with_extension("");
        let name = name.to_string_lossy().replace(|character: char| !character.is_ascii_alphanumeric(), "_");
        modules += &format!("#[doc = include_str!({page:?})]\nmod {name} {{}}\n");
    }
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new(&out).join("pages.rs"), modules)
}

/// The Markdown files in a folder and below it that have a block of Rust.
fn find(folder: &Path, pages: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md")
            && fs::read_to_string(&path)?.contains("```rust")
        {
            pages.push(path);
        }
    }
    Ok(())
}
