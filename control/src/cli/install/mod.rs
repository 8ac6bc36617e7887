//! `usernet install`: the programs, the names of the tools they stand in for, completions and manual pages, in a
//! directory of the user's choice; and all of that away again.
//!
//! # Theory of operation
//!
//! All places are looked at first: if one holds something that is not ours, nothing is changed. Then every file
//! is written beside its place, the manifest is told both what was there and what will be, and only then each
//! file is renamed into its place. So whoever runs a program meanwhile has the old or the new one, and an
//! installation that is killed half way is one that can be repeated, or removed.

mod contents;
mod manifest;
mod remove;
mod staged;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use super::error::Error;
use super::output::Output;
use crate::program::Program;
use contents::{Content, Item};
use manifest::{Base, Made, Manifest, Place, Record, Roots};
use staged::Staged;

/// Installs the programs, and the names of the tools that they stand in for.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct InstallArgs {
    /// Where the programs go; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The tools that usernetd is to stand in for: it answers to their names too
    #[arg(long = "as", value_name = "NAME,...", value_delimiter = ',', conflicts_with = "remove")]
    names: Vec<StandIn>,
    /// Take away what was installed there, and nothing else
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Completions and manual pages go where shells and man look for them: to DIR/../share if DIR is called bin,
else to DIR/share. What was there before and is not ours is never replaced. A name that was installed before
stays when the rest is installed again.

Examples:
  usernet install --dir ~/.local/bin
  usernet install --dir ~/.local/libexec/podman --as slirp4netns,pasta
  usernet install --dir ~/.local/libexec/podman --remove";

/// A tool that can be stood in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StandIn {
    /// slirp4netns
    Slirp4netns,
    /// pasta
    Pasta,
}

impl StandIn {
    fn program(self) -> Program {
        match self {
            Self::Slirp4netns => Program::Slirp4netns,
            Self::Pasta => Program::Pasta,
        }
    }
}

/// `usernet install`.
pub(crate) fn install(args: &InstallArgs) -> Result<ExitCode, Error> {
    let dir = std::path::absolute(&args.dir);
    let dir = dir.map_err(Error::system(format!("{}", args.dir.display())))?;
    // A link to the directory: its neighbours are where it really is.
    let roots = Roots::of(dir.canonicalize().unwrap_or(dir));
    if args.remove {
        return remove::remove(&roots, args.output);
    }
    let report = put(&roots, &contents::contents(&args.names)?)?;
    report.print(&roots, args.output);
    Ok(ExitCode::SUCCESS)
}

/// What became of the files.
#[derive(Debug, Default)]
struct Report {
    made: Vec<PathBuf>,
    replaced: Vec<PathBuf>,
    unchanged: Vec<PathBuf>,
    removed: Vec<PathBuf>,
}

impl Report {
    fn print(&self, roots: &Roots, output: Output) {
        let json = || {
            json!({
                "dir": roots.dir, "share": roots.share, "made": self.made,
                "replaced": self.replaced, "unchanged": self.unchanged, "removed": self.removed,
            })
        };
        let lines = || {
            let kinds = [
                ("made", &self.made),
                ("replaced", &self.replaced),
                ("unchanged", &self.unchanged),
                ("removed", &self.removed),
            ];
            let lines = kinds.into_iter().flat_map(|(what, paths)| {
                paths.iter().map(move |path| format!("{what:<9}  {}\n", path.display()))
            });
            lines.collect()
        };
        output.print(json, lines);
    }
}

/// What is at a place now.
enum Found {
    /// Nothing.
    Nothing,
    /// What we made, and it is out of date.
    Ours,
    /// What is wanted, whoever made it.
    Wanted,
}

fn put(roots: &Roots, items: &[Item]) -> Result<Report, Error> {
    let mut directories = Directories::default();
    directories.make_dir(roots)?;
    let _lock = lock(&roots.dir);
    let old = read_manifest(roots)?.unwrap_or_else(Manifest::empty);
    let found: Vec<Found> =
        items.iter().map(|item| look(roots, &old, item)).collect::<Result<_, _>>()?;
    let mut report = Report::default();
    let mut changed = Vec::new();
    for (item, found) in items.iter().zip(&found) {
        let list = match found {
            Found::Nothing => &mut report.made,
            Found::Ours => &mut report.replaced,
            Found::Wanted => &mut report.unchanged,
        };
        list.push(roots.path(&item.place));
        if !matches!(found, Found::Wanted) {
            changed.push(item);
        }
    }
    let manifest_at = Place::new(Base::Share, manifest::FILE);
    let places = items.iter().map(|item| &item.place).chain([&manifest_at]);
    directories.make(roots, places)?;

    let failed = |path: PathBuf| Error::system(format!("cannot write {}", path.display()));
    let mut staged = Vec::new();
    for item in &changed {
        let path = roots.path(&item.place);
        staged.push(Staged::write(path.clone(), &item.content).map_err(failed(path))?);
    }
    let new = next_manifest(roots, &old, items, &directories, changed.iter().zip(&staged));
    let mut both = new.clone();
    both.made.extend(old.made.iter().filter(|record| !new.made.contains(record)).cloned());
    write_manifest(roots, &both)?;
    directories.keep();
    for staged in staged {
        let path = staged.place().to_owned();
        staged.put().map_err(failed(path))?;
    }
    for record in old.made.iter().filter(|record| is_stale(record, items)) {
        let path = roots.path(&record.place);
        if record.made.is_at(&path) && fs::remove_file(&path).is_ok() {
            report.removed.push(path);
        }
    }
    write_manifest(roots, &new)?;
    Ok(report)
}

