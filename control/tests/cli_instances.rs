//! Instances that stay: `create`, `exec`, `rm`, `attach`, and what `ls` says about them.

use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use usernet_control_tests::{Account, Running, eventually, is_alive, status, stderr, stdout};

fn pid(instance: &serde_json::Value, field: &str) -> i32 {
    instance[field].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap()
}

/// Runs a shell script whose `$0` is `usernet`.
fn script_with_usernet(account: &Account, script: &str) -> Output {
    let usernet = usernet_control_tests::usernet();
    account.program("sh").args(["-c", script]).arg(usernet).output().unwrap()
}

#[test]
fn commands_run_in_a_created_instance_until_it_is_removed() {
    for account in Account::each() {
        let created = account.usernet("create web").output().unwrap();
        assert_eq!((status(&created), stdout(&created).as_str()), (0, "web\n"), "{created:?}");
        let instance = account.only_instance();
        assert_eq!(instance["kind"], "created");
        assert_eq!(instance["daemon_alive"], true);

        let script = "pwd; echo $MARK; grep -c 10.0.2.3 /etc/resolv.conf; readlink /proc/self/ns/net; exit 9";
        let mut exec = account.usernet("exec web -- sh -c");
        let output = exec.arg(script).env("MARK", "m").output().unwrap();
        assert_eq!(status(&output), 9, "{output:?}");
        let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
        assert_eq!(lines[..3], [account.home.display().to_string(), "m".into(), "1".into()]);
        let again = account.usernet("exec web -- readlink /proc/self/ns/net").output().unwrap();
        assert_eq!(stdout(&again).trim(), lines[3], "the namespace is the same");

        let removed = account.usernet("rm web").output().unwrap();
        assert_eq!(status(&removed), 0, "{removed:?}");
        assert!(!is_alive(pid(&instance, "pid")));
        assert!(!is_alive(pid(&instance, "daemon_pid")));
        account.assert_no_instances();
    }
}

#[test]
fn exec_gives_126_and_127_as_a_shell_does_and_125_without_an_instance() {
    for account in Account::each() {
        assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
        for (line, expected) in [
            ("exec web -- /etc/passwd", 126),
            ("exec web -- no-such-command", 127),
            ("exec db -- true", 125),
        ] {
            assert_eq!(status(&account.usernet(line).output().unwrap()), expected, "{line}");
        }
        assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
    }
}

#[test]
fn a_working_directory_that_does_not_exist_inside_becomes_the_root() {
    let account = Account::ordinary();
    assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
    let gone = account.home.join("gone");
    std::fs::create_dir(&gone).unwrap();
    let script = "cd gone && rmdir ../gone && exec \"$0\" exec web -- pwd";
    let output = script_with_usernet(&account, script);
    assert_eq!(stdout(&output), "/\n", "{output:?}");
    assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
}

#[test]
fn an_instance_in_use_is_removed_by_force_only() {
    for account in Account::each() {
        assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
        let mut user =
            Running::start(account.usernet("exec web -- sh -c").arg("echo up; sleep 600 & wait"));
        assert_eq!(user.line(), "up");
        let refused = account.usernet("rm web").output().unwrap();
        assert_eq!(status(&refused), 1, "{refused:?}");
        assert!(stderr(&refused).contains("in use by sh"), "{refused:?}");
        let forced = account.usernet("rm -f web").output().unwrap();
        assert_eq!(status(&forced), 0, "{forced:?}");
        user.wait();
        account.assert_no_instances();
    }
}

#[test]
fn a_run_is_ended_by_force_only_and_its_status_is_told() {
    for account in Account::each() {
        let mut run =
            Running::start(&mut account.run_script("--name job", "echo up; exec sleep 600"));
        assert_eq!(run.line(), "up");
        assert_eq!(status(&account.usernet("rm job").output().unwrap()), 1);
        let forced = account.usernet("rm -f job").output().unwrap();
        assert_eq!(status(&forced), 0, "{forced:?}");
        assert_eq!(run.wait().code(), Some(143));
        account.assert_no_instances();
    }
}

#[test]
fn an_instance_whose_keeper_was_killed_is_stale_and_its_name_is_free() {
    for account in Account::each() {
        assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
        let instance = account.only_instance();
        kill(Pid::from_raw(pid(&instance, "pid")), Signal::SIGKILL).unwrap();
        eventually("the keeper has ended", || !is_alive(pid(&instance, "pid")));
        eventually("the daemon has ended", || !is_alive(pid(&instance, "daemon_pid")));
        assert_eq!(account.json("ls"), json!([]));
        account.assert_no_instances();
        assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
        assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
    }
}

