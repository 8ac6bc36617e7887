//! `usernet vnet peer`, `token` and `join`: members that are not namespaces of this host.

use std::io::{self, IsTerminal, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use usernet_wireguard::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::gateway;
use super::keys;
use super::list::{member_json, member_table, members_of};
use super::network::{Member, Network, Origin, check_member_name};
use super::protocol::{Candidate, Request, Response};
use super::store::Store;
use super::terms::Terms;
use super::token::{Identity, Joined, Token};
use crate::cli::error::Error;
use crate::cli::output::{Output, write_line};

/// The most members of one token.
const TOKEN_MEMBERS_MAX: i64 = 256;

/// Devices and other hosts with WireGuard of their own.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PEER_EXAMPLES)]
pub(super) struct PeerCommand {
    #[command(subcommand)]
    action: PeerAction,
}

const PEER_EXAMPLES: &str = "\
Examples:
  usernet vnet peer add my-network --name phone --qr
  usernet vnet peer add my-network --name laptop --endpoint vpn.example.org > my-network.conf
  usernet vnet peer ls my-network
  usernet vnet peer rm my-network laptop";

#[derive(Debug, clap::Subcommand)]
enum PeerAction {
    Add(AddArgs),
    Ls(PeerListArgs),
    Rm(PeerRemoveArgs),
}

/// Lets a device in, and prints its file for wg-quick(8), with its private key: it is written nowhere else.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PEER_EXAMPLES)]
struct AddArgs {
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Its name in the network
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Its address [default: the next free one]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Its public key, if it has one already: then the file is printed without the private one
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
    /// Print the file as a QR code, too; on a terminal that is done anyway
    #[arg(long)]
    qr: bool,
}

/// Lists the members that are not namespaces of this host.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PEER_EXAMPLES)]
struct PeerListArgs {
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    #[command(flatten)]
    output: Output,
}

/// Cuts members off, at once and for good.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PEER_EXAMPLES)]
struct PeerRemoveArgs {
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The members; the name of a token stands for all of its members
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Where the gateway is reached from elsewhere.
#[derive(Clone, Debug, clap::Args)]
struct EndpointArgs {
    /// Where this host is reached by the member [default: the address that this host goes out by]
    #[arg(long, value_name = "HOST[:PORT]")]
    endpoint: Option<String>,
}

/// Prints a token by which another host's namespaces become members.
///
/// The token has the members' private keys in it: whoever has it can be them. `usernet vnet join` reads it from standard
/// input or a file.
#[derive(Debug, clap::Args)]
#[command(after_long_help = TOKEN_EXAMPLES)]
pub(super) struct TokenArgs {
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// A name for the token, and for its members
    #[arg(long, value_name = "NAME")]
    name: String,
    /// How many members the other host can have at a time
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=TOKEN_MEMBERS_MAX))]
    members: u16,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

const TOKEN_EXAMPLES: &str = "\
Examples:
  usernet vnet token my-network --name host-b --members 4 > host-b.token
  usernet vnet token my-network --name host-b | ssh host-b usernet vnet join
  usernet vnet peer rm my-network host-b";