/// What will have been made: what is new, and what is still as it was. Names stay; files that this version no
/// longer has do not.
fn next_manifest<'a>(
    roots: &Roots,
    old: &Manifest,
    items: &[Item],
    directories: &Directories,
    changed: impl Iterator<Item = (&'a &'a Item, &'a Staged)>,
) -> Manifest {
    let fresh = changed
        .map(|(item, staged)| Record { place: item.place.clone(), made: staged.made().clone() });
    let fresh: Vec<Record> = fresh.collect();
    let is_kept = |record: &&Record| {
        let is_replaced = fresh.iter().any(|fresh| fresh.place == record.place);
        !is_replaced && !is_stale(record, items) && record.made.is_at(&roots.path(&record.place))
    };
    let mut new = Manifest::empty();
    new.parents = old.parents + directories.parents;
    new.made.extend(old.made.iter().filter(is_kept).cloned());
    new.made.extend(directories.records.iter().cloned());
    new.made.extend(fresh.iter().cloned());
    new
}

/// A file that an older version put there.
fn is_stale(record: &Record, items: &[Item]) -> bool {
    matches!(record.made, Made::File { .. }) && items.iter().all(|item| item.place != record.place)
}

/// What is at the item's place, if it may be put there.
fn look(roots: &Roots, old: &Manifest, item: &Item) -> Result<Found, Error> {
    for directory in item.place.directories() {
        let path = roots.path(&directory);
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(Error::Foreign(path));
        }
    }
    let path = roots.path(&item.place);
    let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(Found::Nothing) };
    let is_wanted = match &item.content {
        Content::Link(to) => metadata.is_symlink() && leads_to(roots, &path, to),
        Content::Text(text) => metadata.is_file() && fs::read(&path).is_ok_and(|now| now == *text),
        Content::Program(from) => metadata.is_file() && is_same(from, &path).unwrap_or(false),
    };
    if is_wanted {
        Ok(Found::Wanted)
    } else if old.ours(roots, &item.place).is_some() {
        Ok(Found::Ours)
    } else {
        Err(Error::Foreign(path))
    }
}

/// Whether a link leads to the program of that name in our directory, whatever its text is.
fn leads_to(roots: &Roots, link: &Path, name: &str) -> bool {
    let wanted = roots.dir.join(name);
    let text = fs::read_link(link).unwrap_or_default();
    let is_there = wanted.canonicalize().is_ok_and(|w| link.canonicalize().is_ok_and(|l| l == w));
    is_there || roots.dir.join(text) == wanted
}

/// Whether two files have the same content.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (a, b) = (one.metadata()?, other.metadata()?);
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return Ok(true);
    }
    if a.len() != b.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

/// Directories that were made, and are gone again unless they are kept.
#[derive(Debug, Default)]
struct Directories {
    made: Vec<PathBuf>,
    records: Vec<Record>,
    /// Above the directory for programs.
    parents: usize,
}

impl Directories {
    /// The directory for programs, and those above it.
    fn make_dir(&mut self, roots: &Roots) -> Result<(), Error> {
        let missing = roots.dir.ancestors().skip(1).take_while(|path| !path.exists());
        let mut missing: Vec<&Path> = missing.collect();
        missing.reverse();
        for path in missing {
            self.make_one(path)?;
            self.parents += 1;
        }
        self.make_at(roots, Place::new(Base::Dir, ""))
    }

    /// Those above these places.
    fn make<'a>(
        &mut self,
        roots: &Roots,
        places: impl Iterator<Item = &'a Place>,
    ) -> Result<(), Error> {
        for directory in places.flat_map(Place::directories) {
            self.make_at(roots, directory)?;
        }
        Ok(())
    }

    fn make_at(&mut self, roots: &Roots, place: Place) -> Result<(), Error> {
        let path = roots.path(&place);
        if !path.exists() {
            self.make_one(&path)?;
            self.records.push(Record { place, made: Made::Directory });
        }
        Ok(())
    }

    fn make_one(&mut self, path: &Path) -> Result<(), Error> {
        fs::create_dir(path).map_err(Error::system(format!("cannot make {}", path.display())))?;
        self.made.push(path.to_owned());
        Ok(())
    }

    fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            fs::remove_dir(path).ok();
        }
    }
}

/// Two installations into one directory at once take turns. Best effort: not every file system has locks.
fn lock(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusive).ok()
}

fn read_manifest(roots: &Roots) -> Result<Option<Manifest>, Error> {
    let path = roots.manifest();
    Manifest::read(roots).map_err(Error::system(format!("{}", path.display())))
}

fn write_manifest(roots: &Roots, manifest: &Manifest) -> Result<(), Error> {
    let path = roots.manifest();
    let failed = Error::system(format!("cannot write {}", path.display()));
    Staged::write(path, &Content::Text(manifest.text())).and_then(Staged::put).map_err(failed)
}
