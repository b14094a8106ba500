//! Blocks of code in the documents that no test would run by mistake, such as one marked `rs`, and
//! those that are marked so that none runs them.

use pulldown_cmark::{Event, Parser, Tag};

use super::{Count, Source};

/// The marks of blocks that nothing runs.
const TEXTS: [&str; 5] = ["text", "sh", "c", "diff", "json"];
/// The marks of samples, and where they are tested: `book/`, `cargo xtask quick-start`,
/// `python/tests/optimizer/test_readme.py` and `python/tests/recipes`. candle's README is its
/// crate's documentation.
const TESTED: [(&str, &[&str]); 3] = [
    ("rust", &["README.md", "candle/README.md", "docs/src/"]),
    ("rust,no_run", &["docs/src/"]),
    ("python", &["README.md", "python/README.md", "docs/src/"]),
];
const IGNORED: [&str; 2] = ["rust,ignore", "python,ignore"];
/// The samples that need candle, a GPU, several processes or a harness for tests.
const MOST_IGNORED: usize = 6;

pub(super) fn counts(sources: &[Source]) -> [Count; 2] {
    let (mut unknown, mut ignored) = (vec![], vec![]);
    for source in sources.iter().filter(|source| source.extension() == "md") {
        for (line, opening) in blocks(&source.text) {
            let place = format!("{}:{line}: {opening:?}", source.path);
            match mark(opening) {
                Some(mark) if IGNORED.contains(&mark) && source.path != "README.md" => ignored.push(place),
                Some(mark) if is_known(mark, source) => {}
                _ => unknown.push(place),
            }
        }
    }
    let count = |what: &str, limit, details: Vec<String>| {
        let found = details.len();
        let details = if found > limit { details } else { vec![] };
        Count { what: what.to_owned(), found, limit: Some(limit), details }
    };
    [
        count("blocks of code that no test recognizes", 0, unknown),
        count("samples that are marked as not to run", MOST_IGNORED, ignored),
    ]
}

/// The line at which each block of code begins, by number and from its first column.
fn blocks(text: &str) -> Vec<(usize, &str)> {
    let events = Parser::new(text).into_offset_iter();
    let starts = events.filter(|(event, _)| matches!(event, Event::Start(Tag::CodeBlock(_)))).map(|(_, at)| at.start);
    let line = |start: usize| {
        let from = text[..start].rfind('\n').map_or(0, |end| end + 1);
        (text[..from].lines().count() + 1, text[from..].split('\n').next().unwrap_or_default())
    };
    starts.map(line).collect()
}

/// The mark of a block that begins as all tests expect: with three backticks, in the first column.
fn mark(opening: &str) -> Option<&str> {
    opening.strip_prefix("```").filter(|mark| !mark.is_empty())
}

fn is_known(mark: &str, source: &Source) -> bool {
    let is_tested = |(tested, places): &(&str, &[&str])| mark == *tested && source.is_in(places);
    TEXTS.contains(&mark) || TESTED.iter().any(is_tested)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, unknown: usize, ignored: usize) {
        let found = counts(&[Source { path: path.to_owned(), text: text.to_owned() }]).map(|count| count.found);
        assert_eq!(found, [unknown, ignored], "{text}");
    }

    #[test]
    fn blocks_that_no_test_recognizes_are_found() {
        for (block, unknown, ignored) in [
            ("```rust\nx\n```", 0, 0),
            ("```text\n```", 0, 0),
            ("```python,ignore\n```", 0, 1),
            ("```rust,ignore\n```", 0, 1),
            ("```py\n```", 1, 0),
            ("```python title=x\n```", 1, 0),
            ("```python\r\n```\r\n", 1, 0),
            ("````rust\n````", 1, 0),
            ("~~~rust\n~~~", 1, 0),
            ("- a\n\n  ```rust\n  x\n  ```", 1, 0),
            ("> ```python\n> x\n> ```", 1, 0),
            ("a\n\n    x", 1, 0),
            ("```\nx\n```", 1, 0),
        ] {
            check("docs/src/a.md", block, unknown, ignored);
        }
        check("README.md", "```rust,ignore\n```\n```rust,no_run\n```", 2, 0);
        check("CONTRIBUTING.md", "```rust\n```", 1, 0);
        check("python/README.md", "```python\n```\n```rust\n```", 1, 0);
    }
}
