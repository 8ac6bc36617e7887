//! Files that are written beside their place first, so that they come to be there whole, or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::contents::Content;
use super::manifest::Made;

/// A file or a link under a name of its own. Dropped without being put in place, it is gone.
#[derive(Debug)]
pub(super) struct Staged {
    /// Where it is now; none: in its place.
    path: Option<PathBuf>,
    place: PathBuf,
    made: Made,
}

impl Staged {
    /// Writes it, to be put in place later.
    pub(super) fn write(place: PathBuf, content: &Content) -> io::Result<Self> {
        let path = beside(&place);
        // Left by a process that was killed: two at once do not get here.
        fs::remove_file(&path).ok();
        let mut staged = Self { path: Some(path.clone()), place, made: Made::Directory };
        staged.made = match content {
            Content::Link(to) => {
                std::os::unix::fs::symlink(to, &path)?;
                Made::Link { to: to.into() }
            }
            Content::Text(text) => fill(&path, 0o644, |file| file.write_all(text))?,
            Content::Program(from) => {
                fill(&path, 0o755, |file| io::copy(&mut File::open(from)?, file).map(drop))?
            }
        };
        Ok(staged)
    }

    /// Where it will be.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// How it will be recognised.
    pub(super) fn made(&self) -> &Made {
        &self.made
    }

    /// Puts it in its place, instead of what is there.
    pub(super) fn put(mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, &self.place)?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            fs::remove_file(path).ok();
        }
    }
}

/// Where it is until then.
pub(super) fn beside(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.usernet-install"))
}

fn fill(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<Made> {
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    write(&mut file)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(Made::file(&file.metadata()?))
}
