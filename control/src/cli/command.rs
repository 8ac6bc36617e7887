//! Becoming the user's command.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

use super::error::Error;

/// Replaces this process by the command; `adjust` may change its environment. Returns the error
/// number if it fails.
///
/// `SIGPIPE`, which the Rust runtime ignores, is put back to what a program expects.
pub(crate) fn become_it(words: &[OsString], adjust: impl FnOnce(&mut Command)) -> i32 {
    let Some((program, rest)) = words.split_first() else { return libc::ENOENT };
    let mut command = Command::new(program);
    command.args(rest);
    adjust(&mut command);
    let errno = command.exec().raw_os_error().unwrap_or(libc::ENOENT);
    // execvp(3) says EACCES also if a directory of the path cannot be searched. To a shell the
    // command is then not found.
    if errno == libc::EACCES && !is_anywhere(program) { libc::ENOENT } else { errno }
}

/// Whether there is such a file, executable or not.
fn is_anywhere(program: &OsString) -> bool {
    if program.as_encoded_bytes().contains(&b'/') {
        return true;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// The command could not be executed.
pub(crate) fn not_executed(words: &[OsString], errno: i32) -> Error {
    let command = words.first().map(|word| word.to_string_lossy().into_owned());
    Error::Exec {
        command: command.unwrap_or_default(),
        source: io::Error::from_raw_os_error(errno),
    }
}
