//! DHCPv4 (RFC 2131): whoever asks is offered an address, with our gateway and what is [`Announced`].
//!
//! Without a pool there is one address, the guest's configured one, and nothing to remember: an answer follows from
//! the question alone. With one, each Ethernet address has an address of its own, and keeps it: [`Leases`] is small,
//! and when it is full the client heard longest ago loses its place. A client that asks for another address than
//! its own is told no at once, so that it begins anew instead of waiting; one that talks to another server is left
//! alone. Relays do not occur on a link between the guest and us.
//!
//! Options are written in the order of their worth, and those for which a message has no room are left out.

use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpPacket, EthernetAddress};

use super::{DNS_SERVERS_MAX, Reply};
use crate::config::{Announced, Config, DomainName, MacAddr, Net4};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::Op;
use crate::time::Instant;
use crate::udp::GuestDatagram;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long an address is a client's: it hardly ever becomes another's, so this only paces renewals.
const LEASE_SECONDS: u32 = 86_400;
/// What follows a BOOTP header that is DHCP's (RFC 2131, section 3).
const MAGIC: u32 = 0x6382_5363;
/// Bytes in front of the options.
const FIXED_BYTES: usize = 240;
/// The smallest message that all BOOTP clients and relays take (RFC 1542, section 2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// What every client takes (RFC 2131, section 2: datagrams of 576 bytes).
const MESSAGE_BYTES_COMMON: usize = 548;
/// What we write, to a client that takes as much.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// IPv4 and UDP headers.
const HEADERS_BYTES: usize = 28;
/// The longest value of options that can be long: search lists.
const VALUE_BYTES_MAX: usize = 510;
/// The most addresses that are leased at a time, however large the pool is.
const LEASES_MAX: usize = 64;

/// Options that are a byte each.
const PAD: u8 = 0;
const END: u8 = 255;

/// Option codes (RFC 2132, RFC 3397, RFC 3442, RFC 4702).
mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const SIZE_MAX: u8 = 57;
    pub(super) const CLIENT: u8 = 61;
    pub(super) const FQDN: u8 = 81;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const ROUTES: u8 = 121;
}

/// What a client says.
struct Request<'a> {
    kind: DhcpMessageType,
    transaction: u32,
    seconds: u16,
    client_mac: EthernetAddress,
    /// The address it has and can be reached at; unspecified: none.
    client_ip: Ipv4Addr,
    wants_broadcast: bool,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// Its identifier, to be given back as it is (RFC 6842).
    identifier: Option<&'a [u8]>,
    /// The largest message that it takes, headers included.
    size_max: Option<u16>,
    /// It wants its name's address entered in DNS by us (RFC 4702, section 2.1).
    wants_dns_update: bool,
}

/// Which client has which address of the pool.
#[derive(Default)]
pub(crate) struct Leases {
    /// By the address's place in the pool: the client, and when it was last heard.
    clients: Vec<Option<(MacAddr, Instant)>>,
}

impl Leases {
    pub(crate) fn new(config: &Config) -> Self {
        let size = match (config.net4, config.announced.pool4) {
            (Some(_), Some((first, last))) => {
                let further = last.to_bits().saturating_sub(first.to_bits());
                usize::try_from(further).unwrap_or(LEASES_MAX).saturating_add(1).min(LEASES_MAX)
            }
            (_, _) => 0,
        };
        Self { clients: vec![None; size] }
    }

    /// The address of a client: the one it has; the one it wants, if nobody has that; or any.
    fn address(&mut self, ctx: &Context<'_>, net: &Net4, request: &Request<'_>) -> Ipv4Addr {
        let Some((first, _)) = ctx.config.announced.pool4 else { return net.guest };
        let mac = MacAddr(request.client_mac.0);
        let has = |slot: &Option<(MacAddr, Instant)>| slot.is_some_and(|(client, _)| client == mac);
        let wanted = || {
            let place = request.wanted()?.to_bits().checked_sub(first.to_bits())?;
            let place = usize::try_from(place).ok()?;
            self.clients.get(place)?.is_none().then_some(place)
        };
        let place = self
            .clients
            .iter()
            .position(has)
            .or_else(wanted)
            .or_else(|| self.clients.iter().position(Option::is_none))
            .or_else(|| {
                let heard = |(place, slot): (usize, &Option<(MacAddr, Instant)>)| {
                    slot.map(|(_, heard)| (heard, place))
                };
                self.clients.iter().enumerate().filter_map(heard).min().map(|(_, place)| place)
            });
        let Some(place) = place else { return net.guest };
        self.clients[place] = Some((mac, ctx.now));
        Ipv4Addr::from_bits(first.to_bits() + place as u32)
    }

