//! `usernet install`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use usernet_control_tests::{Account, status, stderr, stdout};

/// Runs `usernet LINE --json`, which has to work.
#[track_caller]
fn report(account: &Account, line: &str) -> Value {
    let output = account.usernet(line).arg("--json").output().unwrap();
    assert_eq!(status(&output), 0, "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Everything below a directory: what it is, and what is in it.
fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let what = if metadata.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else if metadata.is_dir() {
            found.extend(tree(&path));
            "directory".to_owned()
        } else {
            format!("{:o} {:?}", metadata.permissions().mode(), fs::read(&path).map(|b| b.len()))
        };
        found.insert(path, what);
    }
    found
}

/// Copies the program. Not in this process: a child that another test starts meanwhile would hold the file open
/// for writing, and it could not be executed.
#[track_caller]
fn copy(account: &Account, to: &Path) {
    let status =
        account.program("cp").arg(usernet_control_tests::usernet()).arg(to).status().unwrap();
    assert!(status.success());
}

/// The first line that a program prints, and on which stream.
fn first_line(output: &Output) -> String {
    let text = stdout(output) + &stderr(output);
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_programs_answer_to_all_their_names_and_everything_can_be_taken_away_again() {
    for account in Account::each() {
        fs::create_dir_all(account.home.join(".local/share/man")).unwrap();
        std::os::unix::fs::chown(account.home.join(".local"), Some(account.uid.as_raw()), None)
            .unwrap();
        for dir in [".local/share", ".local/share/man"] {
            let owner = Some(account.uid.as_raw());
            std::os::unix::fs::chown(account.home.join(dir), owner, None).unwrap();
        }
        let before = tree(&account.home);
        let made = report(&account, "install --dir .local/bin --as slirp4netns,pasta");
        assert!(made["made"].as_array().unwrap().len() > 15, "{made}");

        let bin = account.home.join(".local/bin");
        let share = account.home.join(".local/share");
        for (name, told) in [
            ("usernet", "usernet "),
            ("usernetd", "usernetd "),
            ("slirp4netns", "slirp4netns"),
            ("pasta", "pasta"),
        ] {
            let output = account.program(bin.join(name)).arg("--version").output().unwrap();
            assert!(first_line(&output).starts_with(told), "{name}: {output:?}");
        }
        for file in [
            "bash-completion/completions/usernet",
            "bash-completion/completions/usernetd",
            "zsh/site-functions/_usernet",
            "fish/vendor_completions.d/usernetd.fish",
            "man/man1/usernet.1",
            "man/man1/usernet-install.1",
            "man/man1/usernetd.1",
        ] {
            let mode = fs::metadata(share.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644, "{file}");
        }
        // From what was installed: it takes itself away.
        let line = ["install", "--dir", ".local/bin", "--remove"];
        let removed = account.program(bin.join("usernet")).args(line).output().unwrap();
        assert_eq!(status(&removed), 0, "{removed:?}");
        assert_eq!(tree(&account.home), before);
    }
}

#[test]
fn what_is_not_ours_is_named_and_nothing_is_changed() {
    let account = Account::own();
    let dir = account.home.join("tools");
    // A file, or a link.
    for (name, is_link) in [
        ("usernetd", false),
        ("pasta", false),
        ("pasta", true),
        ("share/man/man1/usernet-run.1", false),
        ("share/usernet/install.json", false),
        // In the place of a directory.
        ("share/zsh", false),
    ] {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        if is_link {
            symlink("/bin/true", dir.join(name)).unwrap();
        } else {
            fs::write(dir.join(name), "somebody's").unwrap();
        }
        let before = tree(&account.home);
        let output = account.usernet("install --dir tools --as pasta").output().unwrap();
        assert_eq!(status(&output), 1, "{name}: {output:?}");
        assert!(stderr(&output).contains(&*dir.join(name).to_string_lossy()), "{output:?}");
        assert_eq!(tree(&account.home), before, "{name}");
        fs::remove_dir_all(&dir).unwrap();
    }
    let output = account.usernet("install --dir tools --remove").output().unwrap();
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("nothing was installed in "), "{output:?}");
    assert!(!dir.exists());
}

#[test]
fn a_refusal_in_a_new_directory_leaves_no_directory() {
    let account = Account::own();
    fs::create_dir(account.home.join("share")).unwrap();
    fs::write(account.home.join("share/man"), "").unwrap();
    let before = tree(&account.home);
    let output = account.usernet("install --dir bin").output().unwrap();
    assert_eq!(status(&output), 1, "{output:?}");
    assert_eq!(tree(&account.home), before);
    let output = account.usernet("install --dir share/man/bin").output().unwrap();
    assert_eq!(status(&output), 1, "{output:?}");
    assert_eq!(tree(&account.home), before);
}

