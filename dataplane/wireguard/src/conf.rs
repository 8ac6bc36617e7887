//! Files of wg-quick(8): what is written in one, as a [`Config`], and back.
//!
//! # What is taken
//!
//! Keys in any case, `#` comments, several values per line and a key several times where that means more values
//! (`Address`, `DNS`, `AllowedIPs`). Where it does not, the second one is an error: one of the two is not what was meant.
//!
//! What a file says that does not apply here is not an error, because the file is shared with wg-quick, but told
//! ([`Warning`]): `PreUp`, `PostUp`, `PreDown` and `PostDown` are never run, `FwMark` keeps the tunnel's own datagrams
//! out of the tunnel, which cannot happen to a socket outside of the namespace, and nothing writes to the file, which
//! is what `SaveConfig` asks for.
//!
//! # Secrets
//!
//! An error or a warning names the file, the line and the key, never a value of `PrivateKey` or `PresharedKey`, and
//! never text that may be one: a word that is no key of ours is only repeated if it is too short for a secret.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::config::{Config, Endpoint, Interface, Peer, Table};
use crate::key::{KeyError, PrivateKey, PublicKey};

/// The longest file.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// The most peers of a file.
pub const PEERS_MAX: usize = 4_096;
/// The most networks in `AllowedIPs` of a file, and addresses.
pub const NETWORKS_MAX: usize = 65_536;
/// The most addresses, resolvers and search domains, each.
pub const ADDRESSES_MAX: usize = 64;
/// The smallest MTU: what every IPv4 host must take (RFC 791).
pub const MTU_MIN: u16 = 576;
/// The smallest MTU with IPv6 (RFC 8200, section 5).
pub const MTU_MIN_IPV6: u16 = 1_280;
/// The largest MTU: what, sealed and in IPv4 and UDP, is a packet of 65,535 bytes, rounded to blocks of 16.
pub const MTU_MAX: u16 = 65_472;

/// Numbers of the routing tables that have names everywhere.
const TABLES: [(&str, u32); 3] = [("default", 253), ("main", 254), ("local", 255)];
/// The longest word that is repeated though it is none of ours. A key has 44 characters.
const REPEATED_BYTES_MAX: usize = 20;

/// What a file says.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What is to be done.
    pub config: Config,
    /// What is not, and why.
    pub warnings: Vec<Warning>,
}

/// Something in a file that does not apply here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Counted from 1.
    pub line: usize,
    /// A sentence without an end.
    pub what: String,
}

/// What is wrong with a file. Prints as `FILE:LINE: cause; remedy`, or without the line if it is something that is
/// missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfError {
    /// As the caller named it.
    pub file: String,
    /// Counted from 1; none: the file as a whole.
    pub line: Option<usize>,
    /// What is wrong there.
    pub what: String,
}

impl std::error::Error for ConfError {}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// Whether a device may have this name: what wg-quick takes of a file's name without its `.conf`.
pub fn is_device_name(name: &str) -> bool {
    let is_taken = |b: u8| b.is_ascii_alphanumeric() || b"_=+.-".contains(&b);
    (1..=15).contains(&name.len()) && name.bytes().all(is_taken) && name != "." && name != ".."
}

/// Reads the text of a file. `file` is its name, for errors.
pub fn parse(file: &str, text: &str) -> Result<Parsed, ConfError> {
    let at = |line, what| ConfError { file: file.to_owned(), line, what };
    if text.len() > FILE_BYTES_MAX {
        return Err(at(None, format!("too long: a file has {FILE_BYTES_MAX} bytes at most")));
    }
    let mut parser = Parser::default();
    for (number, line) in text.lines().enumerate() {
        parser.on_line(number + 1, line).map_err(|what| at(Some(number + 1), what))?;
    }
    parser.finish().map_err(|(line, what)| at(line, what))
}

/// What a line belongs to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Section {
    #[default]
    None,
    Interface,
    Peer,
}

