//! Circles of imports in `src/`.
//!
//! A file needs another if its code outside of tests names a path into it: `use crate::a::B`,
//! `super::a::b()`, `child::b()`, or a name that a module re-exports from there. What the compiler
//! finds without a path, such as the methods of a type, does not count.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::{Count, Source};

/// The names on the way to a module from the crate's root, which has none.
type Module = Vec<String>;
/// The parts of a path as it is written: `crate`, `super`, `a`, `B`.
type Path = Vec<String>;

/// What the sources of a crate say about its modules.
#[derive(Default)]
struct Crate {
    modules: BTreeSet<Module>,
    /// The modules that have a file of their own, and the file.
    files: BTreeMap<Module, String>,
    /// The names that `use` brings into a module.
    uses: BTreeMap<(Module, String), Path>,
    named: BTreeSet<(Module, Path)>,
}

/// Pairs of names, of which the first needs the second, with a file where it does.
type Needs = BTreeMap<(String, String), String>;

/// The circles between the modules below the root, and those between the files of one module.
pub(super) fn counts(sources: &[Source]) -> Result<[Count; 2]> {
    let tree = Crate::of(sources.iter().map(|source| (source.path.as_str(), source.text.as_str())))?;
    let [between, inside] = tree.needs();
    let count = |what: &str, limit, needs: &Needs| {
        let circles = circles(needs);
        let details = circles.iter().flat_map(|circle| describe(circle, needs)).collect();
        Count { what: what.to_owned(), found: circles.len(), limit, details }
    };
    Ok([
        count("import circles between the modules", Some(0), &between),
        count("import circles between the files of a module", Some(0), &inside),
    ])
}

impl Crate {
    /// Reads a crate from its files and their texts.
    fn of<'a>(sources: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut tree = Self::default();
        for (path, text) in sources {
            let Some(file) = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { continue };
            let file = file.strip_suffix("/mod").unwrap_or(file);
            let module: Module = if file == "lib" { vec![] } else { file.split('/').map(str::to_owned).collect() };
            let code = text.parse().map_err(|error| anyhow!("{path}: {error}"))?;
            tree.files.insert(module.clone(), path.to_owned());
            tree.read(code, &module);
        }
        Ok(tree)
    }

    /// Collects what a module's code names.
    fn read(&mut self, code: TokenStream, module: &Module) {
        self.modules.insert(module.clone());
        let tokens: Vec<_> = code.into_iter().collect();
        let mut rest = tokens.as_slice();
        while let [first, after @ ..] = rest {
            rest = match (first, after) {
                (TokenTree::Punct(hash), [attribute @ TokenTree::Group(_), item @ ..])
                    if hash.as_char() == '#' && is_for_tests(attribute) =>
                {
                    after_item(item)
                }
                (TokenTree::Ident(word), [TokenTree::Ident(name), TokenTree::Group(body), after @ ..])
                    if word == "mod" && body.delimiter() == Delimiter::Brace =>
                {
                    self.read(body.stream(), &[module.as_slice(), &[name.to_string()]].concat());
                    after
                }
                (TokenTree::Ident(word), _) if word == "use" => {
                    let end = after.iter().position(|token| is(token, ';')).unwrap_or(after.len());
                    for (name, path) in used(&after[..end], &vec![]) {
                        self.uses.insert((module.clone(), name), path.clone());
                        self.named.insert((module.clone(), path));
                    }
                    &after[end..]
                }
                (TokenTree::Ident(_), [first, second, ..]) if is(first, ':') && is(second, ':') => {
                    let (path, after) = path(rest);
                    self.named.insert((module.clone(), path));
                    after
                }
                // `pub(in crate::a)` says who may use a name, and needs nothing of `a`.
                (TokenTree::Group(group), _) if starts_with_in(group) => after,
                (TokenTree::Group(group), _) => {
                    self.read(group.stream(), module);
                    after
                }
                _ => after,
            };
        }
    }

    /// What the modules below the root need of each other, and what the files of one module do.
    fn needs(&self) -> [Needs; 2] {
        let (mut between, mut inside) = (Needs::new(), Needs::new());
        let top = |module: &Module| module.first().map_or("the root", String::as_str).to_owned();
        for (from, path) in &self.named {
            let Some(to) = self.resolve(from, path, 0) else { continue };
            let (from, to) = (self.file_of(from), self.file_of(&to));
            let file = self.files[from].clone();
            if top(from) != top(to) {
                between.entry((top(from), top(to))).or_insert(file);
            } else if from != to {
                inside.entry((from.join("::"), to.join("::"))).or_insert(file);
            }
        }
        [between, inside]
    }

    /// The module that a path leads into, if it stays in the crate.
    fn resolve(&self, from: &Module, path: &Path, depth: usize) -> Option<Module> {
        // `use` that leads in a circle does not compile.
        let deeper = (depth < 20).then_some(depth + 1)?;
        let mut at = from.clone();
        for (index, name) in path.iter().enumerate() {
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            match name.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                _ if self.modules.contains(&child) => at = child,
                _ => match self.uses.get(&(at.clone(), name.clone())) {
                    // `use half;` brings in the name that its own path begins with.
                    Some(target) if index > 0 || target != path => at = self.resolve(&at, target, deeper)?,
                    // The path begins with another crate.
                    _ if index == 0 => return None,
                    // The rest of the path is an item of this module.
                    _ => break,
                },
            }
        }
        Some(at)
    }

    /// The module whose file has this module's code.
    fn file_of(&self, module: &Module) -> &Module {
        let above = (0..=module.len()).rev().map(|len| &module[..len]);
        let found = above.filter_map(|module| self.files.get_key_value(module)).next();
        found.expect("src/lib.rs is there").0
    }
}

