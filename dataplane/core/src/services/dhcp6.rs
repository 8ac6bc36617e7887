//! DHCPv6 (RFC 8415): whoever asks is given the guest's configured address, and told what is [`Announced`].
//!
//! As in [DHCPv4](super::dhcp4) without a pool there is one address and nothing to remember. The first non-temporary association
//! (IA_NA) of a message gets it; others, temporary addresses and prefixes are not to be had. Messages are read by walking
//! options with checked lengths and written into a bounded buffer: nothing is allocated. (`dhcproto` would do it, but
//! allocates per option and brings a random number generator into a crate that is to have none.)

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{DNS_SERVERS_MAX, Reply};
use crate::config::{Announced, Config, MacAddr, Net6};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::Op;
use crate::rules::Prefix;
use crate::udp::GuestDatagram;

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// All relay agents and servers of the link (section 7.1).
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Lifetimes of the address and the times to renew and rebind, in seconds: they only pace renewals.
const PREFERRED_SECONDS: u32 = 86_400;
const VALID_SECONDS: u32 = 2 * 86_400;
const RENEW_SECONDS: u32 = PREFERRED_SECONDS / 2;
const REBIND_SECONDS: u32 = PREFERRED_SECONDS / 5 * 4;
/// The longest DUID (section 11.1), with its type.
const DUID_BYTES_MAX: usize = 130;
/// Associations of a message that are answered; and addresses of an association that are looked at.
const ASSOCIATIONS_MAX: usize = 4;
const ADDRESSES_MAX: usize = 4;
/// Room for an answer: with its headers less than any IPv6 MTU.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// Message types (section 7.3).
mod message {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const DECLINE: u8 = 9;
    pub(super) const INFORMATION_REQUEST: u8 = 11;
}

/// Option codes (section 21; RFC 3646, RFC 4704).
mod option {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const IA_NA: u16 = 3;
    pub(super) const IA_TA: u16 = 4;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const OPTION_REQUEST: u16 = 6;
    pub(super) const DNS: u16 = 23;
    pub(super) const SEARCH: u16 = 24;
    pub(super) const IA_PD: u16 = 25;
    pub(super) const FQDN: u16 = 39;
}

/// Status codes (section 21.13).
mod status {
    pub(super) const SUCCESS: u16 = 0;
    pub(super) const NO_ADDRESS: u16 = 2;
    pub(super) const NOT_ON_LINK: u16 = 4;
}

/// A client's message, its options checked as far as section 16 asks.
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    options: &'a [u8],
}

/// What is written back.
struct Answer {
    kind: u8,
    /// The associations with what becomes of their addresses.
    with_associations: bool,
    with_rapid_commit: bool,
    /// A status for the whole message.
    status: Option<u16>,
}

pub(crate) fn is_request(config: &Config, to: SocketAddr) -> bool {
    config.services.dhcp6 && to.port() == SERVER_PORT && to.ip() == IpAddr::V6(ALL_SERVERS)
}

pub(crate) fn on_request(ctx: &mut Context<'_>, datagram: &GuestDatagram<'_>, payload: &[u8]) {
    let outcome = match ctx.config.net6 {
        Some(net) => answer(ctx, &net, datagram, payload),
        None => Counter::DhcpIgnored,
    };
    ctx.count(outcome);
    ctx.op(Op::Release { lease: datagram.payload.lease });
}

fn answer(
    ctx: &mut Context<'_>,
    net: &Net6,
    datagram: &GuestDatagram<'_>,
    payload: &[u8],
) -> Counter {
    let server = server_id(ctx.config.host_mac);
    let request = parse(payload, &server);
    let Some((request, answer)) = request.and_then(|r| decide(net, &r).map(|answer| (r, answer)))
    else {
        return Counter::DhcpIgnored;
    };
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut writer = Writer { bytes: &mut bytes, len: 0 };
    if write(&mut writer, net, &server, &request, &answer).is_none() {
        return Counter::DhcpIgnored;
    }
    write_announced(&mut writer, &ctx.config.announced, &request);
    let len = writer.len;
    let reply = Reply {
        to_mac: datagram.packet.source_mac,
        from: (ctx.config.host_mac.link_local(), SERVER_PORT).into(),
        to: (datagram.from.ip(), CLIENT_PORT).into(),
    };
    reply.send(ctx, &bytes[..len]);
    if request.kind == message::DECLINE { Counter::DhcpDeclined } else { Counter::DhcpAnswered }
}

