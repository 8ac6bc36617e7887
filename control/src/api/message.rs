//! The shapes of requests and answers.
//!
//! Durations are in milliseconds and end in `_ms`, sizes in bytes; addresses are text, with ports as
//! `10.0.2.100:80` and `[fd00::64]:80`. New fields may appear in answers at any time: readers skip what they
//! do not know. A change that is not of this kind raises [`VERSION`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use usernet_core::flows::{FlowInfo, FlowKind};

use super::VERSION;
use crate::forwards::Direction;
use crate::sandbox::Report;
use crate::spec::Spec;

/// A request as it stands on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// A number or a string that the answer carries too; `null` where it does not matter.
    #[serde(default)]
    pub id: Value,
    /// What is to be done.
    pub method: String,
    /// Its parameters; may be left out where there are none.
    #[serde(default)]
    pub params: Value,
}

/// An answer as it stands on the wire: `result` or `error`, never both.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub version: u32,
    /// The request's id; `null` when the request could not be read that far.
    pub id: Value,
    /// What came of it; the shape depends on the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why nothing came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl Response {
    /// An answer to the request with this id.
    pub fn new(id: Value, outcome: Result<Value, ApiError>) -> Self {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Self { version: VERSION, id, result, error }
    }
}

/// Why a request had no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one line, cause and remedy.
    pub message: String,
}

