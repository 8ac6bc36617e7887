//! Port specifications: what `-t`, `-u`, `-T` and `-U` say.
//!
//! ```text
//! SPEC  = none | auto | all | [ADDR[%IFACE]/ | %IFACE/] LIST
//! LIST  = ITEM[,ITEM]...
//! ITEM  = A[-B][:[TOADDR/]C[-D]] | ~A[-B]
//! ```
//!
//! An option may be given several times; what its values say together is a [`Ports`]. A list of exclusions alone means
//! every port but these: like `auto`, this follows what is listened on at the other end, which is all that a client
//! can tell apart, and costs no socket for a port that leads nowhere.

use std::net::IpAddr;

use crate::spec::PortRange;

/// The longest specification that is looked at.
const SPEC_BYTES_MAX: usize = 4_096;

/// The most ranges of one option, cut at its exclusions.
const RANGES_MAX: usize = 4_096;

/// Which ports of one protocol are forwarded, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// None.
    None,
    /// Those that are listened on at the other end, without these.
    Follow {
        /// Never forwarded.
        excluded: Vec<PortRange>,
    },
    /// These.
    These(Vec<Mapping>),
}

impl Default for Ports {
    /// `auto`.
    fn default() -> Self {
        Self::Follow { excluded: Vec::new() }
    }
}

/// Ports that lead to other ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Where is listened; none: on all addresses.
    pub(super) address: Option<IpAddr>,
    /// Only what arrives on this interface.
    pub(super) interface: Option<String>,
    /// The ports that are listened on.
    pub(super) ports: PortRange,
    /// Where they lead; none: to the usual address.
    pub(super) to: Option<IpAddr>,
    /// The ports there, as many.
    pub(super) to_ports: PortRange,
    /// Whether ports of it that cannot be had are passed over: it was given as a range.
    pub(super) is_lenient: bool,
}

/// A specification that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortsError {
    /// Something in it.
    #[error(
        "Invalid port specifier {spec}: {what}; the form is [ADDR[%IFACE]/]PORT[-END][:PORT[-END]],... with ~PORT[-END] \
         to leave ports out, or none, auto, all"
    )]
    Malformed {
        /// The specification.
        spec: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A word and ports.
    #[error(
        "Specific ports cannot be specified together with all/none/auto: leave one of them out"
    )]
    Mixed,
    /// Two words that contradict each other.
    #[error(
        "Port forwarding mode '{0}' conflicts with previous mode: give one of none, auto and all"
    )]
    Contradiction(String),
}

impl Ports {
    /// What the values of one option say together; none: it was not given.
    pub(super) fn read<'a>(
        specs: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<Self>, PortsError> {
        let mut all: Option<Self> = None;
        for spec in specs {
            let one = Self::one(spec).map_err(|what| PortsError::Malformed {
                spec: spec.chars().take(64).collect(),
                what,
            })?;
            all = Some(match (all, one) {
                (None, one) => one,
                (Some(Self::These(mut mappings)), Self::These(more)) => {
                    mappings.extend(more);
                    Self::These(mappings)
                }
                (Some(Self::Follow { mut excluded }), Self::Follow { excluded: more }) => {
                    excluded.extend(more);
                    Self::Follow { excluded }
                }
                (Some(Self::None), Self::None) => Self::None,
                (Some(Self::None), Self::Follow { .. })
                | (Some(Self::Follow { .. }), Self::None) => {
                    return Err(PortsError::Contradiction(spec.to_owned()));
                }
                (Some(Self::These(_)), Self::None) => {
                    return Err(PortsError::Contradiction(spec.to_owned()));
                }
                (Some(_), Self::These(_)) | (Some(Self::These(_)), Self::Follow { .. }) => {
                    return Err(PortsError::Mixed);
                }
            });
        }
        if let Some(Self::These(mappings)) = &all
            && mappings.len() > RANGES_MAX
        {
            let spec = format!("with {} ranges", mappings.len());
            return Err(PortsError::Malformed { spec, what: "too many ranges" });
        }
        Ok(all)
    }