/// The interface as far as it was read.
#[derive(Default)]
struct InterfaceDraft {
    once: Once,
    private_key: Option<PrivateKey>,
    addresses: Vec<IpNet>,
    dns: Vec<IpAddr>,
    search: Vec<String>,
    /// With its line.
    mtu: Option<(usize, u16)>,
    listen_port: Option<u16>,
    table: Table,
}

/// A peer as far as it was read.
#[derive(Default)]
struct PeerDraft {
    /// Of its `[Peer]`.
    line: usize,
    once: Once,
    public_key: Option<PublicKey>,
    preshared_key: Option<crate::PresharedKey>,
    endpoint: Option<Endpoint>,
    allowed_ips: Vec<IpNet>,
    persistent_keepalive: Option<Duration>,
}

/// The keys of a section that were there and may not come again.
#[derive(Default)]
struct Once(Vec<&'static str>);

impl Once {
    fn see(&mut self, key: &'static str) -> Result<(), String> {
        if self.0.contains(&key) {
            return Err(format!("a second {key} in this section; keep one of them"));
        }
        self.0.push(key);
        Ok(())
    }
}

#[derive(Default)]
struct Parser {
    section: Section,
    interface: Option<InterfaceDraft>,
    peers: Vec<PeerDraft>,
    networks: usize,
    warnings: Vec<Warning>,
}

impl Parser {
    fn on_line(&mut self, number: usize, line: &str) -> Result<(), String> {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            return Ok(());
        }
        if line.starts_with('[') {
            return self.on_section(number, line);
        }
        let (key, value) = line.split_once('=').ok_or("neither a [section] nor KEY = VALUE")?;
        let (key, value) = (key.trim(), value.trim());
        match self.section {
            Section::None => {
                Err("a line before the first section; the file begins with [Interface]".into())
            }
            Section::Interface => self.on_interface(number, key, value),
            Section::Peer => self.on_peer(number, key, value),
        }
    }

    fn on_section(&mut self, number: usize, line: &str) -> Result<(), String> {
        if line.eq_ignore_ascii_case("[interface]") {
            if self.interface.is_some() {
                return Err("a second [Interface]; a file describes one tunnel".into());
            }
            self.interface = Some(InterfaceDraft::default());
            self.section = Section::Interface;
        } else if line.eq_ignore_ascii_case("[peer]") {
            if self.peers.len() == PEERS_MAX {
                return Err(format!("too many peers; a file has {PEERS_MAX} at most"));
            }
            self.peers.push(PeerDraft { line: number, ..PeerDraft::default() });
            self.section = Section::Peer;
        } else {
            return Err("an unknown section; there are [Interface] and [Peer]".into());
        }
        Ok(())
    }

    fn on_interface(&mut self, line: usize, key: &str, value: &str) -> Result<(), String> {
        let interface = self.interface.as_mut().expect("the section is that of an interface");
        let once = &mut interface.once;
        match key.to_ascii_lowercase().as_str() {
            "privatekey" => {
                once.see("PrivateKey")?;
                let key = value.parse().map_err(|e: KeyError| format!("PrivateKey: {e}"))?;
                interface.private_key = Some(key);
            }
            "address" => {
                let networks = each(value).map(|one| network("Address", one));
                extend("Address", &mut interface.addresses, networks)?;
            }
            "dns" => {
                for one in each(value) {
                    match one.parse() {
                        Ok(ip) => extend("DNS", &mut interface.dns, [Ok(ip)])?,
                        Err(_) => extend("DNS", &mut interface.search, [search_domain(one)])?,
                    }
                }
            }
            "mtu" => {
                once.see("MTU")?;
                interface.mtu = Some((line, mtu(value)?));
            }
            "listenport" => {
                once.see("ListenPort")?;
                interface.listen_port = listen_port(value)?;
            }
            "table" => {
                once.see("Table")?;
                interface.table = table(value)?;
            }
            other => self.on_inapplicable(line, other, key, value)?,
        }
        Ok(())
    }

    /// Keys of `[Interface]` that do nothing here, and those that are none. `name` is `key` in lower case.
    fn on_inapplicable(
        &mut self,
        line: usize,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<(), String> {
        let what = match name {
            "preup" | "postup" | "predown" | "postdown" => {
                format!("{key} is not run: no command of this file ever is")
            }
            "fwmark" if is_off(value) => return Ok(()),
            "fwmark" => {
                "FwMark does nothing: the tunnel's own datagrams leave from outside of the \
                         namespace, and cannot be routed into it"
                    .to_owned()
            }
            "saveconfig" if value.eq_ignore_ascii_case("false") => return Ok(()),
            "saveconfig" => {
                "SaveConfig does nothing: the file is read once and never written".to_owned()
            }
            _ => return Err(unknown(key, "[Interface]", INTERFACE_KEYS)),
        };
        self.warnings.push(Warning { line, what });
        Ok(())
    }

    fn on_peer(&mut self, line: usize, key: &str, value: &str) -> Result<(), String> {
        let peer = self.peers.last_mut().expect("the section is that of a peer");
        match key.to_ascii_lowercase().as_str() {
            "publickey" => {
                peer.once.see("PublicKey")?;
                let key = value.parse().map_err(|e: KeyError| format!("PublicKey: {e}"))?;
                peer.public_key = Some(key);
            }
            "presharedkey" => {
                peer.once.see("PresharedKey")?;
                let key = value.parse().map_err(|e: KeyError| format!("PresharedKey: {e}"))?;
                peer.preshared_key = Some(key);
            }
            "endpoint" => {
                peer.once.see("Endpoint")?;
                peer.endpoint = Some(endpoint(value)?);
            }
            "allowedips" => self.on_allowed_ips(line, value)?,
            "persistentkeepalive" => {
                peer.once.see("PersistentKeepalive")?;
                peer.persistent_keepalive = keepalive(value)?;
            }
            _ => return Err(unknown(key, "[Peer]", PEER_KEYS)),
        }
        Ok(())
    }

    fn on_allowed_ips(&mut self, line: usize, value: &str) -> Result<(), String> {
        let peer = self.peers.last_mut().expect("the section is that of a peer");
        for one in each(value) {
            self.networks += 1;
            if self.networks > NETWORKS_MAX {
                return Err(format!("too many AllowedIPs; a file has {NETWORKS_MAX} at most"));
            }
            let given = network("AllowedIPs", one)?;
            let network = given.trunc();
            if network != given {
                let what = format!("AllowedIPs: {given} is taken as the network {network}");
                self.warnings.push(Warning { line, what });
            }
            if !peer.allowed_ips.contains(&network) {
                peer.allowed_ips.push(network);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Parsed, (Option<usize>, String)> {
        let whole = |what: &str| (None, what.to_owned());
        let draft =
            self.interface.ok_or_else(|| whole("no [Interface]; is this a file of wg-quick?"))?;
        let private_key = draft.private_key.ok_or_else(|| {
            whole("no PrivateKey in [Interface]; write one that `wg genkey` makes into the file")
        })?;
        let has_ipv6 = draft.addresses.iter().any(|net| net.addr().is_ipv6());
        if let Some((line, mtu)) = draft.mtu
            && mtu < MTU_MIN_IPV6
            && has_ipv6
        {
            let what = format!("MTU: {mtu} is below the {MTU_MIN_IPV6} that an IPv6 Address needs");
            return Err((Some(line), what));
        }
        let mut warnings = self.warnings;
        let peers = finish_peers(self.peers, private_key.public(), &mut warnings)?;
        let InterfaceDraft { addresses, dns, search, mtu, listen_port, table, .. } = draft;
        let mtu = mtu.map(|(_, mtu)| mtu);
        let interface = Interface { private_key, addresses, dns, search, mtu, listen_port, table };
        Ok(Parsed { config: Config { interface, peers }, warnings })
    }
}

/// What has to be right among peers.
fn finish_peers(
    drafts: Vec<PeerDraft>,
    own: PublicKey,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Peer>, (Option<usize>, String)> {
    let order: Vec<usize> = drafts.iter().map(|draft| draft.line).collect();
    let mut lines = HashMap::new();
    let mut owners = HashMap::new();
    let mut peers = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let line = draft.line;
        let at = |what| (Some(line), what);
        let public_key = draft.public_key.ok_or_else(|| {
            at("a [Peer] without PublicKey; add that of the other end".to_owned())
        })?;
        if public_key == own {
            let what = "a [Peer] with our own key; its PublicKey is that of the other end";
            return Err(at(what.to_owned()));
        }
        if let Some(first) = lines.insert(public_key, line) {
            return Err(at(format!("the same PublicKey as in the [Peer] of line {first}")));
        }
        for network in &draft.allowed_ips {
            if let Some(first) = owners.insert(*network, line) {
                let what = format!(
                    "AllowedIPs: {network} is in the [Peer] of line {first} too; this one gets it"
                );
                warnings.push(Warning { line, what });
            }
        }
        peers.push(Peer {
            public_key,
            preshared_key: draft.preshared_key,
            endpoint: draft.endpoint,
            allowed_ips: draft.allowed_ips,
            persistent_keepalive: draft.persistent_keepalive,
        });
    }
    // A network has one owner: the last one, as with wg.
    for (peer, line) in peers.iter_mut().zip(order) {
        peer.allowed_ips.retain(|network| owners.get(network) == Some(&line));
    }
    Ok(peers)
}

const INTERFACE_KEYS: &str = "PrivateKey, Address, DNS, MTU, ListenPort and Table";
const PEER_KEYS: &str = "PublicKey, PresharedKey, Endpoint, AllowedIPs and PersistentKeepalive";

fn unknown(key: &str, section: &str, known: &str) -> String {
    let is_word = key.bytes().all(|b| b.is_ascii_alphanumeric());
    let key = match key {
        "" => "a line without a key".to_owned(),
        key if is_word && key.len() <= REPEATED_BYTES_MAX => format!("unknown key {key}"),
        _ => "an unknown key".to_owned(),
    };
    format!("{key}; {section} has {known}")
}

/// The values of a line.
fn each(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|one| !one.is_empty())
}

fn extend<T>(
    key: &str,
    values: &mut Vec<T>,
    further: impl IntoIterator<Item = Result<T, String>>,
) -> Result<(), String> {
    for value in further {
        if values.len() == ADDRESSES_MAX {
            return Err(format!("{key}: too many; there may be {ADDRESSES_MAX}"));
        }
        values.push(value?);
    }
    Ok(())
}

/// An address with the length of its network; without: the address alone.
fn network(key: &str, text: &str) -> Result<IpNet, String> {
    let wrong = || {
        let text = shown(text);
        format!("{key}: {text} is no address; write 10.0.0.2/24 or fd00::2/64, commas in between")
    };
    match text.split_once('/') {
        Some(_) => text.parse().map_err(|_| wrong()),
        None => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| wrong()),
    }
}

/// What was found where no secret belongs, unless it may be one all the same: a key that got into the wrong line.
fn shown(text: &str) -> String {
    let in_keys = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let is_like_key = text.split(|c| !in_keys(c)).any(|word| word.len() > REPEATED_BYTES_MAX);
    if is_like_key || text.len() > 80 {
        return "what is written here".to_owned();
    }
    let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
    format!("\"{}\"", printable.collect::<String>())
}

fn search_domain(text: &str) -> Result<String, String> {
    if is_host_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("DNS: {} is neither an address nor a search domain", shown(text)))
}

/// Letters, digits, hyphens and underscores in parts of 63 at most (RFC 1035, section 2.3.4).
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= 253 && name.split('.').all(is_label)
}

