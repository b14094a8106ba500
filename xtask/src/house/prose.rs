//! The lines of a file that are prose: of documents, comments and docstrings, without their code.

use super::Source;

pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: usize,
    /// With its indentation and its comment's mark. Of a comment that follows code, only the
    /// comment.
    pub(super) whole: &'a str,
    pub(super) prose: &'a str,
}

pub(super) fn lines(source: &Source) -> Vec<Line<'_>> {
    let mut fence = None;
    let mut docstring = None;
    let mut in_comment = false;
    let mut found = vec![];
    for (index, line) in source.text.lines().enumerate() {
        let whole = match source.extension() {
            "md" => Some(line),
            "py" | "pyi" => python(line, &mut docstring),
            "toml" | "yml" | "cff" | "txt" => line.trim_start().starts_with('#').then_some(line),
            "rs" | "cu" | "cuh" | "wgsl" | "c" | "cpp" | "h" => c(line, &mut in_comment),
            _ => None,
        };
        let Some(whole) = whole else {
            fence = None;
            continue;
        };
        let prose = match source.extension() {
            "md" => whole,
            "py" | "pyi" | "toml" | "yml" | "cff" | "txt" => without_prefix(whole.trim_start()).trim_start_matches('#'),
            _ => whole.trim_start().trim_start_matches(['/', '*', '!']).trim_end_matches("*/"),
        };
        let prose = prose.trim_start();
        if !is_code(prose, &mut fence) {
            found.push(Line { number: index + 1, whole, prose });
        }
    }
    found
}

/// Whether a line opens, continues or closes a fenced block of code. `fence` is what closes it.
fn is_code<'a>(line: &'a str, fence: &mut Option<&'a str>) -> bool {
    if let Some(open) = *fence {
        let line = line.trim_start_matches(['>', ' ']).trim_end();
        let closes = line.starts_with(open) && line.chars().all(|c| open.starts_with(c));
        *fence = (!closes).then_some(open);
        return true;
    }
    // Quotes and list items may begin with a block.
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || ['>', '-', '*', '+', '.', ' '].contains(&c));
    let mark = ['`', '~'].into_iter().find(|&mark| line.starts_with(mark));
    let (open, info) = line.split_at(mark.map_or(0, |mark| line.len() - line.trim_start_matches(mark).len()));
    // Three backticks may also be around a piece of code in a sentence.
    *fence = (open.len() >= 3 && !info.contains('`')).then_some(open);
    fence.is_some()
}

/// A line of a docstring, or the comment of a line. `docstring` is what ends it.
fn python<'a>(line: &'a str, docstring: &mut Option<&'static str>) -> Option<&'a str> {
    if let Some(quotes) = *docstring {
        *docstring = (line.matches(quotes).count().is_multiple_of(2)).then_some(quotes);
        return Some(line);
    }
    let trimmed = line.trim_start();
    if trimmed.starts_with('#') {
        return Some(line);
    }
    let comment = line.find("  # ").filter(|&at| line[..at].matches(['"', '\'']).count().is_multiple_of(2));
    let code = &line[..comment.unwrap_or(line.len())];
    let quotes = [r#"""""#, "'''"].into_iter().find(|quotes| code.contains(quotes));
    *docstring = quotes.filter(|quotes| code.matches(quotes).count() % 2 == 1);
    let is_docstring = quotes.is_some_and(|quotes| without_prefix(trimmed).starts_with(quotes));
    if is_docstring { Some(line) } else { comment.map(|at| line[at..].trim_start()) }
}

/// Without what may stand before the quotes of a string, as in `r"""`.
fn without_prefix(line: &str) -> &str {
    let rest = line.trim_start_matches(['r', 'R', 'u', 'U', 'f', 'F', 'b', 'B']);
    if rest.starts_with(['"', '\'']) { rest } else { line }
}

/// The line from its first comment on: the whole line if it begins with one, or within one.
fn c<'a>(line: &'a str, in_comment: &mut bool) -> Option<&'a str> {
    let mut first = in_comment.then_some(0);
    let mut in_string = false;
    let mut at = 0;
    while let Some(rest) = line.get(at..).filter(|rest| !rest.is_empty()) {
        let width = rest.chars().next().map_or(1, char::len_utf8);
        at += match () {
            () if *in_comment => {
                *in_comment = !rest.starts_with("*/");
                if *in_comment { width } else { 2 }
            }
            () if in_string && rest.starts_with('\\') => 2,
            () if !in_string && (rest.starts_with("'\"'") || rest.starts_with("'\\\"'")) => 3,
            () if rest.starts_with('"') => {
                in_string = !in_string;
                1
            }
            () if !in_string && rest.starts_with("/*") => {
                *in_comment = true;
                first = first.or(Some(at));
                2
            }
            () if !in_string && rest.starts_with("//") => {
                first = first.or(Some(at));
                break;
            }
            () => width,
        };
    }
    let first = first?;
    Some(if line[..first].trim().is_empty() { line } else { &line[first..] })
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
        check("a.rs", "//! One\nlet x = 1; // two\n/// ```\n/// code\n/// ```\n    // Three", &[1, 2, 6]);
        check("a.py", "def f():\n    \"\"\"It\n    is.\n    \"\"\"\n    x = 'no'\n    # it", &[2, 3, 4, 6]);
        check("a.toml", "# One\nx = 1\n  # two", &[1, 3]);
        check("a.md", "One\n```\ncode\n```\nTwo", &[1, 5]);
        check("a.h", "/** One */\nint x;\n/*\n * two\n */\nint y; /* three */", &[1, 3, 4, 5, 6]);
    }

    #[test]
    fn fences_end_as_in_markdown() {
        check("a.md", "````\n```\n````\nOne\n~~~\n```\n~~~\nTwo", &[4, 8]);
        check(
            "a.md",
            "- ```sh\n  code\n  ```\n- One\n\n> ```\n> code\n> ```\n\n```x``` is code\nTwo",
            &[4, 5, 9, 10, 11],
        );
        check("a.md", "```\n``` code\n```` \nOne\r\n", &[4]);
    }

    #[test]
    fn every_comment_counts() {
        check("a.rs", "/* One\ntwo */ f(); /* three\nfour */\nf(\"// no /*\");\nf('\"'); // five", &[1, 2, 3, 5]);
        check("a.cpp", "int x; // one\nint y;\nf(\"\\\"\"); /* two */", &[1, 3]);
        let source = Source { path: "a.c".to_owned(), text: "int x; /* one */".to_owned() };
        assert_eq!((lines(&source)[0].whole, lines(&source)[0].prose), ("/* one */", "one "));
    }

    #[test]
    fn docstrings_of_every_form_count() {
        check("a.py", "# has \"\"\" in it\nx = 1\ndef f():\n    r'''It\n    is.'''\n    x = 1  # two", &[1, 4, 5, 6]);
        let source = Source { path: "a.py".to_owned(), text: "r\"\"\"It".to_owned() };
        assert_eq!(lines(&source)[0].prose, "\"\"\"It");
        check("a.py", "x = '  # no'\ny = 1  # a \"\"\" here\nz = 1", &[2]);
    }
}
