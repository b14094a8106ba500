//! The lines of a file that are prose: of documents, comments and docstrings, without their code.

use super::Source;

pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: usize,
    /// With its indentation and its comment's mark.
    pub(super) whole: &'a str,
    pub(super) prose: &'a str,
}

pub(super) fn lines(source: &Source) -> Vec<Line<'_>> {
    let mut in_code = false;
    let mut in_docstring = false;
    let mut in_comment = false;
    let mut found = vec![];
    for (index, whole) in source.text.lines().enumerate() {
        let trimmed = whole.trim_start();
        let prose = match source.extension() {
            "md" => Some(trimmed),
            "py" | "pyi" => python(trimmed, &mut in_docstring),
            "rs" | "cu" | "cuh" | "wgsl" => trimmed.starts_with("//").then(|| trimmed.trim_start_matches(['/', '!'])),
            "c" | "h" => c(trimmed, &mut in_comment),
            _ => None,
        };
        let Some(prose) = prose.map(str::trim_start) else {
            in_code = false;
            continue;
        };
        let is_fence = prose.starts_with("```");
        in_code ^= is_fence;
        if !in_code && !is_fence {
            found.push(Line { number: index + 1, whole, prose });
        }
    }
    found
}

/// A comment, or a line of a docstring.
fn python<'a>(line: &'a str, in_docstring: &mut bool) -> Option<&'a str> {
    let was_in_docstring = *in_docstring;
    *in_docstring ^= line.matches(r#"""""#).count() % 2 == 1;
    let is_docstring = was_in_docstring || line.starts_with(r#"""""#);
    (is_docstring || line.starts_with('#')).then(|| line.trim_start_matches('#'))
}

/// A line that begins within a comment, or that begins one.
fn c<'a>(line: &'a str, in_comment: &mut bool) -> Option<&'a str> {
    let is_comment = *in_comment || line.starts_with("/*");
    *in_comment = is_comment && !line.contains("*/");
    is_comment.then(|| line.trim_start_matches(['/', '*']).trim_end_matches("*/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[usize]) {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let numbers: Vec<_> = lines(&source).iter().map(|line| line.number).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn code_is_left_out() {
        check("a.rs", "//! One\nlet x = 1; // two\n/// ```\n/// code\n/// ```\n    // Three", &[1, 6]);
        check("a.py", "def f():\n    \"\"\"It\n    is.\n    \"\"\"\n    x = 'no'\n    # it", &[2, 3, 4, 6]);
        check("a.md", "One\n```\ncode\n```\nTwo", &[1, 5]);
        check("a.h", "/** One */\nint x;\n/*\n * two\n */\nint y; /* three */", &[1, 3, 4, 5]);
    }
}
