//! From port specifications to forwards of both directions.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use usernet_core::rules::Protocol;

use super::options::{Options, OptionsError};
use super::ports::{Mapping, Ports, without};
use crate::forwards::{Automatic, Direction};
use crate::spec::{HostAddress, PortRange, Spec};

/// A range with more ports is not listened on as a whole: it follows the programs that listen behind it.
const RANGE_MAX: u16 = 1_024;

/// Forwards of both directions.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    pub(super) forwards: Vec<Spec>,
    pub(super) outward: Vec<Spec>,
    pub(super) automatic: Vec<Automatic>,
    /// What is missing of it.
    pub(super) told: Vec<String>,
}

impl Forwarding {
    /// What the options say.
    pub(super) fn read(options: &Options) -> Result<Self, OptionsError> {
        let line = &options.line;
        let mut forwarding = Self::default();
        for (ports, protocol, direction, is_off) in [
            (&options.tcp_ports, Protocol::Tcp, Direction::Inward, line.no_tcp),
            (&options.udp_ports, Protocol::Udp, Direction::Inward, line.no_udp),
            (&options.tcp_ns, Protocol::Tcp, Direction::Outward, line.no_tcp),
            (&options.udp_ns, Protocol::Udp, Direction::Outward, line.no_udp),
        ] {
            if !is_off {
                forwarding.add(ports.clone().unwrap_or_default(), protocol, direction)?;
            }
        }
        Ok(forwarding)
    }

    fn add(
        &mut self,
        ports: Ports,
        protocol: Protocol,
        direction: Direction,
    ) -> Result<(), OptionsError> {
        match ports {
            Ports::None => {}
            Ports::Follow { excluded } => self.automatic.push(Automatic {
                direction,
                protocol,
                listen: None,
                only: Vec::new(),
                excluded,
            }),
            Ports::These(mappings) => {
                for mapping in mappings {
                    self.add_mapping(&mapping, protocol, direction)?;
                }
            }
        }
        Ok(())
    }

    fn add_mapping(
        &mut self,
        mapping: &Mapping,
        protocol: Protocol,
        direction: Direction,
    ) -> Result<(), OptionsError> {
        let listen = listen(mapping);
        if mapping.ports.count() > RANGE_MAX
            && mapping.ports == mapping.to_ports
            && mapping.to.is_none()
        {
            self.automatic.push(Automatic {
                direction,
                protocol,
                listen,
                only: vec![mapping.ports],
                excluded: Vec::new(),
            });
            return Ok(());
        }
        let busy = match (mapping.is_lenient, direction) {
            (true, Direction::Inward) => busy(mapping, protocol),
            (true, Direction::Outward) | (false, _) => Vec::new(),
        };
        let free = without(mapping.ports, &busy);
        if free.is_empty() {
            return Err(OptionsError::Conflict(format!(
                "Failed to bind any port of {}: all are in use or reserved for root; forward other ones",
                mapping.ports
            )));
        }
        for range in &busy {
            let ports = mapping.ports;
            self.told
                .push(format!("port {range} is in use or reserved for root: left out of {ports}"));
        }
        let forwards = match direction {
            Direction::Inward => &mut self.forwards,
            Direction::Outward => &mut self.outward,
        };
        for host_ports in free {
            let first = mapping.to_ports.first() + (host_ports.first() - mapping.ports.first());
            let guest_ports = PortRange::new(first, first + (host_ports.count() - 1));
            forwards.push(Spec {
                host: listen.clone(),
                host_ports,
                guest: mapping.to,
                guest_ports: guest_ports.unwrap_or(host_ports),
                protocol,
            });
        }
        Ok(())
    }
}

/// Where is listened. An interface without an address: on all of IPv4, which has most of what comes by one.
fn listen(mapping: &Mapping) -> Option<HostAddress> {
    let address = mapping
        .address
        .or_else(|| mapping.interface.as_ref().map(|_| IpAddr::V4(Ipv4Addr::UNSPECIFIED)))?;
    Some(HostAddress { address, interface: mapping.interface.clone() })
}

/// The ports of a range that others have, or that are reserved.
fn busy(mapping: &Mapping, protocol: Protocol) -> Vec<PortRange> {
    let address = mapping.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let is_busy = |port: &u16| {
        let tried = match protocol {
            Protocol::Tcp => TcpListener::bind((address, *port)).map(drop),
            Protocol::Udp => UdpSocket::bind((address, *port)).map(drop),
        };
        tried.is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
        })
    };
    mapping.ports.iter().filter(is_busy).filter_map(|port| PortRange::new(port, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::grammar::Grammar;
    use super::*;
    use std::ffi::OsString;

    fn read(line: &str) -> Result<Forwarding, String> {
        let args = line.split_whitespace().map(OsString::from);
        let options = Options::read(Grammar::read(args).unwrap()).unwrap();
        Forwarding::read(&options).map_err(|error| error.to_string())
    }

    fn specs(specs: &[Spec]) -> Vec<String> {
        specs.iter().map(Spec::to_string).collect()
    }

    #[test]
    fn without_a_word_all_four_directions_follow_programs() {
        let forwarding = read("").unwrap();
        assert_eq!(forwarding.automatic.len(), 4);
        assert!(forwarding.forwards.is_empty() && forwarding.outward.is_empty());
        assert_eq!(read("-t none -u none -T none -U none").unwrap().automatic, []);
        assert_eq!(read("--no-udp -t none -T none").unwrap().automatic, []);
    }

    #[test]
    fn ports_become_forwards_of_their_direction() {
        let forwarding = read("-t 127.0.0.1/40001:80 -u none -T 5432,5433:6000 -U none").unwrap();
        assert_eq!(specs(&forwarding.forwards), ["127.0.0.1:40001:80/tcp"]);
        assert_eq!(specs(&forwarding.outward), ["5432:5432/tcp", "5433:6000/tcp"]);
        assert_eq!(forwarding.automatic, []);
    }

    #[test]
    fn a_busy_port_of_a_range_is_left_out_and_its_neighbours_are_not() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (first, last) = (port - 1, port + 1);
        let forwarding =
            read(&format!("-t 127.0.0.1/{first}-{last} -u none -T none -U none")).unwrap();
        let all: Vec<u16> =
            forwarding.forwards.iter().flat_map(|spec| spec.host_ports.iter()).collect();
        assert!(!all.contains(&port), "{all:?}");
        let error = read(&format!("-t 127.0.0.1/{port}-{port},{port} -u none")).map(|_| ());
        assert!(error.is_ok(), "a single port is tried when its time comes: {error:?}");
    }

    #[test]
    fn a_huge_range_follows_programs_instead() {
        let forwarding = read("-t 1024-65535,~8080 -u none -T none -U none").unwrap();
        assert!(forwarding.forwards.is_empty());
        assert_eq!(forwarding.automatic.len(), 2);
    }
}
