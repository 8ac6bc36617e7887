//! The networks of a daemon's own link, beside virtual networks.
//!
//! A namespace has them whether it needs them or not. They must have nothing in common with the virtual networks that it
//! is in, or packets would take the wrong way.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::network::overlap;
use crate::cli::error::Error;

/// By preference; the first is the daemon's default.
const CANDIDATES4: [&str; 3] = ["10.0.2.0/24", "172.31.254.0/24", "192.168.254.0/24"];
const CANDIDATES6: [&str; 2] = ["fd00::/64", "fd00:0:0:ffff::/64"];

/// Where in its network a daemon answers DNS: the third address.
const DNS_OFFSET: u32 = 3;

/// One of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkNetworks {
    v4: IpNet,
    v6: IpNet,
}

impl LinkNetworks {
    /// Some that have nothing in common with these.
    pub(super) fn beside(taken: &[IpNet]) -> Result<Self, Error> {
        let free = |candidates: &[&str]| {
            let mut nets = candidates.iter().filter_map(|text| text.parse::<IpNet>().ok());
            nets.find(|&net| !taken.iter().any(|&other| overlap(other, net))).ok_or_else(|| {
                Error::Usage("the virtual networks leave no room for the link's own".to_owned())
            })
        };
        Ok(Self { v4: free(&CANDIDATES4)?, v6: free(&CANDIDATES6)? })
    }

    /// Where the daemon answers DNS.
    pub(super) fn dns(&self) -> SocketAddr {
        let IpAddr::V4(first) = self.v4.network() else { unreachable!("it is parsed from IPv4") };
        SocketAddr::new(IpAddr::V4((u32::from(first) + DNS_OFFSET).into()), 53)
    }

    /// What the daemon is told.
    pub(super) fn args(&self) -> [OsString; 2] {
        [format!("--cidr={}", self.v4), format!("--cidr6={}", self.v6)].map(OsString::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_has_nothing_in_common_with_the_networks() {
        let beside = |taken: &str| {
            let taken: Vec<IpNet> = taken.split(' ').map(|net| net.parse().unwrap()).collect();
            LinkNetworks::beside(&taken).unwrap()
        };
        assert_eq!(beside("10.0.0.1/24").dns(), "10.0.2.3:53".parse().unwrap());
        assert_eq!(beside("10.0.0.1/8").dns(), "172.31.254.3:53".parse().unwrap());
        let both = beside("10.0.2.1/24 172.31.0.1/16 fd00::1/64");
        assert_eq!(both.args(), ["--cidr=192.168.254.0/24", "--cidr6=fd00:0:0:ffff::/64"]);
    }
}