    /// A client cannot use the address that it was given: it gets another one when it asks again.
    fn decline(&mut self, ctx: &Context<'_>, request: &Request<'_>) {
        let mac = MacAddr(request.client_mac.0);
        let slot = self.clients.iter_mut().flatten().find(|(client, _)| *client == mac);
        if let Some(slot) = slot {
            // Nobody's, until it is the one heard of longest ago.
            *slot = (MacAddr::BROADCAST, ctx.now);
        }
    }
}

impl Request<'_> {
    /// The address that is asked for. RFC 2131, section 4.3.2: it is in the option while the client has none
    /// (SELECTING, INIT-REBOOT), and in the header when it renews.
    fn wanted(&self) -> Option<Ipv4Addr> {
        let has_address = !self.client_ip.is_unspecified();
        self.requested.or(has_address.then_some(self.client_ip))
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Offer,
    Acknowledge,
    /// Acknowledges configuration without an address.
    Inform,
    Refuse,
    Nothing(Counter),
}

pub(crate) fn is_request(config: &Config, to: SocketAddr) -> bool {
    let Some(net) = config.net4.filter(|_| config.services.dhcp4) else { return false };
    to.port() == SERVER_PORT
        && (to.ip() == IpAddr::V4(Ipv4Addr::BROADCAST)
            || to.ip() == IpAddr::V4(net.broadcast())
            || to.ip() == IpAddr::V4(net.gateway))
}

pub(crate) fn on_request(
    leases: &mut Leases,
    ctx: &mut Context<'_>,
    datagram: &GuestDatagram<'_>,
    payload: &[u8],
) {
    let outcome = match (ctx.config.net4, parse(payload)) {
        (Some(net), Some(request)) => answer(leases, ctx, &net, &request),
        (None, _) | (_, None) => Counter::DhcpIgnored,
    };
    ctx.count(outcome);
    ctx.op(Op::Release { lease: datagram.payload.lease });
}

fn parse(payload: &[u8]) -> Option<Request<'_>> {
    let packet = DhcpPacket::new_checked(payload).ok()?;
    let is_ethernet = payload.get(1..3)? == [1, 6];
    if packet.opcode() != DhcpOpCode::Request || packet.magic_number() != MAGIC || !is_ethernet {
        return None;
    }
    // A relay would have to be answered at its own address; there is none on this link.
    if !packet.relay_agent_ip().is_unspecified() {
        return None;
    }
    let mut request = Request {
        kind: DhcpMessageType::Unknown(0),
        transaction: packet.transaction_id(),
        seconds: packet.secs(),
        client_mac: packet.client_hardware_address(),
        client_ip: packet.client_ip(),
        wants_broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
        requested: None,
        server: None,
        identifier: None,
        size_max: None,
        wants_dns_update: false,
    };
    if !request.client_mac.is_unicast() {
        return None;
    }
    let address = |data: &[u8]| data.try_into().ok().map(Ipv4Addr::from_octets);
    for (kind, data) in options(payload) {
        match (kind, data) {
            (option::MESSAGE_TYPE, &[kind]) => request.kind = DhcpMessageType::from(kind),
            (option::REQUESTED_ADDRESS, data) => request.requested = address(data),
            (option::SERVER, data) => request.server = address(data),
            (option::CLIENT, data) => request.identifier = Some(data),
            (option::SIZE_MAX, &[a, b]) => request.size_max = Some(u16::from_be_bytes([a, b])),
            (option::FQDN, &[flags, ..]) => request.wants_dns_update = flags & fqdn::S != 0,
            (_, _) => {}
        }
    }
    Some(request)
}

/// Code and value of each option; ends at the first that is cut short.
fn options(message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = message.get(FIXED_BYTES..).unwrap_or_default();
    core::iter::from_fn(move || {
        while let Some((&PAD, behind)) = rest.split_first() {
            rest = behind;
        }
        let (&[code, len], behind) = rest.split_first_chunk::<2>()?;
        let (data, behind) = behind.split_at_checked(usize::from(len))?;
        rest = behind;
        (code != END).then_some((code, data))
    })
}

