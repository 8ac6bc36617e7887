//! Tunnels for callers that cannot be told of options: `usernet/config.toml`, for the names of other tools.
//!
//! ```toml
//! [pasta]
//! wireguard = ["/home/me/wg0.conf"]
//! wireguard-split = ["192.168.0.0/16"]
//!
//! [slirp4netns]
//! isolated = true
//! ```
//!
//! The user's own file, `$XDG_CONFIG_HOME/usernet/config.toml` or `~/.config/…`, takes the place of
//! `/etc/usernet/config.toml`. A file that cannot be read, or says something that is not known, ends the start: a
//! namespace without the tunnel that was meant for it would be a leak.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{TunnelFile, Wanted, network};
use crate::program::Program;

/// Where it is for everybody.
const SYSTEM: &str = "/etc/usernet/config.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    pasta: Section,
    slirp4netns: Section,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Section {
    wireguard: Vec<String>,
    wireguard_split: Vec<String>,
    wireguard_api: Option<PathBuf>,
    isolated: bool,
}

/// What the file says for a program.
pub(crate) fn settings(program: Program) -> Result<Wanted, String> {
    for path in own_file().into_iter().chain([PathBuf::from(SYSTEM)]) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return wanted(&path, &text, program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    Ok(Wanted::default())
}

fn own_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("usernet/config.toml"))
}

fn wanted(path: &Path, text: &str, program: Program) -> Result<Wanted, String> {
    let at = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let settings: Settings = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        format!("{}:{line}: {}", path.display(), error.message())
    })?;
    let section = match program {
        Program::Pasta => settings.pasta,
        Program::Slirp4netns => settings.slirp4netns,
        Program::Usernetd => Section::default(),
    };
    let files = section.wireguard.iter().map(|file| file.parse::<TunnelFile>());
    let split = section.wireguard_split.iter().map(|text| network(text));
    Ok(Wanted {
        files: files.collect::<Result<_, _>>().map_err(|what| at(&what))?,
        split: split.collect::<Result<_, _>>().map_err(|what| at(&what))?,
        api: section.wireguard_api,
        is_isolated: section.isolated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Wanted, String> {
        wanted(Path::new("config.toml"), text, Program::Pasta)
    }

    #[test]
    fn each_tool_has_a_section_of_its_own() {
        let text = "[slirp4netns]\nisolated = true\n[pasta]\nwireguard-split = [\"192.0.2.0/24\", \"::1\"]\n";
        let pasta = of(text).unwrap();
        assert!(!pasta.is_isolated && pasta.split.len() == 2 && pasta.files.is_empty());
        let slirp = wanted(Path::new("config.toml"), text, Program::Slirp4netns).unwrap();
        assert!(slirp.is_isolated && slirp.split.is_empty());
        assert_eq!(of(""), Ok(Wanted::default()));
    }

    #[test]
    fn what_is_wrong_is_told_and_never_passed_over() {
        for (text, told) in [
            ("[pasta]\nwiregard = []\n", "config.toml:2: unknown field `wiregard`"),
            ("[pasta\n", "config.toml:1: "),
            ("[podman]\n", "config.toml:1: unknown field `podman`"),
            ("[pasta]\nisolated = 1\n", "config.toml:2: invalid type"),
            ("[pasta]\nwireguard = [\"/nonexistent/wg0.conf\"]\n", "cannot read /nonexistent"),
            ("[pasta]\nwireguard-split = [\"x\"]\n", "config.toml: write ADDRESS/LENGTH"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
