//! The userspace sockets of tunnels, `DIR/NAME.sock`, by which `wg` reads and changes them.
//!
//! [`uapi`] has the language; the server of the control socket has connections, limits and who
//! may come in: root and the daemon's user, as for the other socket, because what is told are the keys. A connection is
//! for one request and then closed, as `wg` expects; several that come in one piece are answered in order.
//!
//! Changes reach the tunnel and nothing else. Addresses, routes, resolvers and whether the tunnel is the way out are as
//! the file said: they are the guest's kernel's, `wg` does not speak of them, and a peer's `AllowedIPs` that shrink
//! must not open the plain path.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use usernet_driver::{Gone, ListenError};
use usernet_wireguard::uapi::{
    self, Changes, Errno, REQUEST_BYTES_MAX, Request, UapiError, message_end,
};

use crate::api::SocketError;
use crate::api::protocol::{Answer, End, Framing, Protocol, Refusal};
use crate::api::server::Server;
use crate::tunnels::Running;

/// Listens for each of the tunnels, if there is a directory for it, which is made where it is not there.
pub(crate) fn serve<'a>(
    directory: Option<&Path>,
    tunnels: impl Iterator<Item = &'a Running>,
) -> Result<Vec<Server>, SocketError> {
    let Some(directory) = directory else { return Ok(Vec::new()) };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| SocketError::Listen { path: directory.to_owned(), source })?;
    let serve = |tunnel: &Running| {
        let path = directory.join(format!("{}.sock", tunnel.name));
        Server::speaking(Box::new(Userspace(tunnel.clone())), &path)
    };
    tunnels.map(serve).collect()
}

/// See the [module](self).
struct Userspace(Running);

impl Protocol for Userspace {
    fn framing(&self) -> Framing {
        Framing::Whole
    }

    fn is_whole(&self, request: &[u8]) -> bool {
        request.ends_with(b"\n\n")
    }

    fn request_bytes_max(&self) -> usize {
        REQUEST_BYTES_MAX
    }

    fn answer(&mut self, requests: &[u8], _: End, _: &mut Answer<'_>) -> Vec<u8> {
        let mut rest = requests;
        let mut answers = Vec::new();
        while !rest.is_empty() {
            // What ends without an empty line is no request, and is said to be none.
            let end = message_end(rest);
            let (request, next) = rest.split_at(end.unwrap_or(rest.len()));
            let answer = match end {
                Some(_) => self.answer_one(request),
                None => Err(Errno::EINVAL),
            };
            answers.extend(answer.unwrap_or_else(|errno| uapi::answer_errno(errno).into_bytes()));
            rest = next;
        }
        answers
    }

    fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
        let errno = match refusal {
            Refusal::Forbidden => libc::EACCES,
            Refusal::Busy => libc::EBUSY,
            Refusal::TooLarge => libc::E2BIG,
            Refusal::Late => libc::ETIMEDOUT,
        };
        uapi::answer_errno(Errno(errno)).into_bytes()
    }
}

impl Userspace {
    fn answer_one(&self, request: &[u8]) -> Result<Vec<u8>, Errno> {
        match uapi::parse_request(request).map_err(UapiError::errno)? {
            Request::Get => {
                let device = self.0.device().map_err(ended)?;
                Ok(uapi::answer_get(&device).as_bytes().to_vec())
            }
            Request::Set(changes) => {
                self.change(changes)?;
                Ok(uapi::answer_errno(Errno::OK).into_bytes())
            }
        }
    }

    /// The port first: it is all that can fail, and nothing is changed then.
    fn change(&self, changes: Changes) -> Result<(), Errno> {
        let handle = &self.0.handle;
        if let Some(port) = changes.listen_port {
            handle.listen(port).map_err(ended)?.map_err(refused)?;
        }
        handle.with(move |tunnel, _, _| tunnel.apply(&changes)).map_err(ended)?;
        tracing::info!("{}: changed by way of its userspace socket", self.0.name);
        Ok(())
    }
}

fn ended(_: Gone) -> Errno {
    Errno::EIO
}

fn refused(error: ListenError) -> Errno {
    error.source.raw_os_error().map_or(Errno::EIO, Errno)
}
