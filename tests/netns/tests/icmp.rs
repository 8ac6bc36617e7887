//! ping and traceroute.

use std::time::Duration;

use usernet_lab::{Daemon, Lab, on_both_backends, wait_until};

on_both_backends! {
    fn the_gateway_the_dns_address_and_the_host_answer_ping(backend) needs ["ping"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for to in ["10.0.2.2", "10.0.2.3", "192.0.2.1", "fd00::2", "fd00::3", "2001:db8::1"] {
            guest.run(&["ping", "-c", "2", "-i", "0.1", "-W", "2", to]).ok();
        }
    }

    fn a_ping_larger_than_the_mtu_comes_back(backend) needs ["ping"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for to in ["10.0.2.2", "192.0.2.1", "fd00::2", "2001:db8::1"] {
            guest.run(&["ping", "-c", "1", "-s", "4000", "-W", "2", to]).ok();
        }
    }

    fn a_ping_into_the_void_is_told(backend) needs ["ping"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for to in ["198.18.0.1", "2001:db9::1"] {
            let done = guest.run(&["ping", "-c", "1", "-W", "2", to]);
            assert!(!done.is_ok(), "{to}: {done}");
            assert!(done.out.to_lowercase().contains("unreachable"), "{to}: {done}");
        }
    }

    fn traceroute_shows_the_routers_on_the_way(backend) needs ["traceroute"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let (near, far) = (lab.router(), lab.router());
        let (near_pid, far_pid) = (near.pid(), far.pid());
        lab.host().ip(&format!(
            "link add to-near type veth peer name to-host netns {near_pid}\n\
             addr add 198.51.100.1/30 dev to-near\n\
             addr add 2001:db8:1::1/64 dev to-near nodad\n\
             link set to-near up\n\
             route add 198.51.100.4/30 via 198.51.100.2\n\
             route add 2001:db8:2::/64 via 2001:db8:1::2"
        ));
        near.ip(&format!(
            "link add to-far type veth peer name to-near netns {far_pid}\n\
             addr add 198.51.100.2/30 dev to-host\n\
             addr add 198.51.100.5/30 dev to-far\n\
             addr add 2001:db8:1::2/64 dev to-host nodad\n\
             addr add 2001:db8:2::1/64 dev to-far nodad\n\
             link set to-host up\n\
             link set to-far up\n\
             link set lo up"
        ));
        far.ip(
            "addr add 198.51.100.6/30 dev to-near\n\
             addr add 2001:db8:2::2/64 dev to-near nodad\n\
             link set to-near up\n\
             link set lo up\n\
             route add default via 198.51.100.5\n\
             route add default via 2001:db8:2::1",
        );
        // The routers' link-local addresses are not theirs before they have been tried out.
        let is_there = |to| lab.host().run(&["ping", "-c", "1", "-W", "1", to]).is_ok();
        for target in ["198.51.100.6", "2001:db8:2::2"] {
            assert!(wait_until(Duration::from_secs(10), || is_there(target)), "{target}");
        }
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for (hop, target) in [("198.51.100.2", "198.51.100.6"), ("2001:db8:1::2", "2001:db8:2::2")] {
            let traced = guest.run(&["traceroute", "-n", "-q", "1", "-w", "2", "-m", "6", target]).ok();
            let hops: Vec<_> = traced
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(1))
                .collect();
            assert!(hops.contains(&hop), "{traced}");
            assert_eq!(hops.last(), Some(&target), "{traced}");
        }
    }
}
