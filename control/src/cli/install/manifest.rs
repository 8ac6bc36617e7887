//! What an installation made, written down: so that the next one replaces nothing else, and removing takes
//! nothing else away.
//!
//! A file counts as ours while it is what was written: same length, same time of modification. Somebody who
//! changes it makes it theirs. Places are relative to the directory, so that a tree may be moved.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;

/// Where it is, below the shared directory.
pub(super) const FILE: &str = "usernet/install.json";

/// The two directories of an installation.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    /// For programs: what the user named.
    pub(super) dir: PathBuf,
    /// For the rest.
    pub(super) share: PathBuf,
}

impl Roots {
    /// A directory `bin` has its `share` beside it, as everywhere (`hier(7)`); any other one has it inside.
    pub(super) fn of(dir: PathBuf) -> Self {
        let share = match dir.parent() {
            Some(prefix) if dir.ends_with("bin") => prefix.join("share"),
            Some(_) | None => dir.join("share"),
        };
        Self { dir, share }
    }

    pub(super) fn root(&self, base: Base) -> &Path {
        match base {
            Base::Dir => &self.dir,
            Base::Share => &self.share,
        }
    }

    pub(super) fn path(&self, place: &Place) -> PathBuf {
        // Joining nothing would add a slash.
        let root = self.root(place.base);
        if place.path.as_os_str().is_empty() { root.to_owned() } else { root.join(&place.path) }
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.share.join(FILE)
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Base {
    /// [`Roots::dir`].
    Dir,
    /// [`Roots::share`].
    Share,
}

/// A place in an installation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    #[serde(rename = "in")]
    base: Base,
    path: PathBuf,
}

impl Place {
    pub(super) fn new(base: Base, path: impl Into<PathBuf>) -> Self {
        Self { base, path: path.into() }
    }

    /// The directories above it, the root included, outermost first.
    pub(super) fn directories(&self) -> Vec<Self> {
        let above = self.path.ancestors().skip(1);
        let mut above: Vec<_> = above.map(|path| Self::new(self.base, path)).collect();
        above.reverse();
        above
    }

    /// Whether it stays below its root.
    fn is_inside(&self) -> bool {
        self.path.components().all(|part| matches!(part, Component::Normal(_)))
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(super) enum Made {
    /// A file.
    File {
        /// Its length.
        bytes: u64,
        /// When it was written: seconds, nanoseconds.
        modified: (i64, i64),
    },
    /// A symbolic link.
    Link {
        /// Its text.
        to: PathBuf,
    },
    /// A directory.
    Directory,
}

impl Made {
    /// What describes the file, so that it is recognised.
    pub(super) fn file(metadata: &Metadata) -> Self {
        Self::File { bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }

    /// Whether that is what is there.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let Ok(metadata) = fs::symlink_metadata(path) else { return false };
        match self {
            Self::File { .. } => metadata.is_file() && Self::file(&metadata) == *self,
            Self::Link { to } => fs::read_link(path).is_ok_and(|now| now == *to),
            Self::Directory => metadata.is_dir(),
        }
    }
}

/// One thing that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) place: Place,
    #[serde(flatten)]
    pub(super) made: Made,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    /// How many directories above the one for programs were made.
    pub(super) parents: usize,
    /// In the order in which it was made. While an installation is under way a place is there twice, as
    /// it was and as it will be.
    pub(super) made: Vec<Record>,
}

impl Manifest {
    pub(super) fn empty() -> Self {
        Self { version: VERSION, parents: 0, made: Vec::new() }
    }

    /// Reads it; none: there is no installation.
    pub(super) fn read(roots: &Roots) -> io::Result<Option<Self>> {
        let text = match fs::read(roots.manifest()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let foreign = |what: String| {
            let text = format!("not what usernet install wrote ({what}); move it away to go on");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(foreign(format!("version {}", manifest.version)));
        }
        // Whoever can write this file shall not make root remove others.
        match manifest.made.iter().find(|record| !record.place.is_inside()) {
            Some(record) => Err(foreign(format!("{} is elsewhere", record.place.path.display()))),
            None => Ok(Some(manifest)),
        }
    }

    /// As a file.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// What was made at a place, if it is still there as it was made.
    pub(super) fn ours(&self, roots: &Roots, place: &Place) -> Option<&Record> {
        let path = roots.path(place);
        self.made.iter().find(|record| record.place == *place && record.made.is_at(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_directory_has_its_share_beside_it_and_any_other_inside() {
        let share = |dir: &str| Roots::of(dir.into()).share;
        assert_eq!(share("/home/u/.local/bin"), Path::new("/home/u/.local/share"));
        assert_eq!(share("/home/u/.local/libexec/podman"), share("/home/u/.local/libexec/podman/"));
        assert_eq!(share("/opt/x"), Path::new("/opt/x/share"));
        assert_eq!(share("/"), Path::new("/share"));
    }

    #[test]
    fn a_manifest_that_names_a_place_outside_is_refused() {
        let dir = std::env::temp_dir().join(format!("usernet-manifest-{}", std::process::id()));
        let roots = Roots::of(dir.clone());
        fs::create_dir_all(roots.manifest().parent().unwrap()).unwrap();
        let mut manifest = Manifest::empty();
        for (path, is_taken) in [("usernetd", true), ("../x", false), ("/etc/passwd", false)] {
            let place = Place::new(Base::Dir, path);
            manifest.made = vec![Record { place, made: Made::Directory }];
            fs::write(roots.manifest(), manifest.text()).unwrap();
            assert_eq!(Manifest::read(&roots).is_ok(), is_taken, "{path}");
        }
        fs::write(roots.manifest(), "{\"version\":2,\"parents\":0,\"made\":[]}").unwrap();
        assert!(Manifest::read(&roots).unwrap_err().to_string().contains("version 2"));
        fs::remove_dir_all(&dir).unwrap();
        assert!(Manifest::read(&roots).unwrap().is_none());
    }

    #[test]
    fn the_directories_of_a_place_end_above_it() {
        let place = Place::new(Base::Share, "man/man1/x.1");
        let above: Vec<_> = place.directories().into_iter().map(|p| p.path).collect();
        assert_eq!(above, ["", "man", "man/man1"].map(PathBuf::from));
    }
}