/// Our DUID: type 3, made of the link-layer address (section 11.4).
fn server_id(mac: MacAddr) -> [u8; 10] {
    let m = mac.0;
    [0, 3, 0, 1, m[0], m[1], m[2], m[3], m[4], m[5]]
}

/// Reads a message that is for us (section 16).
fn parse<'a>(payload: &'a [u8], server: &[u8]) -> Option<Request<'a>> {
    let (&[kind, a, b, c], options) = payload.split_first_chunk::<4>()?;
    let client = find(options, option::CLIENT_ID);
    if client.is_some_and(|id| id.is_empty() || id.len() > DUID_BYTES_MAX) {
        return None;
    }
    let named = find(options, option::SERVER_ID);
    let is_for_us = match kind {
        message::SOLICIT | message::CONFIRM | message::REBIND => {
            client.is_some() && named.is_none()
        }
        message::REQUEST | message::RENEW | message::RELEASE | message::DECLINE => {
            client.is_some() && named == Some(server)
        }
        message::INFORMATION_REQUEST => {
            let has_association = [option::IA_NA, option::IA_TA, option::IA_PD]
                .iter()
                .any(|&code| find(options, code).is_some());
            named.is_none_or(|id| id == server) && !has_association
        }
        _ => false,
    };
    is_for_us.then_some(Request { kind, transaction: [a, b, c], client, options })
}

/// What a message is answered with (section 18.3).
fn decide(net: &Net6, request: &Request<'_>) -> Option<Answer> {
    let reply = Answer {
        kind: message::REPLY,
        with_associations: false,
        with_rapid_commit: false,
        status: None,
    };
    Some(match request.kind {
        message::SOLICIT if find(request.options, option::RAPID_COMMIT).is_some() => {
            Answer { with_associations: true, with_rapid_commit: true, ..reply }
        }
        message::SOLICIT => Answer { kind: message::ADVERTISE, with_associations: true, ..reply },
        message::REQUEST | message::RENEW | message::REBIND => {
            Answer { with_associations: true, ..reply }
        }
        message::CONFIRM => Answer { status: Some(confirm(net, request)?), ..reply },
        message::RELEASE | message::DECLINE => Answer { status: Some(status::SUCCESS), ..reply },
        message::INFORMATION_REQUEST => reply,
        _ => return None,
    })
}

/// Whether the client's addresses belong to this link; none if it names none (section 18.3.3).
fn confirm(net: &Net6, request: &Request<'_>) -> Option<u16> {
    let prefix = Prefix { address: net.guest.into(), len: net.prefix };
    let mut verdict = None;
    for address in associations(request.options).flat_map(|ia| ia.addresses()) {
        if !prefix.contains(IpAddr::V6(address)) {
            return Some(status::NOT_ON_LINK);
        }
        verdict = Some(status::SUCCESS);
    }
    verdict
}

/// None: the answer does not fit, which a client with sound options cannot bring about.
fn write(
    w: &mut Writer<'_>,
    net: &Net6,
    server: &[u8],
    request: &Request<'_>,
    answer: &Answer,
) -> Option<()> {
    let [a, b, c] = request.transaction;
    w.put(&[answer.kind, a, b, c])?;
    w.option(option::SERVER_ID, |w| w.put(server))?;
    if let Some(client) = request.client {
        w.option(option::CLIENT_ID, |w| w.put(client))?;
    }
    if answer.with_rapid_commit {
        w.option(option::RAPID_COMMIT, |_| Some(()))?;
    }
    if let Some(code) = answer.status {
        w.status(code)?;
    }
    if answer.with_associations {
        for (index, association) in associations(request.options).enumerate() {
            w.option(option::IA_NA, |w| write_association(w, net, &association, index == 0))?;
        }
    }
    Some(())
}

/// What the guest is told beside addresses, as far as there is room.
fn write_announced(w: &mut Writer<'_>, announced: &Announced, request: &Request<'_>) {
    let dns = || {
        let servers = announced.dns.iter().filter_map(|dns| match dns {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        });
        servers.take(DNS_SERVERS_MAX)
    };
    if dns().next().is_some() {
        w.option_if_it_fits(option::DNS, |w| {
            for server in dns() {
                w.put(&server)?;
            }
            Some(())
        });
    }
    if let Some(name) = announced.fqdn.as_ref().filter(|_| request.wants(option::FQDN)) {
        w.option_if_it_fits(option::FQDN, |w| {
            let asked = find(request.options, option::FQDN).and_then(|value| value.first());
            let wants_update = asked.is_some_and(|flags| flags & fqdn::S != 0);
            let overrides = if wants_update { fqdn::O } else { 0 };
            w.put(&[fqdn::N | overrides])?;
            w.put(name.wire())
        });
    }
    if !announced.search.is_empty() {
        w.option_if_it_fits(option::SEARCH, |w| {
            for domain in &announced.search {
                // The rest may be shorter.
                let _ = w.put(domain.wire());
            }
            Some(())
        });
    }
}