    fn one(spec: &str) -> Result<Self, &'static str> {
        match spec {
            "none" => return Ok(Self::None),
            "auto" | "all" => return Ok(Self::default()),
            _ if spec.len() > SPEC_BYTES_MAX => return Err("too long"),
            _ => {}
        }
        let (address, interface, list) = listening(spec)?;
        let mut excluded = Vec::new();
        let mut mapped = Vec::new();
        for item in list.split(',') {
            match item.strip_prefix('~') {
                Some(range) => excluded.push(port_range(range)?),
                // As `auto` with exclusions is written by newer versions.
                None if item == "auto" => {}
                None => mapped.push(mapping(item)?),
            }
        }
        if mapped.is_empty() {
            return match (address, interface) {
                (None, None) => Ok(Self::Follow { excluded }),
                (Some(_), _) | (_, Some(_)) => Err("an address needs ports"),
            };
        }
        let mut mappings = Vec::new();
        for (ports, to, to_ports) in mapped {
            for left in without(ports, &excluded) {
                let ahead = left.first() - ports.first();
                let first = to_ports.first() + ahead;
                let to_ports = PortRange::new(first, first + (left.count() - 1));
                mappings.push(Mapping {
                    address,
                    interface: interface.clone(),
                    ports: left,
                    to,
                    to_ports: to_ports.ok_or("ports are 1 to 65535")?,
                    is_lenient: ports.count() > 1,
                });
            }
        }
        Ok(Self::These(mappings))
    }
}

/// Where is listened, and the rest.
fn listening(spec: &str) -> Result<(Option<IpAddr>, Option<String>, &str), &'static str> {
    let Some((at, list)) = spec.split_once('/') else { return Ok((None, None, spec)) };
    let (address, interface) = match at.split_once('%') {
        None => (at, None),
        Some((address, interface)) => {
            let is_name = (1..=15).contains(&interface.len())
                && !interface
                    .contains(|c: char| c.is_whitespace() || c.is_control() || ":%,".contains(c));
            (
                address,
                Some(interface.to_owned())
                    .filter(|_| is_name)
                    .ok_or("not an interface name")?
                    .into(),
            )
        }
    };
    if interface.is_some() && address.is_empty() {
        return Ok((None, interface, list));
    }
    match self::address(address) {
        Some(ip) if ip.is_multicast() => Err("a multicast address cannot be listened on"),
        Some(ip) => Ok((Some(ip), interface, list)),
        // `80:192.0.2.1/81` has its only slash in the target.
        None if interface.is_none() && at.contains(':') => Ok((None, None, spec)),
        None => Err("not an IP address"),
    }
}

/// An address, an IPv6 one in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bracketed {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// `A[-B][:[TOADDR/]C[-D]]`.
fn mapping(item: &str) -> Result<(PortRange, Option<IpAddr>, PortRange), &'static str> {
    let (from, to) = match item.split_once(':') {
        None => (item, None),
        Some((from, to)) => (from, Some(to)),
    };
    let ports = port_range(from)?;
    let Some(to) = to else { return Ok((ports, None, ports)) };
    let (to_address, to) = match to.rsplit_once('/') {
        None => (None, to),
        Some((text, to)) => (Some(address(text).ok_or("not an IP address")?), to),
    };
    let to_ports = port_range(to)?;
    if to_ports.count() != ports.count() {
        return Err("the two ranges differ in length");
    }
    Ok((ports, to_address, to_ports))
}

fn port_range(text: &str) -> Result<PortRange, &'static str> {
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number).ok_or("ports are 1 to 65535")
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    match (first, last) {
        (0, _) => Err("port 0 cannot be forwarded"),
        (_, _) => PortRange::new(first, last).ok_or("the range ends before it starts"),
    }
}

