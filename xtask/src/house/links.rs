//! Links of the documents that lead nowhere in the repository. Addresses on the web are not
//! visited.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{Count, Source};
use crate::root;

/// The book's table of contents, which must name each page.
const CONTENTS: &str = "docs/src/SUMMARY.md";
const PAGES: &str = "docs/src/";

struct Document {
    /// As written: `../guide/faq.md#threads`.
    links: Vec<String>,
    /// The names of its headings in addresses.
    anchors: HashSet<String>,
}

pub(super) fn count(sources: &[Source]) -> Count {
    let markdown = sources.iter().filter(|source| source.extension() == "md");
    let documents: HashMap<&str, Document> =
        markdown.map(|source| (source.path.as_str(), read(&source.text))).collect();
    let mut details: Vec<_> = documents
        .iter()
        .flat_map(|(path, document)| {
            let dead = document.links.iter().filter(|link| !leads_somewhere(path, link, &documents));
            dead.map(move |link| format!("{path}: {link}"))
        })
        .collect();
    details.extend(pages_without_a_link(&documents));
    details.sort_unstable();
    Count {
        what: "dead links, and pages that the book lacks".to_owned(),
        found: details.len(),
        limit: Some(0),
        details,
    }
}

fn read(text: &str) -> Document {
    let mut document = Document { links: vec![], anchors: HashSet::new() };
    let mut heading: Option<String> = None;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(part) | Event::Code(part) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&part);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                // Of equal headings, the second's name ends in -1, and so on.
                let names = (1..).map(|number| format!("{anchor}-{number}"));
                let free = std::iter::once(anchor.clone()).chain(names).find(|name| !document.anchors.contains(name));
                document.anchors.extend(free);
            }
            _ => {}
        }
    }
    document
}

/// As mdBook and GitHub form it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn leads_somewhere(from: &str, link: &str, documents: &HashMap<&str, Document>) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let path = if path.is_empty() { from.to_owned() } else { resolve(from, path) };
    match (documents.get(path.as_str()), anchor) {
        (Some(document), Some(anchor)) => document.anchors.contains(anchor),
        (Some(_), None) => true,
        (None, _) => anchor.is_none() && root().join(&path).exists(),
    }
}

/// The path from the root of what a link of a document names.
fn resolve(from: &str, link: &str) -> String {
    let folder = Path::new(from).parent().unwrap_or(Path::new(""));
    let mut resolved = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
    }
    resolved.to_string_lossy().replace('\\', "/")
}

fn pages_without_a_link(documents: &HashMap<&str, Document>) -> Vec<String> {
    let named = documents.get(CONTENTS).map_or(&[][..], |contents| &contents.links);
    let is_named = |path: &str| path == CONTENTS || named.iter().any(|link| resolve(CONTENTS, link) == path);
    let pages = documents.keys().filter(|path| path.starts_with(PAGES) && !is_named(path));
    pages.map(|path| format!("{path}: it is not in {CONTENTS}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_files_and_headings() {
        let text = "# One `two`: Three, 2²\n# One `two`: Three, 2²\n[a](#one-two-three-2²) ![b](x.png)";
        let page = read(text);
        assert_eq!(page.links, ["#one-two-three-2²", "x.png"]);
        assert!(page.anchors.contains("one-two-three-2²") && page.anchors.contains("one-two-three-2²-1"));
        let documents = HashMap::from([("docs/src/a.md", page), ("docs/src/b/c.md", read("# D"))]);
        for (link, expected) in [
            ("#one-two-three-2²", true),
            ("#three", false),
            ("b/c.md#d", true),
            ("b/c.md#e", false),
            ("b/d.md", false),
            ("../../Cargo.toml", true),
            ("https://example.org/", true),
        ] {
            assert_eq!(leads_somewhere("docs/src/a.md", link, &documents), expected, "{link}");
        }
        assert!(leads_somewhere("docs/src/b/c.md", "../a.md", &documents));
        assert_eq!(pages_without_a_link(&documents).len(), 2);
    }
}
