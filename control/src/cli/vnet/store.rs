//! Where virtual networks are written down: `$XDG_DATA_HOME/usernet/vnets`, for the user alone.
//!
//! | file | what |
//! |---|---|
//! | `NAME/network.json` | a network that this host has the gateway of: [`Network`], its private key included |
//! | `NAME/joined.json` | one that another host has the gateway of: [`Joined`], from its token |
//! | `NAME/gateway.log` | what the gateway wrote to its standard error, the last time it was started |
//! | `NAME/lock` | locked while the gateway is started, and while a token's identity is chosen |
//!
//! A file is replaced whole, and is on the disk before its name is: after a crash there is the old one or the new one.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::network::{NETWORK_VERSION, Network, check_network_name};
use super::token::{JOINED_VERSION, Joined};
use crate::cli::error::Error;

/// More than this is not read of a file.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The networks of a user.
#[derive(Clone, Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

/// What is known under a name.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// The gateway is on this host.
    Own(Network),
    /// The gateway is elsewhere.
    Joined(Joined),
}

impl Store {
    /// The calling user's.
    pub(super) fn open() -> Result<Self, Error> {
        let absolute =
            |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        let data = data.ok_or_else(|| {
            Error::Usage("no place for virtual networks: set HOME or XDG_DATA_HOME".to_owned())
        })?;
        Self::at(data.join("usernet/vnets"))
    }

    pub(super) fn at(dir: PathBuf) -> Result<Self, Error> {
        make_private(&dir).map_err(Error::system(format!("cannot make {}", dir.display())))?;
        Ok(Self { dir })
    }

    /// Where a network's files are.
    pub(super) fn place(&self, name: &str) -> Place {
        Place { dir: self.dir.join(name) }
    }

    /// Makes a place for a new network; whatever is written there first makes it one.
    pub(super) fn claim(&self, name: &str) -> Result<Place, Error> {
        check_network_name(name).map_err(Error::Usage)?;
        let place = self.place(name);
        make_private(&place.dir)
            .map_err(Error::system(format!("cannot make {}", place.dir.display())))?;
        if place.exists() {
            return Err(Error::VnetExists(name.to_owned()));
        }
        Ok(place)
    }

    /// All names that something is known under.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| self.place(name).exists()).collect();
        names.sort();
        names
    }

    /// What is known under a name.
    pub(super) fn find(&self, name: &str) -> Result<Known, Error> {
        let place = self.place(name);
        // Names come from the command line.
        if check_network_name(name).is_err() || !place.exists() {
            return Err(Error::NoVnet { name: name.to_owned(), known: self.names() });
        }
        place.load()
    }

    /// A network whose gateway is on this host.
    pub(super) fn own(&self, name: &str) -> Result<Network, Error> {
        match self.find(name)? {
            Known::Own(network) => Ok(network),
            Known::Joined(joined) => Err(Error::Usage(format!(
                "the gateway of `{name}` is on another host, at {}: do that there",
                joined.terms.endpoint
            ))),
        }
    }
}

/// A network's files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    dir: PathBuf,
}

impl Place {
    fn network(&self) -> PathBuf {
        self.dir.join("network.json")
    }

    fn joined(&self) -> PathBuf {
        self.dir.join("joined.json")
    }

    /// The gateway's log.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }

    fn exists(&self) -> bool {
        self.network().exists() || self.joined().exists()
    }

