//! Buildah: `run` with network, over `slirp4netns` in Debian 12 and over `pasta` in Debian 13.

use usernet_dropin::containers::IMAGE;
use usernet_dropin::machine::resolver;
use usernet_dropin::{Containers, System, Tool, both_tools};

/// A working container's command line reaches a server by a name, and leaves nothing.
fn fetches(system: System, tool: Tool) {
    let machine = Containers::new(system, tool);
    let far = machine.lab().router();
    let _cable = machine.lab().cable(machine.host(), &far, &[]);
    machine.write("www/page", "hello from afar");
    let _server = machine.web_server(&far, "198.51.100.2:8000");
    let _resolver = resolver(machine.lab(), "one.test", "198.51.100.2");
    machine.run(&["buildah", "from", "--name=work", IMAGE]).ok();
    let line = ["buildah", "run", "work", "--", "wget", "-qO-", "http://one.test:8000/page"];
    assert_eq!(machine.run(&line).ok(), "hello from afar");
    machine.run(&["buildah", "rm", "work"]).ok();
    machine.must_be_clean();
}

mod version_1_28 {
    use super::*;

    both_tools! { "slirp4netns" needs ["podman", "buildah", "crun", "newuidmap", "busybox", "ip", "dnsmasq"];
        fn a_command_fetches_by_name(tool) needs [] {
            fetches(System::Installed, tool);
        }
    }
}

mod version_1_39 {
    use super::*;

    both_tools! { "pasta" needs ["debian 13", "newuidmap", "busybox", "ip"];
        fn a_command_fetches_by_name(tool) needs [] {
            fetches(System::Debian13, tool);
        }
    }
}
