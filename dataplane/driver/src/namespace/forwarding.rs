//! Makes the namespace a router: a network's gateway passes packets on between its tunnels.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use super::tap::errno;
use super::{Request, TunnelDevice};

/// Settings of the namespace, opened: whether they may be written is known then.
pub(super) struct Forwarding(Vec<(File, &'static [u8])>);

impl Forwarding {
    /// Opens them. `/proc/sys/net` shows the namespace of whoever opens it.
    pub(super) fn open(request: &Request) -> nix::Result<Self> {
        let mut settings = vec![open("ipv4/ip_forward").map_err(errno)?];
        // A kernel without IPv6 forwards none.
        match open("ipv6/conf/all/forwarding") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => settings.push(opened.map_err(errno)?),
        }
        let mut settings: Vec<_> = settings.into_iter().map(|file| (file, &b"1"[..])).collect();
        // The members of a network have no way to each other but by us: nobody is to be told of a shorter one. One that
        // is set for either `all` or the device counts.
        let tunnels = request.tunnels.iter().map(|tunnel| tunnel.name.as_str());
        for device in ["all", "default", &request.tap_name].into_iter().chain(tunnels) {
            let file = open(&format!("ipv4/conf/{device}/send_redirects")).map_err(errno)?;
            settings.push((file, b"0"));
        }
        // Who may send from where is for the tunnel to say, and by which of several devices somebody is reached for the
        // routes. Loose (2) counts more than the strict (1) that some distributions set for all devices.
        for TunnelDevice { name, .. } in &request.tunnels {
            let file = open(&format!("ipv4/conf/{name}/rp_filter")).map_err(errno)?;
            settings.push((file, b"2"));
        }
        Ok(Self(settings))
    }

    /// Writes them.
    pub(super) fn set(self) -> nix::Result<()> {
        let mut settings = self.0.into_iter();
        settings.try_for_each(|(mut file, value)| file.write_all(value)).map_err(errno)
    }
}

fn open(name: &str) -> io::Result<File> {
    OpenOptions::new().write(true).open(format!("/proc/sys/net/{name}"))
}
