//! Files that list combinations of formats, which `variants.txt` alone should do.
//!
//! A guess from the words: five combinations are a list if they are within three lines, or in lines
//! that follow each other and have one each. Fewer may be examples. A combination is a name such as
//! `f32_bf16`, or what stands in one pair of brackets, such as
//! `(F32, Some(Bf16))` or `(torch.float32, torch.bfloat16)`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};

use super::{Count, Source};
use crate::root;

const LINES: usize = 3;
const COMBINATIONS: usize = 5;
/// The file that may list combinations: those of the tests below.
const ALLOWED: &str = "xtask/src/house/combinations.rs";

pub(super) fn count(sources: &[Source]) -> Result<Count> {
    let formats = formats()?;
    let files = sources.iter().filter(|source| source.is_code() && source.path != ALLOWED);
    let lists = files.filter_map(|source| Some(format!("{}:{}", source.path, first_list(source, &formats)?)));
    let details: Vec<_> = lists.collect();
    let what = "files that list combinations of formats".to_owned();
    Ok(Count { what, found: details.len(), limit: Some(0), details })
}

/// The formats of the table.
fn formats() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(root().join("variants.txt")).context("variants.txt")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(|line| line.split_whitespace().skip(1)).filter(|word| *word != "-");
    Ok(words.map(str::to_owned).collect())
}

/// The number of the first line that completes a list.
fn first_list(source: &Source, formats: &BTreeSet<String>) -> Option<usize> {
    let comment = if ["py", "pyi"].contains(&source.extension()) { "#" } else { "//" };
    let code = source.text.lines().map(|line| line.split(comment).next().unwrap_or_default());
    let lines: Vec<_> = code.map(|line| combinations(line, formats)).collect();
    let is_list = |lines: &[BTreeSet<String>]| lines.iter().flatten().collect::<BTreeSet<_>>().len() >= COMBINATIONS;
    (1..=lines.len()).find(|&end| {
        let run = lines[..end].iter().rev().take_while(|line| !line.is_empty()).count();
        is_list(&lines[end - run.max(LINES).min(end)..end])
    })
}

/// The combinations that a line of code names.
fn combinations(code: &str, formats: &BTreeSet<String>) -> BTreeSet<String> {
    let code = code.to_lowercase();
    let mut found = BTreeSet::new();
    // The formats of each bracket that is open.
    let mut open: Vec<Vec<String>> = vec![];
    for token in tokens(&code) {
        let parts: Vec<_> = token.split('_').collect();
        // As PyTorch and NumPy name it.
        let format = token.replace("float", "f").replace("int", "i");
        match token {
            "(" | "<" | "[" | "{" => open.push(vec![]),
            ")" | ">" | "]" | "}" => close(&mut open, &mut found),
            _ if formats.contains(&format) => open.last_mut().into_iter().for_each(|inner| inner.push(format.clone())),
            _ if is_name(&parts, formats) => {
                found.insert(token.to_owned());
            }
            _ => {}
        }
    }
    while !open.is_empty() {
        close(&mut open, &mut found);
    }
    found
}

/// Whether these are the parts of a variant's name, which `variants.txt` describes.
fn is_name(parts: &[&str], formats: &BTreeSet<String>) -> bool {
    let is_format = |part: &str| formats.contains(part);
    let is_other = |part: &str| {
        let of =
            |role| part.strip_prefix(role).is_some_and(|rest| is_format(rest) || rest.is_empty() && role == "master");
        ["m", "v", "master"].into_iter().any(of)
    };
    let (values, others) = parts.split_at(parts.len().min(2));
    values.len() == 2 && values.iter().all(|part| is_format(part)) && others.iter().all(|part| is_other(part))
}

/// Ends the innermost bracket. A lone format, as in `Some(Bf16)`, belongs to what is around it.
fn close(open: &mut Vec<Vec<String>>, found: &mut BTreeSet<String>) {
    let inner = open.pop().unwrap_or_default();
    if inner.len() > 1 {
        found.insert(inner.join("_"));
    } else if let Some(outer) = open.last_mut() {
        outer.extend(inner);
    }
}

/// The words of a line, and the single characters between them.
fn tokens(code: &str) -> impl Iterator<Item = &str> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    code.split_inclusive(move |character| !is_word(character)).flat_map(move |piece| {
        let word = piece.trim_end_matches(|character| !is_word(character));
        [word, &piece[word.len()..]]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_combinations_are_a_list() {
        let formats = ["f32", "bf16", "f16"].map(str::to_owned).into();
        let first_list = |extension: &str, text: &str| {
            let source = Source { path: format!("a.{extension}"), text: text.to_owned() };
            first_list(&source, &formats)
        };
        for (extension, list, line) in [
            (
                "rs",
                "(F32, Bf16, None), (F32, F32, None),\n(F32, F32, Some(Bf16)),\n(F16, F16, None), (Bf16, F32, None),",
                3,
            ),
            ("rs", "[\"f32_f32\", \"bf16_f32_master\", \"f16_f16\", \"f16_f32\", \"bf16_bf16\"]", 1),
            ("rs", "f32_f32_mbf16 f32_f32_mbf16_vbf16 bf16_bf16_master bf16_f32_mf16_masterf16\nf16_f16_vbf16", 2),
            ("rs", "[F32, F32], [F32, Bf16], [F32, F16],\n{F16, F16}, {F16, F32}", 2),
            ("cu", "x::<f32, f32>(a); x::<f32, f16>(a);\nx::<f32, bf16>(a); x::<bf16, f32>(a);\nx::<f16, f16>(a);", 3),
            ("rs", "\n(F32, F32),\n(F32, Bf16),\n(F32, F16),\n(F16, F16),\n(F16, F32),\n(Bf16, F32),", 6),
            (
                "py",
                "(torch.float32, torch.float32, False),  # //\n(torch.float32, torch.bfloat16, False),\n\
                 (torch.float32, torch.float16, False),\n(torch.bfloat16, torch.bfloat16, False),\n\
                 (torch.bfloat16, torch.float32, False),\n(torch.float16, torch.float16, False),",
                5,
            ),
            ("py", "x = ['f32_f32', 'bf16_bf16', 'f16_f32', 'f32_f16', 'f16_f16'] # y", 1),
        ] {
            assert_eq!(first_list(extension, list), Some(line), "{list}");
        }
        for (extension, other) in [
            ("rs", "F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)"),
            ("rs", "// f32_f32, bf16_bf16, f16_f16, f16_f32 and f32_f16"),
            ("py", "# f32_f32, bf16_bf16, f16_f16, f16_f32 and f32_f16"),
            (
                "py",
                "(torch.float32, False), (torch.bfloat16, False), (torch.float16, True), (torch.float64, torch.int8)",
            ),
            ("rs", "(F32, F32) (F32, Bf16)\n(F32, F32) (F32, Bf16)\n(F32, F16) (F32, F32)"),
            ("rs", "f32_f32 f32_bf16\n\n\nf32_f16 f16_f16\n\n\nf16_f32 bf16_f32"),
        ] {
            assert_eq!(first_list(extension, other), None, "{other}");
        }
    }
}
