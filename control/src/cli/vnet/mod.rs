//! `usernet vnet`: virtual networks by name.
//!
//! | module | what it is |
//! |---|---|
//! | `network`, `keys`, `terms`, `token` | what a network is, and what others are told about it |
//! | `store` | where it is written down |
//! | `gateway`, `service`, `wire` | the process that serves it, and the tunnel that it changes |
//! | `names`, `dns` | its names |
//! | `link` | what a daemon's own link must stay clear of |
//! | `protocol` | what the commands and the gateway say to each other |
//! | `membership` | `--vnet` of `run` and `create` |
//! | `manage`, `peer`, `list` | the commands |

mod dns;
mod gateway;
mod keys;
mod link;
mod list;
mod manage;
mod membership;
mod names;
mod network;
mod peer;
mod protocol;
mod service;
mod store;
mod terms;
mod token;
mod wire;

use std::process::ExitCode;

use super::error::Error;

pub(crate) use membership::{Memberships, VnetArgs};

/// Virtual networks: namespaces, hosts and devices that reach each other by WireGuard.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct VnetCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  usernet vnet create my-network --gateway 10.0.0.1/24
  usernet run --vnet my-network,address=10.0.0.2/24,name=server -- nc -l -p 12345
  usernet run --vnet my-network -- nc server.my-network 12345
  usernet vnet show my-network

A phone, a laptop, another host's kernel:
  usernet vnet peer add my-network --name laptop > my-network.conf

Namespaces of another host:
  usernet vnet token my-network --name host-b | ssh host-b usernet vnet join

Files: networks are kept in $XDG_DATA_HOME/usernet/vnets, else ~/.local/share/usernet/vnets.";

#[derive(Debug, clap::Subcommand)]
enum Action {
    Create(manage::CreateArgs),
    Start(manage::StartArgs),
    Stop(manage::StopArgs),
    Ls(list::ListArgs),
    Show(list::ShowArgs),
    Rm(manage::RemoveArgs),
    Peer(peer::PeerCommand),
    Token(peer::TokenArgs),
    Join(peer::JoinArgs),
}

/// `usernet vnet`.
pub(crate) fn vnet(command: &VnetCommand) -> Result<ExitCode, Error> {
    match &command.action {
        Action::Create(args) => manage::create(args),
        Action::Start(args) => manage::start(args),
        Action::Stop(args) => manage::stop(args),
        Action::Ls(args) => list::list(args),
        Action::Show(args) => list::show(args),
        Action::Rm(args) => manage::remove(args),
        Action::Peer(command) => peer::peer(command),
        Action::Token(args) => peer::token(args),
        Action::Join(args) => peer::join(args),
    }
}
