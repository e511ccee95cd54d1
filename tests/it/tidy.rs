//! The tree's own rules: imports point one way, files stay small and open with their job, no unwrap, no vague names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `src`, each using only those before it; `lib.rs` lists them in the same order (docs/ARCHITECTURE.md).
const ORDER: &[&str] = &[
    "wire",
    "sql",
    "metrics",
    "drain",
    "config",
    "select",
    "logging",
    "net",
    "trace",
    "workers",
    "auth",
    "quota",
    "tenant",
    "backend",
    "pool",
    "listen",
    "relay",
    "sessions",
    "admin",
    "session",
    "listener",
    "lifecycle",
    "bundle",
    "backup",
    "reload",
    "operations",
    "app",
    "cli",
];
const LONGEST_FILE: usize = 600;
const VAGUE_NAMES: &[&str] =
    &["util", "utils", "helper", "helpers", "misc", "common", "inner", "manager", "handler", "handlers"];

#[test]
fn imports_point_one_way() {
    report(
        sources()
            .iter()
            .flat_map(|source| upward_imports(&source.module(), &source.text).into_iter().map(|e| source.at(e))),
    );
}

#[test]
fn every_file_opens_with_its_job() {
    let silent = |source: &&Source| !source.text.starts_with("//! ");
    report(sources().iter().filter(silent).map(|source| source.at("does not open with a //! line")));
}

#[test]
fn files_stay_small() {
    report(sources().iter().filter(|source| !source.is_test).filter_map(|source| {
        let lines = shipped(&source.text).lines().count();
        (lines > LONGEST_FILE).then(|| source.at(format!("{lines} lines without its tests, at most {LONGEST_FILE}")))
    }));
}

#[test]
fn nothing_unwraps_outside_tests() {
    report(sources().iter().filter(|source| !source.is_test).flat_map(|source| {
        unwraps(&source.text).map(|line| source.at(format!("line {line}: unwrap; use expect with the reason")))
    }));
}

#[test]
fn file_names_say_something() {
    let vague = |path: &Path| path.iter().filter_map(|part| part.to_str()).any(is_vague);
    let tests = files(&root().join("tests"));
    let paths = sources().into_iter().map(|source| source.path).chain(tests.iter().map(|path| relative(path)));
    report(paths.filter(|path| vague(path)).map(|path| format!("{}: a vague name", path.display())));
}

/// The last column of docs/POOLING.md's table names modules of this test binary, or `module::test`.
#[test]
fn the_tests_that_pooling_is_proved_by_exist() {
    let page = fs::read_to_string(root().join("docs/POOLING.md")).expect("docs/POOLING.md");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).skip(1);
    let mut named = 0;
    for name in rows.filter_map(|row| row.split('|').nth(4)).flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        let (module, test) = name.split_once("::").unwrap_or((name, ""));
        let folder = if module == "sql" { "src/sql/tests.rs".into() } else { format!("tests/it/{module}.rs") };
        let text = fs::read_to_string(root().join(folder)).unwrap_or_else(|_| panic!("{name}: no such tests"));
        assert!(test.is_empty() || text.contains(&format!("fn {test}(")), "{name}: no such test");
        named += 1;
    }
    assert!(named > 20, "{named} tests are named");
}

#[test]
fn lib_lists_the_modules_in_order() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let listed: Vec<&str> = lib.lines().filter_map(declared_module).collect();
    let expected: Vec<&str> = ORDER.iter().copied().filter(|module| listed.contains(module)).collect();
    assert_eq!(listed, expected, "src/lib.rs lists its modules in another order, or one that ORDER does not know");
    let present: BTreeSet<String> =
        sources().iter().map(Source::module).filter(|module| module != "lib" && module != "main").collect();
    let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
    assert_eq!(present, listed, "files in src and modules in src/lib.rs differ");
}

#[test]
fn the_rules_find_what_they_are_for() {
    let upward = |text| upward_imports("pool", text).len();
    assert_eq!(upward("use crate::session::Session;"), 1);
    assert_eq!(upward("use crate::{wire::Tag, app, config::{Config, load}};"), 1);
    assert_eq!(upward("let x = crate::listener::new();"), 1);
    assert_eq!(upward("use crate::backend::Backend; use crate::pool::ledger; // crate::app is above"), 0);
    assert_eq!(upward("use crate::nowhere::X;"), 1);
    let text = "fn f() {\n x.unwrap();\n // x.unwrap()\n}\n#[cfg(test)]\nmod tests {\n x.unwrap();\n}\n";
    assert_eq!(unwraps(text).collect::<Vec<_>>(), [2]);
    assert_eq!(shipped(text).lines().count(), 4);
    assert!(is_vague("io_helper.rs") && is_vague("misc") && !is_vague("commonwealth.rs"));
    assert_eq!(declared_module("pub mod wire;"), Some("wire"));
    assert_eq!(test_modules("#[cfg(test)]\nmod tests;\nmod real;\n").collect::<Vec<_>>(), ["tests"]);
}

