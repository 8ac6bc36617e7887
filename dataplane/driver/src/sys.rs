//! System calls that the libraries do not offer in the shape needed here, each behind one safe function.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::address::SockAddr;
use crate::control::{self, CONTROL_BYTES, Control};
use crate::stream::TCP_INQ;

/// -1 is an error, and errno says which.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for calls that count bytes.
pub(crate) fn check_bytes(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether a nonblocking call has nothing to do right now.
pub(crate) fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether this thread is scheduled as threads are (`sched_getscheduler(2)`), and not as its user has chosen.
pub(crate) fn is_scheduled_as_usual() -> bool {
    // SAFETY: no pointers. By number: one C library has but an error for this.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    policy == libc::c_long::from(libc::SCHED_OTHER)
}

/// Whether this thread, by being woken, interrupts who is running (`sched_setscheduler(2)`).
pub(crate) fn schedule_as_batch(is_batch: bool) -> io::Result<()> {
    let policy = if is_batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter is read, and no longer than the call takes.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &priority) };
    check(result as libc::c_int).map(drop)
}

/// A nonblocking socket, not inherited.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: a descriptor that the kernel just gave us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bind(2)`.
pub(crate) fn bind(fd: BorrowedFd<'_>, to: &SockAddr) -> io::Result<()> {
    // SAFETY: the address is as long as it says.
    check(unsafe { libc::bind(fd.as_raw_fd(), to.as_ptr(), to.len()) }).map(drop)
}

/// `connect(2)`.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: &SockAddr) -> io::Result<()> {
    // SAFETY: the address is as long as it says.
    check(unsafe { libc::connect(fd.as_raw_fd(), to.as_ptr(), to.len()) }).map(drop)
}

/// `accept4(2)`: nonblocking, not inherited, with the peer's address.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
    let mut peer = SockAddr::empty();
    let (pointer, len) = (peer.as_mut_ptr(), ptr::from_mut(peer.len_mut()));
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: both pointers are into `peer`, which has room for `len` bytes.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), pointer, len, flags) })?;
    // SAFETY: a descriptor that the kernel just gave us.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, peer))
}

/// Sets an option whose value is an `int`.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = mem::size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = ptr::from_ref(&value).cast();
    // SAFETY: `value` is `len` bytes long.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, len) }).map(drop)
}

/// Reads an option whose value is an `int`.
pub(crate) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = ptr::from_mut(&mut value).cast();
    // SAFETY: `value` has room for `len` bytes.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, pointer, &mut len) })?;
    Ok(value)
}

/// The error that the socket has kept for us (`SO_ERROR`), which forgets it.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    match option(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The next close sends RST (`SO_LINGER` 0).
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let value = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = mem::size_of::<libc::linger>() as libc::socklen_t;
    let pointer = ptr::from_ref(&value).cast();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
    // SAFETY: `value` is `len` bytes long.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, len) }).map(drop)
}

/// `SO_BINDTODEVICE`.
pub(crate) fn bind_to_device(fd: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    let len = interface.len() as libc::socklen_t;
    // SAFETY: `interface` is `len` bytes long.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, interface.as_ptr().cast(), len) })
        .map(drop)
}

/// Ends the sending direction.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// A message header around a list of buffers, with no name and no control data.
fn message(buffers: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = buffers;
    message.msg_iovlen = count as _;
    message
}

/// Gathers and sends, nonblocking.
///
/// # Safety
///
/// The buffers are readable for the duration of the call.
pub(crate) unsafe fn send(fd: BorrowedFd<'_>, buffers: &[libc::iovec]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    if let [buffer] = buffers {
        let (pointer, len) = (buffer.iov_base, buffer.iov_len);
        // SAFETY: the caller's promise.
        return check_bytes(unsafe { libc::send(fd.as_raw_fd(), pointer, len, flags) });
    }
    let message = message(buffers.as_ptr().cast_mut(), buffers.len());
    // SAFETY: the list is valid, its buffers by the caller's promise; sendmsg writes to neither.
    check_bytes(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) })
}

/// Scatters what is in the receive queue over the buffers and leaves it there, nonblocking.
///
/// # Safety
///
/// The buffers are writable and nobody else looks at them for the duration of the call.
pub(crate) unsafe fn peek(fd: BorrowedFd<'_>, buffers: &mut [libc::iovec]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    if let [buffer] = buffers {
        let (pointer, len) = (buffer.iov_base, buffer.iov_len);
        // SAFETY: the caller's promise.
        return check_bytes(unsafe { libc::recv(fd.as_raw_fd(), pointer, len, flags) });
    }
    let mut message = message(buffers.as_mut_ptr(), buffers.len());
    // SAFETY: the list is valid, its buffers by the caller's promise.
    check_bytes(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) })
}

/// The same with a count of the bytes in the queue, those before the place of the peek included, where the socket was asked
/// for it ([`TCP_INQ`]).
///
/// # Safety
///
/// As [`peek`].
pub(crate) unsafe fn peek_and_count(
    fd: BorrowedFd<'_>,
    buffers: &mut [libc::iovec],
    control: &mut Control,
) -> io::Result<(usize, Option<u32>)> {
    let mut message = message(buffers.as_mut_ptr(), buffers.len());
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the lists are valid, the buffers by the caller's promise.
    let got = check_bytes(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) })?;
    let mut entries = control.entries(message.msg_controllen);
    let count = entries.find(|(level, kind, _)| (*level, *kind) == (libc::SOL_TCP, TCP_INQ));
    let count = count.and_then(|(_, _, data)| control::int(data));
    Ok((got, count.and_then(|count| u32::try_from(count).ok())))
}

/// Reads what is in a receive queue.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let (pointer, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the buffer is ours for the duration of the call.
    check_bytes(unsafe { libc::recv(fd.as_raw_fd(), pointer, len, libc::MSG_DONTWAIT) })
}

/// Removes bytes from the front of a TCP receive queue without copying them (`MSG_TRUNC`, tcp(7)).
pub(crate) fn discard(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with `MSG_TRUNC` TCP does not write to the buffer.
    check_bytes(unsafe { libc::recv(fd.as_raw_fd(), ptr::null_mut(), bytes, flags) })
}

/// Whether the peer's FIN has arrived (`POLLRDHUP`).
pub(crate) fn has_peer_shut_down(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, as said.
    check(unsafe { libc::poll(&mut entry, 1, 0) })?;
    Ok(entry.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0)
}
