//! Links of the documents that lead nowhere in the repository. Addresses on the web are not
//! visited.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{BrokenLink, Event, LinkType, Options, Parser, Tag, TagEnd};

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
    // `[text][name]` without a definition of the name is a link to it, which leads nowhere.
    let undefined = |link: BrokenLink<'_>| {
        let is_link = matches!(link.link_type, LinkType::Reference | LinkType::Collapsed);
        is_link.then(|| (link.reference.to_string().into(), "".into()))
    };
    for event in Parser::new_with_broken_link_callback(text, Options::ENABLE_TABLES, Some(undefined)) {
        match event {
            Event::Html(html) | Event::InlineHtml(html) => document.links.extend(addresses(&html)),
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

/// Where HTML leads to, and the pictures that it shows.
fn addresses(html: &str) -> Vec<String> {
    let values = ["href=", "src="].into_iter().flat_map(|name| html.split(name).skip(1));
    let unquoted = values.filter_map(|value| {
        let quote = value.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
        value[1..].split(quote).next()
    });
    unquoted.map(str::to_owned).collect()
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
    let Some(path) = (if path.is_empty() { Some(from.to_owned()) } else { resolve(from, path) }) else { return false };
    match (documents.get(path.as_str()), anchor) {
        (Some(document), Some(anchor)) => document.anchors.contains(anchor),
        (Some(_), None) => true,
        (None, _) => anchor.is_none() && root().join(&path).exists(),
    }
}

/// The path from the root of what a link of a document names, unless it is outside of the root.
fn resolve(from: &str, link: &str) -> Option<String> {
    let folder = Path::new(from).parent().unwrap_or(Path::new(""));
    let mut resolved = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir => resolved.pop().then_some(())?,
            Component::RootDir | Component::Prefix(_) => return None,
            part => resolved.push(part),
        }
    }
    Some(resolved.to_string_lossy().replace('\\', "/"))
}

fn pages_without_a_link(documents: &HashMap<&str, Document>) -> Vec<String> {
    let named = documents.get(CONTENTS).map_or(&[][..], |contents| &contents.links);
    let is_named =
        |path: &str| path == CONTENTS || named.iter().any(|link| resolve(CONTENTS, link).as_deref() == Some(path));
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
            ("../../../Cargo.toml", false),
            ("/etc", false),
            ("https://example.org/", true),
        ] {
            assert_eq!(leads_somewhere("docs/src/a.md", link, &documents), expected, "{link}");
        }
        assert!(leads_somewhere("docs/src/b/c.md", "../a.md", &documents));
        assert_eq!(pages_without_a_link(&documents).len(), 2);
    }

    #[test]
    fn links_of_every_form_are_read() {
        let text = "[a][b] [c][] [d] [e][f]\n\n<a href=\"g.md\">g</a> <img src='h.png'>\n\n<p>\n<a href=\"i\">\n</p>\n\n[f]: j.md 'A title'";
        assert_eq!(read(text).links, ["b", "c", "j.md", "g.md", "h.png", "i"]);
    }
}
