//! `--vnet` of `usernet run` and `create`: a namespace that is a member of networks.

use std::ffi::OsString;
use std::net::IpAddr;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use usernet_wireguard::PrivateKey;

use super::gateway::Secret;
use super::link::LinkNetworks;
use super::network::{Origin, check_member_name, check_network_name, listed, member_name_like};
use super::protocol::Candidate;
use super::store::{Known, Place, Store};
use super::terms::{Reach, Terms};
use super::token::{Joined, JoinedPlace, User};
use super::{keys, peer};
use crate::api::{Client, Status};
use crate::cli::error::Error;
use crate::cli::instance::{Claim, pid_namespace};
use crate::cli::process::Process;

/// How long a gateway is waited for before the command is started all the same. A message that is lost is sent again
/// after 5 s; that one and its answer are lost is rare.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether it has answered.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The networks that a namespace is to be in.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct VnetArgs {
    /// Be a member of this virtual network, and reach nothing else unless the network leads out; may be given several
    /// times. The address may have a prefix length, which says what is routed into the network
    #[arg(long = "vnet", value_name = "NETWORK[,address=ADDRESS[/PREFIX]][,name=NAME]")]
    #[arg(help_heading = "Network options")]
    wanted: Vec<Wanted>,
}

/// One `--vnet`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    network: String,
    addresses: Vec<WantedAddress>,
    name: Option<String>,
}

/// An address, and how much of the network is routed into it; none: all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WantedAddress {
    address: IpAddr,
    prefix: Option<u8>,
}

impl FromStr for WantedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self { address: net.addr(), prefix: Some(net.prefix_len()) });
        }
        let address = text.parse().map_err(|_| format!("`{text}` is no address"))?;
        Ok(Self { address, prefix: None })
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let network = parts.next().unwrap_or_default().to_owned();
        check_network_name(&network)?;
        let mut wanted = Self { network, addresses: Vec::new(), name: None };
        for part in parts {
            match part.split_once('=') {
                Some(("address", address)) => wanted.addresses.push(address.parse()?),
                Some(("name", name)) => {
                    check_member_name(name)?;
                    wanted.name = Some(name.to_owned());
                }
                Some(_) | None => {
                    return Err(format!("`{part}` is neither address=ADDRESS nor name=NAME"));
                }
            }
        }
        Ok(wanted)
    }
}

impl VnetArgs {
    /// Whether there are any.
    fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// What is wrong whatever the networks are.
    fn check(&self) -> Result<(), Error> {
        for (at, wanted) in self.wanted.iter().enumerate() {
            if self.wanted[..at].iter().any(|other| other.network == wanted.network) {
                return Err(Error::Usage(format!(
                    "--vnet {} is given twice: a namespace is one member of a network",
                    wanted.network
                )));
            }
        }
        Ok(())
    }
}

/// A namespace's memberships: files for its daemon, which are removed with this.
#[derive(Default)]
pub(crate) struct Memberships {
    files: Vec<Secret>,
    link: Option<LinkNetworks>,
    /// Networks, and where their gateways are.
    gateways: Vec<(String, String)>,
}

/// One of them.
struct Membership {
    terms: Terms,
    private_key: PrivateKey,
    addresses: Vec<IpNet>,
}

impl Memberships {
    /// Joins the networks, for as long as `owner` runs.
    pub(crate) fn join(args: &VnetArgs, claim: &Claim, owner: Process) -> Result<Self, Error> {
        if args.is_empty() {
            return Ok(Self::default());
        }
        args.check()?;
        let store = Store::open()?;
        let mut joined = Vec::new();
        for wanted in &args.wanted {
            joined.push(match store.find(&wanted.network)? {
                Known::Own(_) => join_own(&store, wanted, claim, owner)?,
                Known::Joined(_) => {
                    join_by_token(&store.place(&wanted.network), wanted, claim, owner)?
                }
            });
        }
        check_apart(&joined)?;
        // Names that a network does not know are asked of the next one only if it does not lead out: those that do
        // come last. One way out is enough: the first one is it.
        joined.sort_by_key(|membership| membership.terms.internet);
        let way_out = joined.iter().position(|membership| membership.terms.internet);
        let file = |(at, membership): (usize, &Membership)| {
            let reach = if Some(at) == way_out { membership.terms.reach() } else { Reach::Network };
            let Membership { terms, private_key, addresses } = membership;
            let path = claim.path(&format!("{}.conf", terms.network));
            Secret::write(path, &terms.conf(private_key, addresses, reach))
        };
        let files = joined.iter().enumerate().map(file).collect::<Result<_, _>>()?;
        let networks: Vec<IpNet> = joined.iter().flat_map(|m| m.addresses.clone()).collect();
        let gateways = joined.into_iter().map(|m| (m.terms.network, m.terms.endpoint)).collect();
        Ok(Self { files, link: Some(LinkNetworks::beside(&networks)?), gateways })
    }

