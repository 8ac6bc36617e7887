//! The names of a network's members: what its DNS answers.
//!
//! `NAME.NETWORK` and the addresses of the network are ours to answer for, whatever we know about them. What else is
//! asked is forwarded if the network leads out. If it does not, it is refused, which to a resolver means: ask the next
//! server (resolv.conf(5)).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::network::{GATEWAY_NAME, Network};

/// How long an answer may be remembered, in seconds. Members come and go.
const TTL_SECONDS: u32 = 5;

/// The largest datagram that is not cut on the way (RFC 9715).
const PAYLOAD_BYTES_MAX: u16 = 1_232;

/// Bytes of a DNS header.
const HEADER_BYTES: usize = 12;

/// What the DNS of a network knows: the gateway writes it, the process in its namespace reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names {
    /// The network's name.
    pub(super) network: String,
    /// Its ranges.
    pub(super) ranges: Vec<IpNet>,
    /// Names and addresses.
    pub(super) members: Vec<(String, Vec<IpAddr>)>,
    /// Who is asked for other names; none: nobody.
    pub(super) upstream: Option<SocketAddr>,
}

impl Names {
    /// Those of a network.
    pub(super) fn of(network: &Network, upstream: Option<SocketAddr>) -> Self {
        let gateway = (GATEWAY_NAME.to_owned(), network.gateway_addresses());
        let members = network.members.iter();
        let members = members.map(|m| (m.name.to_ascii_lowercase(), m.addresses.clone()));
        Self {
            network: network.name.clone(),
            ranges: network.gateways(),
            members: std::iter::once(gateway).chain(members).collect(),
            upstream,
        }
    }
}

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This is sent back.
    Answer(Vec<u8>),
    /// It is not ours: somebody else is asked.
    Forward,
    /// It is no query: nothing is sent back.
    Ignore,
}

/// [`Names`], ready to be looked up.
#[derive(Debug)]
pub(super) struct Zone {
    /// `NETWORK.`
    domain: Name,
    by_name: HashMap<Name, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, Name>,
    ranges: Vec<IpNet>,
    /// Whether somebody else can be asked.
    forwards: bool,
}

/// What was found for a question of ours.
enum Found {
    Records(Vec<RData>),
    /// There is the name, without such a record.
    NoData,
    NoName,
    /// Not ours to answer.
    Elsewhere,
}

impl Zone {
    /// Names that are no names of DNS were not let into the network; here they are left out.
    pub(super) fn new(names: &Names) -> Self {
        let domain = absolute(&names.network).unwrap_or_else(Name::root);
        let mut zone = Self {
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            ranges: names.ranges.clone(),
            forwards: names.upstream.is_some(),
            domain,
        };
        for (name, addresses) in &names.members {
            let Ok(name) = zone.domain.prepend_label(name.as_str()) else { continue };
            let pointers = addresses.iter().map(|&address| (address, name.clone()));
            zone.by_address.extend(pointers);
            zone.by_name.insert(name, addresses.clone());
        }
        zone
    }

    /// Everybody's addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// What becomes of a query.
    pub(super) fn on_query(&self, bytes: &[u8]) -> Verdict {
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(_) => return malformed(bytes),
        };
        if query.metadata.message_type != MessageType::Query {
            return Verdict::Ignore;
        }
        let respond =
            |code, records, is_ours| Verdict::Answer(self.response(&query, code, records, is_ours));
        if query.metadata.op_code != OpCode::Query {
            return respond(ResponseCode::NotImp, Vec::new(), false);
        }
        let [question] = query.queries.as_slice() else {
            return respond(ResponseCode::FormErr, Vec::new(), false);
        };
        match self.find(question) {
            Found::Records(data) => {
                let name = question.name();
                let record = |data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
                let records = data.into_iter().map(record).collect();
                respond(ResponseCode::NoError, records, true)
            }
            Found::NoData => respond(ResponseCode::NoError, Vec::new(), true),
            Found::NoName => respond(ResponseCode::NXDomain, Vec::new(), true),
            Found::Elsewhere if self.forwards => Verdict::Forward,
            Found::Elsewhere => respond(ResponseCode::Refused, Vec::new(), false),
        }
    }

    fn find(&self, question: &Query) -> Found {
        if question.query_class() != DNSClass::IN {
            return Found::Elsewhere;
        }
        let name = question.name().to_lowercase();
        if name == self.domain {
            return Found::NoData;
        }
        if self.domain.zone_of(&name) {
            let Some(addresses) = self.by_name.get(&name) else { return Found::NoName };
            return of_type(addresses, question.query_type());
        }
        let asked =
            name.parse_arpa_name().ok().map(|net| (net, net.prefix_len() == net.max_prefix_len()));
        match asked {
            Some((net, true)) if self.ranges.iter().any(|range| range.contains(&net.addr())) => {
                let Some(name) = self.by_address.get(&net.addr()) else { return Found::NoName };
                match question.query_type() {
                    RecordType::PTR | RecordType::ANY => {
                        Found::Records(vec![RData::PTR(PTR(name.clone()))])
                    }
                    _ => Found::NoData,
                }
            }
            Some(_) | None => Found::Elsewhere,
        }
    }

    fn response(
        &self,
        query: &Message,
        code: ResponseCode,
        answers: Vec<Record>,
        is_ours: bool,
    ) -> Vec<u8> {
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata = Metadata::response_from_request(&query.metadata);
        response.metadata.response_code = code;
        response.metadata.authoritative = is_ours;
        response.metadata.recursion_available = self.forwards;
        response.queries.clone_from(&query.queries);
        if is_ours && answers.is_empty() {
            // How long it may be remembered that there is none (RFC 2308, section 3).
            response.authorities = vec![self.authority()];
        }
        response.answers = answers;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_BYTES_MAX);
            response.set_edns(edns);
        }
        response.to_vec().unwrap_or_default()
    }

    fn authority(&self) -> Record {
        let gateway = self.domain.prepend_label(GATEWAY_NAME).unwrap_or_else(|_| Name::root());
        let ttl = TTL_SECONDS.cast_signed();
        let soa = SOA::new(gateway, Name::root(), 1, ttl, ttl, ttl, TTL_SECONDS);
        Record::from_rdata(self.domain.clone(), TTL_SECONDS, RData::SOA(soa))
    }
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