/// What is left of a range.
pub(super) fn without(range: PortRange, excluded: &[PortRange]) -> Vec<PortRange> {
    let mut left = vec![range];
    for cut in excluded {
        let pieces = left.into_iter().flat_map(|range| {
            let before = cut.first().checked_sub(1).map(|last| last.min(range.last()));
            let after = cut.last().checked_add(1).map(|first| first.max(range.first()));
            [
                before.and_then(|last| PortRange::new(range.first(), last)),
                after.and_then(|first| PortRange::new(first, range.last())),
            ]
        });
        left = pieces.flatten().collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(specs: &[&str]) -> Result<Ports, String> {
        let read = Ports::read(specs.iter().copied());
        read.map(|ports| ports.expect("it was given")).map_err(|error| error.to_string())
    }

    /// The mappings, one word each: `ADDRESS%INTERFACE/PORTS:TO/PORTS`.
    fn mappings(specs: &[&str]) -> Vec<String> {
        let Ports::These(mappings) = read(specs).unwrap() else { panic!("{specs:?}: no mappings") };
        let shown = mappings.iter().map(|m| {
            let address = m.address.map(|a| a.to_string()).unwrap_or_default();
            let interface = m.interface.as_ref().map(|i| format!("%{i}")).unwrap_or_default();
            let to = m.to.map(|to| format!("{to}/")).unwrap_or_default();
            format!("{address}{interface}/{}:{to}{}", m.ports, m.to_ports)
        });
        shown.collect()
    }

    #[test]
    fn every_form_is_understood() {
        for (spec, expected) in [
            ("22", &["/22:22"][..]),
            ("22:23", &["/22:23"]),
            ("22,25", &["/22:22", "/25:25"]),
            ("22-80:122-180", &["/22-80:122-180"]),
            ("192.0.2.1/22", &["192.0.2.1/22:22"]),
            ("192.0.2.1%eth0/22", &["192.0.2.1%eth0/22:22"]),
            ("%eth0/22", &["%eth0/22:22"]),
            ("::1/22:23", &["::1/22:23"]),
            ("[::1]/22:23", &["::1/22:23"]),
            ("fe80::1%eth0/22", &["fe80::1%eth0/22:22"]),
            ("2000-5000,~3000-3010", &["/2000-2999:2000-2999", "/3011-5000:3011-5000"]),
            ("20-30:120-130,~25", &["/20-24:120-124", "/26-30:126-130"]),
            ("192.0.2.1/20-30,~25", &["192.0.2.1/20-24:20-24", "192.0.2.1/26-30:26-30"]),
            ("80:192.0.2.5/8080", &["/80:192.0.2.5/8080"]),
            ("127.0.0.1/80:[fd00::1]/81", &["127.0.0.1/80:fd00::1/81"]),
            ("1-65535,~2-65534", &["/1:1", "/65535:65535"]),
            ("80,~80", &[]),
        ] {
            assert_eq!(mappings(&[spec]), expected, "{spec}");
        }
        assert_eq!(mappings(&["22", "::1/23"]), ["/22:22", "::1/23:23"]);
    }

    #[test]
    fn words_and_exclusions_alone_follow_the_other_end() {
        assert_eq!(read(&["none"]), Ok(Ports::None));
        assert_eq!(read(&["none", "none"]), Ok(Ports::None));
        assert_eq!(read(&["auto"]), Ok(Ports::default()));
        assert_eq!(read(&["all"]), Ok(Ports::default()));
        let range = |first, last| PortRange::new(first, last).unwrap();
        let excluded = vec![range(25, 25), range(8000, 8100)];
        assert_eq!(read(&["~25,~8000-8100"]), Ok(Ports::Follow { excluded: excluded.clone() }));
        assert_eq!(read(&["auto,~25", "~8000-8100"]), Ok(Ports::Follow { excluded }));
        assert_eq!(Ports::read([]), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (specs, told) in [
            (&["70000"][..], "ports are 1 to 65535"),
            (&["0"], "port 0 cannot be forwarded"),
            (&["80:0"], "port 0 cannot be forwarded"),
            (&["80:90:100"], "ports are 1 to 65535"),
            (&["80-70"], "ends before it starts"),
            (&["80-82:90-95"], "differ in length"),
            (&["8080-8090,~8085-8086:9000"], "ports are 1 to 65535"),
            (&["foo/80"], "not an IP address"),
            (&["224.0.0.1/80"], "multicast"),
            (&["127.0.0.1%/80"], "not an interface name"),
            (&["127.0.0.1/~80"], "an address needs ports"),
            (&[""], "ports are 1 to 65535"),
            (&["+80"], "ports are 1 to 65535"),
            (&["80,"], "ports are 1 to 65535"),
            (&["none", "80"], "cannot be specified together"),
            (&["auto", "8080"], "cannot be specified together"),
            (&["80", "auto"], "cannot be specified together"),
            (&["80", "none"], "conflicts with previous mode"),
            (&["auto", "none"], "conflicts with previous mode"),
        ] {
            let error = read(specs).expect_err(&format!("{specs:?}"));
            assert!(error.contains(told), "{specs:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[0-9a-f:./%~,\\[\\]ntoe-]{0,40}") {
            if let Ok(Some(Ports::These(mappings))) = Ports::read([text.as_str()]) {
                for m in mappings {
                    prop_assert_eq!(m.ports.count(), m.to_ports.count());
                }
            }
        }

        #[test]
        fn excluded_ports_are_out_and_all_others_in(
            first in 1u16..200, len in 0u16..100, cuts in prop::collection::vec((1u16..300, 0u16..20), 0..6)
        ) {
            let range = PortRange::new(first, first + len).unwrap();
            let cuts: Vec<_> = cuts.into_iter().filter_map(|(a, n)| PortRange::new(a, a + n)).collect();
            let left: Vec<u16> = without(range, &cuts).into_iter().flat_map(PortRange::iter).collect();
            let expected: Vec<u16> =
                range.iter().filter(|&p| !cuts.iter().any(|c| c.first() <= p && p <= c.last())).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