/// The paths that the tree of a `use` names, each with the name that it has from there on.
fn used(tree: &[TokenTree], before: &Path) -> Vec<(String, Path)> {
    let (mut path, mut alias) = (before.clone(), None);
    let mut rest = tree;
    while let [first, after @ ..] = rest {
        match first {
            TokenTree::Ident(word) if word == "as" => {
                alias = after.first().map(ToString::to_string);
                break;
            }
            // `{self, …}` is the path before it.
            TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Group(branches) => {
                let branches: Vec<_> = branches.stream().into_iter().collect();
                return branches.split(|token| is(token, ',')).flat_map(|branch| used(branch, &path)).collect();
            }
            TokenTree::Punct(star) if star.as_char() == '*' => alias = Some("*".to_owned()),
            _ => {}
        }
        rest = after;
    }
    alias.or_else(|| path.last().cloned()).map(|name| (name, path)).into_iter().collect()
}

/// A path in the midst of code, and what follows it.
fn path(tokens: &[TokenTree]) -> (Path, &[TokenTree]) {
    let (mut path, mut rest) = (vec![], tokens);
    while let [TokenTree::Ident(name), after @ ..] = rest {
        path.push(name.to_string());
        rest = match after {
            [first, second, after @ ..] if is(first, ':') && is(second, ':') => after,
            _ => return (path, after),
        };
    }
    (path, rest)
}

fn is(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn starts_with_in(group: &Group) -> bool {
    group.stream().into_iter().next().is_some_and(|first| first.to_string() == "in")
}

/// `[cfg(test)]`, also among other conditions.
fn is_for_tests(attribute: &TokenTree) -> bool {
    let text = attribute.to_string();
    let mut words = text.split(|character: char| !character.is_alphanumeric() && character != '_');
    text.trim_start_matches('[').trim_start().starts_with("cfg")
        && !text.contains("not")
        && words.any(|word| word == "test")
}

/// The tokens after an item, which ends with a semicolon or a body.
fn after_item(tokens: &[TokenTree]) -> &[TokenTree] {
    let is_end = |token: &TokenTree| {
        is(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    tokens.iter().position(is_end).map_or(&[], |end| &tokens[end + 1..])
}

/// Sets of names that all need each other.
fn circles(needs: &Needs) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &String| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(name) = open.pop() {
            let next =
                needs.keys().filter(|(from, to)| *from == name && !reached.contains(to)).map(|(_, to)| to.clone());
            let next: Vec<_> = next.collect();
            reached.extend(next.iter().cloned());
            open.extend(next);
        }
        reached
    };
    let reached: BTreeMap<_, _> = needs.keys().map(|(from, _)| (from.clone(), reached(from))).collect();
    let is_back = |name: &String, other: &String| reached.get(other).is_some_and(|back| back.contains(name));
    let circles = reached.iter().map(|(name, reached)| reached.iter().filter(|other| is_back(name, other)).cloned());
    circles.map(BTreeSet::from_iter).filter(|circle| circle.len() > 1).collect()
}

/// A circle, and what it consists of.
fn describe(circle: &BTreeSet<String>, needs: &Needs) -> Vec<String> {
    let names: Vec<_> = circle.iter().map(String::as_str).collect();
    let inside = needs.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
    let needs = inside.map(|((from, to), file)| format!("  {from} needs {to}, as in {file}"));
    std::iter::once(names.join(", ")).chain(needs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_through_names_that_others_re_export() {
        let sources = [
            ("src/lib.rs", "mod a; mod b; mod c; pub use b::B; pub use half;"),
            (
                "src/a.rs",
                "use crate::{B as Other, half::bf16}; fn a(_: Other) {} #[cfg(test)] mod tests { use crate::c::C; }",
            ),
            ("src/b/mod.rs", "mod deep; pub use deep::B; /// crate::c::C"),
            (
                "src/b/deep.rs",
                "pub(crate) struct B; impl B { fn b() { let a = \"crate::c::C\"; super::super::a::a(a) } }",
            ),
            ("src/c.rs", "use crate::a; use super::b::*;"),
            ("src/d/mod.rs", "mod inner; fn d(_: u8) { inner::d() }"),
            ("src/d/inner.rs", "pub(super) fn d() { half::d() }"),
        ];
        let [between, inside] = Crate::of(sources.into_iter()).unwrap().needs();
        let names = |needs: &Needs| needs.keys().map(|(from, to)| format!("{from} {to}")).collect::<Vec<_>>();
        assert_eq!(names(&between), ["a b", "b a", "c a", "c b", "the root b"]);
        assert_eq!(names(&inside), ["b b::deep", "d d::inner"]);
        assert_eq!(circles(&between), [["a".to_owned(), "b".to_owned()].into()].into());
        assert!(circles(&inside).is_empty());
    }
}
