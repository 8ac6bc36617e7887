//! Containers whose way out is a WireGuard tunnel, by one option or by a configuration file, and without any capability.

use std::time::Duration;

use usernet_dropin::tool::{self, Kind, Known, Tool};
use usernet_dropin::{Containers, System};
use usernet_lab::{Backend, Daemon};

/// The programs that a machine with containers needs here.
const NEEDS: [&str; 5] = ["podman", "crun", "newuidmap", "busybox", "ip"];

/// Private and public keys, known to everybody.
const NEAR: (&str, &str) = (
    "eLbuUp82iJeD2gC4llR2mBCjYyijQUiweTyP3fiO30k=",
    "U1EvlDjlS3Cte5xzybJRtj31WVZDpRUhddkYA8py0Wo=",
);
const FAR: (&str, &str) = (
    "sL9/jEEygzblCF9T9OhPwwOSm1WH6lG5sYgunj8FglM=",
    "PZDb9lqmBslx5FQQd+9tS2h75Nq4gNfb+fdUqHPLpAo=",
);

/// Starts the far end in a namespace of its own, and runs a container for which `arrange` is given the near end's file and
/// says the options: it reaches the far end, and nothing beside the tunnel.
fn goes_through_the_tunnel(system: System, tool: Tool, arrange: fn(&Containers, &str) -> String) {
    let machine = Containers::new(system, tool);
    let lab = machine.lab();
    machine.write(
        "far/wg0.conf",
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.2/24\nListenPort = 51822\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.1/32\n",
            FAR.0, NEAR.1
        ),
    );
    machine.write(
        "near/wg0.conf",
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/24\nDNS = 10.77.0.2\n\
             [Peer]\nPublicKey = {}\nEndpoint = 192.0.2.1:51822\nAllowedIPs = 0.0.0.0/0, ::/0\n",
            NEAR.0, FAR.1
        ),
    );
    let home = machine.home().display();
    let there = lab.guest();
    let far_file = format!("{home}/far/wg0.conf");
    let mut far = Daemon::start(lab, &there, Backend::Epoll, &["--wireguard", &far_file]);
    let _servers = (there.serve(&["10.77.0.2:7000"]), machine.host().serve(&["192.0.2.1:7000"]));
    let network = arrange(&machine, &format!("{home}/near/wg0.conf"));
    machine.serve("client", &[&network, "--cap-drop=all"], &["127.0.0.1:7001"]);
    machine.peer("client", &["get", "10.77.0.2:7000", "1000000"]).ok();
    machine.peer("client", &["put", "10.77.0.2:7000", "1000000"]).ok();
    let beside = machine.peer("client", &["get", "192.0.2.1:7000", "1000"]);
    assert!(!beside.is_ok(), "{beside}");
    far.close_exit_fd();
    assert!(far.ends_within(Duration::from_secs(5)));
    machine.remove_all();
}

#[test]
fn a_container_of_podman_4_goes_through_the_tunnel_of_the_configuration_file() {
    let tool = Tool { name: "slirp4netns", kind: Kind::Ours };
    let name = "a_container_of_podman_4_goes_through_the_tunnel_of_the_configuration_file";
    tool::run(name, tool, &NEEDS, Known::Same, |tool| {
        goes_through_the_tunnel(System::Installed, tool, |machine, file| {
            let text = format!("[slirp4netns]\nwireguard = [{file:?}]\n");
            machine.write(".config/usernet/config.toml", &text);
            "--network=slirp4netns".to_owned()
        });
    });
}

#[test]
fn a_container_of_podman_5_goes_through_the_tunnel_of_its_network_option() {
    let tool = Tool { name: "pasta", kind: Kind::Ours };
    let name = "a_container_of_podman_5_goes_through_the_tunnel_of_its_network_option";
    tool::run(
        name,
        tool,
        &["debian 13", "newuidmap", "busybox", "ip", "wg"],
        Known::Same,
        |tool| {
            goes_through_the_tunnel(System::Debian13, tool, |_, file| {
                format!("--network=pasta:--wireguard,{file}")
            });
        },
    );
}
