//! `usernet vnet create`, `start`, `stop` and `rm`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::ExitCode;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::json;

use super::gateway;
use super::keys;
use super::network::{
    MTU_DEFAULT, NETWORK_VERSION, Network, listed, overlap, parse_gateway4, parse_gateway6,
};
use super::protocol::{Request, Response};
use super::store::{Known, Place, Store};
use crate::cli::error::Error;
use crate::cli::output::Output;

/// The smallest MTU of a tunnel with IPv6 (RFC 8200, section 5); it holds for all networks.
const MTU_MIN: i64 = 1_280;
/// The largest: what, sealed, still is a packet.
const MTU_MAX: i64 = 65_472;

/// Makes a network and starts its gateway.
#[derive(Debug, clap::Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub(super) struct CreateArgs {
    /// Name of the network: up to 15 lowercase letters, digits and `-`
    #[arg(value_name = "NAME")]
    name: String,
    /// The gateway's address with the network's prefix length [default: the first 10.N.0.1/24 that is free]
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_gateway4)]
    gateway: Option<Ipv4Net>,
    /// IPv6 too: the network, whose first address is the gateway's, or the gateway's address in it
    #[arg(long, value_name = "CIDR", value_parser = parse_gateway6)]
    ipv6: Option<Ipv6Net>,
    /// The gateway's UDP port on this host [default: one that is free, and stays the same]
    #[arg(long, value_name = "UDP_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    listen: Option<u16>,
    /// Lead the members out of the network too, by this host's sockets
    #[arg(long)]
    internet: bool,
    /// Bytes of IP per packet in the network
    #[arg(long, value_name = "BYTES", default_value_t = MTU_DEFAULT, value_parser = clap::value_parser!(u16).range(MTU_MIN..=MTU_MAX))]
    mtu: u16,
    #[command(flatten)]
    output: Output,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  usernet vnet create my-network --gateway 10.0.0.1/24
  usernet vnet create office --gateway 10.8.0.1/24 --listen 51820 --internet --ipv6 fd12:3456:789a::/64

Exit status: 0; 1 if it could not be made; 2 for a wrong command line.";

/// Starts the gateway of a network that was stopped, or was lost with a reboot.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  usernet vnet start my-network\n\n\
    `usernet run --vnet` and `usernet vnet peer` start it by themselves.\n\n\
    As a systemd user unit:\n  ExecStart=usernet vnet start --foreground my-network")]
pub(super) struct StartArgs {
    /// The network
    #[arg(value_name = "NAME")]
    name: String,
    /// Stay, as the gateway itself, until a signal ends it
    #[arg(long)]
    foreground: bool,
}

/// Ends the gateway of a network; the network is kept.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  usernet vnet stop my-network")]
pub(super) struct StopArgs {
    /// The network
    #[arg(value_name = "NAME")]
    name: String,
}

/// Removes networks, their keys and their peers.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  usernet vnet rm my-network\n  usernet vnet rm --force my-network\n\n\
    Exit status: 0; 1 if one could not be removed; 2 for a wrong command line."
)]
pub(super) struct RemoveArgs {
    /// The networks
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Also while namespaces are in them, which lose the network by that
    #[arg(long, short)]
    force: bool,
}

/// `usernet vnet create`.
pub(super) fn create(args: &CreateArgs) -> Result<ExitCode, Error> {
    let store = Store::open()?;
    let place = store.claim(&args.name)?;
    let made = make(args, &store).and_then(|network| {
        place.save_network(&network)?;
        gateway::start(&place, &args.name)?;
        Ok(network)
    });
    let network = match made {
        Ok(network) => network,
        Err(error) => {
            place.remove().ok();
            return Err(error);
        }
    };
    args.output.print(
        || {
            json!({
                "name": network.name,
                "gateways": network.gateways(),
                "listen_port": network.listen_port,
                "public_key": network.private_key.public().to_string(),
                "internet": network.internet,
            })
        },
        || usage_of(&network),
    );
    Ok(ExitCode::SUCCESS)
}

