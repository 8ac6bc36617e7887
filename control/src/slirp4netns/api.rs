//! The API of slirp4netns: JSON in the manner of QMP, one request per connection.
//!
//! ```text
//! {"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}}
//!     {"return": {"id": 1}}
//! {"execute": "list_hostfwd"}
//!     {"return": {"entries": [{"id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, …}]}}
//! {"execute": "remove_hostfwd", "arguments": {"id": 1}}
//!     {"return": {}}
//! ```
//!
//! The manual asks a client to end its direction after the request. Many do not (`nc -U` keeps it open), and the
//! original answers them all the same; so a request is over as soon as it is a whole JSON value.
//!
//! Beyond the original: `host_addr` may be an IPv6 address, and leads to the guest's IPv6 address then; a
//! refusal says why behind the original's words; nonsense is refused where the original forwards some
//! other port or dies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};
use usernet_core::rules::Protocol as Transport;

use crate::api::message::{ApiError, Call, Forwarded, Forwards};
use crate::api::protocol::{Answer, End, Framing, Protocol, Refusal};
use crate::spec::{HostAddress, PortRange, Spec};

/// The longest request has one byte less.
const REQUEST_BYTES_MAX: usize = 4_096;

/// The guest's own addresses, where forwards lead that name no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The IPv4 address of `--cidr`.
    pub v4: Ipv4Addr,
    /// The IPv6 address, with `--enable-ipv6`.
    pub v6: Option<Ipv6Addr>,
}

/// See the module.
pub(crate) struct HostForwards(pub(crate) Guest);

impl Protocol for HostForwards {
    fn framing(&self) -> Framing {
        Framing::Whole
    }

    fn request_bytes_max(&self) -> usize {
        REQUEST_BYTES_MAX
    }

    fn is_whole(&self, request: &[u8]) -> bool {
        match first_value(request) {
            None => false,
            // What a number's next digit would be is not known; nobody sends one.
            Some(Ok(_)) => true,
            Some(Err(error)) => !error.is_eof(),
        }
    }

    fn answer(&mut self, request: &[u8], _: End, answer: &mut Answer<'_>) -> Vec<u8> {
        reply(self.execute(request, answer))
    }

    fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
        reply(Err(match refusal {
            Refusal::TooLarge => "bad request: too large message",
            Refusal::Late => "bad request: it was not complete within 10 s",
            Refusal::Busy => "too many connections",
            Refusal::Forbidden => "only root and the user who runs slirp4netns may ask it",
        }
        .to_owned()))
    }
}

/// What a request comes to, or why it does not.
type Reply = Result<Value, String>;

fn reply(reply: Reply) -> Vec<u8> {
    let value = match reply {
        Ok(value) => json!({ "return": value }),
        Err(desc) => json!({ "error": { "desc": desc } }),
    };
    value.to_string().into_bytes()
}

/// The value that a request begins with. What follows it does not count, as in the original.
fn first_value(request: &[u8]) -> Option<serde_json::Result<Value>> {
    serde_json::Deserializer::from_slice(request).into_iter().next()
}

impl HostForwards {
    fn execute(&self, request: &[u8], answer: &mut Answer<'_>) -> Reply {
        let Some(Ok(request)) = first_value(request) else {
            return Err("bad request: cannot parse JSON".to_owned());
        };
        let Value::Object(request) = request else {
            return Err("bad request: a request is a JSON object".to_owned());
        };
        let none = Map::new();
        let arguments = request.get("arguments").and_then(Value::as_object).unwrap_or(&none);
        match request.get("execute").and_then(Value::as_str) {
            None => Err("bad request: no execute found".to_owned()),
            Some("add_hostfwd") => self.add(arguments, answer),
            Some("list_hostfwd") => list(answer),
            Some("remove_hostfwd") => remove(arguments, answer),
            Some(_) => Err("bad request: unknown execute".to_owned()),
        }
    }

    fn add(&self, arguments: &Map<String, Value>, answer: &mut Answer<'_>) -> Reply {
        let spec =
            self.spec(arguments).map_err(|what| format!("bad request: add_hostfwd: {what}"))?;
        let added = forwards(answer, Call::ForwardAdd(vec![spec])).map_err(|error| {
            format!("bad request: add_hostfwd: slirp_add_hostfwd failed: {error}")
        })?;
        let id = added.first().map(|forward| forward.id);
        id.map(|id| json!({ "id": id })).ok_or_else(|| "add_hostfwd: nothing was added".to_owned())
    }