fn of_type(addresses: &[IpAddr], wanted: RecordType) -> Found {
    let of_address = |&address: &IpAddr| match (address, wanted) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    };
    let records: Vec<RData> = addresses.iter().filter_map(of_address).collect();
    if records.is_empty() { Found::NoData } else { Found::Records(records) }
}

/// What has a header gets an answer that says so, unless it is an answer itself.
fn malformed(bytes: &[u8]) -> Verdict {
    match bytes {
        [high, low, flags, ..] if bytes.len() >= HEADER_BYTES && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            Verdict::Answer(message.to_vec().unwrap_or_default())
        }
        _ => Verdict::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::{member, network};
    use super::*;

    fn zone(upstream: Option<SocketAddr>) -> Zone {
        let mut network = network();
        network.gateway6 = Some("fd00:1::1/64".parse().unwrap());
        network.admit(member("Server", "10.0.0.2", 1)).unwrap();
        Zone::new(&Names::of(&network, upstream))
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Message {
        match zone.on_query(&query(name, kind).to_vec().unwrap()) {
            Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn members_are_found_by_name_whatever_the_case() {
        let answer = ask(&zone(None), "SERVER.my-network.", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative);
        assert_eq!(answer.answers[0].data, RData::A(A([10, 0, 0, 2].into())));
        let gateway = ask(&zone(None), "gateway.my-network.", RecordType::AAAA);
        assert_eq!(gateway.answers[0].data, RData::AAAA("fd00:1::1".parse().unwrap()));
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_has_no_such_record() {
        let nobody = ask(&zone(None), "nobody.my-network.", RecordType::A);
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(nobody.authorities.len(), 1);
        for (name, kind) in [("server", RecordType::AAAA), ("server", RecordType::MX)] {
            let none = ask(&zone(None), &format!("{name}.my-network."), kind);
            assert_eq!(none.metadata.response_code, ResponseCode::NoError);
            assert!(none.answers.is_empty());
        }
        let domain = ask(&zone(None), "my-network.", RecordType::A);
        assert_eq!(domain.metadata.response_code, ResponseCode::NoError);
    }

    #[test]
    fn addresses_have_names() {
        let answer = ask(&zone(None), "2.0.0.10.in-addr.arpa.", RecordType::PTR);
        let name = Name::from_ascii("server.my-network.").unwrap();
        assert_eq!(answer.answers[0].data, RData::PTR(PTR(name)));
        let nobody = ask(&zone(None), "9.0.0.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        let outside = ask(&zone(None), "9.9.0.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(outside.metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn other_names_are_refused_or_forwarded() {
        let refused = ask(&zone(None), "example.org.", RecordType::A);
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
        let zone = zone(Some("10.0.2.3:53".parse().unwrap()));
        let bytes = query("example.org.", RecordType::A).to_vec().unwrap();
        assert_eq!(zone.on_query(&bytes), Verdict::Forward);
        let ours = ask(&zone, "x.my-network.", RecordType::A);
        assert_eq!(ours.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn what_is_no_query_gets_no_answer_or_an_error() {
        let zone = zone(None);
        assert_eq!(zone.on_query(&[]), Verdict::Ignore);
        assert_eq!(zone.on_query(&[0; 11]), Verdict::Ignore);
        let mut response = query("server.my-network.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        assert_eq!(zone.on_query(&response.to_vec().unwrap()), Verdict::Ignore);
        let Verdict::Answer(bytes) = zone.on_query(&[7, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) else {
            panic!("a header without its question gets an answer");
        };
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(
            (answer.metadata.id, answer.metadata.response_code),
            (0x0707, ResponseCode::FormErr)
        );
    }

    #[test]
    fn whatever_comes_is_survived() {
        let zone = zone(None);
        let whole = query("server.my-network.", RecordType::A).to_vec().unwrap();
        for end in 0..whole.len() {
            zone.on_query(&whole[..end]);
        }
        for at in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                zone.on_query(&bytes);
            }
        }
    }
}
