//! Descriptors that the caller of the program left open for it, named by number on the command line.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Takes charge of an inherited descriptor. To be called before the program opens any of its own: a number that
/// nobody left open must not name one of those. The standard ones are duplicated, so that they stay.
pub(crate) fn take(fd: RawFd) -> Result<OwnedFd, Errno> {
    let standard = match fd {
        0 => Some(std::io::stdin().as_fd().try_clone_to_owned()),
        1 => Some(std::io::stdout().as_fd().try_clone_to_owned()),
        2 => Some(std::io::stderr().as_fd().try_clone_to_owned()),
        _ => None,
    };
    if let Some(duplicate) = standard {
        return duplicate.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EBADF)));
    }
    // SAFETY: `fcntl` checks below that the descriptor is open, before anything else is done with it; it is
    // none of the standard library's, and the caller is the only one to take it.
    let owned = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
    fcntl(owned.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(std::mem::ManuallyDrop::into_inner(owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert_eq!(take(1_000_000).expect_err("not open"), Errno::EBADF);
    }
}
