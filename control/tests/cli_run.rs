//! `usernet run`: the command's view, its end, and what is left.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, geteuid};
use usernet_control_tests::{Account, Running, eventually, is_alive, status, stderr, stdout};
use usernet_lab::skip::skip_this;

#[test]
fn the_exit_status_is_the_commands() {
    for account in Account::each() {
        for (script, expected) in [
            ("exit 0", 0),
            ("exit 1", 1),
            ("exit 42", 42),
            ("kill -TERM $$", 143),
            ("kill -37 $$", 165),
        ] {
            let output = account.run_script("", script).output().unwrap();
            assert_eq!(status(&output), expected, "{script}: {output:?}");
        }
        account.assert_no_instances();
    }
}

#[test]
fn a_command_that_cannot_be_executed_gives_126_and_an_unknown_one_127() {
    for account in Account::each() {
        for (command, expected) in [("/etc/passwd", 126), ("/", 126), ("no-such-command", 127)] {
            let output = account.usernet("run --").arg(command).output().unwrap();
            assert_eq!(status(&output), expected, "{command}: {output:?}");
            assert!(stderr(&output).contains(command));
        }
        account.assert_no_instances();
    }
}

#[test]
fn a_wrong_command_line_gives_2_and_makes_nothing() {
    let account = Account::own();
    for line in
        ["run", "run --no-such-option -- true", "run --forward 80: -- true", "run --mtu 1 -- true"]
    {
        let output = account.usernet(line).output().unwrap();
        assert_eq!(status(&output), 2, "{line}: {output:?}");
    }
    assert!(!account.runtime_dir().exists());
}

#[test]
fn a_name_that_is_taken_or_wrong_is_refused_before_anything_is_made() {
    for account in Account::each() {
        let mut first =
            Running::start(&mut account.run_script("--name web", "echo up; exec sleep 60"));
        assert_eq!(first.line(), "up");
        let second = account.usernet("run --name web -- true").output().unwrap();
        assert_eq!(status(&second), 125, "{second:?}");
        assert!(stderr(&second).contains("usernet rm -f web"), "{second:?}");
        let wrong = account.usernet("run --name a/b -- true").output().unwrap();
        assert_eq!(status(&wrong), 2, "{wrong:?}");
        first.signal(Signal::SIGTERM);
        assert_eq!(first.wait().code(), Some(143));
        account.assert_no_instances();
    }
}

#[test]
fn two_run_at_once_in_namespaces_of_their_own() {
    for account in Account::each() {
        let script = "readlink /proc/self/ns/net; exec sleep 60";
        let mut both = [(); 2].map(|()| Running::start(&mut account.run_script("", script)));
        let [first, second] = both.each_mut().map(Running::line);
        assert!(first.starts_with("net:["), "{first}");
        assert_ne!(first, second);
        assert_eq!(account.json("ls").as_array().unwrap().len(), 2);
        for run in &mut both {
            run.signal(Signal::SIGTERM);
            assert_eq!(run.wait().code(), Some(143));
        }
        account.assert_no_instances();
    }
}

#[test]
fn signals_reach_the_command() {
    for account in Account::each() {
        for sent in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
            let name = sent.as_str().trim_start_matches("SIG");
            let script =
                format!("trap 'echo caught; exit 5' {name}; echo up; while :; do sleep 0.01; done");
            let mut command = account.run_script("", &script);
            // Under nohup(1), or in the background of a script, some are ignored, and no shell traps what it was started without.
            let heed = move || {
                // SAFETY: it installs no handler.
                unsafe { signal(sent, SigHandler::SigDfl) }.map(drop).map_err(Into::into)
            };
            // SAFETY: one system call, and nothing is allocated.
            unsafe { command.pre_exec(heed) };
            let mut run = Running::start(&mut command);
            assert_eq!(run.line(), "up");
            run.signal(sent);
            assert_eq!(run.line(), "caught");
            assert_eq!(run.wait().code(), Some(5));
        }
    }
}

#[test]
fn the_caller_is_root_inside_or_keeps_its_ids() {
    let account = Account::ordinary();
    let show = "id -u; id -g; cd /proc/sys/net/ipv4; \
                cat ip_unprivileged_port_start ping_group_range";
    let root = account.run_script("", show).output().unwrap();
    assert_eq!(stdout(&root), "0\n0\n0\n0\t0\n", "{root:?}");
    let own = account.run_script("--map-user", show).output().unwrap();
    let id = account.uid;
    assert_eq!(stdout(&own), format!("{id}\n{id}\n0\n{id}\t{id}\n"), "{own:?}");
}

