//! Which files of a crate import which, and whether they do so in a circle.
//!
//! A file is a module. It imports another one when its code, tests left out, names a path that leads there:
//! from the crate's root, from itself or its parent, or from a child that it declares. What a module passes on
//! with `pub use` counts for where it comes from. So does a name that `mod` declares, as long as it is used.

use std::collections::{BTreeMap, BTreeSet};

/// A module's place: the names that lead to it from the crate's root, which is empty.
type Path = Vec<String>;

/// The modules of a crate by their paths, with their code.
pub(crate) struct Modules(BTreeMap<Path, Vec<Token>>);

/// What paths are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(char),
}

impl Modules {
    /// From files, by their names below the crate's `src/`.
    pub(crate) fn new<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut modules, mut tests) = (BTreeMap::new(), Vec::new());
        for (name, text) in files {
            let path = module_of(name);
            let (code, for_tests) = without_tests(text);
            tests.extend(
                for_tests
                    .into_iter()
                    .map(|child| [&path[..], &[child]].concat()),
            );
            modules.insert(path, tokens(&code));
        }
        modules.retain(|path: &Path, _| !tests.iter().any(|test| path.starts_with(test)));
        Self(modules)
    }

    /// A circle of modules that import each other, the first one again at its end; `None` when there is
    /// none.
    pub(crate) fn circle(&self) -> Option<Vec<String>> {
        let edges: BTreeMap<_, _> = self.0.keys().map(|at| (at, self.imports(at))).collect();
        let mut done = BTreeSet::new();
        for start in self.0.keys() {
            let mut way = Vec::new();
            if let Some(circle) = walk(start, &edges, &mut way, &mut done) {
                return Some(circle);
            }
        }
        None
    }

    /// The modules that one imports.
    fn imports(&self, at: &Path) -> BTreeSet<Path> {
        let all = paths(&self.0[at]).into_iter();
        let found = all.filter_map(|path| self.resolve(at, &path.names, 8));
        found.filter(|found| found != at).collect()
    }

    /// The module that has what a path names, seen from a module.
    fn resolve(&self, at: &Path, names: &[String], depth: u32) -> Option<Path> {
        let mut place = at.clone();
        let mut rest = names;
        match names.first()?.as_str() {
            "crate" => (place, rest) = (Vec::new(), &names[1..]),
            "self" => rest = &names[1..],
            "super" => {}
            // A child, or a name from elsewhere.
            child => {
                let known = self
                    .0
                    .contains_key(&[&at[..], &[child.to_owned()]].concat());
                if !known {
                    return None;
                }
            }
        }
        while rest.first().is_some_and(|name| name == "super") {
            place.pop()?;
            rest = &rest[1..];
        }
        while let Some((name, further)) = rest.split_first() {
            let next = [&place[..], std::slice::from_ref(name)].concat();
            if !self.0.contains_key(&next) {
                break;
            }
            (place, rest) = (next, further);
        }
        let Some(name) = rest.first() else {
            return Some(place);
        };
        let tokens = self.0.get(&place)?;
        // A module that `#[path]` has from elsewhere.
        let elsewhere = ["mod", name].map(|word| Token::Word(word.to_owned()));
        let elsewhere = [&elsewhere[..], &[Token::Mark(';')]].concat();
        if tokens.windows(3).any(|three| three == elsewhere) {
            return None;
        }
        let mut uses = paths(tokens);
        uses.retain(|path| path.public && path.last() == Some(name));
        if uses.is_empty() {
            return Some(place);
        }
        // From another module, or from another crate.
        uses.iter()
            .find_map(|path| self.resolve(&place, &path.names, depth.checked_sub(1)?))
    }
}

/// Goes on from a module, without those that lead to no circle.
fn walk(
    at: &Path,
    edges: &BTreeMap<&Path, BTreeSet<Path>>,
    way: &mut Vec<Path>,
    done: &mut BTreeSet<Path>,
) -> Option<Vec<String>> {
    if let Some(start) = way.iter().position(|before| before == at) {
        let circle = way[start..].iter().chain([at]);
        let name = |path: &Path| format!("crate::{}", path.join("::"));
        return Some(circle.map(name).collect());
    }
    if !done.contains(at) {
        way.push(at.clone());
        for next in &edges[at] {
            if let Some(circle) = walk(next, edges, way, done) {
                return Some(circle);
            }
        }
        way.pop();
        done.insert(at.clone());
    }
    None
}

fn module_of(file: &str) -> Path {
    let name = file.trim_end_matches(".rs");
    let names = name.split('/').map(str::to_owned);
    let mut path: Path = names.collect();
    if matches!(
        path.last().map(String::as_str),
        Some("lib" | "main" | "mod")
    ) {
        path.pop();
    }
    path
}

