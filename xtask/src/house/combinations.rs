//! Files that list combinations of formats, which `variants.txt` alone should do.
//!
//! A guess from the words: three combinations within three lines are a list. A combination is a
//! name such as `f32_bf16`, or what stands in one pair of parentheses or angle brackets, such as
//! `(F32, Some(Bf16))`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};

use super::{Count, Source};
use crate::root;

const LINES: usize = 3;
const COMBINATIONS: usize = 3;
/// Files that may list some.
const ALLOWED: [&str; 3] = [
    // What is timed at every shape.
    "benches/cuda/cases.rs",
    "benches/webgpu/group.rs",
    // What is tried below.
    "xtask/src/house/combinations.rs",
];

pub(super) fn count(sources: &[Source]) -> Result<Count> {
    let formats = formats()?;
    let is_allowed = |source: &Source| ALLOWED.contains(&source.path.as_str());
    let files = sources.iter().filter(|source| source.is_code() && !is_allowed(source));
    let lists = files.filter_map(|source| Some(format!("{}:{}", source.path, first_list(&source.text, &formats)?)));
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
fn first_list(text: &str, formats: &BTreeSet<String>) -> Option<usize> {
    let lines: Vec<_> = text.lines().map(|line| combinations(line, formats)).collect();
    let is_list = |lines: &[BTreeSet<String>]| lines.iter().flatten().collect::<BTreeSet<_>>().len() >= COMBINATIONS;
    (1..=lines.len()).find(|&end| is_list(&lines[end.saturating_sub(LINES)..end]))
}

/// The combinations that a line names outside of comments.
fn combinations(line: &str, formats: &BTreeSet<String>) -> BTreeSet<String> {
    let code = line.split("//").next().unwrap_or_default().to_lowercase();
    let mut found = BTreeSet::new();
    // The formats of each bracket that is open.
    let mut open: Vec<Vec<&str>> = vec![];
    for token in tokens(&code) {
        let parts: Vec<_> = token.split('_').collect();
        match token {
            "(" | "<" => open.push(vec![]),
            ")" | ">" => close(&mut open, &mut found),
            _ if formats.contains(token) => open.last_mut().into_iter().for_each(|inner| inner.push(token)),
            _ if parts.len() > 1 && parts.iter().all(|part| formats.contains(*part) || *part == "master") => {
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

/// Ends the innermost bracket. A lone format, as in `Some(Bf16)`, belongs to what is around it.
fn close(open: &mut Vec<Vec<&str>>, found: &mut BTreeSet<String>) {
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
    fn three_combinations_are_a_list() {
        let formats = ["f32", "bf16", "f16"].map(str::to_owned).into();
        for list in [
            "(F32, Bf16, None),\n(F32, F32, Some(Bf16)),\n(F16, F16, None),",
            "[\"f32_f32\", \"bf16_f32_master\", \"f16_f16\"]",
            "x::<f32, f32>(a);\nx::<f32, bf16>(a);\nx::<f16, f16>(a);",
        ] {
            assert!(first_list(list, &formats).is_some(), "{list}");
        }
        for other in [
            "F32(f32, &'a mut), Bf16(bf16, &'a mut), F16(f16, &'a mut)",
            "// f32_f32, bf16_bf16 and f16_f16",
            "(F32, F32)\n(F32, F32)\n(F32, Bf16)",
            "f32_f32\n\n\nf32_bf16\n\n\nf32_f16",
        ] {
            assert_eq!(first_list(other, &formats), None, "{other}");
        }
    }
}
