//! The table of variants, `variants.txt`, and the Rust that the library includes of it. Shared by the
//! build script and `cargo xtask`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The roles, in the order of the table's columns and of the kernels' arguments.
pub(crate) const ROLES: [&str; 5] = ["param", "grad", "exp_avg", "exp_avg_sq", "master"];

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    /// The format of each role; `None` for a role that the variant is without.
    pub(crate) formats: [Option<String>; ROLES.len()],
}

impl Variant {
    /// The roles that the variant has, each with its format.
    pub(crate) fn roles(&self) -> impl Iterator<Item = (&'static str, &str)> {
        ROLES.into_iter().zip(&self.formats).filter_map(|(role, format)| Some((role, format.as_deref()?)))
    }

    /// The format of a role.
    pub(crate) fn format(&self, role: &str) -> Option<&str> {
        self.roles().find(|(found, _)| *found == role).map(|(_, format)| format)
    }
}

/// The variants of the table in `folder`.
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

/// The Rust of the table: `TABLE`, which gradients go with which parameters, and `for_each_variant!`, which
/// makes an array of one generic function with the types of each variant.
pub(crate) fn rust(variants: &[Variant]) -> String {
    let dtype = |format: &str| format[..1].to_uppercase() + &format[1..];
    let mut table = String::new();
    let (mut pairs, mut functions) = (BTreeSet::new(), String::new());
    for variant in variants {
        let (mut fields, mut types) = (String::new(), vec![]);
        for (role, format) in ROLES.into_iter().zip(&variant.formats) {
            let value = match (role, format) {
                ("master", Some(format)) => format!("Some(Dtype::{})", dtype(format)),
                ("master", None) => "None".to_owned(),
                (_, format) => format!("Dtype::{}", dtype(format.as_deref().unwrap_or_default())),
            };
            let _ = write!(fields, "{role}: {value}, ");
            types.push(format.as_deref().unwrap_or("()"));
        }
        let _ = writeln!(table, "    (\"{}\", Formats {{ {fields}}}),", variant.name);
        let _ = write!(functions, "$function::<{}>, ", types.join(", "));
        pairs.insert((types[0], types[1]));
    }
    let mut rust = format!("const TABLE: [(&str, Formats); {}] = [\n{table}];\n", variants.len());
    for (param, grad) in pairs {
        let _ = writeln!(rust, "impl GradOf<{param}> for {grad} {{}}");
    }
    let _ = write!(rust, "macro_rules! for_each_variant {{ ($function:ident) => {{ [{functions}] }}; }}\n");
    rust
}
