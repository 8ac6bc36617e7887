//! The guest: smoltcp behind the link, with applications on top.

mod datagrams;
mod device;
mod neighbors;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::time::Instant as GuestTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::{EtherType, checksum, parse, protocol};
use usernet_core::{Instant, Offload};

use crate::env::Env;
use crate::link::Frame;
use device::Card;
use stream::Stream;

pub use datagrams::{GuestApps, Mission};

/// The guest.
pub struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    streams: Vec<Stream>,
    /// When the stack last sent data, SYN or FIN from a port of its own.
    spoke: BTreeMap<u16, Instant>,
    /// When the gateway's address was last made fresh.
    refreshed: Instant,
    /// Applications that speak in datagrams.
    pub apps: GuestApps,
    /// When the stack or an application wants to run at the latest.
    pub next_at: Option<Instant>,
}

fn guest_time(now: Instant) -> GuestTime {
    GuestTime::from_micros((now.as_nanos() / 1000) as i64)
}

impl Guest {
    /// A guest whose card is just plugged in. Its addresses are set, unless it is to ask DHCP for them.
    pub fn new(env: &Env, has_offload: bool, missions: Vec<Mission>) -> Self {
        let config = &env.config;
        let mut card = Card {
            to_guest: VecDeque::new(),
            from_guest: VecDeque::new(),
            mtu: usize::from(config.mtu),
            has_offload,
        };
        let address = HardwareAddress::Ethernet(EthernetAddress(config.guest_mac.0));
        let mut stack = Config::new(address);
        stack.random_seed = config.seed;
        let mut interface = Interface::new(stack, &mut card, guest_time(env.now));
        let has_dhcp = missions.iter().any(|m| matches!(m, Mission::Dhcp));
        configure(&mut interface, config, has_dhcp);
        let mut sockets = SocketSet::new(Vec::new());
        let apps = GuestApps::new(missions, &mut sockets);
        let streams = (0..env.conversations.len()).map(Stream::new).collect();
        Self {
            interface,
            sockets,
            card,
            streams,
            spoke: BTreeMap::new(),
            refreshed: env.now,
            apps,
            next_at: Some(env.now),
        }
    }

    /// A frame arrives.
    pub fn on_frame(&mut self, env: &Env, bytes: Vec<u8>) {
        if env.now.since(self.refreshed) > REFRESH && self.apps.is_configured {
            self.refreshed = env.now;
            self.card.to_guest.extend(neighbors::refresh(&env.config));
        }
        self.card.to_guest.push_back(bytes);
        self.next_at = Some(Instant::ZERO);
    }

    /// Everybody in the guest has a turn; the frames that come of it.
    pub fn poll(&mut self, env: &mut Env) -> Vec<Frame> {
        let now = guest_time(env.now);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let mut wake = None;
        for stream in &mut self.streams {
            let at = stream.step(env, &mut self.interface, &mut self.sockets, &self.spoke);
            wake = earliest(wake, at);
        }
        wake = earliest(wake, self.apps.step(env, &mut self.interface, &mut self.sockets));
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let stack = self.interface.poll_at(now, &self.sockets);
        let stack = stack.map(|at| Instant::from_nanos(at.total_micros().max(0) as u64 * 1000));
        // The stack's clock is coarser than ours; a deadline that has come already is due at its next tick.
        let soon = Instant::from_nanos((env.now.as_nanos() / 1000 + 1) * 1000);
        self.next_at = earliest(wake, stack).map(|at| at.max(soon));
        let mut frames = Vec::new();
        while let Some(sent) = self.card.from_guest.pop_front() {
            if let Some(port) = speaker(&sent.bytes) {
                self.spoke.insert(port, env.now);
            }
            frames.push(self.offload(env, sent));
        }
        frames
    }

    /// What the link says of a frame: the guest's kernel leaves checksums undone where the card has offload.
    fn offload(&self, env: &mut Env, sent: device::Sent) -> Frame {
        let device::Sent { mut bytes, segment } = sent;
        let mut offload = Offload::default();
        if let Ok(EtherType::Ip(packet)) = parse(&bytes)
            && packet.protocol == protocol::TCP
            && self.card.has_offload
        {
            let start = packet.payload_start;
            let sum = checksum::Sum::pseudo_header(
                packet.source,
                packet.destination,
                protocol::TCP,
                packet.payload_len(),
            );
            let at = start as usize + 16;
            bytes[at..at + 2].copy_from_slice(&sum.folded().to_be_bytes());
            offload.checksum = Checksum::Partial { start: start as u16, offset: 16 };
            if segment > 0 && packet.payload_len() > usize::from(segment) + 60 {
                offload.gso = match packet.source {
                    IpAddr::V4(_) => Gso::Tcp4 { size: segment },
                    IpAddr::V6(_) => Gso::Tcp6 { size: segment },
                };
            }
        } else if env.choices.chance(100) {
            offload.checksum = Checksum::Valid;
        }
        Frame { bytes, offload, is_damaged: false }
    }
}

/// smoltcp forgets an address after a minute and loses what it wanted to say meanwhile: as often as not the answer to a
/// probe that comes once a minute.
const REFRESH: Duration = Duration::from_secs(20);

/// The port of a TCP segment that takes sequence numbers, but of no window probe: a stack that probes what is open may do so for
/// ever, and forget what was lost.
fn speaker(frame: &[u8]) -> Option<u16> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let takes_numbers = tcp.syn() || tcp.fin() || tcp.payload().len() > 1;
    takes_numbers.then(|| tcp.source_port())
}

fn configure(interface: &mut Interface, config: &usernet_core::Config, has_dhcp: bool) {
    let (net4, net6) = (config.net4, config.net6);
    interface.update_ip_addrs(|addresses| {
        if let Some(net) = net4.filter(|_| !has_dhcp) {
            addresses.push(IpCidr::new(net.guest.into(), net.prefix)).expect("room");
        }
        if let Some(net) = net6 {
            addresses.push(IpCidr::new(net.guest.into(), net.prefix)).expect("room");
            let link_local = config.guest_mac.link_local();
            addresses.push(IpCidr::new(link_local.into(), 64)).expect("room");
        }
        for &ip in &config.further {
            let prefix = if ip.is_ipv4() { 24 } else { 64 };
            addresses.push(IpCidr::new(ip.into(), prefix)).expect("room");
        }
    });
    if let Some(net) = net4.filter(|_| !has_dhcp) {
        interface.routes_mut().add_default_ipv4_route(net.gateway).expect("room");
    }
    if let Some(net) = net6 {
        interface.routes_mut().add_default_ipv6_route(net.gateway).expect("room");
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// A socket of the guest's that an application has, once it has started.
type Handle = Option<SocketHandle>;