    /// Waits until the gateways have answered the daemon; says which have not. They may do so later.
    pub(crate) fn await_gateways(&self, claim: &Claim) {
        let started = Instant::now();
        let mut silent = self.silent(claim);
        while !silent.is_empty() && started.elapsed() < ANSWER_PATIENCE {
            thread::sleep(LOOK_EVERY);
            silent = self.silent(claim);
        }
        for (network, endpoint) in silent {
            eprintln!(
                "usernet: network `{network}`: its gateway does not answer at {endpoint}\n  \
                 cause: it does not run or UDP does not get there; or it does not know this member's key (any more); \
                 or a clock was set back since the last time"
            );
        }
    }

    /// Those that the daemon has not agreed on keys with. A daemon that cannot be asked is somebody else's matter.
    fn silent(&self, claim: &Claim) -> Vec<&(String, String)> {
        if self.gateways.is_empty() {
            return Vec::new();
        }
        let status = Client::connect(claim.api_socket()).and_then(|mut client| client.status());
        let Ok(Status { tunnels, .. }) = status else { return Vec::new() };
        let has_answered = |network: &str| {
            let tunnel = tunnels.iter().find(|tunnel| tunnel.name == network);
            tunnel.is_some_and(|tunnel| tunnel.peers.iter().any(|p| p.handshake_age_ms.is_some()))
        };
        self.gateways.iter().filter(|(network, _)| !has_answered(network)).collect()
    }

    /// What the daemon is told beside what the user says.
    pub(crate) fn args(&self, users: &[OsString]) -> Vec<OsString> {
        let file = |secret: &Secret| [OsString::from("--wireguard"), secret.0.clone().into()];
        let mut args: Vec<OsString> = self.files.iter().flat_map(file).collect();
        let Some(link) = &self.link else { return args };
        let is_users = |own: &OsString| {
            let name = |arg: &OsString| arg.to_string_lossy().split('=').next().map(str::to_owned);
            let is_ipv6 = name(own).as_deref() == Some("--cidr6");
            users.iter().any(|arg| name(arg) == name(own) || is_ipv6 && arg == "--no-ipv6")
        };
        let isolated = OsString::from("--isolated");
        args.extend(link.args().into_iter().chain([isolated]).filter(|arg| !is_users(arg)));
        args
    }
}

/// What a packet is for has to be clear.
fn check_apart(joined: &[Membership]) -> Result<(), Error> {
    for (at, one) in joined.iter().enumerate() {
        for other in &joined[..at] {
            let both =
                one.addresses.iter().flat_map(|a| other.addresses.iter().map(move |b| (a, b)));
            for (a, b) in both {
                if super::network::overlap(a.trunc(), b.trunc()) {
                    return Err(Error::Usage(format!(
                        "the networks {} ({}) and {} ({}) have addresses in common: a namespace cannot be in both",
                        other.terms.network,
                        b.trunc(),
                        one.terms.network,
                        a.trunc()
                    )));
                }
            }
        }
    }
    Ok(())
}

fn join_own(
    store: &Store,
    wanted: &Wanted,
    claim: &Claim,
    owner: Process,
) -> Result<Membership, Error> {
    let private_key = keys::generate()?;
    let candidate = Candidate {
        name: wanted.name.clone().unwrap_or_else(|| member_name_like(&claim.name)),
        any_name: wanted.name.is_none(),
        addresses: wanted.addresses.iter().map(|wanted| wanted.address).collect(),
        public_key: private_key.public(),
        origin: Origin::Namespace { owner, instance: claim.name.clone() },
    };
    let (terms, members) = peer::admit(store, &wanted.network, vec![candidate])?;
    let addresses = routed(&terms, &members[0].addresses, wanted)?;
    Ok(Membership { terms, private_key, addresses })
}

/// The addresses, each with as much of the network as is wanted.
fn routed(terms: &Terms, addresses: &[IpAddr], wanted: &Wanted) -> Result<Vec<IpNet>, Error> {
    let narrowed = |net: IpNet| {
        let own = wanted.addresses.iter().find(|wanted| wanted.address == net.addr());
        let Some(prefix) = own.and_then(|own| own.prefix) else { return Ok(net) };
        IpNet::new(net.addr(), prefix).map_err(|_| {
            Error::Usage(format!("{}/{prefix} has a prefix length that there is not", net.addr()))
        })
    };
    terms.with_prefixes(addresses).into_iter().map(narrowed).collect()
}

