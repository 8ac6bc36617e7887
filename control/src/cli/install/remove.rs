//! Taking an installation away.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::super::error::Error;
use super::super::output::Output;
use super::manifest::{Made, Roots};
use super::staged::beside;
use super::{lock, read_manifest};

/// Takes away what the manifest says was made and is still as it was made.
pub(super) fn remove(roots: &Roots, output: Output) -> Result<ExitCode, Error> {
    let _lock = lock(&roots.dir);
    let Some(manifest) = read_manifest(roots)? else {
        return Err(Error::NotInstalled(roots.dir.clone()));
    };
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    for record in manifest.made.iter().rev() {
        let path = roots.path(&record.place);
        // Left by an installation that was killed.
        fs::remove_file(beside(&path)).ok();
        let is_ours = manifest.ours(roots, &record.place).is_some();
        if record.made == Made::Directory || fs::symlink_metadata(&path).is_err() {
            continue;
        }
        if is_ours {
            fs::remove_file(&path)
                .map_err(Error::system(format!("cannot remove {}", path.display())))?;
            removed.push(path);
        } else if !kept.contains(&path) {
            kept.push(path);
        }
    }
    let path = roots.manifest();
    fs::remove_file(&path).map_err(Error::system(format!("cannot remove {}", path.display())))?;
    let directories = manifest.made.iter().rev().filter(|record| record.made == Made::Directory);
    let parents = roots.dir.ancestors().skip(1).take(manifest.parents).map(PathBuf::from);
    for path in directories.map(|record| roots.path(&record.place)).chain(parents) {
        match fs::remove_dir(&path) {
            Ok(()) => removed.push(path),
            Err(error) if is_in_use(&error) => {}
            Err(source) => {
                let what = format!("cannot remove {}", path.display());
                return Err(Error::System { what, source });
            }
        }
    }
    let json = || json!({ "dir": roots.dir, "removed": removed, "kept": kept });
    let lines = || {
        let removed = removed.iter().map(|path| format!("removed  {}\n", path.display()));
        let kept = kept.iter().map(|p| format!("kept     {}: changed since\n", p.display()));
        removed.chain(kept).collect()
    };
    output.print(json, lines);
    Ok(ExitCode::SUCCESS)
}

/// Somebody else's things are in it, or it has gone.
fn is_in_use(error: &io::Error) -> bool {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    matches!(error.kind(), DirectoryNotEmpty | NotFound)
}
