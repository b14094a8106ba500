//! Comments and documents that are too wide.

use super::{Count, Source};

const COLUMNS: usize = 100;
/// Of the files with wide comments, so many are named.
const NAMED: usize = 20;

pub(super) fn count(sources: &[Source]) -> Count {
    let mut files: Vec<(usize, String)> = vec![];
    for source in sources {
        let wide = wide_lines(source);
        if let Some(first) = wide.first() {
            files.push((wide.len(), format!("{}:{first}", source.path)));
        }
    }
    let found = files.iter().map(|(lines, _)| lines).sum();
    files.sort_unstable_by(|a, b| b.cmp(a));
    let left_out = files.len().saturating_sub(NAMED);
    let mut details: Vec<_> = files.iter().take(NAMED).map(|(lines, at)| format!("{lines:5} from {at} on")).collect();
    if left_out > 0 {
        details.push(format!("and {left_out} more files"));
    }
    Count { what: format!("comment lines over {COLUMNS} columns"), found, limit: Some(0), details }
}

/// The numbers of the lines that are prose and too wide.
fn wide_lines(source: &Source) -> Vec<usize> {
    let mut in_code = false;
    let mut in_docstring = false;
    let mut wide = vec![];
    for (index, line) in source.text.lines().enumerate() {
        let trimmed = line.trim_start();
        let prose = match source.extension() {
            "md" => Some(trimmed),
            "py" | "pyi" => python(trimmed, &mut in_docstring),
            "rs" | "cu" | "cuh" | "wgsl" => trimmed.starts_with("//").then(|| trimmed.trim_start_matches(['/', '!'])),
            _ => None,
        };
        let Some(prose) = prose.map(str::trim_start) else {
            in_code = false;
            continue;
        };
        let is_fence = prose.starts_with("```");
        in_code ^= is_fence;
        let may_be_wide =
            in_code || is_fence || prose.starts_with('|') || prose.contains("](") || prose.contains("://");
        if !may_be_wide && line.chars().count() > COLUMNS {
            wide.push(index + 1);
        }
    }
    wide
}

/// A comment, or a line of a docstring.
fn python<'a>(line: &'a str, in_docstring: &mut bool) -> Option<&'a str> {
    let was_in_docstring = *in_docstring;
    *in_docstring ^= line.matches(r#"""""#).count() % 2 == 1;
    let is_docstring = was_in_docstring || line.starts_with(r#"""""#);
    (is_docstring || line.starts_with('#')).then(|| line.trim_start_matches('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prose_is_too_wide() {
        let long = "word ".repeat(30);
        let wide = |path: &str, text: &str| wide_lines(&Source { path: path.to_owned(), text: text.to_owned() });
        let rust =
            format!("//! {long}\nlet x = 1; // {long}\n/// ```\n/// {long}\n/// ```\n/// | {long}\n    // {long}");
        assert_eq!(wide("a.rs", &rust), [1, 7]);
        let python = format!("def f():\n    \"\"\"It\n    {long}\n    \"\"\"\n    x = '{long}'\n    # {long}");
        assert_eq!(wide("a.py", &python), [3, 6]);
        let markdown = format!("{long}\n```\n{long}\n```\n| {long} |\nSee [it](there) {long}");
        assert_eq!(wide("a.md", &markdown), [1]);
    }
}