/// A text without what is compiled for tests only: modules in this file, and the names of those in others.
pub(crate) fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut kept, mut modules) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut attribute = String::new();
        if line.starts_with("#[cfg(") {
            attribute.push_str(line);
            while !attribute.ends_with(")]") {
                let Some(further) = lines.next() else { break };
                attribute.push_str(further.trim());
            }
        }
        let for_tests = ["#[cfg(test)", "#[cfg(all(test,"];
        if !for_tests.iter().any(|start| attribute.starts_with(start)) {
            kept.push_str(line.split("//").next().unwrap_or_default());
            kept.push('\n');
            continue;
        }
        let item = lines.by_ref().find(|line| !line.starts_with("#["));
        let item = item.unwrap_or_default();
        if item.ends_with('{') {
            let _ = lines.by_ref().find(|line| *line == "}");
        }
        let module = item.trim_start_matches("pub(crate) ").strip_prefix("mod ");
        modules.extend(
            module
                .and_then(|name| name.strip_suffix(';'))
                .map(str::to_owned),
        );
    }
    (kept, modules)
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    for letter in text.chars().chain([' ']) {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
            continue;
        }
        if !word.is_empty() {
            tokens.push(Token::Word(std::mem::take(&mut word)));
        }
        if !letter.is_whitespace() {
            tokens.push(Token::Mark(letter));
        }
    }
    tokens
}

/// A path of at least two names.
struct Named {
    names: Path,
    /// What it is called here, where `as` says so.
    alias: Option<String>,
    /// Whether `pub use` passes it on.
    public: bool,
}

impl Named {
    fn last(&self) -> Option<&String> {
        self.alias.as_ref().or(self.names.last())
    }
}

/// Every path in a text; a group is as many paths as it has names.
fn paths(tokens: &[Token]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut public = false;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(word) if word == "use" => public = is_public(&tokens[..at]),
            Token::Mark(';') => public = false,
            // `pub(in …)` says who may see an item, and imports nothing.
            Token::Word(word) if word == "in" && at > 1 && is_public(&tokens[..at - 1]) => {
                at += tokens[at..]
                    .iter()
                    .take_while(|token| **token != Token::Mark(')'))
                    .count();
            }
            Token::Word(_) => {
                let before = found.len();
                let colons = [Token::Mark(':'), Token::Mark(':')];
                let is_foreign = tokens[..at].ends_with(&colons);
                at = path(tokens, at, &mut Vec::new(), &mut found);
                for named in &mut found[before..] {
                    named.public = public;
                    // `::name` is another crate, whatever module has that name here: one without a name.
                    if is_foreign {
                        named.names.insert(0, String::new());
                    }
                }
                continue;
            }
            Token::Mark(_) => {}
        }
        at += 1;
    }
    found.retain(|path| path.names.len() > 1);
    found
}

/// Whether tokens end with `pub` or `pub(…)`.
fn is_public(tokens: &[Token]) -> bool {
    let word = |token: &Token| matches!(token, Token::Word(word) if word == "pub");
    tokens.last().is_some_and(word)
        || tokens.last() == Some(&Token::Mark(')')) && tokens.iter().rev().nth(3).is_some_and(word)
}

