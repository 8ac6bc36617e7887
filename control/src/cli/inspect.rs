//! `usernet ls`, `status`, `flows` and `forward`: looking at instances and changing their forwards,
//! by their control sockets.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::error::Error;
use super::instance::{Instance, Registry};
use super::output::{Output, Table, bytes, span};
use crate::api::{
    Client, ClientError, FlowEntry, Flows, Forwards, Network, Status, TunnelPeer, TunnelStatus,
};
use crate::forwards::Direction;
use crate::sandbox::{Policy, Report};
use crate::spec::Spec;

/// Lists the instances.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  usernet ls\n  usernet ls --json | jq -r '.[].name'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: Output,
}

/// Shows what an instance is, and its counters.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  usernet status\n  usernet status web --json")]
pub(crate) struct StatusArgs {
    /// The instance; may be left out when there is only one
    #[arg(value_name = "INSTANCE")]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Lists what is being translated.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  usernet flows\n  usernet flows web --limit 20\n\n\
    The columns are the guest's end, the other end as the guest sees it, and what the host\n\
    sees where that differs; bytes count payload from and to the guest.")]
pub(crate) struct FlowsArgs {
    /// The instance; may be left out when there is only one
    #[arg(value_name = "INSTANCE")]
    name: Option<String>,
    /// List no more than this
    #[arg(long, value_name = "COUNT")]
    limit: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// Lists and changes forwards while they are in use.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FORWARD_EXAMPLES)]
pub(crate) struct ForwardArgs {
    #[command(subcommand)]
    action: ForwardAction,
}

const FORWARD_EXAMPLES: &str = "\
Examples:
  usernet forward ls
  usernet forward add web 8443:443 127.0.0.1:5353:53/udp
  usernet forward rm web 8443:443
  usernet forward add web --outward 5432

With --outward the sides are swapped: ports of the namespace's loopback lead to this host's.

A SPEC is [HOST_ADDR[%IFACE]:]HOST_PORT[-END][:[GUEST_ADDR:]GUEST_PORT[-END]][/tcp|/udp].";

#[derive(Debug, clap::Subcommand)]
enum ForwardAction {
    /// Add forwards: all of them or none
    Add(ForwardChange),
    /// Remove forwards: all of them or none
    Rm(ForwardChange),
    /// List forwards
    Ls(StatusArgs),
}

#[derive(Debug, clap::Args)]
struct ForwardChange {
    /// The instance, unless there is only one, and the forwards
    #[arg(value_name = "INSTANCE] [SPEC", required = true)]
    words: Vec<String>,
    /// Ports of the namespace that lead to this host
    #[arg(long)]
    outward: bool,
    #[command(flatten)]
    output: Output,
}

/// `usernet ls`.
pub(crate) fn list(args: &ListArgs) -> Result<ExitCode, Error> {
    let instances = Registry::open()?.list()?;
    args.output.print(
        || Value::from(instances.iter().map(instance_json).collect::<Vec<_>>()),
        || instance_table(&instances),
    );
    Ok(ExitCode::SUCCESS)
}

fn instance_json(instance: &Instance) -> Value {
    let state = &instance.state;
    json!({
        "name": instance.name,
        "kind": state.kind,
        "pid": state.member.unwrap_or(state.owner).pid,
        "daemon_pid": state.daemon.pid,
        "daemon_alive": state.daemon.is_alive(),
        "netns": state.netns,
        "command": state.command,
        "created_unix": state.created_unix,
        "api_socket": instance.api_socket(),
    })
}

fn instance_table(instances: &[Instance]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(&["NAME", "KIND", "PID", "NETWORK", "AGE", "COMMAND"]);
    for instance in instances {
        let state = &instance.state;
        table.row([
            instance.name.clone(),
            state.kind.as_str().to_owned(),
            state.member.unwrap_or(state.owner).pid.to_string(),
            if state.daemon.is_alive() { "up" } else { "down" }.to_owned(),
            span(now.saturating_sub(state.created_unix).saturating_mul(1_000)),
            state.command.join(" "),
        ]);
    }
    table.to_string()
}

/// `usernet status`.
pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode, Error> {
    let instance = find(args.name.as_deref())?;
    let status = ask(&instance, Client::status)?;
    args.output.print(
        || json!({ "instance": instance_json(&instance), "status": status }),
        || status_text(&instance, &status),
    );
    Ok(ExitCode::SUCCESS)
}

fn status_text(instance: &Instance, status: &Status) -> String {
    let listed = |items: Vec<String>| {
        if items.is_empty() { "none".to_owned() } else { items.join(", ") }
    };
    let lines = [
        ("instance", format!("{} ({})", instance.name, instance.state.kind.as_str())),
        ("usernetd", format!("{}, process {}", status.usernetd, status.pid)),
        ("up for", span(status.uptime_ms)),
        ("namespace", status.netns.clone()),
        ("device", device_text(status)),
        ("workers", status.workers.len().max(1).to_string()),
        ("IPv4", network_text(status.ipv4)),
        ("IPv6", network_text(status.ipv6)),
        ("resolvers", listed(status.resolvers.iter().map(ToString::to_string).collect())),
        ("host loopback", status.host_loopback.clone()),
        ("forwards", status.forwards.to_string()),
        ("sandbox", sandbox_text(&status.sandbox)),
    ];
    let mut text = String::new();
    for (label, value) in lines {
        text.push_str(&format!("{label:<14} {value}\n"));
    }
    for tunnel in &status.tunnels {
        text.push_str(&tunnel_text(tunnel));
    }
    for missing in &status.sandbox.missing {
        text.push_str(&format!("{:<14} {missing}\n", "not confined"));
    }
    for warning in &status.warnings {
        text.push_str(&format!("{:<14} {warning}\n", "warning"));
    }
    text.push_str("\ncounters\n");
    for (name, count) in status.counters.iter().filter(|(_, count)| **count > 0) {
        text.push_str(&format!("{count:>14} {name}\n"));
    }
    for TunnelStatus { name: tunnel, counters, .. } in &status.tunnels {
        for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
            text.push_str(&format!("{count:>14} {tunnel} {name}\n"));
        }
    }
    text
}

/// A tunnel and its peers.
fn tunnel_text(tunnel: &TunnelStatus) -> String {
    let TunnelStatus { name, addresses, listen_port, running, peers, .. } = tunnel;
    let state = if *running { format!("port {listen_port}") } else { "has ended".to_owned() };
    let addresses = addresses.join(" ");
    let mut text = format!("{:<14} {name}, {addresses}, {state}\n", "tunnel");
    for peer in peers {
        let TunnelPeer { public_key, endpoint, handshake_age_ms, .. } = peer;
        let at = endpoint.map_or("nobody knows where".to_owned(), |at| format!("at {at}"));
        let heard = handshake_age_ms
            .map_or("never heard".to_owned(), |age| format!("handshake {} ago", span(age)));
        text.push_str(&format!(
            "{:<14} {public_key} {at}, {heard}, {} from and {} to it\n",
            "  peer",
            bytes(peer.bytes_from_peer),
            bytes(peer.bytes_to_peer),
        ));
    }
    text
}

fn device_text(status: &Status) -> String {
    let Status { tap, mtu, backend, io_uring_denied, .. } = status;
    let text = format!("{tap}, MTU {mtu}, {backend}");
    if io_uring_denied.is_empty() {
        text
    } else {
        format!("{text} (no io_uring: {io_uring_denied})")
    }
}

fn sandbox_text(sandbox: &Report) -> String {
    let parts = [
        (sandbox.empty_root, "empty root"),
        (!sandbox.namespaces.is_empty(), "namespaces"),
        (sandbox.landlock, "Landlock"),
        (sandbox.seccomp, "seccomp"),
    ];
    let parts: Vec<_> = parts.iter().filter(|(is_there, _)| *is_there).map(|p| p.1).collect();
    match sandbox.policy {
        Policy::None => "none".to_owned(),
        Policy::Auto | Policy::Strict => parts.join(", "),
    }
}

fn network_text(network: Option<Network>) -> String {
    let Some(Network { guest, prefix, gateway, dns }) = network else { return "none".into() };
    let dns = dns.map_or(String::new(), |dns| format!(", DNS {dns}"));
    format!("{guest}/{prefix}, gateway {gateway}{dns}")
}

/// `usernet flows`.
pub(crate) fn flows(args: &FlowsArgs) -> Result<ExitCode, Error> {
    let instance = find(args.name.as_deref())?;
    let flows = ask(&instance, |client| client.flows(args.limit))?;
    args.output.print(|| json!(flows), || flow_table(&flows));
    Ok(ExitCode::SUCCESS)
}

fn flow_table(flows: &Flows) -> String {
    let headings =
        ["PROTO", "STATE", "GUEST", "", "REMOTE", "HOST", "FROM-GUEST", "TO-GUEST", "IDLE"];
    let mut table = Table::new(&headings);
    for flow in &flows.flows {
        table.row(flow_row(flow));
    }
    let hidden = (flows.total as usize).saturating_sub(flows.flows.len());
    let rest = if hidden > 0 { format!("and {hidden} more\n") } else { String::new() };
    format!("{table}{rest}")
}

fn flow_row(flow: &FlowEntry) -> [String; 9] {
    let or_star = |address: Option<std::net::SocketAddr>, none: &str| {
        address.map_or_else(|| none.to_owned(), |address| address.to_string())
    };
    [
        flow.kind.clone(),
        flow.state.clone(),
        flow.guest.to_string(),
        if flow.outbound { "->" } else { "<-" }.to_owned(),
        or_star(flow.remote, "*"),
        or_star(flow.host, "-"),
        bytes(flow.bytes_from_guest),
        bytes(flow.bytes_to_guest),
        span(flow.idle_ms),
    ]
}

/// `usernet forward`.
pub(crate) fn forward(args: &ForwardArgs) -> Result<ExitCode, Error> {
    let (instance, forwards, output) = match &args.action {
        ForwardAction::Add(change) => {
            let (instance, specs) = target(change)?;
            let added = ask(&instance, |client| match change.outward {
                true => client.outward_add(specs),
                false => client.forward_add(specs),
            })?;
            (instance, added, change.output)
        }
        ForwardAction::Rm(change) => {
            let (instance, specs) = target(change)?;
            let left = ask(&instance, |client| match change.outward {
                true => client.outward_remove(specs),
                false => client.forward_remove(specs),
            })?;
            (instance, left, change.output)
        }
        ForwardAction::Ls(args) => {
            let instance = find(args.name.as_deref())?;
            let forwards = ask(&instance, Client::forwards)?;
            (instance, forwards, args.output)
        }
    };
    output.print(
        || json!({ "instance": instance.name, "forwards": forwards.forwards }),
        || forward_table(&forwards),
    );
    Ok(ExitCode::SUCCESS)
}

/// The instance and the forwards of a change. No instance can have a name that reads as a forward,
/// so the first word tells by itself which of the two it is.
fn target(change: &ForwardChange) -> Result<(Instance, Vec<Spec>), Error> {
    let parse = |text: &String| match change.outward {
        true => Spec::outward(text),
        false => text.parse(),
    };
    let (name, specs) = match change.words.split_first() {
        Some((first, rest)) if parse(first).is_err() && !rest.is_empty() => {
            (Some(first.as_str()), rest)
        }
        _ => (None, change.words.as_slice()),
    };
    let checked = |text| parse(text).map_err(|error| Error::Usage(format!("`{text}`: {error}")));
    let specs: Vec<Spec> = specs.iter().map(checked).collect::<Result<_, _>>()?;
    Ok((find(name)?, specs))
}

fn forward_table(forwards: &Forwards) -> String {
    let mut table = Table::new(&["ID", "DIRECTION", "FORWARD", "LISTENING"]);
    for forward in &forwards.forwards {
        let listening: Vec<String> = forward.listening.iter().map(ToString::to_string).collect();
        let direction = match (forward.direction, forward.automatic) {
            (Direction::Inward, false) => "inward",
            (Direction::Inward, true) => "inward, automatic",
            (Direction::Outward, false) => "outward",
            (Direction::Outward, true) => "outward, automatic",
        };
        let spec = forward.spec.to_string();
        table.row([forward.id.to_string(), direction.to_owned(), spec, listening.join(" ")]);
    }
    table.to_string()
}

fn find(name: Option<&str>) -> Result<Instance, Error> {
    Registry::open()?.find(name)
}

fn ask<T>(
    instance: &Instance,
    call: impl FnOnce(&mut Client) -> Result<T, ClientError>,
) -> Result<T, Error> {
    Client::connect(instance.api_socket())
        .and_then(|mut client| call(&mut client))
        .map_err(|error| Error::Api { name: instance.name.clone(), message: error.to_string() })
}
