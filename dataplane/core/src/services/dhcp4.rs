//! DHCPv4 (RFC 2131): whoever asks is offered the guest's configured address, with our gateway, DNS and MTU.
//!
//! There is one address and nothing to remember: an answer follows from the question alone. A client that asks for
//! another address is told no at once, so that it begins anew instead of waiting; one that talks to another server is
//! left alone. Relays do not occur on a link between the guest and us.

use core::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpOptionWriter, DhcpPacket,
    EthernetAddress,
};

use super::Reply;
use crate::config::{Config, MacAddr, Net4};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::Op;
use crate::udp::GuestDatagram;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long the address is the guest's: it never becomes another, so this only paces renewals.
const LEASE_SECONDS: u32 = 86_400;
/// What follows a BOOTP header that is DHCP's (RFC 2131, section 3).
const MAGIC: u32 = 0x6382_5363;
/// Bytes in front of the options.
const FIXED_BYTES: usize = 240;
/// The smallest message that all BOOTP clients and relays take (RFC 1542, section 2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Room for our options: 58 bytes, and a client identifier of at most 255.
const MESSAGE_BYTES_MAX: usize = 576;

/// Option codes (RFC 2132).
mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const CLIENT: u8 = 61;
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

pub(crate) fn is_request(config: &Config, datagram: &GuestDatagram<'_>) -> bool {
    let Some(net) = config.net4.filter(|_| config.services.dhcp4) else { return false };
    let to = datagram.to;
    to.port() == SERVER_PORT
        && (to.ip() == IpAddr::V4(Ipv4Addr::BROADCAST)
            || to.ip() == IpAddr::V4(net.broadcast())
            || to.ip() == IpAddr::V4(net.gateway))
}

pub(crate) fn on_request(ctx: &mut Context<'_>, datagram: &GuestDatagram<'_>, payload: &[u8]) {
    let outcome = match (ctx.config.net4, parse(payload)) {
        (Some(net), Some(request)) => answer(ctx, &net, &request),
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
            (_, _) => {}
        }
    }
    Some(request)
}

/// Code and value of each option; ends at the first that is cut short.
fn options(message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    const PAD: u8 = 0;
    const END: u8 = 255;
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

fn answer(ctx: &mut Context<'_>, net: &Net4, request: &Request<'_>) -> Counter {
    let (kind, counter) = match decide(net, request) {
        Answer::Offer => (DhcpMessageType::Offer, Counter::DhcpAnswered),
        Answer::Acknowledge | Answer::Inform => (DhcpMessageType::Ack, Counter::DhcpAnswered),
        Answer::Refuse => (DhcpMessageType::Nak, Counter::DhcpRefused),
        Answer::Nothing(why) => return why,
    };
    send(ctx, net, request, kind);
    counter
}

fn decide(net: &Net4, request: &Request<'_>) -> Answer {
    let is_for_us = request.server.is_none_or(|server| server == net.gateway);
    match request.kind {
        DhcpMessageType::Discover => Answer::Offer,
        DhcpMessageType::Request if !is_for_us => Answer::Nothing(Counter::DhcpIgnored),
        DhcpMessageType::Request => {
            // RFC 2131, section 4.3.2: the address is in the option while the client has none (SELECTING,
            // INIT-REBOOT), and in the header when it renews.
            let has_address = !request.client_ip.is_unspecified();
            let wanted = request.requested.or(has_address.then_some(request.client_ip));
            match wanted {
                Some(ip) if ip == net.guest => Answer::Acknowledge,
                Some(_) => Answer::Refuse,
                None => Answer::Nothing(Counter::DhcpIgnored),
            }
        }
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

/// Whom the answer goes to (RFC 2131, section 4.1).
fn recipient(net: &Net4, request: &Request<'_>, kind: DhcpMessageType) -> (Ipv4Addr, MacAddr) {
    let client_mac = MacAddr(request.client_mac.0);
    if kind == DhcpMessageType::Nak {
        (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
    } else if !request.client_ip.is_unspecified() {
        (request.client_ip, client_mac)
    } else if request.wants_broadcast {
        (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
    } else {
        (net.guest, client_mac)
    }
}

fn send(ctx: &mut Context<'_>, net: &Net4, request: &Request<'_>, kind: DhcpMessageType) {
    let mtu = ctx.config.mtu;
    let (to, to_mac) = recipient(net, request, kind);
    let reply =
        Reply { to_mac, from: (net.gateway, SERVER_PORT).into(), to: (to, CLIENT_PORT).into() };
    let mut message = [0; MESSAGE_BYTES_MAX];
    let len = write(&mut message, net, mtu, request, kind);
    reply.send(ctx, &message[..len]);
}

/// Writes the message into zeroed bytes; its length.
fn write(
    message: &mut [u8; MESSAGE_BYTES_MAX],
    net: &Net4,
    mtu: u16,
    request: &Request<'_>,
    kind: DhcpMessageType,
) -> usize {
    let has_address = !request.client_ip.is_unspecified();
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
    if kind != DhcpMessageType::Nak {
        if has_address {
            packet.set_client_ip(request.client_ip);
        }
        if !is_inform {
            packet.set_your_ip(net.guest);
        }
    }
    let mut options = Options { writer: packet.options_mut(), bytes: 0 };
    options.add(option::MESSAGE_TYPE, &[kind.into()]);
    options.add(option::SERVER, &net.gateway.octets());
    if let Some(identifier) = request.identifier {
        options.add(option::CLIENT, identifier);
    }
    if kind != DhcpMessageType::Nak {
        if !is_inform {
            options.add(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        }
        options.add(option::SUBNET_MASK, &net.mask().octets());
        options.add(option::BROADCAST, &net.broadcast().octets());
        options.add(option::ROUTER, &net.gateway.octets());
        if let Some(dns) = net.dns {
            options.add(option::DNS, &dns.octets());
        }
        options.add(option::MTU, &mtu.to_be_bytes());
    }
    let end = FIXED_BYTES + options.end();
    end.max(MESSAGE_BYTES_MIN)
}

/// Options, counted.
struct Options<'a> {
    writer: DhcpOptionWriter<'a>,
    bytes: usize,
}

impl Options<'_> {
    fn add(&mut self, kind: u8, data: &[u8]) {
        self.writer.emit(DhcpOption { kind, data }).expect("a message has room for our options");
        self.bytes += 2 + data.len();
    }

    fn end(mut self) -> usize {
        self.writer.end().expect("a message has room for its end");
        self.bytes + 1
    }
}

impl Net4 {
    fn mask(&self) -> Ipv4Addr {
        let bits = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        Ipv4Addr::from_bits(bits)
    }

    fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() | !self.mask().to_bits())
    }
}