fn mtu(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(mtu @ MTU_MIN..=MTU_MAX) => Ok(mtu),
        Ok(_) | Err(_) => Err(format!("MTU: write a number of bytes, {MTU_MIN} to {MTU_MAX}")),
    }
}

fn listen_port(value: &str) -> Result<Option<u16>, String> {
    match value.parse() {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err("ListenPort: write a port, 0 to 65535; 0: the kernel chooses".into()),
    }
}

fn table(value: &str) -> Result<Table, String> {
    if value.eq_ignore_ascii_case("auto") {
        return Ok(Table::Auto);
    }
    if value.eq_ignore_ascii_case("off") {
        return Ok(Table::Off);
    }
    if let Some((_, number)) = TABLES.iter().find(|(name, _)| *name == value) {
        return Ok(Table::Number(*number));
    }
    match number(value) {
        Some(table) if table > 0 => Ok(Table::Number(table)),
        Some(_) | None => Err("Table: write auto, off, main or the number of a table".into()),
    }
}

fn keepalive(value: &str) -> Result<Option<Duration>, String> {
    if is_off(value) {
        return Ok(None);
    }
    match value.parse::<u16>() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
        Err(_) => Err("PersistentKeepalive: write off, or seconds from 1 to 65535".into()),
    }
}

fn is_off(value: &str) -> bool {
    value.eq_ignore_ascii_case("off") || number(value) == Some(0)
}

