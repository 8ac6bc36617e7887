//! slirp4netns: what it says of command lines that come to nothing, and how it ends then.

use usernet_dropin::{Slirp, Tool, both_tools};
use usernet_lab::{Done, Lab, Namespace};

/// Runs it with this line; it ends.
#[track_caller]
fn call(tool: Tool, lab: &Lab, line: &str) -> Done {
    let program = tool.path(lab);
    let words: Vec<&str> = std::iter::once(&*program).chain(line.split_whitespace()).collect();
    lab.host().run(&words)
}

/// It ends with status 1 and says this on standard error, with help on standard output if that is so.
#[track_caller]
fn fails(tool: Tool, lab: &Lab, line: &str, says: &str, has_help: bool) {
    let done = call(tool, lab, line);
    assert_eq!(done.status.and_then(|status| status.code()), Some(1), "{line}: {done}");
    assert!(done.err.contains(says), "{line}: {says:?} is not said: {done}");
    assert_eq!(has_usage(&done.out), has_help, "{line}: {done}");
}

/// Whether it begins with how the program is used.
fn has_usage(text: &str) -> bool {
    text.starts_with("Usage: ") && text.contains("slirp4netns [OPTION]... PID|PATH")
}

fn tap(guest: &Namespace) -> String {
    guest.run(&["ip", "address", "show", "tap0"]).out
}

