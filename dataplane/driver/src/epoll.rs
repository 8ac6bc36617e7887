//! The epoll backend, on mio: edge triggered readiness, and one `read(2)` per frame.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use crate::arena::Arena;
use crate::backend::{Backend, Event, FromTap, Ready, Token, may_have_more};
use crate::tap::Tap;

/// Events taken per wake-up; what is left comes with the next.
const EVENTS_PER_WAIT: usize = 256;

/// See the [module](self).
pub(crate) struct Epoll {
    poll: Poll,
    events: Events,
    /// The TAP has not said that it is empty since it was last readable.
    tap_is_ready: bool,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_WAIT),
            tap_is_ready: false,
        })
    }
}

impl Backend for Epoll {
    const NAME: &'static str = "epoll";

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let registry = self.poll.registry();
        let interest = match token {
            Token::Room => {
                // A descriptor is in the set once.
                let token = mio::Token(Token::Tap.pack() as usize);
                let both = Interest::READABLE | Interest::WRITABLE;
                return registry.reregister(&mut SourceFd(&fd.as_raw_fd()), token, both);
            }
            Token::Tap => {
                self.tap_is_ready = true;
                Interest::READABLE
            }
            Token::Mailbox | Token::Exit => Interest::READABLE,
            Token::Socket { .. } | Token::PairClient { .. } | Token::PairServer { .. } => {
                Interest::READABLE | Interest::WRITABLE
            }
        };
        let token = mio::Token(token.pack() as usize);
        registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest)
    }

    fn forget(&mut self, _fd: BorrowedFd<'_>, _token: Token) {
        // The last close of a descriptor takes it out of the epoll set, and these are never duplicated.
    }

    fn forget_shared(&mut self, fd: BorrowedFd<'_>, _token: Token) {
        // The set knows it by its number and its file: another duplicate of the same number could not be watched (`EEXIST`).
        // Where there is no watch, nothing is lost.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    fn end(&mut self, _tokens: impl Iterator<Item = Token>) {
        // The set goes, and with it the watches.
    }

    fn wait(
        &mut self,
        _tap: &Tap,
        _arena: &mut Arena,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let Some(token) = Token::unpack(event.token().0 as u64) else { continue };
            let ready = Ready {
                read: event.is_readable() || event.is_read_closed(),
                write: event.is_writable(),
                error: event.is_error(),
                hung_up: event.is_read_closed(),
            };
            if token == Token::Tap {
                self.tap_is_ready |= ready.read || ready.error;
                if ready.write {
                    events.push(Event { token: Token::Room, ready, has_ended: false });
                }
                continue;
            }
            events.push(Event { token, ready, has_ended: false });
        }
        Ok(())
    }

    fn may_have_events(&mut self) -> bool {
        true
    }

    fn next_frame(&mut self, tap: &Tap, arena: &mut Arena) -> io::Result<FromTap> {
        if !self.tap_is_ready {
            return Ok(FromTap::Empty);
        }
        let result = tap.read_frame(arena);
        self.tap_is_ready = may_have_more(&result);
        result
    }

    fn reads_ahead(&self) -> bool {
        false
    }

    fn has_frames(&self) -> bool {
        self.tap_is_ready
    }

    fn on_idle(&mut self, _arena: &Arena) {}

    fn leases_held(&self) -> u32 {
        0
    }
}