/// Decimal, or hexadecimal behind `0x`.
fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn endpoint(value: &str) -> Result<Endpoint, String> {
    let wrong = || {
        let value = shown(value);
        format!("Endpoint: {value} is not HOST:PORT, with an IPv6 address in brackets")
    };
    let (host, port) = value.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    if let Ok(address) = value.parse::<SocketAddr>() {
        return Ok(Endpoint::Address(address));
    }
    // What has only digits in its last part was meant as an address.
    let has_letters = |label: &str| !label.bytes().all(|b| b.is_ascii_digit());
    let is_name = is_host_name(host) && host.rsplit('.').next().is_some_and(has_letters);
    if is_name { Ok(Endpoint::Name(host.to_owned(), port)) } else { Err(wrong()) }
}

/// The text of a file that says the same. It holds the secrets.
pub fn write(config: &Config) -> Zeroizing<String> {
    // Long enough that it is not moved, which would leave a copy behind.
    let networks: usize = config.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let bytes = 4_096 + 512 * config.peers.len() + 64 * networks;
    let mut text = Zeroizing::new(String::with_capacity(bytes));
    write_to(&mut text, config).expect("a string takes what is written to it");
    text
}

fn write_to(out: &mut String, config: &Config) -> fmt::Result {
    let Interface { private_key, addresses, dns, search, mtu, listen_port, table } =
        &config.interface;
    writeln!(out, "[Interface]\nPrivateKey = {}", *private_key.to_base64())?;
    write_list(out, "Address", addresses)?;
    write_list(out, "DNS", dns)?;
    write_list(out, "DNS", search)?;
    if let Some(mtu) = mtu {
        writeln!(out, "MTU = {mtu}")?;
    }
    if let Some(port) = listen_port {
        writeln!(out, "ListenPort = {port}")?;
    }
    match table {
        Table::Auto => {}
        Table::Off => writeln!(out, "Table = off")?,
        Table::Number(number) => writeln!(out, "Table = {number}")?,
    }
    config.peers.iter().try_for_each(|peer| write_peer(out, peer))
}

fn write_peer(out: &mut String, peer: &Peer) -> fmt::Result {
    let Peer { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive } = peer;
    writeln!(out, "\n[Peer]\nPublicKey = {public_key}")?;
    if let Some(key) = preshared_key {
        writeln!(out, "PresharedKey = {}", *key.to_base64())?;
    }
    if let Some(endpoint) = endpoint {
        writeln!(out, "Endpoint = {endpoint}")?;
    }
    write_list(out, "AllowedIPs", allowed_ips)?;
    if let Some(interval) = persistent_keepalive {
        writeln!(out, "PersistentKeepalive = {}", interval.as_secs())?;
    }
    Ok(())
}

fn write_list<T: fmt::Display>(out: &mut String, key: &str, values: &[T]) -> fmt::Result {
    for (n, value) in values.iter().enumerate() {
        let before = if n == 0 { format!("{key} = ") } else { ", ".to_owned() };
        write!(out, "{before}{value}")?;
    }
    if values.is_empty() { Ok(()) } else { writeln!(out) }
}

#[cfg(test)]
mod tests;
