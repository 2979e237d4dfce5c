//! How the files of `src/` depend on each other is what `docs/ARCHITECTURE.md` says: downward only.
//!
//! A reader of the text, not of the compiler's mind. An arrow is a path in a `use` or in the code, followed
//! through re-exports to the file that defines the item. What a method call reaches is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The names of a module from the root of the crate: of a file, `["coherence", "lease"]`. Of `lib.rs` it is
/// empty.
type Module = Vec<String>;

/// From which file to which.
type Arrow = (Module, Module);

/// What one file says of others.
#[derive(Default)]
struct File {
    children: BTreeSet<String>,
    /// Each path that it names, as it stands there.
    paths: BTreeSet<Vec<String>>,
    /// The items that it passes on from its children, each with the path to it.
    passed_on: BTreeMap<String, Vec<String>>,
}

struct House(BTreeMap<Module, File>);

impl House {
    fn of_the_library() -> Self {
        let mut files = BTreeMap::new();
        read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut files);
        Self(files)
    }

    /// The path from the root of the crate, if it is one of this crate.
    fn absolute(&self, from: &Module, path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?;
        let mut base = match first.as_str() {
            "crate" => Module::new(),
            "self" | "super" => from.clone(),
            child if self.0[from].children.contains(child) => [&from[..], &path[..1]].concat(),
            _ => return None,
        };
        for name in path.iter().skip(usize::from(first != "super")) {
            match name.as_str() {
                "super" => drop(base.pop()),
                "self" => {}
                name => base.push(name.to_owned()),
            }
        }
        Some(base)
    }

    /// The file that defines what an absolute path names.
    fn home(&self, path: &[String]) -> Module {
        let modules = (0..=path.len()).rev().map(|end| &path[..end]);
        let module = modules.into_iter().find(|module| self.0.contains_key(*module)).unwrap_or_default();
        let item = path.get(module.len());
        let passed_on = item.and_then(|item| self.0.get(module)?.passed_on.get(item));
        match passed_on.and_then(|passed_on| self.absolute(&module.to_vec(), passed_on)) {
            Some(passed_on) => self.home(&passed_on),
            None => module.to_vec(),
        }
    }

    fn arrows(&self) -> BTreeSet<Arrow> {
        let mut arrows = BTreeSet::new();
        for (from, file) in &self.0 {
            for path in &file.paths {
                if let Some(to) = self.absolute(from, path).map(|path| self.home(&path))
                    && to != *from
                {
                    arrows.insert((from.clone(), to));
                }
            }
        }
        arrows
    }
}

fn read_folder(folder: &Path, module: &[String], files: &mut BTreeMap<Module, File>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = if name == "lib" { Module::new() } else { [module, &[name]].concat() };
        if path.is_dir() {
            read_folder(&path, &module, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(module, File::read(&std::fs::read_to_string(path).unwrap()));
        }
    }
}

/// The words and signs of a file, without comments, texts and the module of its tests.
fn words(text: &str) -> Vec<String> {
    let text = text.split("\nmod tests {").next().unwrap_or_default();
    let mut words: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        // Every other piece is a text in quotes.
        for code in line.split('"').step_by(2) {
            let mut rest = code.trim_start();
            while let Some(first) = rest.chars().next() {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                let end = match rest {
                    _ if rest.starts_with("::") => 2,
                    _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                    _ => first.len_utf8(),
                };
                words.push(rest[..end].to_owned());
                rest = rest[end..].trim_start();
            }
        }
    }
    words
}

impl File {
    fn read(text: &str) -> Self {
        let words = words(text);
        let word = |at: usize| words.get(at).map_or("", String::as_str);
        let (mut file, mut used, mut at) = (Self::default(), BTreeSet::new(), 0);
        let mut public = false;
        while at < words.len() {
            match word(at) {
                "pub" => {
                    public = true;
                    at += 1;
                    if word(at) == "(" {
                        at += words[at..].iter().position(|word| word == ")").unwrap() + 1;
                    }
                    continue;
                }
                "mod" if word(at + 2) == ";" => drop(file.children.insert(word(at + 1).to_owned())),
                "use" => {
                    let end = at + words[at..].iter().position(|word| word == ";").unwrap();
                    for path in paths_of(&mut words[at + 1..end].iter().map(String::as_str), &[]) {
                        match path.last() {
                            Some(name) if public => drop(file.passed_on.insert(name.clone(), path)),
                            _ => drop(file.paths.insert(path)),
                        }
                    }
                    at = end;
                }
                name if word(at + 1) == "::" => {
                    let mut path = vec![name.to_owned()];
                    while word(at + 1) == "::" && word(at + 2).starts_with(|c: char| c.is_alphabetic()) {
                        path.push(word(at + 2).to_owned());
                        at += 2;
                    }
                    used.insert(path[0].clone());
                    file.paths.insert(path);
                    at += 1;
                }
                // Of the same name is a method.
                name if !matches!(word(at.wrapping_sub(1)), "fn" | ".") => drop(used.insert(name.to_owned())),
                _ => {}
            }
            public = false;
            at += 1;
        }
        // What it passes on from its children is the way in to them, and no arrow: unless it uses that itself.
        for (name, path) in &file.passed_on {
            if used.contains(name) || !file.children.contains(&path[0]) {
                file.paths.insert(path.clone());
            }
        }
        file
    }
}

