//! `usernet run` in a terminal, between an interactive shell and the command: what is typed, job
//! control.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use usernet_control_tests::{Account, usernet};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An interactive shell in a terminal of its own.
struct Terminal {
    shell: Child,
    master: File,
    seen: String,
}

impl Terminal {
    fn open(account: &Account) -> Self {
        let pty = openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = account.program("bash");
        command.args(["--norc", "--noprofile", "--noediting", "-i"]).env("PS1", "");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: the closure makes two system calls between fork and exec; the ioctl takes a
        // number.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let shell = command.spawn().unwrap();
        let mut terminal = Self { shell, master: File::from(pty.master), seen: String::new() };
        terminal.enter("stty -echo; PS1=; echo rea''dy");
        terminal.expect("ready");
        terminal
    }

    /// Types a line; `@` stands for the program under test.
    fn enter(&mut self, line: &str) {
        let line = line.replace('@', usernet().to_str().unwrap());
        self.press(format!("{line}\n").as_bytes());
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Waits until this has been shown; what was shown before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                let before = self.seen.drain(..at).collect();
                self.seen.drain(..text.len());
                return before;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {text:?}: {:?}", self.seen);
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u8)).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let length = self.master.read(&mut bytes).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        }
    }

    /// Waits until the process group in the foreground is another one than that of a shell.
    #[track_caller]
    fn expect_job_of(&mut self, shell: libc::pid_t) {
        usernet_control_tests::eventually("a job is in the foreground", || {
            let mut group: libc::pid_t = 0;
            // SAFETY: the kernel writes one pid_t, which lives until the call returns.
            let answer =
                unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPGRP, &mut group) };
            answer == 0 && group != shell
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.shell.kill().ok();
        self.shell.wait().ok();
    }
}

#[test]
fn interrupt_and_quit_end_the_command() {
    for account in Account::each() {
        let mut terminal = Terminal::open(&account);
        for (key, status) in [(b"\x03", "=130="), (b"\x1c", "=131=")] {
            terminal.enter("@ run -- sh -c 'echo star''ted; exec sleep 600'; echo =$?=");
            terminal.expect("started");
            terminal.press(key);
            // An interrupted list is given up by the shell: ask again.
            terminal.enter("echo =$?=");
            terminal.expect(status);
        }
        account.assert_no_instances();
    }
}

#[test]
fn the_command_reads_what_is_typed() {
    for account in Account::each() {
        let mut terminal = Terminal::open(&account);
        terminal.enter("@ run -- sh -c 'echo star''ted; read word; echo \"[$word]\"'; echo =$?=");
        terminal.expect("started");
        terminal.enter("hello");
        terminal.expect("[hello]");
        terminal.expect("=0=");
    }
}

#[test]
fn a_stopped_command_is_a_stopped_job_and_goes_on_in_the_foreground() {
    for account in Account::each() {
        let mut terminal = Terminal::open(&account);
        terminal.enter("@ run -- sh -c 'echo star''ted; exec sleep 600'");
        terminal.expect("started");
        for _ in 0..3 {
            terminal.press(b"\x1a");
            terminal.expect("Stopped");
            terminal.enter("fg");
            terminal.expect_job_of(terminal.shell.id().cast_signed());
        }
        terminal.press(b"\x03");
        terminal.enter("echo =$?=");
        terminal.expect("=130=");
        account.assert_no_instances();
    }
}

#[test]
fn a_shell_as_the_command_has_job_control_of_its_own() {
    for account in Account::each() {
        let mut terminal = Terminal::open(&account);
        terminal.enter("@ run -- bash --norc --noprofile --noediting -i");
        terminal.enter("PS1=; echo in''ner $UID $$ .");
        terminal.expect("inner 0 ");
        let shell: libc::pid_t = terminal.expect(" .").parse().unwrap();
        terminal.enter("sh -c 'echo sl''eeps; exec sleep 600'");
        terminal.expect("sleeps");
        terminal.press(b"\x1a");
        terminal.expect("Stopped");
        terminal.enter("fg");
        terminal.expect_job_of(shell);
        terminal.press(b"\x03");
        terminal.enter("echo =$?=");
        terminal.expect("=130=");
        terminal.enter("exit 7");
        terminal.enter("echo =$?=");
        terminal.expect("=7=");
        account.assert_no_instances();
    }
}