/// Flags of a full name (RFC 4704, section 4.1).
mod fqdn {
    /// The server is to update DNS, or has.
    pub(super) const S: u8 = 1;
    /// The server does not do what the client asked for.
    pub(super) const O: u8 = 2;
    /// Nobody updates DNS on our side.
    pub(super) const N: u8 = 4;
}

impl Request<'_> {
    /// Whether the client sends an option, or asks for it.
    fn wants(&self, code: u16) -> bool {
        let asked = find(self.options, option::OPTION_REQUEST).unwrap_or_default();
        find(self.options, code).is_some()
            || asked.chunks_exact(2).any(|asked| asked == code.to_be_bytes())
    }
}

/// The first association has the address. Any other address in it is no longer the client's: lifetime 0 (section
/// 18.3.4).
fn write_association(
    w: &mut Writer<'_>,
    net: &Net6,
    association: &Association<'_>,
    is_first: bool,
) -> Option<()> {
    w.put(&association.id)?;
    if !is_first {
        w.put(&[0; 8])?;
        return w.status(status::NO_ADDRESS);
    }
    w.put(&RENEW_SECONDS.to_be_bytes())?;
    w.put(&REBIND_SECONDS.to_be_bytes())?;
    w.address(net.guest, PREFERRED_SECONDS, VALID_SECONDS)?;
    for address in association.addresses().filter(|&address| address != net.guest) {
        w.address(address, 0, 0)?;
    }
    Some(())
}

/// An IA_NA option of a client.
struct Association<'a> {
    id: [u8; 4],
    options: &'a [u8],
}

impl<'a> Association<'a> {
    /// The addresses that it names.
    fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        options(self.options)
            .filter(|&(code, _)| code == option::ADDRESS)
            .filter_map(|(_, data)| data.first_chunk::<16>().copied())
            .map(Ipv6Addr::from_octets)
            .take(ADDRESSES_MAX)
    }
}

fn associations(bytes: &[u8]) -> impl Iterator<Item = Association<'_>> {
    options(bytes)
        .filter(|&(code, _)| code == option::IA_NA)
        .filter_map(|(_, data)| data.split_first_chunk::<12>())
        .map(|(&[a, b, c, d, ..], options)| Association { id: [a, b, c, d], options })
        .take(ASSOCIATIONS_MAX)
}

/// Code and value of each option; ends at the first that is cut short.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let (&[c0, c1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let (data, rest) = rest.split_at_checked(len)?;
        bytes = rest;
        Some((u16::from_be_bytes([c0, c1]), data))
    })
}

fn find(bytes: &[u8], code: u16) -> Option<&[u8]> {
    options(bytes).find(|&(found, _)| found == code).map(|(_, data)| data)
}

/// Writes into a bounded buffer; none: full.
struct Writer<'a> {
    bytes: &'a mut [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, data: &[u8]) -> Option<()> {
        let end = self.len + data.len();
        self.bytes.get_mut(self.len..end)?.copy_from_slice(data);
        self.len = end;
        Some(())
    }

    /// An option whose value `value` writes.
    fn option(&mut self, code: u16, value: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.put(&code.to_be_bytes())?;
        let at = self.len;
        self.put(&[0, 0])?;
        value(self)?;
        let len = (self.len - at - 2) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
        Some(())
    }

    /// An option that is left out where there is no room.
    fn option_if_it_fits(&mut self, code: u16, value: impl FnOnce(&mut Self) -> Option<()>) {
        let start = self.len;
        if self.option(code, value).is_none() {
            self.len = start;
        }
    }

    fn status(&mut self, code: u16) -> Option<()> {
        self.option(option::STATUS, |w| w.put(&code.to_be_bytes()))
    }

    fn address(&mut self, address: Ipv6Addr, preferred: u32, valid: u32) -> Option<()> {
        self.option(option::ADDRESS, |w| {
            w.put(&address.octets())?;
            w.put(&preferred.to_be_bytes())?;
            w.put(&valid.to_be_bytes())
        })
    }
}
