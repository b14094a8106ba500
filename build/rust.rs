//! The table of variants as Rust, in `$OUT_DIR/variants.rs`, which the library includes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::variants::{ROLES, Variant};

/// `TABLE`, which gradients go with which parameters, and `for_each_variant!`, which makes an array
/// of one generic function with the types of each variant.
pub(crate) fn table(variants: &[Variant]) -> String {
    let dtype = |format: &str| format[..1].to_uppercase() + &format[1..];
    let mut table = String::new();
    let (mut pairs, mut functions) = (BTreeSet::new(), String::new());
    for variant in variants {
        let (mut fields, mut types) = (String::new(), vec![]);
        for role in ROLES {
            let format = variant.format(role);
            let value = match (role, format) {
                ("master", Some(format)) => format!("Some(Dtype::{})", dtype(format)),
                ("master", None) => "None".to_owned(),
                (_, format) => format!("Dtype::{}", dtype(format.unwrap_or_default())),
            };
            let _ = write!(fields, "{role}: {value}, ");
            types.push(format.unwrap_or("()"));
        }
        let _ = writeln!(table, "    (\"{}\", Formats {{ {fields}}}),", variant.name);
        let _ = write!(functions, "$function::<{}>, ", types.join(", "));
        pairs.insert((types[0], types[1]));
    }
    let mut rust = format!("const TABLE: [(&str, Formats); {}] = [\n{table}];\n", variants.len());
    for (param, grad) in pairs {
        let _ = writeln!(rust, "impl GradOf<{param}> for {grad} {{}}");
    }
    let _ = writeln!(rust, "macro_rules! for_each_variant {{ ($function:ident) => {{ [{functions}] }}; }}");
    rust
}
