//! A file that this process made and removes at its end.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Removes the file when dropped, unless another one has taken its place.
#[derive(Debug)]
pub(crate) struct OwnedPath {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl OwnedPath {
    /// Takes charge of a file that exists.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // The working directory may change.
        let path = std::path::absolute(path)?;
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }

    /// Writes a file with this content, in place of one that may be there. Not through a symbolic link: the
    /// directory may be one in which others write.
    pub(crate) fn write(path: &Path, content: &str) -> io::Result<Self> {
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o644);
        let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
        let owned = Self::of(path)?;
        file.write_all(content.as_bytes())?;
        Ok(owned)
    }
}

impl OwnedPath {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Another process has taken charge of it.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // At the end there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_file_is_removed() {
        let directory = std::env::temp_dir().join(format!("usernet-owned-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("pid");
        drop(OwnedPath::write(&path, "1\n").unwrap());
        assert!(!path.exists());

        let first = OwnedPath::write(&path, "1\n").unwrap();
        fs::rename(&path, directory.join("moved")).unwrap();
        fs::write(&path, "2\n").unwrap();
        drop(first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");

        let link = directory.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(OwnedPath::write(&link, "3\n").is_err(), "not through a link");
        fs::remove_dir_all(&directory).unwrap();
    }
}
