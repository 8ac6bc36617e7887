//! Names for the host's own addresses, as the core carries them: a datagram that came to one is answered from it.

use std::collections::HashMap;
use std::net::IpAddr;

use usernet_core::LocalId;

/// Addresses that have a name. The loopback alone has millions that a client may write to.
const ADDRESSES_MAX: usize = 4_096;

/// The addresses that were written to so far.
#[derive(Default)]
pub(crate) struct Locals {
    addresses: Vec<IpAddr>,
    ids: HashMap<IpAddr, LocalId>,
}

impl Locals {
    /// The name of an address; none: there are too many already.
    pub(crate) fn id(&mut self, address: IpAddr) -> Option<LocalId> {
        if let Some(&id) = self.ids.get(&address) {
            return Some(id);
        }
        if self.addresses.len() == ADDRESSES_MAX {
            return None;
        }
        self.addresses.push(address);
        let id = LocalId(self.addresses.len() as u16);
        self.ids.insert(address, id);
        Some(id)
    }

    /// The address of that name; none: the system is to choose.
    pub(crate) fn address(&self, id: LocalId) -> Option<IpAddr> {
        let index = usize::from(id.0).checked_sub(1)?;
        self.addresses.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_name_and_too_many_get_none() {
        let mut locals = Locals::default();
        let address = |n: usize| IpAddr::from([127, 0, (n >> 8) as u8, n as u8]);
        for n in 0..ADDRESSES_MAX {
            let id = locals.id(address(n)).expect("room");
            assert_eq!(locals.address(id), Some(address(n)));
            assert_eq!(locals.id(address(n)), Some(id));
        }
        assert_eq!(locals.id(address(ADDRESSES_MAX)), None);
        assert_eq!(locals.address(LocalId::ANY), None);
    }
}
