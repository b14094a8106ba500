//! Sentences of the README and of the user guide that are too long.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{Count, Source};

const WORDS: usize = 30;
/// Their points end no sentence.
const ABBREVIATIONS: [&str; 6] = ["e.g.", "i.e.", "etc.", "cf.", "vs.", "approx."];
/// What newcomers read.
const READ_FIRST: [&str; 4] = ["README.md", "python/README.md", "docs/src/introduction.md", "docs/src/guide/"];

pub(super) fn count(sources: &[Source]) -> Count {
    let read_first = sources.iter().filter(|source| source.extension() == "md" && source.is_in(&READ_FIRST));
    let details: Vec<_> = read_first.flat_map(long_sentences).collect();
    Count {
        what: format!("sentences over {WORDS} words in what newcomers read"),
        found: details.len(),
        limit: Some(0),
        details,
    }
}

/// A piece of code, such as `cargo test`, is one word.
fn long_sentences(source: &Source) -> Vec<String> {
    let mut long = vec![];
    let mut text = String::new();
    let mut in_code = false;
    for event in Parser::new_ext(&source.text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::Text(part) if !in_code => text.push_str(&part),
            Event::Html(html) => text.push_str(&without_tags(&html)),
            Event::Code(_) => text.push_str("code"),
            Event::SoftBreak | Event::HardBreak => text.push(' '),
            Event::Start(Tag::Paragraph | Tag::Item)
            | Event::End(
                TagEnd::Paragraph
                | TagEnd::Item
                | TagEnd::Heading(_)
                | TagEnd::TableCell
                | TagEnd::CodeBlock
                | TagEnd::HtmlBlock,
            ) => {
                in_code = false;
                let text = std::mem::take(&mut text);
                let too_long = sentences(&text).into_iter().filter(|sentence| words(sentence) > WORDS);
                long.extend(too_long.map(|sentence| format!("{}: {} words: {sentence}", source.path, words(sentence))));
            }
            _ => {}
        }
    }
    long
}

fn without_tags(html: &str) -> String {
    // Within a line: a tag or a comment that spans lines counts as text.
    let (first, rest) = html.split_once('<').unwrap_or((html, ""));
    let rest = rest.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
    std::iter::once(first).chain(rest).collect()
}

fn sentences(text: &str) -> Vec<&str> {
    let mut found = vec![];
    let mut start = 0;
    for (end, _) in text.match_indices([' ', '\n']) {
        let sentence = text[start..end].trim_end_matches([')', '"']);
        let last = sentence.rsplit([' ', '\n', '(']).next().unwrap_or_default().to_lowercase();
        if sentence.ends_with(['.', '!', '?']) && !ABBREVIATIONS.contains(&last.as_str()) {
            found.push(sentence.trim());
            start = end;
        }
    }
    found.push(text[start..].trim());
    found
}

fn words(sentence: &str) -> usize {
    sentence.split(|c: char| c.is_whitespace() || c == '—').filter(|word| word.contains(char::is_alphanumeric)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_at_points_items_and_cells() {
        let of = |words: usize| vec!["word"; words].join(" ");
        let text = format!(
            "{}. {}\n{}.\n\n- {}\n- {} `a b c`\n\n```\n{}\n```\n\n| {} | {} |\n| - | - |\n| 1 | 2 |\n",
            of(30),
            of(15),
            of(15),
            of(30),
            of(30),
            of(99),
            of(30),
            of(31)
        );
        let long = long_sentences(&Source { path: "README.md".to_owned(), text });
        assert_eq!(long.len(), 2, "{long:?}");
        assert!(long[0].ends_with("code") && long[1].contains("31 words"), "{long:?}");
    }

    #[test]
    fn sentences_do_not_end_at_abbreviations_or_within_html() {
        let of = |words: usize| vec!["word"; words].join(" ");
        let text =
            format!("{} (e.g. {}).\n\n<p>{}\n{}\n</p>\n\n{}—{}.\n", of(15), of(15), of(16), of(15), of(15), of(16));
        let long = long_sentences(&Source { path: "README.md".to_owned(), text });
        assert_eq!(long.len(), 3, "{long:?}");
        assert!(long.iter().all(|long| long.contains("31 words")), "{long:?}");
    }
}