struct Source {
    path: PathBuf,
    text: String,
    /// Declared under `#[cfg(test)]`: not shipped.
    is_test: bool,
}

impl Source {
    /// First folder or file below `src`.
    fn module(&self) -> String {
        let name = self.path.iter().nth(1).expect("a file below src").to_string_lossy();
        name.trim_end_matches(".rs").to_owned()
    }

    fn at(&self, what: impl std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(root()).expect("a path below the package").to_owned()
}

/// All Rust files below `dir`, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<Source> {
    let texts = files(&root().join("src")).into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    let texts: Vec<(PathBuf, String)> = texts.collect();
    // `mod x;` in a/mod.rs is a/x.rs, in a/b.rs it is a/b/x.rs.
    let tests: BTreeSet<PathBuf> = texts
        .iter()
        .flat_map(|(path, text)| {
            let is_root = path.file_stem().is_some_and(|stem| stem == "mod" || stem == "lib" || stem == "main");
            let dir =
                if is_root { path.parent().expect("a file has a folder").to_owned() } else { path.with_extension("") };
            test_modules(text).map(move |module| dir.join(format!("{module}.rs"))).collect::<Vec<_>>()
        })
        .collect();
    let source =
        |(path, text): (PathBuf, String)| Source { is_test: tests.contains(&path), path: relative(&path), text };
    texts.into_iter().map(source).collect()
}

fn report(problems: impl Iterator<Item = String>) {
    let problems: Vec<String> = problems.collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The part before the unit tests, which stand last in a file.
fn shipped(text: &str) -> &str {
    let end = text.find("#[cfg(test)]\nmod ").filter(|&at| text[at..].lines().nth(1).is_some_and(|l| l.ends_with('{')));
    &text[..end.unwrap_or(text.len())]
}

/// Modules in files of their own that only tests have.
fn test_modules(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("#[cfg(test)]\n").filter_map(|(at, _)| declared_module(text[at..].lines().nth(1)?))
}

/// The name in `mod x;` or `pub mod x;`.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
    line.strip_prefix("mod ")?.strip_suffix(';')
}

fn without_comment(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

fn unwraps(text: &str) -> impl Iterator<Item = usize> {
    let lines = shipped(text).lines().enumerate();
    lines.filter(|(_, line)| without_comment(line).contains(".unwrap()")).map(|(index, _)| index + 1)
}

fn is_vague(name: &str) -> bool {
    name.trim_end_matches(".rs").split(['_', '-']).any(|word| VAGUE_NAMES.contains(&word))
}

/// What `module` may not use: modules after it in [`ORDER`], and unknown ones.
fn upward_imports(module: &str, text: &str) -> Vec<String> {
    let rank = |name: &str| ORDER.iter().position(|&known| known == name);
    // `lib.rs` and `main.rs` stand above everything.
    let own = rank(module).unwrap_or(ORDER.len());
    let text: String = text.lines().map(|line| format!("{}\n", without_comment(line))).collect();
    let problem = |used: String| match rank(&used) {
        None => Some(format!("uses crate::{used}, which ORDER in tests/it/tidy.rs does not know")),
        Some(place) if place > own => Some(format!("uses crate::{used}, which stands above {module}")),
        Some(_) => None,
    };
    used_modules(&text).into_iter().filter_map(problem).collect()
}

/// First path segments after `crate::`, also in `crate::{a::b, c}`.
fn used_modules(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, prefix) in text.match_indices("crate::") {
        // `$crate::` in a macro and `othercrate::` are something else.
        if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => used.insert(first_name(rest)),
            Some(group) => {
                used.extend(top_level_items(group).into_iter().map(first_name));
                true
            }
        };
    }
    // A type or function of lib.rs itself is no module.
    used.retain(|name| name.starts_with(|first: char| first.is_ascii_lowercase()));
    used
}

fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
}

/// The parts of `a::{b, c}, d}` up to the closing brace: `a::{b, c}` and ` d`.
fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}
