//! The command line of pasta, as text: which options there are, and the form in which they are given.
//!
//! [`canonical`](crate::getopt::canonical) has brought the line into one form before clap reads it, so the messages about
//! options that are not there are the C library's. What the values mean is for [`options`](super::options) to say.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use usernet_core::rules::Prefix;

use crate::getopt::{self, GetoptError, Order};
use crate::wireguard::{TunnelFile, network};

const USAGE: &str = "pasta [OPTION]... [COMMAND] [ARGS]...
       pasta [OPTION]... PID
       pasta [OPTION]... --netns [PATH|NAME]";

const PORTS: &str = "\
Ports, for -t, -u, -T and -U; each may be given several times:
  none                   nothing
  auto                   whatever is listened on at the other end, as it comes and goes (the default)
  all                    the same
  ~25,~8000-8100         the same, without these
  22  22,25  22-80       these ports
  22:23  22-80:122-180   these ports, to other ones
  80:192.0.2.5/8080      this port, to one of the guest's addresses
  22-80,~25              a range without some ports of it
  192.0.2.1/22           on one of this host's addresses
  192.0.2.1%eth0/22      and on one interface; %eth0/22: on any address

Exit status: that of the command; 0 when the network is there and we are in the background; 1 if it could not be made.";

/// What is beyond pasta.
const OURS: &str = "Options of usernetd";

