//! The table of variants, `variants.txt`. Shared by the build script, `cargo xtask` and the tests.

use std::fs;
use std::path::Path;

/// The roles, in the order of the table's columns and of the kernels' arguments.
pub(crate) const ROLES: [&str; 5] = ["param", "grad", "exp_avg", "exp_avg_sq", "master"];

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    /// The format of each role; `None` for a role that the variant does not have.
    formats: [Option<String>; ROLES.len()],
}

impl Variant {
    /// The format of a role, or `None` if the variant does not have it.
    pub(crate) fn format(&self, role: &str) -> Option<&str> {
        self.formats[ROLES.iter().position(|known| *known == role)?].as_deref()
    }
}

/// The variants of the table in `folder`, in its order.
pub(crate) fn read(folder: &Path) -> Result<Vec<Variant>, String> {
    let file = folder.join("variants.txt");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    lines.map(|(index, line)| parse(line).map_err(|what| format!("{}:{}: {what}", file.display(), index + 1))).collect()
}

fn parse(line: &str) -> Result<Variant, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [name, formats @ ..] = words.as_slice() else { return Err("the line must have a name".to_owned()) };
    let format = |word: &&str| (*word != "-").then(|| (*word).to_owned());
    let formats: Vec<_> = formats.iter().map(format).collect();
    let count = formats.len();
    let formats = formats.try_into();
    let formats = formats.map_err(|_| format!("{name} must have {} formats, it has {count}", ROLES.len()))?;
    Ok(Variant { name: (*name).to_owned(), formats })
}