fn make(args: &CreateArgs, store: &Store) -> Result<Network, Error> {
    let gateway4 = match args.gateway {
        Some(gateway) => gateway,
        None => free_range(store)?,
    };
    Ok(Network {
        version: NETWORK_VERSION,
        name: args.name.clone(),
        gateway4,
        gateway6: args.ipv6,
        listen_port: choose_port(args.listen)?,
        internet: args.internet,
        mtu: args.mtu,
        private_key: keys::generate()?,
        members: Vec::new(),
    })
}

/// One that no other network of this user has: a namespace may be in several.
fn free_range(store: &Store) -> Result<Ipv4Net, Error> {
    let mut taken: Vec<IpNet> = vec!["10.0.2.0/24".parse().expect("a network")];
    for name in store.names() {
        taken.extend(match store.find(&name)? {
            Known::Own(network) => network.gateways(),
            Known::Joined(joined) => joined.terms.gateways,
        });
    }
    let ranges = (0..=u8::MAX).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(10, n, 0, 1), 24).ok());
    let is_free = |range: &Ipv4Net| !taken.iter().any(|&net| overlap(net, (*range).into()));
    ranges.into_iter().find(is_free).ok_or_else(|| {
        Error::Usage("all ranges 10.N.0.0/24 are taken by networks of yours: give --gateway".into())
    })
}

/// The port, which must be free for both families now.
fn choose_port(wanted: Option<u16>) -> Result<u16, Error> {
    let in_use = |error: io::Error| match wanted {
        Some(port) if error.kind() == io::ErrorKind::AddrInUse => Error::Usage(format!(
            "UDP port {port} is in use on this host: give --listen another one"
        )),
        Some(port) => Error::system(format!("cannot listen on UDP port {port}"))(error),
        None => Error::system("cannot listen on a UDP port")(error),
    };
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, wanted.unwrap_or(0))).map_err(in_use)?;
    let port = v4.local_addr().map_err(in_use)?.port();
    drop(v4);
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(in_use(error)),
        // Or there is no IPv6 here.
        Ok(_) | Err(_) => Ok(port),
    }
}

fn usage_of(network: &Network) -> String {
    let name = &network.name;
    let out = if network.internet { ", which leads out too" } else { "" };
    format!(
        "{name}: gateway {}{out}, UDP port {}\n  \
         a namespace in it:  usernet run --vnet {name} -- COMMAND\n  \
         another device:     usernet vnet peer add {name} --name laptop\n  \
         another host:       usernet vnet token {name} --name HOST\n",
        listed(&network.gateways()),
        network.listen_port,
    )
}

/// `usernet vnet start`.
pub(super) fn start(args: &StartArgs) -> Result<ExitCode, Error> {
    let store = Store::open()?;
    if args.foreground {
        return gateway::run(&store, &args.name);
    }
    store.own(&args.name)?;
    gateway::start(&store.place(&args.name), &args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// `usernet vnet stop`.
pub(super) fn stop(args: &StopArgs) -> Result<ExitCode, Error> {
    Store::open()?.own(&args.name)?;
    gateway::stop(&args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// `usernet vnet rm`.
pub(super) fn remove(args: &RemoveArgs) -> Result<ExitCode, Error> {
    let store = Store::open()?;
    for name in &args.names {
        let known = store.find(name);
        // What cannot be read can be removed, if that is meant.
        match known {
            Ok(Known::Own(_)) => remove_own(&store.place(name), name, args.force)?,
            Ok(Known::Joined(joined)) => {
                check_unused(name, joined.users(), args.force)?;
                store.place(name).remove()?;
            }
            Err(Error::System { .. }) if args.force => {
                gateway::stop(name)?;
                store.place(name).remove()?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn remove_own(place: &Place, name: &str, is_forced: bool) -> Result<(), Error> {
    if !is_forced && let Some(Response::Members(members)) = gateway::ask(name, &Request::Show)? {
        let inside = members.into_iter().filter_map(|seen| seen.member.instance());
        check_unused(name, inside.collect(), is_forced)?;
    }
    let alone = place.lock()?;
    gateway::stop(name)?;
    place.remove()?;
    drop(alone);
    Ok(())
}

fn check_unused(network: &str, users: Vec<String>, is_forced: bool) -> Result<(), Error> {
    if is_forced || users.is_empty() {
        return Ok(());
    }
    Err(Error::VnetInUse { network: network.to_owned(), users: users.join(", ") })
}
