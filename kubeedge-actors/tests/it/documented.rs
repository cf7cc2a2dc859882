//! Tests that pages name are there: a page is not believed for a test that was renamed or never written.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The tests and the modules of a crate, by their paths.
#[derive(Default)]
struct Known {
    tests: BTreeSet<String>,
    modules: BTreeSet<String>,
}

impl Known {
    /// Reads a folder of sources whose module is `path`.
    fn read(&mut self, folder: &Path, path: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let file: PathBuf = entry.unwrap().path();
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let module = match stem {
                "mod" | "lib" | "main" => path.to_owned(),
                stem if path.is_empty() => stem.to_owned(),
                stem => format!("{path}::{stem}"),
            };
            if file.is_dir() {
                self.read(&file, &module);
            } else if file.extension().is_some_and(|extension| extension == "rs") {
                self.source(&fs::read_to_string(&file).unwrap(), &module);
            }
        }
    }

    /// A test is what has the attribute of one. Those of this code are in the file's module or in its `mod tests`.
    fn source(&mut self, text: &str, module: &str) {
        self.modules.insert(module.to_owned());
        let mut path = module.to_owned();
        let mut is_test = false;
        for line in text.lines() {
            let code = line.trim_start();
            if code.ends_with("mod tests {") {
                path = format!("{module}::tests");
                self.modules.insert(path.clone());
            } else if code.starts_with("#[") {
                is_test |= code.contains("test]") || code.contains("test(");
            } else if let Some((_, rest)) = code.split_once("fn ")
                && is_test
            {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                self.tests.insert(format!("{path}::{name}"));
                is_test = false;
            }
        }
    }
}

/// What stands in backquotes and has a path's colons, with the crate that stands before it, if one does. `...` is the
/// module of the name before.
fn named(page: &str) -> Vec<(String, String)> {
    let is_path = |quoted: &&str| quoted.contains("::") && !quoted.starts_with("::") && !quoted.ends_with("::");
    let mut names: Vec<(String, String)> = Vec::new();
    for quoted in page.split('`').skip(1).step_by(2).filter(is_path) {
        let name = match (quoted.strip_prefix("..."), names.last()) {
            (Some(rest), Some((package, before))) => {
                let module = before.rsplit_once("::").map_or("", |(module, _)| module);
                (package.clone(), format!("{module}{rest}"))
            }
            _ => {
                let (package, path) = quoted.split_once(": ").unwrap_or(("kubeedge-actors", quoted));
                (package.to_owned(), path.to_owned())
            }
        };
        names.push(name);
    }
    names
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = ["kubeedge-actors", "kubeedge-cloud", "kubeedge-edge"].map(|name| {
        let mut known = Known::default();
        known.read(&root.join(name).join("src"), "");
        if name == "kubeedge-actors" {
            known.read(&root.join(name).join("tests/it"), "it");
        }
        (name, known)
    });
    // The system tests have no functions of that name: they report it.
    let mut system = Vec::new();
    let mut folders = vec![root.join("examples/tests/system")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                system.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut missing = Vec::new();
    for (page, at_least) in [("security.md", 60), ("promises.md", 40)] {
        let names = named(&fs::read_to_string(root.join("docs").join(page)).unwrap());
        assert!(names.len() >= at_least, "{page} has changed its form: {names:?}");
        for (package, path) in names {
            let (module, is_module) = match path.strip_suffix("::*") {
                Some(module) => (module, true),
                None => (&*path, false),
            };
            let found = match crates.iter().find(|(name, _)| *name == package) {
                Some((_, known)) if is_module => known.modules.contains(module),
                Some((_, known)) => known.tests.contains(module),
                None if package == "examples" && is_module => {
                    system.iter().any(|text| text.contains(&format!("\"{module}::")))
                }
                None if package == "examples" => system.iter().any(|text| text.contains(&format!("\"{module}\""))),
                None => false,
            };
            if !found {
                missing.push(format!("{page}: {package}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "pages name what is no test, or a module without `::*`: {missing:#?}");
}

#[test]
fn a_name_that_is_no_test_is_found_out() {
    let mut known = Known::default();
    known.source(
        "/// x\n#[tokio::test]\nasync fn one() {}\nfn helper() {}\nmod tests {\n#[test]\nfn two() {}\n}",
        "a::b",
    );
    assert_eq!(Vec::from_iter(&known.tests), ["a::b::one", "a::b::tests::two"]);
    assert_eq!(Vec::from_iter(&known.modules), ["a::b", "a::b::tests"]);
    let page = "`x` is in `a::b::one`, `...::two` and `kubeedge-cloud: c::*`";
    let names = named(page);
    let names: Vec<_> = names.iter().map(|(package, path)| (&**package, &**path)).collect();
    assert_eq!(names, [("kubeedge-actors", "a::b::one"), ("kubeedge-actors", "a::b::two"), ("kubeedge-cloud", "c::*")]);
}

/// CVE-2026-62182, CVE-2026-62371: no text of an object becomes a command, because nothing starts one.
#[test]
fn neither_program_starts_another_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = ["kubeedge-actors", "kubeedge-cloud", "kubeedge-edge", "kubeedge-proto"]
        .map(|name| root.join(name).join("src"))
        .into();
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().and_then(|name| name.to_str()) {
                // They start all kinds of programs.
                Some("tests" | "tests.rs") => {}
                _ if path.is_dir() => folders.push(path),
                Some(name) if !name.ends_with(".rs") => {}
                _ => {
                    let text = fs::read_to_string(&path).unwrap();
                    let (before, tests) = text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&text, ""));
                    let after = tests.split_once("\n}\n").map_or("", |(_, after)| after);
                    for starts in ["Command::new", "process::Command", "execv", "posix_spawn", "libc::"] {
                        let has = before.contains(starts) || after.contains(starts);
                        assert!(!has, "{} has {starts}", path.display());
                    }
                    read += 1;
                }
            }
        }
    }
    assert!(read > 300, "{read} files");
}