#[test]
fn installing_again_changes_what_is_out_of_date_and_keeps_the_names() {
    let account = Account::own();
    let dir = account.home.join("tools");
    report(&account, "install --dir tools --as pasta");
    let again = report(&account, "install --dir tools --as slirp4netns");
    assert_eq!(again["made"], serde_json::json!([dir.join("slirp4netns")]));
    assert_eq!(again["replaced"], serde_json::json!([]));
    assert!(dir.join("pasta").exists());

    // As an older version left it: a page that was other, one that is no more.
    let manifest = dir.join("share/usernet/install.json");
    let mut written: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for (page, from) in [("usernet-run.1", "usernet-run.1"), ("usernet-gone.1", "usernet-rm.1")] {
        fs::write(dir.join("share/man/man1").join(page), "old").unwrap();
        let metadata = fs::metadata(dir.join("share/man/man1").join(page)).unwrap();
        let made = written["made"].as_array_mut().unwrap();
        let is_it = |r: &&Value| r["path"] == format!("man/man1/{from}");
        let mut record = made.iter().find(is_it).unwrap().clone();
        use std::os::unix::fs::MetadataExt;
        record["path"] = format!("man/man1/{page}").into();
        record["bytes"] = 3.into();
        record["modified"] = serde_json::json!([metadata.mtime(), metadata.mtime_nsec()]);
        made.retain(|r| r["path"] != record["path"]);
        made.push(record);
    }
    fs::write(&manifest, written.to_string()).unwrap();
    let upgraded = report(&account, "install --dir tools");
    let page = |name| dir.join("share/man/man1").join(name);
    assert_eq!(upgraded["replaced"], serde_json::json!([page("usernet-run.1")]));
    assert_eq!(upgraded["removed"], serde_json::json!([page("usernet-gone.1")]));
    assert!(fs::read_to_string(page("usernet-run.1")).unwrap().contains(".SH"));

    report(&account, "install --dir tools --remove");
    assert!(!dir.exists());
}

#[test]
fn what_was_changed_since_is_left_and_told() {
    let account = Account::own();
    let dir = account.home.join("tools");
    report(&account, "install --dir tools --as slirp4netns,pasta");
    fs::remove_file(dir.join("pasta")).unwrap();
    symlink("/bin/true", dir.join("pasta")).unwrap();
    fs::remove_file(dir.join("slirp4netns")).unwrap();
    fs::write(dir.join("usernet"), "mine now").unwrap();
    let refused = account.usernet("install --dir tools").output().unwrap();
    assert!(stderr(&refused).contains("tools/usernet is there already"), "{refused:?}");

    let removed = report(&account, "install --dir tools --remove");
    assert_eq!(
        removed["kept"],
        serde_json::json!([dir.join("pasta"), dir.join("usernet")]),
        "{removed}"
    );
    let left: Vec<PathBuf> = tree(&dir).into_keys().collect();
    assert_eq!(left, [dir.join("pasta"), dir.join("usernet")]);
}

#[test]
fn what_is_there_already_and_right_stays_whoever_made_it() {
    let account = Account::own();
    let dir = account.home.join("tools");
    fs::create_dir(&dir).unwrap();
    copy(&account, &dir.join("usernetd"));
    copy(&account, &dir.join("usernet"));
    symlink(dir.join("usernetd"), dir.join("pasta")).unwrap();
    // A link to the directory.
    symlink("tools", account.home.join("link")).unwrap();
    let own = account.program(dir.join("usernet")).args(["install", "--dir", "link"]).output();
    let own = own.unwrap();
    assert_eq!(status(&own), 0, "{own:?}");
    let again = report(&account, "install --dir link --as pasta,slirp4netns");
    assert_eq!(again["made"], serde_json::json!([dir.join("slirp4netns")]));
    report(&account, "install --dir tools --remove");
    let left: Vec<PathBuf> = tree(&dir).into_keys().collect();
    assert_eq!(left, ["pasta", "usernet", "usernetd"].map(|name| dir.join(name)));
}

#[test]
fn a_program_in_use_is_replaced_and_goes_on() {
    let account = Account::own();
    let dir = account.home.join("tools");
    report(&account, "install --dir tools");
    let daemon = dir.join("usernetd");
    let script = "echo up; exec sleep 600";
    let mut unshare = account.program("unshare");
    let mut namespace =
        usernet_control_tests::Running::start(unshare.args(["-Urn", "sh", "-c", script]));
    assert_eq!(namespace.line(), "up");
    let netns = namespace.pid().to_string();
    let mut running = usernet_control_tests::Running::start(
        account.program(&daemon).args(["--netns", netns.as_str()]),
    );
    assert!(running.line().starts_with("usernetd: tap0 in "));
    // Another version, as far as the manifest knows.
    let other = account.home.join("usernet");
    copy(&account, &other);
    let append = account.program("sh").args(["-c", "printf x >> usernet"]).status().unwrap();
    assert!(append.success());
    let output = account.program(&other).args(["install", "--dir", "tools"]).output().unwrap();
    assert_eq!(status(&output), 0, "{output:?}");
    assert!(stdout(&output).contains("replaced   "), "{output:?}");
    assert!(usernet_control_tests::is_alive(running.pid()));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
}
