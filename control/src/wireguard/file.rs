//! A tunnel's file: where it is read, how its tunnel is called, and who may read it.

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use usernet_wireguard::conf::{self, FILE_BYTES_MAX};
use usernet_wireguard::{Config, Endpoint};
use zeroize::Zeroizing;

use super::Tunnel;

/// What a file's name ends with, for wg-quick always.
const SUFFIX: &str = ".conf";

/// A tunnel as a file describes it, and what was noticed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFile {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// One line each, with the file's name.
    pub warnings: Vec<String>,
}

impl FromStr for TunnelFile {
    type Err = String;

    /// Reads the file of this name.
    fn from_str(path: &str) -> Result<Self, String> {
        let name = device_name(path)?;
        let failed = |error: io::Error| format!("cannot read {path}: {error}");
        let (text, is_open) = read(Path::new(path)).map_err(failed)?;
        let parsed = conf::parse(path, &text).map_err(|error| error.to_string())?;
        let noticed = parsed.warnings.iter();
        let mut warnings: Vec<_> =
            noticed.map(|warning| format!("{path}:{}: {}", warning.line, warning.what)).collect();
        if is_open {
            warnings.push(format!(
                "{path} holds a private key, and others than its owner may read it: chmod 600 {path}"
            ));
        }
        Ok(Self { tunnel: Tunnel { name, config: parsed.config }, warnings })
    }
}

/// What wg-quick calls the device of this file.
fn device_name(path: &str) -> Result<String, String> {
    let last = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = last.strip_suffix(SUFFIX).unwrap_or(last);
    if conf::is_device_name(name) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{path}: the file's name without {SUFFIX} becomes that of a device: 1 to 15 letters, digits and _=+.-"
    ))
}

/// The text, and whether others than its owner may read it. What is no file, such as a pipe, is nobody else's.
fn read(path: &Path) -> io::Result<(Zeroizing<String>, bool)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let is_open = metadata.is_file() && metadata.permissions().mode() & 0o077 != 0;
    // One byte more than may be tells what is too long. With room for all of it nothing is moved, which would leave
    // copies of the key behind.
    let bytes_max = FILE_BYTES_MAX + 1;
    let expected = usize::try_from(metadata.len()).unwrap_or(bytes_max).min(bytes_max);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected.max(16 << 10) + 1));
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((Zeroizing::new(text.to_owned()), is_open))
}

/// Puts addresses in the place of host names. They are asked for once: later there are no files that say how.
pub(crate) fn resolve_endpoints(config: &mut Config) -> Result<(), String> {
    for endpoint in config.peers.iter_mut().filter_map(|peer| peer.endpoint.as_mut()) {
        match endpoint {
            Endpoint::Address(_) => {}
            Endpoint::Name(host, port) => {
                let address = resolve(host, *port)
                    .map_err(|what| format!("cannot find the endpoint {host}:{port}: {what}"))?;
                *endpoint = Endpoint::Address(address);
            }
        }
    }
    Ok(())
}

/// The address to try first, as the system sorts them (RFC 6724).
fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut addresses = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "it has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const TEXT: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nPostUp = x\n\
        [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = localhost:51820\n";

    #[test]
    fn a_file_names_its_tunnel_and_warns_of_who_may_read_it() {
        let directory = std::env::temp_dir().join(format!("usernet-wgfile-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("wg-0.conf");
        fs::write(&path, TEXT).unwrap();
        let read = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).ok();
            path.to_str().unwrap().parse::<TunnelFile>()
        };
        let open = read(0o644).unwrap();
        assert_eq!(open.tunnel.name, "wg-0");
        let told = open.warnings.join("\n");
        assert!(told.contains("wg-0.conf:3: PostUp is not run"), "{told}");
        assert!(told.contains("chmod 600 "), "{told}");
        assert_eq!(read(0o600).unwrap().warnings.len(), 1);

        let mut config = open.tunnel.config;
        resolve_endpoints(&mut config).unwrap();
        let Some(Endpoint::Address(at)) = config.peers[0].endpoint else { panic!("an address") };
        assert!(at.ip().is_loopback() && at.port() == 51820, "{at}");

        fs::write(&path, TEXT.replace("PublicKey", "Key")).unwrap();
        let error = read(0o600).unwrap_err();
        assert!(error.contains("wg-0.conf:5: unknown key Key"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
        let error = read_error(path.to_str().unwrap());
        assert!(error.starts_with("cannot read ") && error.contains("No such file"), "{error}");
        assert!(read_error("/tmp/a tunnel.conf").contains("1 to 15 letters"));
        assert!(read_error("/").contains("1 to 15 letters"));
    }

    fn read_error(path: &str) -> String {
        path.parse::<TunnelFile>().unwrap_err()
    }
}
