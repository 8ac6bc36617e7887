//! The native protocol: a request per line, a line of answer each.

use serde_json::Value;

use super::message::{ApiError, Call, ErrorCode, Request, Response};
use super::protocol::{Answer, End, Framing, Outcome, Protocol, Refusal};
use super::{REQUEST_BYTES_MAX, VERSION};

/// See the module.
pub(crate) struct Lines;

impl Protocol for Lines {
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    fn request_bytes_max(&self) -> usize {
        REQUEST_BYTES_MAX
    }

    fn answer(&mut self, request: &[u8], end: End, answer: &mut Answer<'_>) -> Vec<u8> {
        if request.trim_ascii().is_empty() {
            return Vec::new();
        }
        if end == End::OfStream
            && serde_json::from_slice::<Value>(request).is_err_and(|error| error.is_eof())
        {
            let what = "the connection ended in the middle of a request";
            return line(Value::Null, Err(ApiError::new(ErrorCode::Incomplete, what)));
        }
        let (id, call) = parse(request);
        line(id, call.and_then(answer))
    }

    fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
        let (code, message) = match refusal {
            Refusal::Forbidden => {
                (ErrorCode::Forbidden, "only root and the user who runs usernetd may ask it")
            }
            Refusal::Busy => (ErrorCode::Busy, "too many connections to this usernetd"),
            Refusal::TooLarge => (ErrorCode::TooLarge, "a request may have 1 MiB at most"),
            Refusal::Late => (ErrorCode::Timeout, "the request was not complete within 10 s"),
        };
        line(Value::Null, Err(ApiError::new(code, message)))
    }
}

fn line(id: Value, outcome: Outcome) -> Vec<u8> {
    // A vector takes everything, and our own types have no keys but strings.
    let mut line = serde_json::to_vec(&Response::new(id, outcome)).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The request on a line: its id, as far as it can be read, and the call.
fn parse(line: &[u8]) -> (Value, Result<Call, ApiError>) {
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let message = format!("not JSON: {error}");
            return (Value::Null, Err(ApiError::new(ErrorCode::InvalidJson, message)));
        }
    };
    let invalid = |what: String| Err(ApiError::new(ErrorCode::InvalidRequest, what));
    if !value.is_object() {
        return (Value::Null, invalid("a request is an object".to_owned()));
    }
    let id = value.get("id").cloned().unwrap_or_default();
    if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
        return (Value::Null, invalid("the id is a number or a string".to_owned()));
    }
    match serde_json::from_value::<Request>(value) {
        Err(error) => (id, invalid(error.to_string())),
        Ok(request) if request.version != VERSION => {
            let message = format!(
                "this usernetd speaks version {VERSION} of the control protocol, not {}",
                request.version
            );
            (id, Err(ApiError::new(ErrorCode::UnsupportedVersion, message)))
        }
        Ok(request) => (id, Call::parse(&request.method, request.params)),
    }
}
