//! Which station on the link has which address: learnt from ARP, NDP and the frames themselves.

use core::net::IpAddr;

use crate::config::MacAddr;

/// A link has one guest, or a few behind a bridge; more than this are not remembered one by one.
const NEIGHBORS: usize = 16;

/// A small cache, oldest entry replaced first. What it does not know goes to the station heard last.
pub(crate) struct Neighbors {
    entries: [Option<(IpAddr, MacAddr)>; NEIGHBORS],
    oldest: usize,
    /// The station heard last.
    last: MacAddr,
}

impl Neighbors {
    pub(crate) fn new(guest: MacAddr) -> Self {
        Self { entries: [None; NEIGHBORS], oldest: 0, last: guest }
    }

    /// `mac` has shown itself as `ip`. True: that is news.
    pub(crate) fn learn(&mut self, ip: IpAddr, mac: MacAddr) -> bool {
        if mac.is_multicast() || ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        self.last = mac;
        if let Some(entry) = self.entries.iter_mut().flatten().find(|e| e.0 == ip) {
            return core::mem::replace(&mut entry.1, mac) != mac;
        }
        self.entries[self.oldest] = Some((ip, mac));
        self.oldest = (self.oldest + 1) % NEIGHBORS;
        true
    }

    /// Where frames for `ip` go.
    pub(crate) fn mac(&self, ip: IpAddr) -> MacAddr {
        self.entries.iter().flatten().find(|e| e.0 == ip).map_or(self.last, |e| e.1)
    }
}