fn answer(
    leases: &mut Leases,
    ctx: &mut Context<'_>,
    net: &Net4,
    request: &Request<'_>,
) -> Counter {
    let is_for_us = request.server.is_none_or(|server| server == net.gateway);
    let address = match request.kind {
        DhcpMessageType::Discover => leases.address(ctx, net, request),
        DhcpMessageType::Request if is_for_us => leases.address(ctx, net, request),
        DhcpMessageType::Decline if is_for_us => {
            leases.decline(ctx, request);
            net.guest
        }
        DhcpMessageType::Request
        | DhcpMessageType::Decline
        | DhcpMessageType::Inform
        | DhcpMessageType::Release
        | DhcpMessageType::Offer
        | DhcpMessageType::Ack
        | DhcpMessageType::Nak
        | DhcpMessageType::Unknown(_) => net.guest,
    };
    let (kind, counter) = match decide(is_for_us, address, request) {
        Answer::Offer => (DhcpMessageType::Offer, Counter::DhcpAnswered),
        Answer::Acknowledge | Answer::Inform => (DhcpMessageType::Ack, Counter::DhcpAnswered),
        Answer::Refuse => (DhcpMessageType::Nak, Counter::DhcpRefused),
        Answer::Nothing(why) => return why,
    };
    send(ctx, net, request, &Given { kind, address });
    counter
}

fn decide(is_for_us: bool, address: Ipv4Addr, request: &Request<'_>) -> Answer {
    match request.kind {
        DhcpMessageType::Discover => Answer::Offer,
        DhcpMessageType::Request if !is_for_us => Answer::Nothing(Counter::DhcpIgnored),
        DhcpMessageType::Request => match request.wanted() {
            Some(ip) if ip == address => Answer::Acknowledge,
            Some(_) => Answer::Refuse,
            None => Answer::Nothing(Counter::DhcpIgnored),
        },
        DhcpMessageType::Inform if !request.client_ip.is_unspecified() => Answer::Inform,
        DhcpMessageType::Decline if is_for_us => Answer::Nothing(Counter::DhcpDeclined),
        DhcpMessageType::Inform
        | DhcpMessageType::Decline
        | DhcpMessageType::Release
        | DhcpMessageType::Offer
        | DhcpMessageType::Ack
        | DhcpMessageType::Nak
        | DhcpMessageType::Unknown(_) => Answer::Nothing(Counter::DhcpIgnored),
    }
}

/// What a client is answered.
struct Given {
    kind: DhcpMessageType,
    address: Ipv4Addr,
}