/// Joins a network of another host by its token.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  usernet vnet join host-b.token\n  usernet vnet join < host-b.token\n  \
    usernet run --vnet my-network -- nc server.my-network 12345"
)]
pub(super) struct JoinArgs {
    /// The file with the token; `-`: standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

/// `usernet vnet peer`.
pub(super) fn peer(command: &PeerCommand) -> Result<ExitCode, Error> {
    match &command.action {
        PeerAction::Add(args) => add(args)?,
        PeerAction::Ls(args) => list(args)?,
        PeerAction::Rm(args) => remove(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(args: &AddArgs) -> Result<(), Error> {
    let store = Store::open()?;
    let network = store.own(&args.network)?;
    let endpoint = args.endpoint.of(&network)?;
    let private_key = match args.public_key {
        Some(_) => None,
        None => Some(keys::generate()?),
    };
    let public_key = private_key.as_ref().map(PrivateKey::public).or(args.public_key);
    let candidate = Candidate {
        name: args.name.clone(),
        any_name: false,
        addresses: args.address.clone(),
        public_key: public_key.expect("one of them is there"),
        origin: Origin::Peer,
    };
    let (terms, members) = admit(&store, &network.name, vec![candidate])?;
    let terms = Terms { endpoint, ..terms };
    print_conf(&terms, &members[0], private_key.as_ref(), args.qr);
    Ok(())
}

/// Asks the gateway to let these in; starts it if it does not run.
pub(super) fn admit(
    store: &Store,
    network: &str,
    candidates: Vec<Candidate>,
) -> Result<(Terms, Vec<Member>), Error> {
    let request = Request::Admit(candidates);
    let response = match gateway::ask(network, &request)? {
        Some(response) => Some(response),
        None => {
            gateway::start(&store.place(network), network)?;
            gateway::ask(network, &request)?
        }
    };
    match response {
        Some(Response::Admitted { terms, members }) => Ok((terms, members)),
        Some(Response::Done | Response::Members(_) | Response::Refused(_)) | None => {
            Err(Error::Vnet {
                network: network.to_owned(),
                reason: "its gateway does not answer as it should".to_owned(),
            })
        }
    }
}

/// The file goes to standard output, so that it can be redirected; the QR code to where a person looks.
fn print_conf(terms: &Terms, member: &Member, private_key: Option<&PrivateKey>, is_qr: bool) {
    let addresses = terms.with_prefixes(&member.addresses);
    // What is printed for a key that is theirs has its place left open.
    let stand_in = PrivateKey::from_bytes([0; 32]);
    let key = private_key.unwrap_or(&stand_in);
    let mut text = terms.conf(key, &addresses, terms.reach());
    if private_key.is_none() {
        let line = format!("PrivateKey = {}\n", *stand_in.to_base64());
        text = Zeroizing::new(
            text.replace(&line, "# PrivateKey = the one that belongs to the public key\n"),
        );
    }
    write_line(&text);
    if is_qr || (io::stdout().is_terminal() && private_key.is_some()) {
        match qr(&text) {
            Some(code) => eprintln!("{}", *code),
            None => eprintln!("usernet: too long for a QR code"),
        }
    }
}

/// With light and dark swapped, as on a dark terminal, and a border of its own.
fn qr(text: &str) -> Option<Zeroizing<String>> {
    let code = QrCode::new(text.as_bytes()).ok()?;
    let mut renderer = code.render::<Dense1x2>();
    renderer.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark);
    Some(Zeroizing::new(renderer.quiet_zone(true).build()))
}

impl EndpointArgs {
    /// `HOST:PORT`, of a member's point of view.
    fn of(&self, network: &Network) -> Result<String, Error> {
        let port = network.listen_port;
        match &self.endpoint {
            Some(given) => with_port(given, port).ok_or_else(|| {
                Error::Usage(format!("`{given}` is no HOST[:PORT]; IPv6 addresses are in brackets with a port"))
            }),
            None => own_address().map(|ip| SocketAddr::new(ip, port).to_string()).ok_or_else(|| {
                Error::Usage(
                    "this host has no way out that says where it is reached: give --endpoint HOST".into(),
                )
            }),
        }
    }
}

/// `host`, `host:port`, `1.2.3.4`, `::1`, `[::1]:port`.
fn with_port(given: &str, port: u16) -> Option<String> {
    if let Ok(ip) = given.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, port).to_string());
    }
    if let Ok(address) = given.parse::<SocketAddr>() {
        return Some(address.to_string());
    }
    let (host, port) = match given.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|&port| port > 0)?),
        None => (given, port),
    };
    let is_name = |host: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        (1..=253).contains(&host.len()) && host.bytes().all(is_plain)
    };
    is_name(host).then(|| format!("{host}:{port}"))
}

/// The address that this host's packets to elsewhere leave from. Connecting a UDP socket sends nothing; the addresses
/// are of the ranges for documentation (RFC 5737, RFC 3849).
fn own_address() -> Option<IpAddr> {
    let of = |any: IpAddr, far: &str| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        let own = socket.local_addr().ok()?.ip();
        (!own.is_loopback() && !own.is_unspecified()).then_some(own)
    };
    of(Ipv4Addr::UNSPECIFIED.into(), "192.0.2.254")
        .or_else(|| of(std::net::Ipv6Addr::UNSPECIFIED.into(), "2001:db8::fe"))
}