#[test]
fn a_daemon_that_was_killed_shows_in_the_list() {
    let account = Account::ordinary();
    assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
    let daemon = pid(&account.only_instance(), "daemon_pid");
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    eventually("the daemon has ended", || !is_alive(daemon));
    assert_eq!(account.only_instance()["daemon_alive"], false);
    assert!(stdout(&account.usernet("ls").output().unwrap()).contains("down"));
    assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
    account.assert_no_instances();
}

#[test]
fn a_name_is_created_once() {
    let account = Account::ordinary();
    assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
    let second = account.usernet("create web").output().unwrap();
    assert_eq!(status(&second), 1, "{second:?}");
    assert!(stderr(&second).contains("exists already"), "{second:?}");
    assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
    assert_eq!(status(&account.usernet("rm web").output().unwrap()), 1);
}

#[test]
fn nobody_waits_for_the_end_of_a_pipe_that_create_was_given() {
    let account = Account::ordinary();
    // The shell reads until all writers of the pipe have closed it.
    let script = "name=$(\"$0\" create web 2>&1 3>&1); echo \"got $name\"";
    let output = script_with_usernet(&account, script);
    assert_eq!(stdout(&output), "got web\n", "{output:?}");
    assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
}

#[test]
fn somebody_elses_namespace_is_attached_to_until_it_ends() {
    for account in Account::each() {
        let mut unshare = account.program("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"]);
        let mut guest = Running::start(&mut unshare);
        assert_eq!(guest.line(), "up");
        let attached =
            account.usernet(&format!("attach {} --name guest", guest.pid())).output().unwrap();
        assert_eq!(status(&attached), 0, "{attached:?}");
        let instance = account.only_instance();
        assert_eq!(instance["kind"], "attached");
        assert_eq!(status(&account.usernet("exec guest -- true").output().unwrap()), 2);

        guest.signal(Signal::SIGKILL);
        guest.wait();
        let daemon = pid(&instance, "daemon_pid");
        eventually("the daemon has ended with the namespace", || !is_alive(daemon));
        assert_eq!(account.json("ls"), json!([]));
    }
}

#[test]
fn a_removed_attachment_leaves_the_namespace_alone() {
    let account = Account::ordinary();
    let mut unshare = account.program("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"]);
    let mut guest = Running::start(&mut unshare);
    assert_eq!(guest.line(), "up");
    let line = format!("attach /proc/{}/ns/net", guest.pid());
    assert_eq!(status(&account.usernet(&line).output().unwrap()), 0);
    let name = format!("pid-{}", guest.pid());
    assert_eq!(account.only_instance()["name"], name);
    assert_eq!(status(&account.usernet(&format!("rm {name}")).output().unwrap()), 0);
    account.assert_no_instances();
    assert!(is_alive(guest.pid()));
}

#[test]
fn an_attachment_in_the_foreground_ends_on_a_signal() {
    let account = Account::ordinary();
    let mut unshare = account.program("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"]);
    let mut guest = Running::start(&mut unshare);
    assert_eq!(guest.line(), "up");
    let line = format!("attach {} --foreground --name guest", guest.pid());
    let mut attached = Running::start(&mut account.usernet(&line));
    assert_eq!(attached.line(), "guest");
    attached.signal(Signal::SIGTERM);
    assert_eq!(attached.wait().code(), Some(0));
    account.assert_no_instances();
}

#[test]
fn the_control_socket_answers_through_the_cli() {
    for account in Account::each() {
        assert_eq!(status(&account.usernet("create web").output().unwrap()), 0);
        let state = account.json("status");
        assert_eq!(state["instance"]["name"], "web");
        assert_eq!(state["status"]["ipv4"]["dns"], "10.0.2.3");
        assert_eq!(account.json("flows web")["total"], 0);
        assert_eq!(account.json("forward ls")["forwards"], json!([]));
        let text = account.usernet("status").output().unwrap();
        assert!(stdout(&text).contains("10.0.2.2"), "{text:?}");
        assert_eq!(status(&account.usernet("rm web").output().unwrap()), 0);
        assert_eq!(status(&account.usernet("status").output().unwrap()), 1);
    }
}