/// The paths of what stands between `use` and `;`.
fn paths_of(tree: &mut dyn Iterator<Item = &str>, before: &[String]) -> Vec<Vec<String>> {
    let (mut all, mut path, mut alias) = (Vec::new(), before.to_vec(), false);
    while let Some(word) = tree.next() {
        match word {
            "{" => {
                all.append(&mut paths_of(tree, &path));
                path = before.to_vec();
            }
            "," | "}" => {
                if path.len() > before.len() {
                    all.push(std::mem::replace(&mut path, before.to_vec()));
                }
                alias = false;
                if word == "}" {
                    return all;
                }
            }
            "::" => {}
            // What it is called here is of no interest.
            "as" => alias = true,
            _ if alias => {}
            name => path.push(name.to_owned()),
        }
    }
    if path.len() > before.len() {
        all.push(path);
    }
    all
}

/// The arrows that are part of a circle: from where each leads, its beginning can be reached.
fn circles(arrows: &BTreeSet<Arrow>) -> Vec<&Arrow> {
    let reaches = |from: &Module, to: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            if seen.insert(at) {
                next.extend(arrows.iter().filter(|arrow| arrow.0 == *at).map(|arrow| &arrow.1));
            }
        }
        seen.contains(to)
    };
    arrows.iter().filter(|(from, to)| reaches(to, from)).collect()
}

fn shown<'a>(arrows: impl IntoIterator<Item = &'a Arrow>) -> String {
    let each = arrows.into_iter().map(|(from, to)| format!("{} -> {}", from.join("/"), to.join("/")));
    each.collect::<Vec<_>>().join("\n")
}

#[test]
fn no_files_of_the_library_depend_on_each_other_in_a_circle() {
    let arrows = House::of_the_library().arrows();
    assert!(arrows.len() > 200, "only {} arrows were found", arrows.len());
    let circles = circles(&arrows);
    assert!(circles.is_empty(), "circles:\n{}", shown(circles));
}

/// The rooms of `src/`, floor by floor from the top: each line of the block is one.
fn floors() -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = std::fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let block = architecture.split("```floors\n").nth(1).unwrap().split("```").next().unwrap();
    let rooms = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    block.lines().map(rooms).collect()
}

#[test]
fn every_room_of_the_library_depends_on_lower_floors_only() {
    let floors = floors();
    let house = House::of_the_library();
    let named: BTreeSet<&String> = floors.iter().flatten().collect();
    let rooms: BTreeSet<&String> = house.0.keys().filter_map(|file| file.first()).collect();
    assert_eq!(named, rooms, "docs/ARCHITECTURE.md names the floors of these rooms; src/ has those");
    // `lib.rs` is the roof: it stands on all of them.
    let floor = |file: &Module| {
        let room = file.first()?;
        floors.iter().position(|rooms| rooms.contains(room))
    };
    let mut arrows = house.arrows();
    arrows.retain(|(from, to)| from.first() != to.first() && floor(from) >= floor(to));
    assert!(arrows.is_empty(), "not downward:\n{}", shown(&arrows));
}

#[test]
fn the_rules_of_coherence_know_neither_the_rest_of_the_library_nor_time_nor_tasks() {
    let house = House::of_the_library();
    let inside = |file: &Module| file.first().is_some_and(|room| room == "coherence");
    let outside: Vec<Arrow> = house
        .arrows()
        .into_iter()
        .filter(|(from, to)| inside(from) && !inside(to) && to[..] != ["sync".to_owned()])
        .collect();
    assert!(outside.is_empty(), "src/coherence depends on:\n{}", shown(&outside));
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split([' ', '=', '.']).next());
    let crates: BTreeSet<String> = names.map(|name| name.replace('-', "_")).collect();
    assert!(crates.contains("tokio"), "{crates:?}");
    let is_impure = |word: &str| {
        let a_crate = crates.contains(word) && word != "foldhash";
        a_crate || ["Clock", "Instant", "SystemTime", "async"].contains(&word)
    };
    for (file, said) in house.0.iter().filter(|(file, _)| inside(file)) {
        let impure: Vec<_> =
            said.paths.iter().filter(|path| path.iter().any(|word| is_impure(word))).collect();
        assert!(impure.is_empty(), "{} names {impure:?}", file.join("/"));
    }
}
