//! Comments and documents that are too wide.

use super::{Count, Source, prose};

const COLUMNS: usize = 100;
/// The most files with wide comments that are named.
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

/// The numbers of the lines that are prose and too wide. Tables and links may be.
fn wide_lines(source: &Source) -> Vec<usize> {
    let may_be_wide = |prose: &str| prose.starts_with('|') || prose.contains("](") || prose.contains("://");
    let is_wide = |line: &prose::Line<'_>| !may_be_wide(line.prose) && line.whole.chars().count() > COLUMNS;
    prose::lines(source).into_iter().filter(is_wide).map(|line| line.number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prose_is_too_wide() {
        let long = "word ".repeat(30);
        let text = format!("{long}\n```\n{long}\n```\n| {long} |\nSee [it](there) {long}\nshort");
        assert_eq!(wide_lines(&Source { path: "a.md".to_owned(), text }), [1]);
    }
}
