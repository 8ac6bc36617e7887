//! `usernet vnet ls`, `show` and `peer ls`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::gateway;
use super::network::{Network, Origin, listed};
use super::protocol::{Request, Response, Seen};
use super::service::now_unix;
use super::store::{Known, Store};
use super::token::Joined;
use crate::cli::error::Error;
use crate::cli::output::{Output, Table, bytes, span};

/// Lists the networks.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  usernet vnet ls\n  usernet vnet ls --json | jq -r '.[].name'"
)]
pub(super) struct ListArgs {
    #[command(flatten)]
    output: Output,
}

/// Shows a network and its members.
#[derive(Debug, clap::Args)]
#[command(after_long_help = SHOW_EXAMPLES)]
pub(super) struct ShowArgs {
    /// The network
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    output: Output,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  usernet vnet show my-network
  usernet vnet show my-network --json

HANDSHAKE is how long ago a member and the gateway agreed on keys, which they do every two minutes
while they speak: `never connected` means not since the gateway was started. Look at the
member's endpoint, at firewalls on the way, and whether both have each other's key.";

/// `usernet vnet ls`.
pub(super) fn list(args: &ListArgs) -> Result<ExitCode, Error> {
    let store = Store::open()?;
    let found: Vec<(String, Known)> = store
        .names()
        .into_iter()
        .map(|name| store.find(&name).map(|known| (name, known)))
        .collect::<Result<_, _>>()?;
    let json = || found.iter().map(|(_, known)| summary_json(known)).collect::<Vec<_>>().into();
    args.output.print(json, || {
        let mut table = Table::new(&["NAME", "GATEWAY", "INTERNET", "STATE", "UDP", "MEMBERS"]);
        for (name, known) in &found {
            table.row(summary_row(name, known));
        }
        table.to_string()
    });
    Ok(ExitCode::SUCCESS)
}

fn summary_json(known: &Known) -> Value {
    match known {
        Known::Own(network) => network_json(network),
        Known::Joined(joined) => joined_json(joined),
    }
}

fn network_json(network: &Network) -> Value {
    json!({
        "name": network.name,
        "kind": "own",
        "gateways": network.gateways(),
        "internet": network.internet,
        "mtu": network.mtu,
        "listen_port": network.listen_port,
        "public_key": network.private_key.public().to_string(),
        "running": gateway::is_running(&network.name),
        "members": network.members.len(),
    })
}

fn joined_json(joined: &Joined) -> Value {
    let terms = &joined.terms;
    json!({
        "name": terms.network,
        "kind": "joined",
        "gateways": terms.gateways,
        "internet": terms.internet,
        "mtu": terms.mtu,
        "endpoint": terms.endpoint,
        "public_key": terms.gateway_key.to_string(),
        "members": joined.places.len(),
    })
}

fn summary_row(name: &str, known: &Known) -> [String; 6] {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    match known {
        Known::Own(network) => [
            name.to_owned(),
            listed(&network.gateways()),
            yes(network.internet),
            if gateway::is_running(name) { "up" } else { "stopped" }.to_owned(),
            network.listen_port.to_string(),
            network.members.len().to_string(),
        ],
        Known::Joined(Joined { terms, places, .. }) => [
            name.to_owned(),
            listed(&terms.gateways),
            yes(terms.internet),
            "joined".to_owned(),
            terms.endpoint.clone(),
            format!("{} of {}", places.iter().filter(|p| p.is_used()).count(), places.len()),
        ],
    }
}

/// `usernet vnet show`.
pub(super) fn show(args: &ShowArgs) -> Result<ExitCode, Error> {
    let store = Store::open()?;
    match store.find(&args.name)? {
        Known::Own(network) => {
            let members = members_of(&network)?;
            args.output.print(
                || {
                    let mut json = network_json(&network);
                    json["members"] = members.iter().map(member_json).collect();
                    json
                },
                || network_text(&network, &members),
            );
        }
        Known::Joined(joined) => args.output.print(
            || {
                let mut json = joined_json(&joined);
                json["members"] = joined.places.iter().map(place_json).collect();
                json
            },
            || joined_text(&joined),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the gateway knows about the members; what is written down if it does not run.
pub(super) fn members_of(network: &Network) -> Result<Vec<Seen>, Error> {
    if let Some(Response::Members(members)) = gateway::ask(&network.name, &Request::Show)? {
        return Ok(members);
    }
    let unseen = |member: &super::network::Member| Seen {
        member: member.clone(),
        endpoint: None,
        handshake_unix: None,
        from_member: 0,
        to_member: 0,
    };
    Ok(network.members.iter().map(unseen).collect())
}

/// A member, for programs.
pub(super) fn member_json(seen: &Seen) -> Value {
    let member = &seen.member;
    json!({
        "name": member.name,
        "addresses": member.addresses,
        "public_key": member.public_key.to_string(),
        "origin": member.origin,
        "since_unix": member.since_unix,
        "endpoint": seen.endpoint,
        "latest_handshake_unix": seen.handshake_unix,
        "bytes_from_member": seen.from_member,
        "bytes_to_member": seen.to_member,
    })
}

/// Members, for people.
pub(super) fn member_table(members: &[Seen]) -> Table {
    let headings = ["NAME", "ADDRESS", "KIND", "ENDPOINT", "HANDSHAKE", "FROM", "TO"];
    let mut table = Table::new(&headings);
    for seen in members {
        let kind = match &seen.member.origin {
            Origin::Namespace { instance, .. } => format!("namespace {instance}"),
            Origin::Token { token } => format!("token {token}"),
            Origin::Peer => seen.member.origin.as_str().to_owned(),
        };
        table.row([
            seen.member.name.clone(),
            listed(&seen.member.addresses),
            kind,
            seen.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string()),
            handshake_text(seen.handshake_unix, now_unix()),
            bytes(seen.from_member),
            bytes(seen.to_member),
        ]);
    }
    table
}

/// How long ago; a time to come is the clock's fault.
fn handshake_text(handshake_unix: Option<u64>, now_unix: u64) -> String {
    match handshake_unix {
        None => "never connected".to_owned(),
        Some(then) if then > now_unix + 1 => {
            format!("{} ahead: the clock was set back", span((then - now_unix) * 1_000))
        }
        Some(then) => format!("{} ago", span(now_unix.saturating_sub(then) * 1_000)),
    }
}

fn network_text(network: &Network, members: &[Seen]) -> String {
    let state = if gateway::is_running(&network.name) {
        "up".to_owned()
    } else {
        format!("stopped (usernet vnet start {})", network.name)
    };
    let lines = [
        ("network", network.name.clone()),
        ("gateway", listed(&network.gateways())),
        ("state", state),
        ("UDP port", network.listen_port.to_string()),
        ("public key", network.private_key.public().to_string()),
        ("internet", if network.internet { "yes" } else { "no" }.to_owned()),
        ("MTU", network.mtu.to_string()),
    ];
    labelled(&lines) + "\n" + &member_table(members).to_string()
}

fn labelled(lines: &[(&str, String)]) -> String {
    lines.iter().map(|(label, value)| format!("{label:<14} {value}\n")).collect()
}

fn place_json(place: &super::token::JoinedPlace) -> Value {
    let user = place.user.as_ref().filter(|_| place.is_used());
    json!({
        "name": place.identity.name,
        "addresses": place.identity.addresses,
        "instance": user.map(|user| user.instance.clone()),
    })
}

fn joined_text(joined: &Joined) -> String {
    let terms = &joined.terms;
    let lines = [
        ("network", terms.network.clone()),
        ("gateway", listed(&terms.gateways)),
        ("state", format!("joined; the gateway is at {}", terms.endpoint)),
        ("public key", terms.gateway_key.to_string()),
        ("internet", if terms.internet { "yes" } else { "no" }.to_owned()),
        ("MTU", terms.mtu.to_string()),
    ];
    let mut table = Table::new(&["NAME", "ADDRESS", "USED BY"]);
    for place in &joined.places {
        let user = place.user.as_ref().filter(|_| place.is_used());
        table.row([
            place.identity.name.clone(),
            listed(&place.identity.addresses),
            user.map_or_else(|| "-".to_owned(), |user| user.instance.clone()),
        ]);
    }
    labelled(&lines) + "\n" + &table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_of_the_future_is_the_clocks_fault() {
        assert_eq!(handshake_text(None, 100), "never connected");
        assert_eq!(handshake_text(Some(90), 100), "10s ago");
        assert_eq!(handshake_text(Some(100), 100), "0ms ago");
        assert_eq!(handshake_text(Some(160), 100), "60s ahead: the clock was set back");
    }
}
