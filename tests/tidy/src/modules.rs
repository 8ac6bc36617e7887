//! Which files the compiler gets to see.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Folders of a crate whose files are crate roots of their own.
const ROOT_FOLDERS: [&str; 5] = ["bin", "tests", "benches", "examples", "fuzz_targets"];

/// Files that are reachable by `mod` declarations from a crate root among `files`, the roots included.
///
/// Roots are `lib.rs`, `main.rs` and `build.rs`, the files directly in `src/bin`, `tests`, `benches`,
/// `examples` and `fuzz_targets`, and a `main.rs` one folder deeper.
pub fn reachable(files: &[(PathBuf, String)]) -> BTreeSet<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut to_visit: Vec<PathBuf> =
        files.iter().map(|(path, _)| path.clone()).filter(|path| is_root(path)).collect();
    while let Some(path) = to_visit.pop() {
        let Some((_, text)) = files.iter().find(|(p, _)| *p == path) else { continue };
        if seen.insert(path.clone()) {
            let parsed = syn::parse_file(text)
                .unwrap_or_else(|e| panic!("{} does not parse: {e}", path.display()));
            declared(&parsed.items, &folder_of_children(&path), &mut to_visit);
        }
    }
    seen
}

fn is_root(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let folder = path.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    matches!(name, "lib.rs" | "main.rs" | "build.rs")
        || folder.is_some_and(|folder| ROOT_FOLDERS.contains(&folder))
}

/// Where the files of `mod x;` in `path` are.
fn folder_of_children(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name == "mod.rs" || is_root(path) {
        return path.parent().map(Path::to_owned).unwrap_or_default();
    }
    path.with_extension("")
}

fn declared(items: &[syn::Item], folder: &Path, found: &mut Vec<PathBuf>) {
    for item in items {
        let syn::Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        if let Some((_, items)) = &module.content {
            declared(items, &folder.join(&name), found);
            continue;
        }
        match path_attribute(&module.attrs) {
            Some(path) => found.push(folder.join(path)),
            None => {
                found.push(folder.join(format!("{name}.rs")));
                found.push(folder.join(name).join("mod.rs"));
            }
        }
    }
}

fn path_attribute(attributes: &[syn::Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|a| a.path().is_ident("path"))?;
    let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(literal) = &pair.value else { return None };
    let syn::Lit::Str(text) = &literal.lit else { return None };
    Some(text.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nobody_declares_is_not_reachable() {
        let files: Vec<_> = [
            ("c/src/lib.rs", "mod a; mod inner { mod d; }"),
            ("c/src/a/mod.rs", "mod b;"),
            ("c/src/a/b.rs", ""),
            ("c/src/inner/d.rs", ""),
            ("c/src/dead.rs", ""),
            ("c/tests/t.rs", "mod common;"),
            ("c/tests/common/mod.rs", ""),
        ]
        .into_iter()
        .map(|(path, text)| (PathBuf::from(path), text.to_owned()))
        .collect();
        let reached = reachable(&files);
        let dead: Vec<_> = files.iter().filter(|(path, _)| !reached.contains(path)).collect();
        assert_eq!(dead.len(), 1);
        assert!(dead[0].0.ends_with("dead.rs"));
    }
}
