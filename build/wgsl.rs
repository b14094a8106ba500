//! From the files in `shaders/` to the text of each variant, and from a line of that text back to
//! its file. Shared by the build script and the tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs};

use super::variants::{ROLES, Variant};

/// Where the coefficients come from. `immediate` needs a feature of the device.
pub(crate) const COEFFS: [&str; 2] = ["uniform", "immediate"];

/// A variant's text with one source of coefficients, and where its lines are from.
pub(crate) struct Joined {
    pub(crate) text: String,
    files: Vec<JoinedFile>,
}

struct JoinedFile {
    name: String,
    lines: usize,
}

/// A line and a column of a file, counted from 1.
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Joins the text of a variant with this source of coefficients from the files in `shaders`.
pub(crate) fn join(shaders: &Path, variant: &Variant, coeffs: &str) -> Result<Joined, String> {
    let has_master = variant.format("master").is_some();
    let mut joined = Joined { text: String::new(), files: vec![] };
    joined.push_file(shaders, "update.wgsl")?;
    joined.push_file(shaders, &format!("coeffs_{coeffs}.wgsl"))?;
    let formats: BTreeSet<_> = ROLES.into_iter().filter_map(|role| variant.format(role)).collect();
    for format in formats {
        joined.push_file(shaders, &format!("storage_{format}.wgsl"))?;
    }
    for (binding, role) in ROLES.into_iter().enumerate() {
        if let Some(format) = variant.format(role) {
            let text = read(shaders, "role.wgsl")?;
            joined.push(format!("shaders/role.wgsl ({role})"), &of_role(&text, role, format, binding));
        }
    }
    joined.push_file(shaders, if has_master { "master.wgsl" } else { "no_master.wgsl" })?;
    if let Some(format) = variant.format("param").filter(|_| has_master) {
        joined.push("shaders/sync.wgsl".to_owned(), &of_format(&read(shaders, "sync.wgsl")?, format));
    }
    let counted = counted_role(variant)?;
    for name in ["dual_adam.wgsl", "tail.wgsl"] {
        joined.push(format!("shaders/{name}"), &read(shaders, name)?.replace("$counted", counted));
    }
    Ok(joined)
}

/// The role whose buffer gives the shaders the tensor's length. A buffer of 16-bit elements cannot:
/// an odd length and the next even one take the same number of words.
fn counted_role(variant: &Variant) -> Result<&'static str, String> {
    let roles = ["exp_avg", "exp_avg_sq", "master"];
    roles
        .into_iter()
        .find(|role| variant.format(role) == Some("f32"))
        .ok_or_else(|| format!("{}: one of {roles:?} must be f32, to tell the tensor's length", variant.name))
}

/// The text of `role.wgsl` for one role.
fn of_role(text: &str, role: &str, format: &str, binding: usize) -> String {
    let text = text.replace("$ROLE", &role.to_uppercase()).replace("$Role", &camel(role)).replace("$role", role);
    of_format(&text.replace("$BINDING", &binding.to_string()), format)
}

/// The text with the words for a format in place.
fn of_format(text: &str, format: &str) -> String {
    text.replace("$FORMAT", &format.to_uppercase()).replace("$Format", &camel(format)).replace("$format", format)
}

fn camel(words: &str) -> String {
    words.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn read(shaders: &Path, name: &str) -> Result<String, String> {
    let file = shaders.join(name);
    fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
}

impl Joined {
    fn push_file(&mut self, shaders: &Path, name: &str) -> Result<(), String> {
        let text = read(shaders, name)?;
        self.push(format!("shaders/{name}"), &text);
        Ok(())
    }

    fn push(&mut self, name: String, text: &str) {
        let start = self.text.len();
        for line in text.lines() {
            self.text.push_str(line);
            self.text.push('\n');
        }
        let lines = self.text[start..].lines().count();
        self.files.push(JoinedFile { name, lines });
    }

    /// Where a line of the text is from. Both are counted from 1.
    pub(crate) fn place(&self, mut line: usize, column: usize) -> Place {
        for JoinedFile { name, lines } in &self.files {
            if line <= *lines {
                return Place { file: name.clone(), line, column };
            }
            line -= lines;
        }
        Place { file: "after the last of the shaders".to_owned(), line, column }
    }
}