#[test]
fn subordinate_ids_exist_inside_when_asked_for() {
    if !geteuid().is_root() || !std::path::Path::new("/usr/bin/newuidmap").exists() {
        return skip_this("needs root and newuidmap");
    }
    let account = Account::ordinary();
    let id = account.uid;
    // The tables are those of a mount namespace of its own.
    let script = "set -e; mount -t tmpfs tmpfs /etc; \
                  echo \"t:x:$1:$1::/:/bin/sh\" > /etc/passwd; echo \"t:x:$1:\" > /etc/group; \
                  echo t:900000:1000 | tee /etc/subuid > /etc/subgid; \
                  exec setpriv --reuid=\"$1\" --regid=\"$1\" --clear-groups \"$0\" run --subids -- \
                  cat /proc/self/uid_map /proc/self/gid_map /proc/sys/net/ipv4/ping_group_range";
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(usernet_control_tests::usernet())
        .arg(id.to_string());
    let output = command.env("USERNET_RUNTIME_DIR", account.runtime_dir()).output().unwrap();
    let fields: Vec<String> = stdout(&output).split_whitespace().map(str::to_owned).collect();
    let own = id.to_string();
    let map = ["0", &own, "1", "1", "900000", "1000"];
    let expected: Vec<&str> = map.into_iter().chain(map).chain(["0", "1000"]).collect();
    assert_eq!(fields, expected, "{output:?}");

    let without = account.usernet("run --subids -- true").output().unwrap();
    assert_eq!(status(&without), 125);
    assert!(stderr(&without).contains("/etc/subuid has no range"), "{without:?}");
    account.assert_no_instances();
}

#[test]
fn the_working_directory_and_the_environment_are_kept() {
    for account in Account::each() {
        let output = account.run_script("", "pwd; echo $MARK").env("MARK", "a b").output().unwrap();
        assert_eq!(stdout(&output), format!("{}\na b\n", account.home.display()), "{output:?}");
    }
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    for account in Account::each() {
        let script = "setsid sleep 600 > /dev/null & echo $!";
        let output = account.run_script("", script).output().unwrap();
        let pid: i32 = stdout(&output).trim().parse().unwrap();
        assert!(!is_alive(pid), "{output:?}");
        account.assert_no_instances();
    }
}

#[test]
fn the_daemon_ends_with_the_command() {
    for account in Account::each() {
        let mut run = Running::start(&mut account.run_script("", "echo up; exec sleep 60"));
        assert_eq!(run.line(), "up");
        let daemon = account.only_instance()["daemon_pid"].as_i64().unwrap() as i32;
        assert!(is_alive(daemon));
        run.signal(Signal::SIGTERM);
        run.wait();
        assert!(!is_alive(daemon));
    }
}

#[test]
fn a_daemon_that_was_killed_is_told_and_the_command_goes_on() {
    for account in Account::each() {
        let mut command = account.run_script("", "echo up; read word; echo \"$word\"; exit 6");
        let mut run = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
        assert_eq!(run.line(), "up");
        let daemon = account.only_instance()["daemon_pid"].as_i64().unwrap() as i32;
        kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
        assert!(run.error_line().contains("usernetd ended unexpectedly"));
        run.write("on\n");
        assert_eq!(run.line(), "on");
        assert_eq!(run.wait().code(), Some(6));
        account.assert_no_instances();
    }
}

#[test]
fn a_killed_usernet_takes_the_command_and_the_daemon_along() {
    for account in Account::each() {
        let mut run = Running::start(&mut account.run_script("", "echo $$; exec sleep 600"));
        let command: i32 = run.line().parse().unwrap();
        let daemon = account.only_instance()["daemon_pid"].as_i64().unwrap() as i32;
        run.signal(Signal::SIGKILL);
        run.wait();
        eventually("the command has ended", || !is_alive(command));
        eventually("the daemon has ended", || !is_alive(daemon));
        assert_eq!(account.json("ls"), serde_json::json!([]));
        account.assert_no_instances();
    }
}

#[test]
fn no_descriptor_of_ours_reaches_the_command() {
    for account in Account::each() {
        let script = "ls /proc/self/fd";
        let inside = account.run_script("", script).output().unwrap();
        let outside = account.program("sh").args(["-c", script]).output().unwrap();
        assert_eq!(stdout(&inside), stdout(&outside), "{inside:?}");
    }
}

#[test]
fn without_user_namespaces_the_switch_and_the_remedy_are_named() {
    let account = Account::ordinary();
    // The limit counts for the user namespace that it is set in. Without CAP_SYS_ADMIN usernet
    // needs another one inside.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-sys_admin \"$0\" run -- true";
    let output = account
        .program("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(usernet_control_tests::usernet())
        .env("USERNET_RUNTIME_DIR", account.runtime_dir())
        .output()
        .unwrap();
    assert_eq!(status(&output), 125, "{output:?}");
    let told = stderr(&output);
    assert!(told.contains("user.max_user_namespaces is 0"), "{told}");
    assert!(told.contains("sysctl -w user.max_user_namespaces="), "{told}");
    account.assert_no_instances();
}