    /// The forward that the arguments describe.
    fn spec(&self, arguments: &Map<String, Value>) -> Result<Spec, String> {
        let protocol = match arguments.get("proto").and_then(Value::as_str) {
            Some("tcp") => Transport::Tcp,
            Some("udp") => Transport::Udp,
            Some(_) | None => return Err("bad arguments.proto".to_owned()),
        };
        let host = address(arguments, "host_addr")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let host_ports = port(arguments, "host_port")?;
        let guest = self.guest(host, address(arguments, "guest_addr")?)?;
        let guest_ports = port(arguments, "guest_port")?;
        let spec = Spec {
            host: Some(HostAddress { address: host, interface: None }),
            host_ports,
            guest: Some(guest),
            guest_ports,
            protocol,
        };
        // Its text has the same meaning, and reading that checks what addresses may not be.
        spec.to_string().parse().map_err(|error| format!("slirp_add_hostfwd failed: {error}"))
    }

    /// Where a forward that listens on `host` leads. Callers of an API that was IPv4 only name the guest's IPv4
    /// address whatever `host` is: that is the guest.
    fn guest(&self, host: IpAddr, wanted: Option<IpAddr>) -> Result<IpAddr, String> {
        let is_the_guest = wanted.is_none_or(|wanted| wanted == IpAddr::V4(self.0.v4));
        match (host, wanted) {
            (IpAddr::V4(_), None) => Ok(self.0.v4.into()),
            (IpAddr::V6(_), _) if is_the_guest => self.0.v6.map(IpAddr::V6).ok_or_else(|| {
                "bad arguments.host_addr: IPv6 needs slirp4netns --enable-ipv6".to_owned()
            }),
            (_, Some(wanted)) if wanted.is_ipv4() == host.is_ipv4() => Ok(wanted),
            (IpAddr::V4(_), Some(_)) | (IpAddr::V6(_), _) => {
                Err("bad arguments.guest_addr: host_addr is of the other address family".to_owned())
            }
        }
    }
}

/// An address. The empty text is none.
fn address(arguments: &Map<String, Value>, name: &str) -> Result<Option<IpAddr>, String> {
    match arguments.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => {
            let address = value.as_str().and_then(|text| text.parse().ok());
            address.map(Some).ok_or_else(|| format!("bad arguments.{name}"))
        }
    }
}

/// One port. JSON has no integers: 8080.0 is one.
fn port(arguments: &Map<String, Value>, name: &str) -> Result<PortRange, String> {
    let number = arguments.get(name).and_then(Value::as_f64).filter(|number| number.fract() == 0.0);
    let port =
        number.filter(|number| (1.0..=65_535.0).contains(number)).map(|number| number as u16);
    port.and_then(|port| PortRange::new(port, port)).ok_or_else(|| format!("bad arguments.{name}"))
}

fn list(answer: &mut Answer<'_>) -> Reply {
    let entries: Vec<Value> = forwards(answer, Call::ForwardList)
        .map_err(|error| format!("list_hostfwd: {error}"))?
        .iter()
        .map(entry)
        .collect();
    Ok(json!({ "entries": entries }))
}

fn entry(forward: &Forwarded) -> Value {
    let Spec { host, host_ports, guest, guest_ports, protocol } = &forward.spec;
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    json!({
        "id": forward.id,
        "proto": match protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        },
        "host_addr": host.as_ref().map_or(any, |host| host.address),
        "host_port": host_ports.first(),
        "guest_addr": guest,
        "guest_port": guest_ports.first(),
    })
}

fn remove(arguments: &Map<String, Value>, answer: &mut Answer<'_>) -> Reply {
    let failed = |error: ApiError| format!("remove_hostfwd: {error}");
    let id = arguments.get("id").and_then(Value::as_f64);
    let all = forwards(answer, Call::ForwardList).map_err(failed)?;
    let wanted = all.into_iter().find(|forward| id == Some(f64::from(forward.id)));
    let Some(wanted) = wanted else {
        return Err("bad request: remove_hostfwd: bad arguments.id".to_owned());
    };
    forwards(answer, Call::ForwardRemove(vec![wanted.spec])).map_err(failed)?;
    Ok(json!({}))
}