/// Whom the answer goes to (RFC 2131, section 4.1).
fn recipient(request: &Request<'_>, given: &Given) -> (Ipv4Addr, MacAddr) {
    let client_mac = MacAddr(request.client_mac.0);
    if given.kind == DhcpMessageType::Nak {
        (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
    } else if !request.client_ip.is_unspecified() {
        (request.client_ip, client_mac)
    } else if request.wants_broadcast {
        (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
    } else {
        (given.address, client_mac)
    }
}

fn send(ctx: &mut Context<'_>, net: &Net4, request: &Request<'_>, given: &Given) {
    let (to, to_mac) = recipient(request, given);
    let reply =
        Reply { to_mac, from: (net.gateway, SERVER_PORT).into(), to: (to, CLIENT_PORT).into() };
    let mut message = [0; MESSAGE_BYTES_MAX];
    let taken = request.size_max.unwrap_or_default().min(ctx.config.mtu);
    let room = usize::from(taken).saturating_sub(HEADERS_BYTES);
    let room = room.clamp(MESSAGE_BYTES_COMMON, MESSAGE_BYTES_MAX);
    let len = write(&mut message[..room], net, ctx.config, request, given);
    reply.send(ctx, &message[..len]);
}

/// Writes the message into zeroed bytes; its length.
fn write(
    message: &mut [u8],
    net: &Net4,
    config: &Config,
    request: &Request<'_>,
    given: &Given,
) -> usize {
    let is_refusal = given.kind == DhcpMessageType::Nak;
    let is_inform = request.kind == DhcpMessageType::Inform;
    let mut packet = DhcpPacket::new_unchecked(&mut message[..]);
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(smoltcp::wire::ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(request.transaction);
    packet.set_secs(request.seconds);
    packet.set_client_hardware_address(request.client_mac);
    packet.set_magic_number(MAGIC);
    if request.wants_broadcast {
        packet.set_flags(DhcpFlags::BROADCAST);
    }
    if !is_refusal {
        packet.set_client_ip(request.client_ip);
        if !is_inform {
            packet.set_your_ip(given.address);
        }
    }
    let mut options = Options { bytes: message, len: FIXED_BYTES };
    options.add(option::MESSAGE_TYPE, &[given.kind.into()]);
    options.add(option::SERVER, &net.gateway.octets());
    if let Some(identifier) = request.identifier {
        options.add(option::CLIENT, identifier);
    }
    if !is_refusal {
        if !is_inform {
            options.add(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        }
        add_network(&mut options, net);
        add_announced(&mut options, &config.announced, config.mtu, request);
    }
    options.end().max(MESSAGE_BYTES_MIN)
}

/// The network and the way out of it.
fn add_network(options: &mut Options<'_>, net: &Net4) {
    options.add(option::SUBNET_MASK, &net.mask().octets());
    if net.prefix < 31 {
        options.add(option::BROADCAST, &net.broadcast().octets());
    }
    if !net.is_default_route {
        return;
    }
    options.add(option::ROUTER, &net.gateway.octets());
    let is_on_link = (net.gateway.to_bits() ^ net.guest.to_bits()) & net.mask().to_bits() == 0;
    if !is_on_link {
        // RFC 3442: the gateway itself is on the link, and everything else behind it. A client that knows the
        // option does not look at the router's.
        let [a, b, c, d] = net.gateway.octets();
        options.add(option::ROUTES, &[32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]);
    }
}

fn add_announced(
    options: &mut Options<'_>,
    announced: &Announced,
    mtu: u16,
    request: &Request<'_>,
) {
    let mut value = Value::default();
    let servers = announced.dns.iter().filter_map(|dns| match dns {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    for server in servers.take(DNS_SERVERS_MAX) {
        value.push_if_it_fits(&server);
    }
    options.add(option::DNS, value.of_one_option());
    if announced.mtu {
        options.add(option::MTU, &mtu.to_be_bytes());
    }
    if let Some(name) = &announced.host_name {
        let mut value = Value::default();
        value.push_text(name);
        options.add(option::HOST_NAME, value.of_one_option());
    }
    if let Some(name) = &announced.fqdn {
        let overrides = if request.wants_dns_update { fqdn::O } else { 0 };
        let mut value = Value::default();
        value.push_if_it_fits(&[fqdn::E | fqdn::N | overrides, 255, 255]);
        value.push_if_it_fits(name.wire());
        options.add(option::FQDN, value.of_one_option());
    }
    let mut value = Value::default();
    for domain in &announced.search {
        value.push_if_it_fits(domain.wire());
    }
    options.add_long(option::SEARCH, &value.bytes[..value.len]);
}

/// Flags of a full name (RFC 4702, section 2.1).
mod fqdn {
    /// The server is to update DNS, or has.
    pub(super) const S: u8 = 1;
    /// The server does not do what the client asked for.
    pub(super) const O: u8 = 2;
    /// The name goes as over the DNS wire.
    pub(super) const E: u8 = 4;
    /// Nobody updates DNS on our side.
    pub(super) const N: u8 = 8;
}

/// An option's value while it is put together.
struct Value {
    bytes: [u8; VALUE_BYTES_MAX],
    len: usize,
}

impl Default for Value {
    fn default() -> Self {
        Self { bytes: [0; VALUE_BYTES_MAX], len: 0 }
    }
}

impl Value {
    fn push_if_it_fits(&mut self, data: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + data.len()) {
            room.copy_from_slice(data);
            self.len += data.len();
        }
    }

    /// A name with dots instead of lengths.
    fn push_text(&mut self, name: &DomainName) {
        let mut rest = name.wire();
        while let Some((&len @ 1.., behind)) = rest.split_first() {
            let (label, behind) = behind.split_at(usize::from(len).min(behind.len()));
            if self.len > 0 {
                self.push_if_it_fits(b".");
            }
            self.push_if_it_fits(label);
            rest = behind;
        }
    }

    /// Nothing, if it is too long for one.
    fn of_one_option(&self) -> &[u8] {
        if self.len > usize::from(u8::MAX) { &[] } else { &self.bytes[..self.len] }
    }
}

/// Options, in a message that has room for some.
struct Options<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Options<'_> {
    /// Writes an option, unless it is empty or there is no room.
    fn add(&mut self, kind: u8, data: &[u8]) {
        self.add_long(kind, data.get(..usize::from(u8::MAX)).unwrap_or(data));
    }

    /// Writes a value in as many options of the same kind as it takes (RFC 3396), or not at all.
    fn add_long(&mut self, kind: u8, data: &[u8]) {
        let pieces = data.chunks(usize::from(u8::MAX));
        let bytes = data.len() + 2 * pieces.len();
        // One byte is for the end.
        if self.len + bytes >= self.bytes.len() {
            return;
        }
        for piece in pieces {
            let (header, rest) = self.bytes[self.len..].split_at_mut(2);
            header.copy_from_slice(&[kind, piece.len() as u8]);
            rest[..piece.len()].copy_from_slice(piece);
            self.len += 2 + piece.len();
        }
    }

    /// The length of the message.
    fn end(self) -> usize {
        self.bytes[self.len] = END;
        self.len + 1
    }
}

impl Net4 {
    fn mask(&self) -> Ipv4Addr {
        let bits = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        Ipv4Addr::from_bits(bits)
    }

    fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.guest.to_bits() | !self.mask().to_bits())
    }
}
