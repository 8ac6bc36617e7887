//! The asking side of the control socket, for `usernet` and for tests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::message::{ApiError, Call, FlowParams, Flows, Forwards, Request, Response, Status};
use super::{RESPONSE_BYTES_MAX, VERSION};
use crate::spec::Spec;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no usernetd answers at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to usernetd at {} broke: {source}", path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("usernetd at {} gave an answer that cannot be read: {reason}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon refuses.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    /// Id of the next request.
    next_id: u64,
}

impl Client {
    /// Connects to the daemon that listens at `path`.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let connect = || {
            let stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        };
        match connect() {
            Ok(stream) => Ok(Self { path, stream: BufReader::new(stream), next_id: 1 }),
            Err(source) => Err(ClientError::Connect { path, source }),
        }
    }

    /// What the daemon is, and its counters.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(&Call::Status)
    }

    /// What is being translated; at most `limit` of it.
    pub fn flows(&mut self, limit: Option<u32>) -> Result<Flows, ClientError> {
        self.ask(&Call::Flows(FlowParams { limit }))
    }

    /// The forwards in force.
    pub fn forwards(&mut self) -> Result<Forwards, ClientError> {
        self.ask(&Call::ForwardList)
    }

    /// Adds all of these or none; returns the new ones.
    pub fn forward_add(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::ForwardAdd(specs))
    }

    /// Removes all of these or none; returns those that are left.
    pub fn forward_remove(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::ForwardRemove(specs))
    }

    /// Replaces the whole set at once; returns it.
    pub fn forward_set(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::ForwardSet(specs))
    }

    /// As [`Client::forward_add`], for ports of the namespace that lead to the host.
    pub fn outward_add(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::OutwardAdd(specs))
    }

    /// As [`Client::forward_remove`], for these.
    pub fn outward_remove(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::OutwardRemove(specs))
    }

    /// As [`Client::forward_set`], for these.
    pub fn outward_set(&mut self, specs: Vec<Spec>) -> Result<Forwards, ClientError> {
        self.ask(&Call::OutwardSet(specs))
    }

    /// Ends the daemon.
    pub fn stop(&mut self) -> Result<(), ClientError> {
        self.ask::<Value>(&Call::Stop).map(drop)
    }

    /// Makes a call and reads its result.
    pub fn ask<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, ClientError> {
        let id = Value::from(self.next_id);
        self.next_id += 1;
        let method = call.method().to_owned();
        let request = Request { version: VERSION, id: id.clone(), method, params: call.params() };
        let line = self
            .exchange(&request)
            .map_err(|source| ClientError::Connection { path: self.path.clone(), source })?;
        let unreadable = |reason: String| ClientError::Answer { path: self.path.clone(), reason };
        let response: Response =
            serde_json::from_slice(&line).map_err(|e| unreadable(e.to_string()))?;
        if let Some(error) = response.error {
            return Err(error.into());
        }
        if response.id != id {
            return Err(unreadable("it belongs to another request".to_owned()));
        }
        serde_json::from_value(response.result.unwrap_or_default())
            .map_err(|e| unreadable(e.to_string()))
    }

    /// Writes a line, reads a line.
    fn exchange(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // A daemon that refuses the connection says so before it reads: the answer counts, not the write.
        let written = self.stream.get_mut().write_all(&line);
        line.clear();
        let limit = RESPONSE_BYTES_MAX as u64;
        self.stream.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            written?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }
}