/// What a call about forwards comes to.
fn forwards(answer: &mut Answer<'_>, call: Call) -> Result<Vec<Forwarded>, ApiError> {
    let value = answer(call)?;
    let forwards = serde_json::from_value::<Forwards>(value);
    forwards
        .map(|forwards| forwards.forwards)
        .map_err(|error| ApiError::new(crate::api::message::ErrorCode::Internal, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::protocol::Outcome;
    use crate::forwards::Direction;

    /// The forwards in force, as the control thread keeps them. Port 99 is somebody else's.
    #[derive(Default)]
    struct Table {
        entries: Vec<(u32, Spec)>,
        last_id: u32,
    }

    impl Table {
        fn answer(&mut self, call: Call) -> Outcome {
            let shown = match call {
                Call::ForwardList => self.entries.clone(),
                Call::ForwardAdd(specs) => {
                    let spec = specs[0].clone();
                    if spec.host_ports.first() == 99 {
                        let code = crate::api::message::ErrorCode::PortInUse;
                        return Err(ApiError::new(code, "port 99/tcp is in use by ncat (pid 7)"));
                    }
                    self.last_id += 1;
                    self.entries.push((self.last_id, spec));
                    self.entries.last().cloned().into_iter().collect()
                }
                Call::ForwardRemove(specs) => {
                    self.entries.retain(|(_, spec)| !specs.contains(spec));
                    self.entries.clone()
                }
                other => panic!("not called for: {}", other.method()),
            };
            let forwards = shown
                .into_iter()
                .map(|(id, spec)| Forwarded {
                    id,
                    direction: Direction::Inward,
                    automatic: false,
                    spec,
                    listening: Vec::new(),
                })
                .collect();
            Ok(serde_json::to_value(Forwards { forwards }).unwrap())
        }

        fn ask(&mut self, request: &str) -> String {
            let guest = Guest { v4: [10, 0, 2, 100].into(), v6: None };
            self.ask_with(guest, request)
        }

        fn ask_with(&mut self, guest: Guest, request: &str) -> String {
            let mut protocol = HostForwards(guest);
            assert!(protocol.is_whole(request.as_bytes()) || request.is_empty(), "{request}");
            let reply =
                protocol.answer(request.as_bytes(), End::OfStream, &mut |call| self.answer(call));
            String::from_utf8(reply).unwrap()
        }
    }

    fn add(arguments: &str) -> String {
        format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#)
    }

    const LIST: &str = r#"{"execute":"list_hostfwd"}"#;

    #[test]
    fn forwards_are_added_listed_and_removed() {
        let mut table = Table::default();
        assert_eq!(table.ask(LIST), r#"{"return":{"entries":[]}}"#);
        let full = r#""proto":"udp","host_addr":"127.0.0.1","host_port":53,"guest_addr":"10.0.2.7","guest_port":5353"#;
        assert_eq!(table.ask(&add(full)), r#"{"return":{"id":1}}"#);
        let short = r#""proto":"tcp","host_port":8080,"guest_port":80"#;
        assert_eq!(table.ask(&add(short)), r#"{"return":{"id":2}}"#);
        let listed: Value = serde_json::from_str(&table.ask(LIST)).unwrap();
        assert_eq!(
            listed,
            json!({"return": {"entries": [
                {"id": 1, "proto": "udp", "host_addr": "127.0.0.1", "host_port": 53,
                 "guest_addr": "10.0.2.7", "guest_port": 5353},
                {"id": 2, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
                 "guest_addr": "10.0.2.100", "guest_port": 80},
            ]}})
        );
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
        assert_eq!(table.ask(remove), r#"{"return":{}}"#);
        assert_eq!(
            table.ask(remove),
            r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#
        );
        assert_eq!(table.entries.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said_in_the_original_s_words_and_changes_nothing() {
        let mut table = Table::default();
        for (request, desc) in [
            ("", "cannot parse JSON"),
            ("hello", "cannot parse JSON"),
            (r#"{"execute":"list_hostfwd",}"#, "cannot parse JSON"),
            ("[]", "a request is a JSON object"),
            ("{}", "no execute found"),
            (r#"{"execute":7}"#, "no execute found"),
            (r#"{"execute":"stop"}"#, "unknown execute"),
            (r#"{"execute":"add_hostfwd"}"#, "add_hostfwd: bad arguments.proto"),
            (r#"{"execute":"add_hostfwd","arguments":[]}"#, "add_hostfwd: bad arguments.proto"),
            (r#"{"execute":"remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
        ] {
            let expected = json!({"error": {"desc": format!("bad request: {desc}")}}).to_string();
            assert_eq!(table.ask(request), expected, "{request}");
        }
        for (arguments, what) in [
            (r#""proto":"sctp","host_port":80,"guest_port":80"#, "bad arguments.proto"),
            (r#""proto":"tcp","guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":0,"guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":65536,"guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":80.5,"guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":-1,"guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":"80","guest_port":80"#, "bad arguments.host_port"),
            (r#""proto":"tcp","host_port":80"#, "bad arguments.guest_port"),
            (
                r#""proto":"tcp","host_addr":"x","host_port":80,"guest_port":80"#,
                "bad arguments.host_addr",
            ),
            (
                r#""proto":"tcp","host_addr":1,"host_port":80,"guest_port":80"#,
                "bad arguments.host_addr",
            ),
            (
                r#""proto":"tcp","host_port":80,"guest_addr":"x","guest_port":80"#,
                "bad arguments.guest_addr",
            ),
        ] {
            let expected =
                json!({"error": {"desc": format!("bad request: add_hostfwd: {what}")}}).to_string();
            assert_eq!(table.ask(&add(arguments)), expected, "{arguments}");
        }
        assert!(table.entries.is_empty());
    }

    #[test]
    fn a_refused_forward_says_why() {
        let mut table = Table::default();
        let failed = "bad request: add_hostfwd: slirp_add_hostfwd failed: ";
        let busy = table.ask(&add(r#""proto":"tcp","host_port":99,"guest_port":80"#));
        assert!(busy.contains(failed) && busy.contains("in use by ncat (pid 7)"), "{busy}");
        let nowhere =
            add(r#""proto":"tcp","host_port":80,"guest_addr":"224.0.0.1","guest_port":80"#);
        let nowhere = table.ask(&nowhere);
        assert!(nowhere.contains("slirp_add_hostfwd failed: malformed forward"), "{nowhere}");
        assert!(table.entries.is_empty());
    }

    #[test]
    fn an_ipv6_host_address_leads_to_the_guest_s_ipv6_address() {
        let mut table = Table::default();
        let both = Guest { v4: [10, 0, 2, 100].into(), v6: Some("fd00::64".parse().unwrap()) };
        let wild = r#""proto":"tcp","host_addr":"::","host_port":8080,"guest_port":80"#;
        assert_eq!(table.ask_with(both, &add(wild)), r#"{"return":{"id":1}}"#);
        let named = r#""proto":"tcp","host_addr":"::1","host_port":8081,"guest_addr":"10.0.2.100","guest_port":80"#;
        assert_eq!(table.ask_with(both, &add(named)), r#"{"return":{"id":2}}"#);
        assert_eq!(table.entries[0].1.to_string(), "[::]:8080:[fd00::64]:80/tcp");
        assert_eq!(table.entries[1].1.to_string(), "[::1]:8081:[fd00::64]:80/tcp");
        let other = r#""proto":"tcp","host_addr":"::1","host_port":8082,"guest_addr":"10.0.2.7","guest_port":80"#;
        assert!(table.ask_with(both, &add(other)).contains("of the other address family"));
        assert!(table.ask(&add(wild)).contains("bad arguments.host_addr: IPv6 needs"));
    }

    #[test]
    fn a_request_is_over_when_it_is_a_whole_value() {
        let protocol = HostForwards(Guest { v4: [10, 0, 2, 100].into(), v6: None });
        for (request, is_whole) in [
            ("", false),
            ("  ", false),
            ("{", false),
            (r#"{"execute":"#, false),
            (r#"{"execute":"list_hostfwd"}"#, true),
            (r#"{"execute":"list_hostfwd"} and more"#, true),
            ("hello", true),
        ] {
            assert_eq!(protocol.is_whole(request.as_bytes()), is_whole, "{request}");
        }
    }
}