impl ApiError {
    /// An error with its message.
    pub fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

/// The kinds of [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not JSON. The connection goes on with the next line.
    InvalidJson,
    /// JSON, but not a request: a field is missing or of the wrong type.
    InvalidRequest,
    /// The request is longer than 1 MiB. The connection ends.
    TooLarge,
    /// The connection ended in the middle of a request.
    Incomplete,
    /// A request was begun and not finished in time, or the answer was not read. The connection ends.
    Timeout,
    /// Too many connections. The connection ends.
    Busy,
    /// The peer is neither root nor the daemon's user. The connection ends.
    Forbidden,
    /// The request's version is not the daemon's.
    UnsupportedVersion,
    /// There is no such method.
    UnknownMethod,
    /// The parameters do not fit the method.
    InvalidParams,
    /// A forward that is not there.
    NotFound,
    /// A forward that is there already, or listens where another one does.
    Exists,
    /// A host port is in use.
    PortInUse,
    /// A host port or address may not be listened on.
    NotPermitted,
    /// A host address or interface that does not exist.
    NotAvailable,
    /// A limit: of forwards, listeners or open files.
    Limit,
    /// The data path does not answer: it is ending.
    Stopping,
    /// Anything else that went wrong in the daemon.
    Internal,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Parameters of `flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowParams {
    /// The most flows to list; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Parameters of `forward.add`, `forward.remove` and `forward.set`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardParams {
    /// The forwards, each as text.
    #[serde(deserialize_with = "inward")]
    pub forwards: Vec<Spec>,
}

/// Parameters of `outward.add`, `outward.remove` and `outward.set`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutwardParams {
    /// The forwards, each as text.
    pub forwards: Vec<Spec>,
}

/// Forwards that can lead to a guest: a [`Spec`] by itself may name any address.
fn inward<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Spec>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let specs = texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom));
    specs.collect()
}

/// A request whose method and parameters are known to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `status`: what this daemon is, and its counters. Result: [`Status`].
    Status,
    /// `flows`: what is being translated. Result: [`Flows`].
    Flows(FlowParams),
    /// `forward.list`. Result: [`Forwards`], all of them.
    ForwardList,
    /// `forward.add`: all of these or none. Result: [`Forwards`], the new ones.
    ForwardAdd(Vec<Spec>),
    /// `forward.remove`: all of these or none. Result: [`Forwards`], those that are left.
    ForwardRemove(Vec<Spec>),
    /// `forward.set`: these and no others, at once. Those that are in both sets are not touched. Result:
    /// [`Forwards`], all of them.
    ForwardSet(Vec<Spec>),
    /// `outward.add`: as `forward.add`, for ports of the namespace that lead to the host.
    OutwardAdd(Vec<Spec>),
    /// `outward.remove`: as `forward.remove`, for these.
    OutwardRemove(Vec<Spec>),
    /// `outward.set`: as `forward.set`, for these.
    OutwardSet(Vec<Spec>),
    /// `stop`: ends the daemon. Result: `{}`.
    Stop,
}

impl Call {
    /// The call that a request makes.
    pub fn parse(method: &str, params: Value) -> Result<Self, ApiError> {
        let forwards = |params| Ok(from_params::<ForwardParams>(params)?.forwards);
        let outward = |params| Ok(from_params::<OutwardParams>(params)?.forwards);
        match method {
            "status" => no_params(params).map(|()| Self::Status),
            "flows" => from_params(params).map(Self::Flows),
            "forward.list" => no_params(params).map(|()| Self::ForwardList),
            "forward.add" => forwards(params).map(Self::ForwardAdd),
            "forward.remove" => forwards(params).map(Self::ForwardRemove),
            "forward.set" => forwards(params).map(Self::ForwardSet),
            "outward.add" => outward(params).map(Self::OutwardAdd),
            "outward.remove" => outward(params).map(Self::OutwardRemove),
            "outward.set" => outward(params).map(Self::OutwardSet),
            "stop" => no_params(params).map(|()| Self::Stop),
            _ => {
                let shown: String = method.chars().take(40).collect();
                let message = format!(
                    "no method {shown:?}; there are status, flows, forward.list, forward.add, \
                     forward.remove, forward.set, outward.add, outward.remove, outward.set and stop"
                );
                Err(ApiError::new(ErrorCode::UnknownMethod, message))
            }
        }
    }

    /// The method's name on the wire.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Flows(_) => "flows",
            Self::ForwardList => "forward.list",
            Self::ForwardAdd(_) => "forward.add",
            Self::ForwardRemove(_) => "forward.remove",
            Self::ForwardSet(_) => "forward.set",
            Self::OutwardAdd(_) => "outward.add",
            Self::OutwardRemove(_) => "outward.remove",
            Self::OutwardSet(_) => "outward.set",
            Self::Stop => "stop",
        }
    }

    /// The parameters on the wire.
    pub fn params(&self) -> Value {
        match self {
            Self::Status | Self::ForwardList | Self::Stop => Value::Null,
            Self::Flows(FlowParams { limit: None }) => Value::Null,
            Self::Flows(FlowParams { limit: Some(limit) }) => serde_json::json!({ "limit": limit }),
            Self::ForwardAdd(specs)
            | Self::ForwardRemove(specs)
            | Self::ForwardSet(specs)
            | Self::OutwardAdd(specs)
            | Self::OutwardRemove(specs)
            | Self::OutwardSet(specs) => {
                let forwards: Vec<String> = specs.iter().map(Spec::to_string).collect();
                serde_json::json!({ "forwards": forwards })
            }
        }
    }
}

/// Parameters that may be left out are an empty object.
fn from_params<T: for<'de> Deserialize<'de>>(params: Value) -> Result<T, ApiError> {
    let params = if params.is_null() { Value::Object(Default::default()) } else { params };
    // serde would take an array for the fields in their order.
    if !params.is_object() {
        return Err(ApiError::new(ErrorCode::InvalidParams, "params must be an object"));
    }
    serde_json::from_value(params).map_err(|e| ApiError::new(ErrorCode::InvalidParams, e))
}

fn no_params(params: Value) -> Result<(), ApiError> {
    let is_empty = params.is_null() || params.as_object().is_some_and(serde_json::Map::is_empty);
    if is_empty {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::InvalidParams, "this method takes no parameters"))
}

/// Result of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub usernetd: String,
    /// The daemon's process.
    pub pid: u32,
    /// Time since it was ready.
    pub uptime_ms: u64,
    /// The namespace as it was named at the start: a path or a process id.
    pub netns: String,
    /// The link's name in the namespace.
    pub tap: String,
    /// `io-uring` or `epoll`.
    pub backend: String,
    /// Why it is not io_uring; empty if it is, or was not to be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub io_uring_denied: String,
    /// The link's MTU.
    pub mtu: u16,
    /// IPv4 on the link.
    pub ipv4: Option<Network>,
    /// IPv6 on the link.
    pub ipv6: Option<Network>,
    /// The resolvers in use, best first: the host's, or the tunnels'.
    pub resolvers: Vec<SocketAddr>,
    /// Which of the host's loopback services the gateway reaches: `none`, `all` or ports.
    pub host_loopback: String,
    /// How many forwards there are.
    pub forwards: u32,
    /// What is in use, by all workers together.
    pub usage: Usage,
    /// Each worker's part.
    #[serde(default)]
    pub workers: Vec<Worker>,
    /// What did not work out at the start or since, and what it costs; newest last.
    pub warnings: Vec<String>,
    /// What it has given up.
    #[serde(default)]
    pub sandbox: Report,
    /// Its tunnels.
    #[serde(default)]
    pub tunnels: Vec<TunnelStatus>,
    /// Counters by name, one per outcome, since the start.
    pub counters: BTreeMap<String, u64>,
}

/// A WireGuard tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// The device's name in the namespace.
    pub name: String,
    /// The device's addresses, with their prefix lengths.
    pub addresses: Vec<String>,
    /// The resolvers that the guest has by it.
    pub dns: Vec<IpAddr>,
    /// Where the guest looks for names without a dot.
    pub search: Vec<String>,
    /// Whether it runs; without, a mistake of ours has ended it.
    #[serde(default)]
    pub running: bool,
    /// Who we are to the peers; none: nobody yet.
    #[serde(default)]
    pub public_key: Option<String>,
    /// The UDP port.
    #[serde(default)]
    pub listen_port: u16,
    /// The other ends.
    #[serde(default)]
    pub peers: Vec<TunnelPeer>,
    /// Counters by name, since the start.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// The other end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelPeer {
    /// Who.
    pub public_key: String,
    /// Where it was last; none: nobody knows.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake; none: there was none.
    pub handshake_age_ms: Option<u64>,
    /// Bytes of its datagrams.
    pub bytes_from_peer: u64,
    /// Bytes of ours to it.
    pub bytes_to_peer: u64,
    /// Whose packets it may send, and get.
    pub allowed_ips: Vec<String>,
}

/// What is in use at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// TCP flows through the link.
    pub tcp_flows: u64,
    /// TCP connections joined in the kernel, which do not pass the link.
    pub spliced_flows: u64,
    /// UDP mappings.
    pub udp_flows: u64,
    /// Ping mappings.
    pub ping_flows: u64,
    /// Host-side sockets.
    pub sockets: u64,
    /// Packet buffers that are not free.
    pub leases: u64,
    /// Packet buffers there are.
    pub leases_max: u64,
}

/// One thread that translates, with a part of the flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// What it uses. Its limits are its part of the whole.
    pub usage: Usage,
    /// Frames that it took from the device.
    pub frames_from_guest: u64,
    /// Frames that it wrote to it.
    pub frames_to_guest: u64,
    /// Frames that it took and another worker had to have.
    pub handed_over: u64,
}

/// A family's addresses on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guest's address.
    pub guest: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// The gateway's address.
    pub gateway: IpAddr,
    /// Where the guest asks DNS.
    pub dns: Option<IpAddr>,
}

/// Result of `flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// How many there are.
    pub total: u32,
    /// They, or the first `limit` of them, in no order.
    pub flows: Vec<FlowEntry>,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEntry {
    /// `tcp`, `spliced` (TCP that does not pass the link), `udp` or `ping`.
    pub kind: String,
    /// State, in words that `ss` users know: `ESTAB`, `SYN-SENT`, `FIN-WAIT`, `UNCONN`.
    pub state: String,
    /// Whether the guest opened it.
    pub outbound: bool,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end as the guest sees it; none: any.
    pub remote: Option<SocketAddr>,
    /// The other end, or our own port, as the host sees it, where that differs.
    pub host: Option<SocketAddr>,
    /// Payload bytes from the guest.
    pub bytes_from_guest: u64,
    /// Payload bytes to the guest.
    pub bytes_to_guest: u64,
    /// Time since the last packet.
    pub idle_ms: u64,
}

impl From<&FlowInfo> for FlowEntry {
    fn from(flow: &FlowInfo) -> Self {
        let kind = match flow.kind {
            FlowKind::Tcp => "tcp",
            FlowKind::Spliced => "spliced",
            FlowKind::Udp => "udp",
            FlowKind::Ping => "ping",
        };
        Self {
            kind: kind.to_owned(),
            state: flow.state.to_owned(),
            outbound: flow.is_outbound,
            guest: flow.guest,
            remote: flow.remote,
            host: flow.host,
            bytes_from_guest: flow.bytes_from_guest,
            bytes_to_guest: flow.bytes_to_guest,
            idle_ms: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Result of the `forward` methods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwards {
    /// In the order in which they were added.
    pub forwards: Vec<Forwarded>,
}

/// A forward in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Its name in this daemon; never used twice.
    pub id: u32,
    /// `inward`: from the host to the guest. `outward`: from the guest's namespace to the host.
    pub direction: Direction,
    /// It follows a program that listens, and goes when that does.
    pub automatic: bool,
    /// The forward, in canonical form: where it listens, then where it leads.
    pub spec: Spec,
    /// Where it listens: one address per family, with the first port of the range.
    pub listening: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_survives_the_wire() {
        let specs = vec!["8080:80/tcp".parse::<Spec>().unwrap()];
        let outward = vec![Spec::outward("8080:127.0.0.1:80").unwrap()];
        for call in [
            Call::Status,
            Call::Flows(FlowParams { limit: None }),
            Call::Flows(FlowParams { limit: Some(3) }),
            Call::ForwardList,
            Call::ForwardAdd(specs.clone()),
            Call::ForwardRemove(specs.clone()),
            Call::ForwardSet(specs),
            Call::OutwardAdd(outward.clone()),
            Call::OutwardRemove(outward.clone()),
            Call::OutwardSet(outward),
            Call::Stop,
        ] {
            assert_eq!(Call::parse(call.method(), call.params()), Ok(call));
        }
    }

    #[test]
    fn parameters_that_do_not_fit_are_told() {
        let code = |method, params| Call::parse(method, params).map_err(|e| e.code);
        let bad = Err(ErrorCode::InvalidParams);
        assert_eq!(code("reboot", Value::Null), Err(ErrorCode::UnknownMethod));
        assert_eq!(code("status", serde_json::json!({"x": 1})), bad);
        assert_eq!(code("flows", serde_json::json!({"limit": -1})), bad);
        assert_eq!(code("flows", serde_json::json!([1])), bad);
        assert_eq!(code("forward.add", Value::Null), bad);
        assert_eq!(code("forward.add", serde_json::json!({"forwards": ["80:"]})), bad);
        let loopback = serde_json::json!({"forwards": ["80:127.0.0.1:80"]});
        assert_eq!(code("forward.add", loopback.clone()), bad);
        assert!(Call::parse("outward.add", loopback).is_ok());
    }

    #[test]
    fn an_error_code_of_a_later_version_is_read_as_unknown() {
        let error: ApiError = serde_json::from_str(r#"{"code":"on_fire","message":"x"}"#).unwrap();
        assert_eq!(error.code, ErrorCode::Unknown);
    }
}