    /// Waits until nobody else starts a gateway or chooses an identity here.
    pub(super) fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.dir.join("lock");
        let failed = || Error::system(format!("cannot lock {}", path.display()));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        Flock::lock(file.map_err(failed())?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed()(errno.into()))
    }

    /// What is known here.
    pub(super) fn load(&self) -> Result<Known, Error> {
        if self.network().exists() {
            let network: Network = read(&self.network())?;
            check_version(&self.network(), network.version, NETWORK_VERSION)?;
            return Ok(Known::Own(network));
        }
        let joined: Joined = read(&self.joined())?;
        check_version(&self.joined(), joined.version, JOINED_VERSION)?;
        Ok(Known::Joined(joined))
    }

    pub(super) fn save_network(&self, network: &Network) -> Result<(), Error> {
        write(&self.network(), network)
    }

    pub(super) fn save_joined(&self, joined: &Joined) -> Result<(), Error> {
        write(&self.joined(), joined)
    }

    /// Removes all of it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        fs::remove_dir_all(&self.dir)
            .map_err(Error::system(format!("cannot remove {}", self.dir.display())))
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // One that is there already may have been made by other means.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn check_version(path: &Path, found: u32, known: u32) -> Result<(), Error> {
    if found == known {
        return Ok(());
    }
    let text = format!("has version {found}, and this usernet knows {known}");
    Err(Error::system(path.display().to_string())(io::Error::other(text)))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = || Error::system(format!("cannot read {}", path.display()));
    let size = fs::metadata(path).map_err(failed())?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed()(io::ErrorKind::FileTooLarge.into()));
    }
    let text = Zeroizing::new(fs::read(path).map_err(failed())?);
    serde_json::from_slice(&text).map_err(|error| failed()(error.into()))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = Zeroizing::new(serde_json::to_vec_pretty(value).expect("the keys are text"));
    replace(path, &text).map_err(Error::system(format!("cannot write {}", path.display())))
}

/// Replaces a file: whoever reads it finds the old text or the new one, after a crash too.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::{member, network};
    use super::*;

    fn store(name: &str) -> Store {
        let dir = env::temp_dir().join(format!("usernet-vnets-{}-{name}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        Store::at(dir).unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_is_nobody_elses() {
        let store = store("own");
        let mut network = network();
        network.admit(member("db", "10.0.0.9", 1)).unwrap();
        let place = store.claim("my-network").unwrap();
        place.save_network(&network).unwrap();
        let read = store.own("my-network").unwrap();
        assert_eq!(read.members, network.members);
        assert_eq!(*read.private_key.to_base64(), *network.private_key.to_base64());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(place.network()), 0o600);
        assert_eq!(mode(place.dir.clone()), 0o700);
        assert!(!format!("{read:?}").contains(&*network.private_key.to_base64()));
        fs::remove_dir_all(store.dir).unwrap();
    }

    #[test]
    fn an_unknown_name_is_told_with_the_known_ones() {
        let store = store("unknown");
        store.claim("half-made").unwrap();
        store.claim("my-network").unwrap().save_network(&network()).unwrap();
        assert_eq!(store.names(), ["my-network"]);
        let error = store.find("other").unwrap_err();
        assert!(error.to_string().contains("no virtual network named `other`"), "{error}");
        assert!(error.help().unwrap().contains("my-network"));
        assert!(matches!(store.find("../x"), Err(Error::NoVnet { .. })));
        assert!(matches!(store.claim("my-network"), Err(Error::VnetExists(_))));
        fs::remove_dir_all(store.dir).unwrap();
    }

    #[test]
    fn what_another_version_wrote_is_not_guessed_at() {
        let store = store("version");
        let newer = Network { version: 99, ..network() };
        store.claim("my-network").unwrap().save_network(&newer).unwrap();
        let error = store.find("my-network").unwrap_err().to_string();
        assert!(error.contains("has version 99"), "{error}");
        fs::remove_dir_all(store.dir).unwrap();
    }

    #[test]
    fn a_writer_that_was_killed_leaves_the_old_file() {
        let store = store("killed");
        let place = store.claim("my-network").unwrap();
        place.save_network(&network()).unwrap();
        fs::write(place.dir.join("network.new"), "{ \"version\"").unwrap();
        store.own("my-network").unwrap();
        place.save_network(&network()).unwrap();
        assert!(!place.dir.join("network.new").exists());
        fs::remove_dir_all(store.dir).unwrap();
    }
}