/// Reads the path that begins at a token, behind the names of `start`. Gives where it ends.
fn path(tokens: &[Token], mut at: usize, start: &mut Path, found: &mut Vec<Named>) -> usize {
    let depth = start.len();
    let colons = |at: usize| tokens.get(at..at + 2) == Some(&[Token::Mark(':'), Token::Mark(':')]);
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) => {
                start.push(word.clone());
                at += 1;
                if colons(at) {
                    at += 2;
                    continue;
                }
            }
            Some(Token::Mark('{')) if depth < start.len() => {
                at += 1;
                while tokens
                    .get(at)
                    .is_some_and(|token| *token != Token::Mark('}'))
                {
                    at = match &tokens[at] {
                        Token::Mark(',') => at + 1,
                        _ => path(tokens, at, start, found),
                    };
                }
                start.truncate(depth);
                return at + 1;
            }
            // A glob, a generic argument: the path ends before it.
            Some(Token::Mark(_)) | None if depth < start.len() => {
                start.push("*".to_owned());
                at += 1;
            }
            _ => at += 1,
        }
        break;
    }
    let mut alias = None;
    if let Some([Token::Word(renamed), Token::Word(name)]) = tokens.get(at..at + 2)
        && renamed == "as"
    {
        alias = Some(name.clone());
        at += 2;
    }
    if depth < start.len() {
        found.push(Named {
            names: start.clone(),
            alias,
            public: false,
        });
    }
    start.truncate(depth);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(files: &[(&str, &str)]) -> Option<String> {
        let circle = Modules::new(files.iter().copied()).circle();
        circle.map(|names| names.join(" "))
    }

    #[test]
    fn circles_are_found_however_a_module_is_named() {
        for (a, b) in [
            ("use crate::b::B;", "use crate::a::A;"),
            (
                "use std::fmt;\nuse crate::{b, c::C};",
                "fn f() { crate::a::g() }",
            ),
            (
                "use crate::{\n    c::{C, D as E},\n    b::{self},\n};",
                "use super::a;",
            ),
            (
                "use super::b::*;",
                "use crate::c::C;\nstruct S<T: crate::a::A>(T);",
            ),
        ] {
            let files = [
                ("lib.rs", "mod a;\nmod b;\nmod c;"),
                ("a.rs", a),
                ("b.rs", b),
                ("c.rs", ""),
            ];
            let found = circle(&files);
            assert_eq!(
                found.as_deref(),
                Some("crate::a crate::b crate::a"),
                "{a} {b}"
            );
        }
    }

    #[test]
    fn what_a_module_passes_on_comes_from_elsewhere() {
        let root = "mod a;\nmod b;\npub use a::A;\npub(crate) use crate::b::{B as C};";
        assert_eq!(
            circle(&[("lib.rs", root), ("a.rs", ""), ("b.rs", "use crate::A;")]),
            None
        );
        let files = [
            ("lib.rs", root),
            ("a.rs", "use crate::C;"),
            ("b.rs", "use crate::A;"),
        ];
        assert_eq!(
            circle(&files).as_deref(),
            Some("crate::a crate::b crate::a")
        );
        // What the root has itself.
        let files = [("lib.rs", root), ("a.rs", "use crate::Root;"), ("b.rs", "")];
        assert_eq!(circle(&files).as_deref(), Some("crate:: crate::a crate::"));
    }

    #[test]
    fn children_may_import_from_their_parent_or_it_from_them() {
        let child = ("a/b.rs", "use super::A;");
        assert_eq!(
            circle(&[("lib.rs", "mod a;"), ("a/mod.rs", "mod b;"), child]),
            None
        );
        let parent = ("a/mod.rs", "mod b;\nfn f() { b::g() }");
        let found = circle(&[("lib.rs", "mod a;"), parent, child]);
        assert_eq!(found.as_deref(), Some("crate::a crate::a::b crate::a"));
    }

    #[test]
    fn tests_may_import_anything() {
        let a = "fn f() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    use crate::b::B;\n}\n";
        let files = [
            ("a.rs", a),
            ("b.rs", "use crate::a::f;\n#[cfg(test)]\nmod tests;"),
            ("b/tests.rs", "use super::*;\nuse crate::a::f;"),
        ];
        assert_eq!(circle(&files), None);
        for a in [
            "#[cfg(test)]\nmod tests;\n// use crate::b::B;\nfn f() {}",
            "#[cfg(all(test, feature = \"x\"))]\nmod tests {\n    use crate::b::B;\n}\n",
            "#[cfg(all(\n    test,\n    feature = \"x\",\n))]\nmod tests {\n    use crate::b::B;\n}\n",
        ] {
            let files = [("a.rs", a), ("b.rs", "use crate::a::f;")];
            assert_eq!(circle(&files), None, "{a}");
        }
        let files = [
            ("a.rs", "#[cfg(test)]\n#[allow(x)]\nmod testing;\nfn f() {}"),
            ("a/testing.rs", "use crate::b::B;"),
            ("a/testing/more.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::{f, testing::more};"),
        ];
        assert_eq!(circle(&files), None);
        let a = "#[cfg(feature = \"x\")]\nmod tests {\n    use crate::b::B;\n}\n";
        let found = circle(&[("a.rs", a), ("b.rs", "use crate::a::f;")]);
        assert_eq!(found.as_deref(), Some("crate::a crate::b crate::a"));
    }

    #[test]
    fn what_comes_from_another_crate_or_who_may_see_an_item_is_no_import() {
        let root = "mod a;\npub use other::Thing;\npub use ::a::Other;\nuse a::A;";
        assert_eq!(
            circle(&[("lib.rs", root), ("a.rs", "use crate::{Other, Thing};")]),
            None
        );
        let files = [
            (
                "main.rs",
                "mod a;\n#[path = \"../b.rs\"]\nmod b;\nfn f() { a::g() }",
            ),
            ("a.rs", "use crate::b::B;"),
        ];
        assert_eq!(circle(&files), None);
        let child = "pub(in super::super) fn f() {}\npub(in crate::a) struct S;";
        let files = [
            ("lib.rs", "mod a;\nfn g() { a::f() }"),
            ("a.rs", "mod b;\nuse b::S;"),
            ("a/b.rs", child),
        ];
        assert_eq!(circle(&files), None);
    }
}