both_tools! { "slirp4netns" needs ["ip"];
    fn help_lists_every_option(tool) needs [] {
        let lab = Lab::new();
        for option in ["--help", "-h", "--hel"] {
            let help = call(tool, &lab, option).ok();
            assert!(has_usage(&help), "{help}");
            for name in ["-c, --configure", "-e, --exit-fd", "-r, --ready-fd", "-m, --mtu", "-6, --enable-ipv6",
                "-a, --api-socket", "--cidr", "--disable-host-loopback", "--netns-type", "--userns-path",
                "--enable-sandbox", "--enable-seccomp", "--outbound-addr", "--outbound-addr6", "--disable-dns",
                "--macaddress", "--target-type", "-h, --help", "-v, --version"] {
                assert!(help.contains(name), "{name}: {help}");
            }
        }
    }

    fn version_has_the_lines_that_scripts_read(tool) needs [] {
        let lab = Lab::new();
        let said = call(tool, &lab, "--version").ok();
        let of = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name}: {said}")).trim().to_owned()
        };
        assert!(of("slirp4netns version ").starts_with("1."));
        assert!(of("SLIRP_CONFIG_VERSION_MAX:").parse::<u32>().is_ok_and(|max| max >= 3));
        for name in ["commit:", "libslirp:", "libseccomp:"] {
            assert!(!of(name).is_empty(), "{name}: {said}");
        }
        assert_eq!(call(tool, &lab, "-v").ok(), said);
    }

    fn options_are_read_by_getopt_rules(tool) needs [] {
        let lab = Lab::new();
        for line in ["-c6m1300 PID tap0", "PID -c tap0 --mtu 1300 --enable-i", "--conf --mt=1300 -6 -- PID tap0",
            "-m9000 -m 1300 -c -c --enable-ipv6 PID tap0"] {
            let guest = lab.guest();
            let line = line.replace("PID", &guest.pid().to_string());
            let words: Vec<&str> = line.split_whitespace().collect();
            let _slirp = Slirp::line(tool, &lab, &guest, &words).unwrap_or_else(|done| panic!("{line}: {done}"));
            assert!(tap(&guest).contains("mtu 1300") && tap(&guest).contains("10.0.2.100/24"), "{line}");
        }
    }

    fn what_getopt_refuses_is_said_in_its_words(tool) needs [] {
        let lab = Lab::new();
        for (line, says) in [
            ("--bogus 1 tap0", "unrecognized option '--bogus'"),
            ("-z 1 tap0", "invalid option -- 'z'"),
            ("--mtu", "option '--mtu' requires an argument"),
            ("-m", "option requires an argument -- 'm'"),
            ("--configure=yes 1 tap0", "option '--configure' doesn't allow an argument"),
            ("--enable-s 1 tap0",
                "option '--enable-s' is ambiguous; possibilities: '--enable-sandbox' '--enable-seccomp'"),
        ] {
            fails(tool, &lab, line, &format!("slirp4netns: {says}"), true);
        }
    }

    fn what_is_wrong_with_a_line_is_said_beside_the_help(tool) needs [] {
        let lab = Lab::new();
        for (line, says) in [
            ("--mtu=0 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--mtu=65522 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--mtu=15x 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--exit-fd=-1 1 tap0", "exit-fd must be a non-negative integer"),
            ("--ready-fd=x 1 tap0", "ready-fd must be a non-negative integer"),
            ("x tap0", "PID must be a positive integer"),
            ("0 tap0", "PID must be a positive integer"),
            ("--netns-type=path /nonexistent tap0", "existing path expected when --netns-type=path"),
            ("--userns-path=/nonexistent 1 tap0", "userns path doesn't exist: /nonexistent"),
            ("--macaddress=02:00:00:00:00:01 1 tap0", "cannot be specified when --configure or -c is not specified"),
            ("--target-type=x 1 tap0", "--target-type must be either \"netns\" or \"bess\""),
            ("--target-type=bess -c /s", "--configure conflicts with --target-type=bess"),
            ("--target-type=bess --netns-type=path /s", "--netns-type conflicts with --target-type=bess"),
            ("", ""),
            ("1", ""),
        ] {
            fails(tool, &lab, line, says, true);
        }
    }

    fn what_is_wrong_with_a_value_is_said_alone(tool) needs [] {
        let lab = Lab::new();
        let long = "a".repeat(108);
        for (line, says) in [
            ("--cidr=24 1 tap0", "invalid CIDR"),
            ("--cidr=foo 1 tap0", "invalid CIDR"),
            ("--cidr=10.0.2.0 1 tap0", "invalid CIDR"),
            ("--cidr=10.0.2.100/24 1 tap0",
                "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
            ("--cidr=10.0.2.0/26 1 tap0", "prefix length needs to be 1-25"),
            ("--cidr=0.0.0.0/0 1 tap0", "prefix length needs to be 1-25"),
            ("-c --macaddress=0:1:2:3:4:5:6 1 tap0", "macaddress has to be a valid MAC address"),
            ("--outbound-addr=nosuch0 1 tap0", "outbound-addr has to be valid ipv4 address or"),
            ("--outbound-addr6=1.2.3.4 1 tap0", "has to be valid ip"),
            (&*format!("--target-type=bess /{long}"), "the specified BESS socket path is too long (>= 108)"),
        ] {
            fails(tool, &lab, line, says, false);
        }
    }

    fn an_api_socket_that_cannot_be_had_ends_it(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let (pid, long) = (guest.pid(), "a".repeat(108));
        let path_too_long = format!("-c -a {long} {pid} tap0");
        fails(tool, &lab, &path_too_long, "the specified API socket path is too long (>= 108)", false);
        fails(tool, &lab, &format!("-c -a /nonexistent/socket {pid} tap0"), "No such file or directory", false);
        assert!(!guest.run(&["ip", "link", "show", "tap0"]).is_ok(), "the TAP stays");
    }

    fn a_namespace_that_is_not_there_ends_it(tool) needs [] {
        let lab = Lab::new();
        fails(tool, &lab, "-c 99999999 tap0", "99999999", false);
        let done = call(tool, &lab, "-c --netns-type=path /etc/passwd tap0");
        assert_eq!(done.status.and_then(|status| status.code()), Some(1), "{done}");
    }

    fn a_device_in_use_ends_the_second_one(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let mut first = Slirp::start(tool, &lab, &guest, &[]);
        let second = call(tool, &lab, &format!("-c {} tap0", guest.pid()));
        assert_eq!(second.status.and_then(|status| status.code()), Some(1), "{second}");
        assert!(first.is_running() && tap(&guest).contains("10.0.2.100/24"));
    }
}
