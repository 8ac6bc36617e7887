//! What stands in /etc/resolv.conf inside, however it looks outside.

use std::fs;
use std::process::Output;

use nix::unistd::geteuid;
use usernet_control_tests::{Account, status, stdout};
use usernet_lab::skip::skip_this;

const INSIDE: &str =
    "# Made by usernet: DNS goes through usernetd.\nnameserver 10.0.2.3\nnameserver fd00::3\n";

#[test]
fn dns_is_asked_at_the_guests_addresses() {
    for account in Account::each() {
        let before = fs::read("/etc/resolv.conf").ok();
        let output = account.run_script("", "cat /etc/resolv.conf").output().unwrap();
        assert!(stdout(&output).starts_with(INSIDE), "{output:?}");
        let output = account.run_script("--no-ipv6", "cat /etc/resolv.conf").output().unwrap();
        assert!(!stdout(&output).contains("fd00::3"), "{output:?}");
        assert_eq!(fs::read("/etc/resolv.conf").ok(), before);
    }
}

/// Runs `cat /etc/resolv.conf` by `usernet run` on a host whose /etc a script has prepared, and
/// lists that /etc afterwards.
fn with_etc(account: &Account, prepare: &str) -> Output {
    let script = format!(
        "set -e; mount -t tmpfs tmpfs /etc; mkdir /etc/sub; echo kept > /etc/sub/file; \
         cd /etc; {prepare}; before=$(ls -lA /etc); cd \"$2\"; \
         setpriv --reuid=\"$1\" --regid=\"$1\" --clear-groups \"$0\" run -- \
         sh -c 'cat /etc/resolv.conf /etc/sub/file'; \
         test \"$before\" = \"$(ls -lA /etc)\" && echo unchanged"
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(usernet_control_tests::usernet());
    command.arg(account.uid.to_string()).arg(&account.home);
    command.env("USERNET_RUNTIME_DIR", account.runtime_dir());
    command.output().unwrap()
}

#[test]
fn a_file_a_link_a_dangling_link_and_no_file_are_all_replaced() {
    if !geteuid().is_root() {
        return skip_this("only root can prepare another /etc");
    }
    for account in Account::each() {
        for (prepare, kept) in [
            ("echo 'search a.example' > resolv.conf", "search a.example\n"),
            ("echo 'options edns0' > sub/real; ln -s sub/real resolv.conf", "options edns0\n"),
            ("ln -s /run/nowhere/resolv.conf resolv.conf", ""),
            ("ln -s ../run/nowhere/resolv.conf resolv.conf", ""),
            (":", ""),
        ] {
            let output = with_etc(&account, prepare);
            assert_eq!(status(&output), 0, "{prepare}: {output:?}");
            assert_eq!(stdout(&output), format!("{INSIDE}{kept}kept\nunchanged\n"), "{prepare}");
        }
        account.assert_no_instances();
    }
}
