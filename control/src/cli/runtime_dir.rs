//! Where the instances of a user live.
//!
//! `/run/usernet` for root, `$XDG_RUNTIME_DIR/usernet` for others, `/tmp/usernet-UID` where neither
//! can be used. The last lies in a directory that everybody may write to: it must be a directory of
//! ours that nobody else can enter, or it is refused. `USERNET_RUNTIME_DIR` overrides all of them.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, geteuid};

use super::error::Error;

/// The directory, which exists and is ours alone.
pub(crate) fn open() -> Result<PathBuf, Error> {
    if let Some(path) = env::var_os("USERNET_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return claim(&path, geteuid()).map(|()| path.clone()).map_err(at(path));
    }
    let mut refused = None;
    for path in candidates(geteuid(), env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)) {
        match claim(&path, geteuid()) {
            Ok(()) => return Ok(path),
            Err(source) => refused = Some(at(path)(source)),
        }
    }
    Err(refused.expect("the directory under /tmp is always a candidate"))
}

fn at(path: PathBuf) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::RuntimeDir { path, source }
}

/// The places, best first.
fn candidates(user: Uid, xdg: Option<PathBuf>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if user.is_root() {
        places.push(PathBuf::from("/run/usernet"));
    }
    // After `su` the variable may still name the directory of somebody else.
    let owned = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.uid() == user.as_raw());
    places.extend(xdg.filter(|path| path.is_absolute() && owned(path)).map(|p| p.join("usernet")));
    places.push(Path::new("/tmp").join(format!("usernet-{user}")));
    places
}

/// Makes the directory if it is missing, and checks that it is ours alone if it is not.
fn claim(path: &Path, user: Uid) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::other("is not a directory"));
    }
    if meta.uid() != user.as_raw() {
        return Err(io::Error::other(format!("belongs to uid {}, not to {user}", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "is open to others (mode {:03o})",
            meta.mode() & 0o777
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn scratch(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("usernet-test-{}-{name}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_alone() {
        let place = scratch("fresh");
        let path = place.join("usernet");
        claim(&path, geteuid()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        claim(&path, geteuid()).unwrap();
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let place = scratch("open");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(claim(&place, geteuid()).unwrap_err().to_string().contains("mode 777"));
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_symlink_and_a_file_are_refused() {
        let place = scratch("link");
        symlink("/", place.join("link")).unwrap();
        fs::write(place.join("file"), "").unwrap();
        assert!(claim(&place.join("link"), geteuid()).is_err());
        assert!(claim(&place.join("file"), geteuid()).is_err());
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn somebody_elses_directory_is_refused() {
        let place = scratch("other");
        assert!(claim(&place, Uid::from_raw(geteuid().as_raw() + 1)).is_err());
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn the_runtime_directory_of_another_user_is_not_taken() {
        let stranger = Uid::from_raw(geteuid().as_raw() + 12_345);
        let places = candidates(stranger, Some(PathBuf::from("/")));
        assert_eq!(places, [Path::new("/tmp").join(format!("usernet-{stranger}"))]);
    }
}
