//! The link: offload or not, its size, and how a guest that configures itself does so.

use std::time::Duration;

use nix::sys::signal::Signal;
use usernet_lab::{Daemon, Lab, on_both_backends, wait_until, wan_addresses};

/// What udhcpc calls with a lease.
const UDHCPC_SCRIPT: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip addr add \"$ip/$mask\" dev \"$interface\"
ip route add default via \"$router\"
echo \"lease: $ip/$mask via $router dns $dns mtu $mtu\"
";

on_both_backends! {
    fn it_works_without_offload(backend) needs [] {
        let lab = Lab::new();
        let _server = lab.host().serve(&["[::]:7000"]);
        for mtu in ["1500", "65520"] {
            let guest = lab.guest();
            let _daemon = Daemon::start(&lab, &guest, backend, &["--no-offload", "--mtu", mtu]);
            for host in wan_addresses() {
                let address = format!("{host}:7000");
                guest.peer(&["get", &address, "5000000"]).ok();
                guest.peer(&["put", &address, "5000000"]).ok();
                guest.peer(&["echo", &address, "0", "1472", "1473", "20000"]).ok();
            }
        }
    }

    fn the_mtu_and_the_name_are_as_told(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let options = ["--mtu", "9000", "--tap-name", "net7", "--cidr", "10.9.0.0/16", "--no-ipv6"];
        let _daemon = Daemon::start(&lab, &guest, backend, &options);
        let link = guest.sh("ip link show net7; ip addr show net7; ip route").ok();
        for part in ["mtu 9000", "10.9.0.100/16", "default via 10.9.0.2"] {
            assert!(link.contains(part), "{part}: {link}");
        }
    }

    fn what_ten_thousand_connections_ask_at_once_waits_in_the_device(backend) needs ["ip", "ping", "socat"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["0.0.0.0:7000"]);
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        // The gateway's Ethernet address is known from here on.
        guest.run(&["ping", "-c", "1", "10.0.2.2"]).ok();
        daemon.signal(Signal::SIGSTOP);
        let send = guest.sh("head -c 10000 /dev/zero | socat -u -b 1 - UDP:192.0.2.1:7000");
        daemon.signal(Signal::SIGCONT);
        assert!(send.is_ok(), "{send}");
        let mut statistics = String::new();
        let sent = |statistics: &str, what: &str| {
            let parsed: serde_json::Value = serde_json::from_str(statistics).expect("JSON");
            parsed[0]["stats64"]["tx"][what].as_u64().expect("a count")
        };
        // A frame counts as sent once the daemon has read it.
        let are_read = wait_until(Duration::from_secs(20), || {
            statistics = guest.run(&["ip", "-j", "-s", "link", "show", "tap0"]).ok();
            sent(&statistics, "packets") >= 10_000
        });
        assert!(are_read, "{statistics}");
        assert_eq!(sent(&statistics, "dropped"), 0, "{statistics}");
    }

    fn udhcpc_configures_the_guest(backend) needs ["udhcpc"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["0.0.0.0:7000"]);
        let _daemon = Daemon::start(&lab, &guest, backend, &["--no-configure"]);
        let script = lab.dir().join("udhcpc.sh");
        std::fs::write(&script, UDHCPC_SCRIPT).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        guest.ip("link set lo up\nlink set tap0 up");
        let lease = guest.sh("udhcpc -f -q -n -t 3 -T 1 -i tap0 -s ./udhcpc.sh");
        assert!(lease.out.contains("lease: 10.0.2.100/24 via 10.0.2.2 dns 10.0.2.3"), "{lease}");
        guest.peer(&["get", "192.0.2.1:7000", "100000"]).ok();
    }

    fn router_advertisements_configure_the_guest(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["[::]:7000"]);
        let _daemon = Daemon::start(&lab, &guest, backend, &["--no-configure"]);
        guest.ip("link set lo up\nlink set tap0 up");
        let is_there = wait_until(Duration::from_secs(10), || {
            let addresses = guest.sh("ip -6 addr show dev tap0 scope global; ip -6 route").out;
            addresses.contains("fd00::")
                && addresses.contains("default via")
                && !addresses.contains("tentative")
        });
        assert!(is_there, "{}", guest.sh("ip -6 addr; ip -6 route").out);
        guest.peer(&["get", "[2001:db8::1]:7000", "100000"]).ok();
    }

    fn dhcpcd_gets_an_address_by_dhcpv6(backend) needs ["dhcpcd"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--no-configure"]);
        guest.ip("link set lo up\nlink set tap0 up");
        // It writes below /var/lib and /run, which are the machine's: it gets its own.
        let script = "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /var/lib/dhcpcd && \
            exec dhcpcd -6 -B -d -L --ia_na --script /bin/true tap0";
        let _client = guest.spawn(&["unshare", "-m", "sh", "-c", script]);
        let is_there = wait_until(Duration::from_secs(20), || {
            guest.sh("ip -6 addr show dev tap0 scope global").out.contains("fd00::64/128")
        });
        assert!(is_there, "{}\n{}", guest.sh("ip -6 addr").out, _client.err());
    }
}
