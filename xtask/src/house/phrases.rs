//! Phrases that the project's prose does not use: `phrases.txt`.

use anyhow::{Context as _, Result};

use super::{Count, Source, prose};

const PHRASES: &str = include_str!("phrases.txt");

struct Phrase {
    /// In lower case.
    words: Vec<String>,
    instead: &'static str,
}

/// # Errors
///
/// If a line of the list lacks what to say instead.
pub(super) fn count(sources: &[Source]) -> Result<Count> {
    let phrases = phrases()?;
    let details: Vec<_> = sources.iter().flat_map(|source| found_in(source, &phrases)).collect();
    Ok(Count { what: "phrases to avoid".to_owned(), found: details.len(), limit: Some(0), details })
}

fn phrases() -> Result<Vec<Phrase>> {
    let lines = PHRASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let phrase = |line: &'static str| {
        let (words, instead) =
            line.split_once(" | ").with_context(|| format!("phrases.txt: {line:?} has no \" | \""))?;
        Ok(Phrase { words: words_of(words), instead })
    };
    lines.map(phrase).collect()
}

/// In lower case, without the punctuation around them.
fn words_of(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || ['—', '–', '/'].contains(&c));
    let words = words.map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase().replace('’', "'"));
    // Marks of lists and quotes are no words.
    words.filter(|word| !word.is_empty()).collect()
}

/// Where a source has one of the phrases, also across the end of a line.
fn found_in(source: &Source, phrases: &[Phrase]) -> Vec<String> {
    let lines = prose::lines(source);
    let words: Vec<(usize, String)> =
        lines.iter().flat_map(|line| words_of(line.prose).into_iter().map(|word| (line.number, word))).collect();
    let mut found = vec![];
    for (at, (number, _)) in words.iter().enumerate() {
        let is_here = |phrase: &&Phrase| {
            let here = words[at..].iter().map(|(_, word)| word);
            words.len() - at >= phrase.words.len() && phrase.words.iter().zip(here).all(|(wanted, word)| wanted == word)
        };
        for phrase in phrases.iter().filter(is_here) {
            found.push(format!("{}:{number}: {:?}: {}", source.path, phrase.words.join(" "), phrase.instead));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_as_whole_words() {
        let phrases = phrases().unwrap();
        let text = "// Albeit it be\n// had in\n// order to, whilstle\nlet albeit = 1;\n// `of course.`".to_owned();
        let found = found_in(&Source { path: "a.rs".to_owned(), text }, &phrases);
        let starts = ["a.rs:1: \"albeit\"", "a.rs:2: \"in order to\"", "a.rs:5: \"of course\""];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        assert!(found.iter().zip(starts).all(|(found, start)| found.starts_with(start)), "{found:?}");
    }

    #[test]
    fn phrases_are_found_around_other_punctuation() {
        let phrases = phrases().unwrap();
        let text = "> In\n> order to, the caller’s to—of course—do, easily/simply.".to_owned();
        let found = found_in(&Source { path: "a.md".to_owned(), text }, &phrases);
        assert_eq!(found.len(), 5, "{found:?}");
    }
}