/// Network for a network namespace, without privileges: usernetd in the place of pasta.
///
/// Without PID or --netns, runs the command, or a shell, in a new user and network namespace that is connected.
#[derive(Clone, Debug, Default, Parser, PartialEq, Eq)]
#[command(
    name = "pasta", override_usage = USAGE, after_help = PORTS, no_binary_name = true,
    args_override_self = true, disable_help_flag = true, disable_version_flag = true
)]
pub struct Grammar {
    /// Tell more, and keep standard error
    #[arg(short, long)]
    pub debug: bool,
    /// Tell everything
    #[arg(long)]
    pub trace: bool,
    /// Tell only what goes wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Log to standard error, while it is there: the default
    #[arg(short = 'e', long)]
    pub stderr: bool,
    /// Log to this file only
    #[arg(short, long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,
    /// The largest size of the log file [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    pub log_size: Option<String>,
    /// Whom to become if started as root [default: nobody]
    #[arg(long, value_name = "UID[:GID]|LOGIN[:GROUP]")]
    pub runas: Option<String>,
    /// Print this and exit
    #[arg(short, long)]
    pub help: bool,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
    /// Write every frame to this file
    #[arg(short, long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Write our process id to this file
    #[arg(short = 'P', long = "pid", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The interface's MTU, told by DHCP and NDP too [default: 65520]; 0: the kernel's, and not told
    #[arg(short, long, value_name = "MTU")]
    pub mtu: Option<String>,
    /// The namespace's address, one per family, with /LENGTH if it is not this host's [default: those of this host]
    #[arg(short, long, value_name = "ADDR")]
    pub address: Vec<String>,
    /// IPv4 netmask, dotted or in bits [default: that of the address on this host]
    #[arg(short, long, value_name = "MASK")]
    pub netmask: Vec<String>,
    /// Our own Ethernet address on the link [default: 9a:55:9a:55:9a:55]
    #[arg(short = 'M', long, value_name = "ADDR")]
    pub mac_addr: Option<String>,
    /// The gateway, one per family [default: those of this host]
    #[arg(short, long, value_name = "ADDR")]
    pub gateway: Vec<String>,
    /// Take addresses and routes from this interface [default: that of the default route]
    #[arg(short, long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Connect from this address, one per family
    #[arg(short, long, value_name = "ADDR")]
    pub outbound: Vec<String>,
    /// Connect by this interface, and take IPv4 addresses from it
    #[arg(long, value_name = "NAME")]
    pub outbound_if4: Option<String>,
    /// The same for IPv6
    #[arg(long, value_name = "NAME")]
    pub outbound_if6: Option<String>,
    /// Tell this resolver by --dhcp-dns; none: no resolver [default: those of this host]
    #[arg(short = 'D', long, value_name = "ADDR")]
    pub dns: Vec<String>,
    /// Tell these domains by --dhcp-search, in place of this host's; none: no domain
    #[arg(short = 'S', long, value_name = "LIST")]
    pub search: Vec<String>,
    /// Give the namespace this name by DHCP
    #[arg(short = 'H', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give the namespace this full name by DHCP and DHCPv6
    #[arg(long, value_name = "NAME")]
    pub fqdn: Option<String>,
    /// Tell resolvers by DHCP, DHCPv6 and NDP
    #[arg(long)]
    pub dhcp_dns: bool,
    /// Tell search domains by DHCP, DHCPv6 and NDP
    #[arg(long)]
    pub dhcp_search: bool,
    /// For virtual machines only: not ours
    #[arg(long, hide = true)]
    pub no_dhcp_dns: bool,
    /// For virtual machines only: not ours
    #[arg(long, hide = true)]
    pub no_dhcp_search: bool,
    /// An address that means this host's loopback, one per family; none: no address [default: the gateways]
    #[arg(long, value_name = "ADDR")]
    pub map_host_loopback: Vec<String>,
    /// An address that means this host's own address, one per family; none: no address
    #[arg(long, value_name = "ADDR")]
    pub map_guest_addr: Vec<String>,
    /// An address that answers DNS queries, one per family
    #[arg(long, value_name = "ADDR")]
    pub dns_forward: Vec<String>,
    /// The resolver that these queries go to, one per family [default: those of this host]
    #[arg(long, value_name = "ADDR")]
    pub dns_host: Vec<String>,
    /// Drop TCP
    #[arg(long)]
    pub no_tcp: bool,
    /// Drop UDP
    #[arg(long)]
    pub no_udp: bool,
    /// Drop pings
    #[arg(long)]
    pub no_icmp: bool,
    /// Do not answer DHCP
    #[arg(long)]
    pub no_dhcp: bool,
    /// Do not answer NDP, router solicitations included
    #[arg(long)]
    pub no_ndp: bool,
    /// Do not answer DHCPv6
    #[arg(long)]
    pub no_dhcpv6: bool,
    /// Do not advertise a router
    #[arg(long)]
    pub no_ra: bool,
    /// Listen on addresses that this host does not have yet
    #[arg(long)]
    pub freebind: bool,
    /// The gateway does not mean this host's loopback
    #[arg(long, overrides_with = "map_gw")]
    pub no_map_gw: bool,
    /// It does: the default
    #[arg(long, overrides_with = "no_map_gw")]
    pub map_gw: bool,
    /// No IPv6
    #[arg(short = '4', long)]
    pub ipv4_only: bool,
    /// No IPv4
    #[arg(short = '6', long)]
    pub ipv6_only: bool,
    /// TCP ports of this host that lead to the namespace
    #[arg(short = 't', long, value_name = "SPEC")]
    pub tcp_ports: Vec<String>,
    /// UDP ports of this host that lead to the namespace
    #[arg(short = 'u', long, value_name = "SPEC")]
    pub udp_ports: Vec<String>,
    /// TCP ports of the namespace that lead to this host
    #[arg(short = 'T', long, value_name = "SPEC")]
    pub tcp_ns: Vec<String>,
    /// UDP ports of the namespace that lead to this host
    #[arg(short = 'U', long, value_name = "SPEC")]
    pub udp_ns: Vec<String>,
    /// Clients on this host's loopback reach the namespace's loopback, not its address
    #[arg(long)]
    pub host_lo_to_ns_lo: bool,
    /// The interface's name in the namespace [default: that of this host's interface]
    #[arg(short = 'I', long, value_name = "NAME")]
    pub ns_ifname: Option<String>,
    /// The user namespace to join
    #[arg(long, value_name = "PATH")]
    pub userns: Option<PathBuf>,
    /// The network namespace to join
    #[arg(long, value_name = "PATH|NAME")]
    pub netns: Option<PathBuf>,
    /// Join no user namespace
    #[arg(long)]
    pub netns_only: bool,
    /// Do not end with the namespace
    #[arg(long)]
    pub no_netns_quit: bool,
    /// A WireGuard tunnel in the namespace, as a file of wg-quick describes it and is called
    #[arg(long, value_name = "FILE", help_heading = OURS)]
    pub wireguard: Vec<TunnelFile>,
    /// Networks outside of the tunnels
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network, help_heading = OURS)]
    pub wireguard_split: Vec<Prefix>,
    /// Nothing is reached but by tunnels
    #[arg(long, help_heading = OURS)]
    pub isolated: bool,
    /// Set addresses and routes in the namespace
    #[arg(long)]
    pub config_net: bool,
    /// Of the routes set the default route only
    #[arg(long)]
    pub no_copy_routes: bool,
    /// Of the addresses set the first only
    #[arg(long)]
    pub no_copy_addrs: bool,
    /// The interface's Ethernet address [default: a random one]
    #[arg(long, value_name = "ADDR")]
    pub ns_mac_addr: Option<String>,
    /// Clients on this host's loopback come by the interface
    #[arg(long)]
    pub no_splice: bool,
    /// For virtual machines only: not ours
    #[arg(short = 's', long, alias = "socket-path", hide = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// For virtual machines only: not ours
    #[arg(short = 'F', long, hide = true, value_name = "FD")]
    pub fd: Option<String>,
    /// For virtual machines only: not ours
    #[arg(short = '1', long, hide = true)]
    pub one_off: bool,
    /// For virtual machines only: not ours
    #[arg(long, hide = true)]
    pub vhost_user: bool,
    /// For virtual machines only: not ours
    #[arg(long, hide = true)]
    pub print_capabilities: bool,
    /// For virtual machines only: not ours
    #[arg(long, hide = true, value_name = "PATH")]
    pub repair_path: Option<PathBuf>,
    /// PID, or a command and its arguments
    #[arg(hide = true)]
    pub operands: Vec<OsString>,
}