fn join_by_token(
    place: &Place,
    wanted: &Wanted,
    claim: &Claim,
    owner: Process,
) -> Result<Membership, Error> {
    let _alone = place.lock()?;
    let Known::Joined(mut joined) = place.load()? else {
        return Err(Error::Usage(format!("`{}` was changed meanwhile: try again", wanted.network)));
    };
    let chosen = choose(&mut joined, wanted)?;
    chosen.user =
        Some(User { owner, pid_namespace: pid_namespace(), instance: claim.name.clone() });
    let identity = chosen.identity.clone();
    place.save_joined(&joined)?;
    let addresses = routed(&joined.terms, &identity.addresses, wanted)?;
    Ok(Membership { terms: joined.terms, private_key: identity.private_key, addresses })
}

/// An identity that nobody uses, and that is the one that is wanted if one is.
fn choose<'a>(joined: &'a mut Joined, wanted: &Wanted) -> Result<&'a mut JoinedPlace, Error> {
    let refused = |reason| Error::Vnet { network: wanted.network.clone(), reason };
    let is_wanted = |place: &JoinedPlace| {
        let has_name =
            wanted.name.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(&place.identity.name));
        let has = |wanted: &WantedAddress| place.identity.addresses.contains(&wanted.address);
        has_name && wanted.addresses.iter().all(has)
    };
    let used: Vec<String> = joined
        .places
        .iter()
        .filter(|place| is_wanted(place) && place.is_used())
        .filter_map(|place| {
            Some(format!("{} by {}", place.identity.name, place.user.as_ref()?.instance))
        })
        .collect();
    if used.is_empty() && !joined.places.iter().any(is_wanted) {
        let there = joined.places.iter().map(|place| {
            format!("{} ({})", place.identity.name, listed(&place.identity.addresses))
        });
        let there = there.collect::<Vec<_>>().join(", ");
        return Err(refused(format!(
            "its gateway is on another host, and the token is for {there} only"
        )));
    }
    let free = joined.places.iter_mut().find(|place| is_wanted(place) && !place.is_used());
    free.ok_or_else(|| refused(format!("all that its token is for is in use: {}", used.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::network;
    use super::super::token::{Identity, Token};
    use super::*;

    fn wanted(text: &str) -> Wanted {
        text.parse().unwrap()
    }

    #[test]
    fn a_wish_is_read() {
        let all = wanted("my-network,address=10.0.0.2/24,name=server,address=fd00::2");
        assert_eq!(all.network, "my-network");
        assert_eq!(all.name.as_deref(), Some("server"));
        let v4 = WantedAddress { address: "10.0.0.2".parse().unwrap(), prefix: Some(24) };
        let v6 = WantedAddress { address: "fd00::2".parse().unwrap(), prefix: None };
        assert_eq!(all.addresses, [v4, v6]);
        for text in ["", "My", "a,address=x", "a,b", "a,name=-", "a,address=10.0.0.2/33", "a,"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    fn joined() -> Joined {
        let identity = |name: &str, address: &str, key| Identity {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            private_key: PrivateKey::from_bytes([key; 32]),
        };
        let terms = Terms::of(&network(), "192.0.2.1:51820".into());
        let identities = vec![identity("b", "10.0.0.2", 1), identity("b-2", "10.0.0.3", 2)];
        Joined::of(Token { terms, identities })
    }

    #[test]
    fn identities_are_used_by_one_at_a_time() {
        let mut joined = joined();
        let owner = Process::current().unwrap();
        let user = || User { owner, pid_namespace: pid_namespace(), instance: "web".into() };
        let any = wanted("my-network");
        for name in ["b", "b-2"] {
            let chosen = choose(&mut joined, &any).unwrap();
            assert_eq!(chosen.identity.name, name);
            chosen.user = Some(user());
        }
        let told = choose(&mut joined, &any).unwrap_err().to_string();
        assert!(told.contains("in use: b by web, b-2 by web"), "{told}");
        let ended = Process { start_ticks: owner.start_ticks.wrapping_sub(1), ..owner };
        joined.places[1].user = Some(User { owner: ended, ..user() });
        assert_eq!(choose(&mut joined, &any).unwrap().identity.name, "b-2");
    }

    #[test]
    fn what_a_token_is_not_for_is_said() {
        let mut joined = joined();
        let told = choose(&mut joined, &wanted("my-network,name=c")).unwrap_err().to_string();
        assert!(told.contains("for b (10.0.0.2), b-2 (10.0.0.3) only"), "{told}");
        let chosen = choose(&mut joined, &wanted("my-network,address=10.0.0.3/24")).unwrap();
        assert_eq!(chosen.identity.name, "b-2");
    }
}
