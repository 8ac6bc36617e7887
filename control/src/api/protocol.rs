//! What is spoken on a control socket, apart from sockets.
//!
//! The server knows connections, limits and deadlines; a [`Protocol`] knows what the bytes mean. It turns a request
//! into [`Call`]s, which the control thread carries out, and what they come to into the bytes of an answer.

use serde_json::Value;

use super::message::{ApiError, Call};

/// What a call comes to.
pub(crate) type Outcome = Result<Value, ApiError>;

/// Carries out a call.
pub(crate) type Answer<'a> = dyn FnMut(Call) -> Outcome + 'a;

/// A language of requests and answers. One value serves all connections of a socket.
pub(crate) trait Protocol: Send {
    /// How a request is told from the next one.
    fn framing(&self) -> Framing;

    /// With [`Framing::Whole`], whether this is all of a request though the client may send more.
    fn is_whole(&self, _request: &[u8]) -> bool {
        false
    }
    /// As many bytes without an end are refused: the longest request, its end included.
    fn request_bytes_max(&self) -> usize;

    /// What one request is answered with; nothing: it gets no answer.
    fn answer(&mut self, request: &[u8], end: End, answer: &mut Answer<'_>) -> Vec<u8>;

    /// What is said in place of an answer. The connection ends then.
    fn refuse(&mut self, refusal: Refusal) -> Vec<u8>;
}

/// How a request is told from the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By a newline; many of them on one connection.
    Lines,
    /// It is all that the client sends until it is whole, or the client ends its direction; then it is answered and the
    /// connection closed. So a connection does not last, and clients that come while there are too many wait.
    Whole,
}

/// What ended a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its newline.
    OfLine,
    /// The client has ended its direction, or need not.
    OfStream,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The peer is neither root nor our user.
    Forbidden,
    /// There are too many connections.
    Busy,
    /// It is too long.
    TooLarge,
    /// It took too long to arrive.
    Late,
}