/// A line that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// An option.
    #[error("{0}")]
    Option(#[from] GetoptError),
    /// A value that is no text.
    #[error("{0}")]
    Value(String),
}

impl Grammar {
    /// Reads a line, without the program's name.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, GrammarError> {
        let canonical = getopt::canonical(&Self::command(), args, Order::OptionsFirst)?;
        Self::try_parse_from(canonical).map_err(|error| {
            let told = error.to_string();
            let line = told.lines().next().unwrap_or_default();
            GrammarError::Value(line.strip_prefix("error: ").unwrap_or(line).to_owned())
        })
    }

    /// What `--help` prints.
    pub fn help_text() -> String {
        Self::command().render_help().to_string()
    }

    /// The three lines of `--help` that say how to call us.
    pub fn usage() -> String {
        format!("Usage: {USAGE}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Grammar, String> {
        Grammar::read(line.split_whitespace().map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn podmans_line_is_read() {
        let line = "--config-net -t 127.0.0.1/8080:80 --dns-forward 169.254.1.1 -u none -T none -U none --no-map-gw \
                    --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2";
        let read = read(line).unwrap();
        assert_eq!(read.tcp_ports, ["127.0.0.1/8080:80"]);
        assert_eq!((read.tcp_ns, read.udp_ns), (vec!["none".into()], vec!["none".into()]));
        assert_eq!(read.netns, Some("/run/user/1000/netns/netns-1".into()));
        assert!(read.config_net && read.no_map_gw && read.quiet && !read.map_gw);
    }

    #[test]
    fn a_commands_options_are_its_own() {
        let read = read("-f -- sh -c -q --mtu").unwrap();
        assert_eq!(read.operands, ["sh", "-c", "-q", "--mtu"]);
        assert!(read.foreground && !read.quiet && read.mtu.is_none());
    }

    #[test]
    fn of_an_option_that_is_given_twice_the_last_counts_or_both() {
        let read =
            read("-q -q -m 1500 -m 1400 -a 10.0.2.1 -a fd00::1 --no-map-gw --map-gw").unwrap();
        assert_eq!(read.mtu.as_deref(), Some("1400"));
        assert_eq!(read.address, ["10.0.2.1", "fd00::1"]);
        assert!(read.map_gw && !read.no_map_gw);
    }

    #[test]
    fn an_unknown_option_is_told_as_callers_look_for_it() {
        let told = "unrecognized option '--map-guest-addrs'";
        assert_eq!(read("--map-guest-addrs 1.2.3.4"), Err(told.to_owned()));
    }

    #[test]
    fn help_names_every_option_that_is_ours() {
        let help = Grammar::help_text();
        for arg in Grammar::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
            assert!(help.contains(&format!("--{}", arg.get_long().unwrap())), "{arg}");
        }
        assert!(help.contains(&Grammar::usage()), "{help}");
    }
}