fn list(args: &PeerListArgs) -> Result<(), Error> {
    let network = Store::open()?.own(&args.network)?;
    let mut members = members_of(&network)?;
    members.retain(|seen| seen.member.instance().is_none());
    args.output
        .print(|| members.iter().map(member_json).collect(), || member_table(&members).to_string());
    Ok(())
}

fn remove(args: &PeerRemoveArgs) -> Result<(), Error> {
    let store = Store::open()?;
    let network = store.own(&args.network)?;
    gateway::start(&store.place(&network.name), &network.name)?;
    for name in &args.names {
        let of_token = network.members.iter().filter(|member| member.is_of_token(name));
        let mut names: Vec<String> = of_token.map(|member| member.name.clone()).collect();
        if names.is_empty() {
            names.push(name.clone());
        }
        for name in names {
            gateway::ask(&network.name, &Request::Remove(name))?;
        }
    }
    Ok(())
}

/// `usernet vnet token`.
pub(super) fn token(args: &TokenArgs) -> Result<ExitCode, Error> {
    check_member_name(&args.name).map_err(Error::Usage)?;
    let store = Store::open()?;
    let network = store.own(&args.network)?;
    let endpoint = args.endpoint.of(&network)?;
    if network.members.iter().any(|member| member.is_of_token(&args.name)) {
        return Err(Error::Usage(format!(
            "there is a token `{0}` already: take another name, or remove its members: usernet vnet peer rm {1} {0}",
            args.name, network.name
        )));
    }
    let private_keys =
        (0..args.members).map(|_| keys::generate()).collect::<Result<Vec<_>, _>>()?;
    let candidate = |key: &PrivateKey| Candidate {
        name: args.name.clone(),
        any_name: args.members > 1,
        addresses: Vec::new(),
        public_key: key.public(),
        origin: Origin::Token { token: args.name.clone() },
    };
    let candidates = private_keys.iter().map(candidate).collect();
    let (terms, members) = admit(&store, &network.name, candidates)?;
    let identity = |(member, private_key): (Member, PrivateKey)| Identity {
        name: member.name,
        addresses: member.addresses,
        private_key,
    };
    let identities = members.into_iter().zip(private_keys).map(identity).collect();
    let token = Token { terms: Terms { endpoint, ..terms }, identities };
    write_line(&token.to_line());
    Ok(ExitCode::SUCCESS)
}

/// `usernet vnet join`.
pub(super) fn join(args: &JoinArgs) -> Result<ExitCode, Error> {
    let text = read_token(&args.file)?;
    let token = Token::from_line(&text).map_err(|error| Error::Usage(error.to_string()))?;
    let store = Store::open()?;
    let name = token.terms.network.clone();
    let place = store.claim(&name)?;
    let joined = Joined::of(token);
    place.save_joined(&joined)?;
    let count = joined.places.len();
    let members = if count == 1 { "one member".to_owned() } else { format!("{count} members") };
    write_line(&format!(
        "{name}: joined, gateway at {}, for {members} at a time\n  usernet run --vnet {name} -- COMMAND",
        joined.terms.endpoint
    ));
    Ok(ExitCode::SUCCESS)
}

fn read_token(file: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = || Error::system(format!("cannot read {}", file.display()));
    let mut text = Zeroizing::new(String::new());
    let most = 2 << 20;
    match file.to_str() {
        Some("-") => io::stdin().lock().take(most).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(most).read_to_string(&mut text)),
    }
    .map_err(failed())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_get_the_gateways_port_unless_they_have_one() {
        let with = |given| with_port(given, 51_820);
        for (given, expected) in [
            ("192.0.2.1", "192.0.2.1:51820"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:51820"),
            ("[2001:db8::1]", "[2001:db8::1]:51820"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("vpn.example.org", "vpn.example.org:51820"),
            ("vpn.example.org:443", "vpn.example.org:443"),
        ] {
            assert_eq!(with(given).as_deref(), Some(expected), "{given}");
        }
        for given in ["", "a b", "host:0", "host:x", "host:1:2", "x\ny"] {
            assert_eq!(with(given), None, "{given}");
        }
    }

    #[test]
    fn a_file_fits_into_a_qr_code() {
        let code = qr(&"x".repeat(600)).unwrap();
        let lines: Vec<_> = code.lines().collect();
        assert!(
            lines.len() > 20
                && lines.iter().all(|line| line.chars().count() >= 2 * lines.len() - 1)
        );
    }
}
