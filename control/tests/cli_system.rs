//! `usernet doctor`, `completions`, `man` and help.

use std::fs;

use usernet_control_tests::{Account, status, stderr, stdout};

#[test]
fn the_doctor_judges_every_point_and_offers_a_remedy_for_what_is_wrong() {
    for account in Account::each() {
        let output = account.usernet("doctor --json").output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
        for name in
            ["/dev/net/tun", "TAP in a namespace", "user namespaces", "io_uring", "ping sockets"]
        {
            assert!(names.contains(&name), "{names:?}");
        }
        for check in checks.iter().filter(|check| check["status"] != "ok") {
            assert!(check["cost"].is_string() && check["remedy"].is_string(), "{check}");
        }
        let is_fit = !checks.iter().any(|check| check["status"] == "missing");
        assert_eq!(report["ok"], is_fit);
        assert_eq!(status(&output), if is_fit { 0 } else { 1 });
    }
}

#[test]
fn the_doctor_says_what_is_missing_without_user_namespaces() {
    let account = Account::ordinary();
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" doctor --json";
    let output = account
        .program("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(usernet_control_tests::usernet())
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "user namespaces").unwrap();
    assert_ne!(check["status"], "ok");
    assert!(check["remedy"].as_str().unwrap().contains("user.max_user_namespaces"), "{check}");
}

#[test]
fn the_doctor_leaves_nothing_behind() {
    let account = Account::ordinary();
    account.usernet("doctor").output().unwrap();
    assert!(!account.runtime_dir().exists());
}

#[test]
fn completions_are_made_for_every_shell_and_both_programs() {
    let account = Account::own();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        for program in ["usernet", "usernetd"] {
            let line = format!("completions {shell} --program {program}");
            let output = account.usernet(&line).output().unwrap();
            assert_eq!(status(&output), 0, "{line}");
            assert!(stdout(&output).contains("host-loopback"), "{line}");
        }
    }
    let bash = stdout(&account.usernet("completions bash").output().unwrap());
    let checked = account.program("bash").args(["-n", "-c", &bash]).output().unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));
}

#[test]
fn manual_pages_are_written_and_render() {
    let account = Account::ordinary();
    let dir = account.home.join("man1");
    assert_eq!(status(&account.usernet("man --dir man1").output().unwrap()), 0);
    for page in ["usernet.1", "usernet-run.1", "usernet-forward.1", "usernetd.1"] {
        let text = fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS") && text.contains("Examples:"), "{page}");
        if let Ok(output) = account.program("man").arg("-l").arg(dir.join(page)).output() {
            assert!(output.status.success(), "{page}: {}", stderr(&output));
        }
    }
    let page = stdout(&account.usernet("man").output().unwrap());
    assert!(page.contains(".SH"));
}

#[test]
fn without_a_command_help_is_shown_and_the_status_is_2() {
    let output = Account::own().usernet("").output().unwrap();
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("Usage: usernet <COMMAND>"), "{output:?}");
}

#[test]
fn a_runtime_directory_that_is_open_to_others_is_refused() {
    let account = Account::ordinary();
    let open = account.home.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(&open, Some(account.uid.as_raw()), None).unwrap();
    let output = account.usernet("ls").env("USERNET_RUNTIME_DIR", &open).output().unwrap();
    assert_eq!(status(&output), 1, "{output:?}");
    assert!(stderr(&output).contains("open to others"), "{output:?}");
}
