//! Which network tools rootless Podman finds: the original ones, or us under their names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::{Check, Verdict};
use crate::program::Program;

const NAME: &str = "podman's network tools";

/// Where Podman looks for its helpers unless it is told otherwise (`containers.conf(5)`, `helper_binaries_dir`).
const HELPER_DIRS: [&str; 4] = [
    "/usr/local/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/libexec/podman",
    "/usr/lib/podman",
];

/// Looks where Podman would. None: there is no Podman, or it needs none of them, as with root.
pub(super) fn tools() -> Option<Check> {
    let path: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    if geteuid().is_root() || find("podman", &path).is_none() {
        return None;
    }
    let texts: Vec<String> =
        files().iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    Some(judge(&Settings::read(&texts), &path))
}

/// What `containers.conf` says.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    /// `network_cmd_path`: slirp4netns, whatever its name is.
    slirp4netns: Option<PathBuf>,
    /// `helper_binaries_dir`.
    helper_dirs: Vec<PathBuf>,
}

impl Settings {
    /// What the files say together; a later one has the last word.
    fn read(texts: &[String]) -> Self {
        let mut settings =
            Self { slirp4netns: None, helper_dirs: HELPER_DIRS.map(PathBuf::from).to_vec() };
        for text in texts {
            if let Some(value) = value(text, "network_cmd_path") {
                let path = quoted(&value).into_iter().next().filter(|path| !path.is_empty());
                settings.slirp4netns = path.map(PathBuf::from);
            }
            if let Some(value) = value(text, "helper_binaries_dir") {
                if !value.contains("append") {
                    settings.helper_dirs.clear();
                }
                settings.helper_dirs.extend(quoted(&value).into_iter().map(PathBuf::from));
            }
        }
        settings
    }
}

/// The files that Podman reads for an ordinary user, in its order.
fn files() -> Vec<PathBuf> {
    if let Some(only) = env::var_os("CONTAINERS_CONF") {
        return vec![only.into()];
    }
    let home = env::var_os("HOME").map(PathBuf::from);
    let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| home.map(|home| home.join(".config")));
    let roots = [Some("/usr/share".into()), Some("/etc".into()), config];
    let mut files = Vec::new();
    for root in roots.into_iter().flatten() {
        let main = root.join("containers/containers.conf");
        let more = fs::read_dir(main.with_extension("conf.d")).into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        more.sort();
        files.push(main);
        files.extend(more);
    }
    files
}

/// The text of a key's value, without comments. An array may go over several lines.
fn value(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let first = lines.find_map(|line| {
        line.strip_prefix(key)?.trim_start().strip_prefix('=').map(|value| value.trim().to_owned())
    });
    let mut value = first?;
    while value.starts_with('[') && !value.contains(']') {
        value.push_str(lines.next()?);
    }
    Some(value)
}

/// What stands in quotation marks.
fn quoted(value: &str) -> Vec<String> {
    let mark = if value.contains('"') { '"' } else { '\'' };
    value.split(mark).skip(1).step_by(2).map(str::to_owned).collect()
}

fn judge(settings: &Settings, path: &[PathBuf]) -> Check {
    const COST: &str = "rootless containers have no network";
    const INSTALL: &str =
        "usernet install --dir ~/.local/libexec/podman --as slirp4netns,pasta, and see the guide";
    if let Some(missing) = settings.slirp4netns.as_ref().filter(|tool| !tool.is_file()) {
        let finding =
            format!("containers.conf: network_cmd_path = {}: not there", missing.display());
        return Check::bad(NAME, Verdict::Degraded, finding, COST, INSTALL);
    }
    let search = || settings.helper_dirs.iter().chain(path);
    let found: Vec<String> =
        [(Program::Slirp4netns, settings.slirp4netns.clone()), (Program::Pasta, None)]
            .into_iter()
            .filter_map(|(tool, given)| {
                let file = given.or_else(|| find(tool.name(), search()))?;
                let us = if is_ours(&file) { " (usernetd)" } else { "" };
                Some(format!("{tool} is {}{us}", file.display()))
            })
            .collect();
    if found.is_empty() {
        let finding = "neither slirp4netns nor pasta is found";
        return Check::bad(NAME, Verdict::Degraded, finding, COST, INSTALL);
    }
    Check::ok(NAME, found.join(", "))
}

fn find<'a>(name: &str, dirs: impl IntoIterator<Item = &'a PathBuf>) -> Option<PathBuf> {
    dirs.into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Whether a tool is ours under another name: `usernet install` makes links to `usernetd`.
fn is_ours(file: &Path) -> bool {
    let file = fs::canonicalize(file).unwrap_or_default();
    ["usernetd", "usernet"].iter().any(|name| file.ends_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_containers_conf_counts() {
        let defaults = Settings::read(&[]);
        assert_eq!(defaults.helper_dirs.len(), HELPER_DIRS.len());
        let system = "[engine]\n#network_cmd_path = \"/commented\"\nhelper_binaries_dir = [\n  \
                      \"/a\", # first\n  \"/b\",\n]\n";
        let user = "[engine]\nnetwork_cmd_path='/x/slirp4netns'\n\
                    helper_binaries_dir = [\"/c\", {append=true}]\n";
        let both = Settings::read(&[system.to_owned(), user.to_owned()]);
        assert_eq!(both.slirp4netns, Some("/x/slirp4netns".into()));
        assert_eq!(both.helper_dirs, ["/a", "/b", "/c"].map(PathBuf::from));
    }

    #[test]
    fn it_says_which_tool_is_ours_and_which_is_not_there() {
        let dir = env::temp_dir().join(format!("usernet-podman-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("usernetd"), "").unwrap();
        fs::write(dir.join("slirp4netns"), "").unwrap();
        std::os::unix::fs::symlink("usernetd", dir.join("pasta")).unwrap();
        let mut settings = Settings { slirp4netns: None, helper_dirs: vec![dir.clone()] };
        let check = judge(&settings, &[]);
        let (slirp4netns, pasta) = (dir.join("slirp4netns"), dir.join("pasta"));
        let expected = format!(
            "slirp4netns is {}, pasta is {} (usernetd)",
            slirp4netns.display(),
            pasta.display()
        );
        assert_eq!(check, Check::ok(NAME, expected));

        settings.slirp4netns = Some(dir.join("gone"));
        assert!(judge(&settings, &[]).finding.contains("gone: not there"));
        settings = Settings { slirp4netns: None, helper_dirs: Vec::new() };
        assert_eq!(judge(&settings, &[]).status, Verdict::Degraded);
        assert_eq!(judge(&settings, std::slice::from_ref(&dir)).status, Verdict::Ok);
        fs::remove_dir_all(&dir).unwrap();
    }
}
