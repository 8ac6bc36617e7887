//! Join tokens: one line that lets another host have members in a network.
//!
//! A token is base64 of JSON behind a word that says what it is. It holds the private keys of the members it is for,
//! so whoever has it can be them: it goes over standard output and input, and never over a command line.

use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use usernet_wireguard::PrivateKey;
use zeroize::Zeroizing;

use super::keys;
use super::network::check_network_name;
use super::terms::Terms;
use crate::cli::instance::pid_namespace;
use crate::cli::process::Process;

/// In front of every token.
const PREFIX: &str = "usernet-vnet-1.";

/// The longest token.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// The version of [`Joined`]'s form.
pub(super) const JOINED_VERSION: u32 = 1;

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Token {
    /// About the network.
    pub(super) terms: Terms,
    /// Who the members may be.
    pub(super) identities: Vec<Identity>,
}

/// A member that the bearer of a token can be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its name in the network.
    pub(super) name: String,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Its secret.
    #[serde(with = "keys::private")]
    pub(super) private_key: PrivateKey,
}

/// A network that was joined by a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Joined {
    /// The form of this record.
    pub(super) version: u32,
    /// About the network.
    pub(super) terms: Terms,
    /// Who we may be, and who is.
    pub(super) places: Vec<JoinedPlace>,
}

/// An identity, and who uses it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JoinedPlace {
    /// The identity.
    pub(super) identity: Identity,
    /// Who uses it; whoever has ended does not.
    pub(super) user: Option<User>,
}

/// Who uses an identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct User {
    /// Whose end is the use's.
    pub(super) owner: Process,
    /// The process-id namespace in which its id has its meaning.
    pub(super) pid_namespace: PathBuf,
    /// Its instance.
    pub(super) instance: String,
}

/// Why a text is no token that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("that is not a token: one begins with `{PREFIX}`, as `usernet vnet token` prints it")]
    NotOne,
    #[error("the token is of another version of usernet")]
    Version,
    #[error("the token is damaged: copy it whole, it is one line")]
    Damaged,
}

impl Token {
    /// As one line. What prints it prints secrets.
    pub(super) fn to_line(&self) -> Zeroizing<String> {
        let json = Zeroizing::new(serde_json::to_vec(self).expect("the keys are text"));
        let mut line =
            Zeroizing::new(String::with_capacity(PREFIX.len() + json.len() * 4 / 3 + 12));
        line.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*json, &mut line);
        line.push('.');
        URL_SAFE_NO_PAD.encode_string(check_sum(&json).to_be_bytes(), &mut line);
        line
    }

    /// From a line.
    pub(super) fn from_line(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let is_other = text.starts_with("usernet-vnet-");
            return Err(if is_other { TokenError::Version } else { TokenError::NotOne });
        };
        let (json, sum) = rest.split_once('.').ok_or(TokenError::Damaged)?;
        if json.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let damaged = |_| TokenError::Damaged;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(json).map_err(damaged)?);
        if URL_SAFE_NO_PAD.decode(sum).map_err(damaged)? != check_sum(&json).to_be_bytes() {
            return Err(TokenError::Damaged);
        }
        let token: Self = serde_json::from_slice(&json).map_err(|_| TokenError::Damaged)?;
        let is_whole = check_network_name(&token.terms.network).is_ok()
            && !token.terms.gateways.is_empty()
            && !token.identities.is_empty();
        if is_whole { Ok(token) } else { Err(TokenError::Damaged) }
    }
}

/// Against typing and cutting, not against anybody: FNV-1a.
fn check_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, &byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl JoinedPlace {
    /// Whether somebody uses it who has not ended. Whose end cannot be seen from here uses it.
    pub(super) fn is_used(&self) -> bool {
        let is_near = |user: &User| user.pid_namespace == pid_namespace();
        self.user.as_ref().is_some_and(|user| !is_near(user) || user.owner.is_alive())
    }
}

impl Joined {
    /// The instances that use it.
    pub(super) fn users(&self) -> Vec<String> {
        let used = self.places.iter().filter(|place| place.is_used());
        used.filter_map(|place| Some(place.user.as_ref()?.instance.clone())).collect()
    }

    /// What a token becomes where it is used.
    pub(super) fn of(token: Token) -> Self {
        let places = token.identities.into_iter();
        let places = places.map(|identity| JoinedPlace { identity, user: None }).collect();
        Self { version: JOINED_VERSION, terms: token.terms, places }
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::network;
    use super::*;

    fn token() -> Token {
        let identity = Identity {
            name: "host-b".into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            private_key: PrivateKey::from_bytes([9; 32]),
        };
        let terms = Terms::of(&network(), "192.0.2.1:51820".into());
        Token { terms, identities: vec![identity] }
    }

    #[test]
    fn a_token_is_one_line_that_says_everything() {
        let line = token().to_line();
        assert!(!line.contains(char::is_whitespace));
        let read = Token::from_line(&format!(" {}\n", *line)).unwrap();
        assert_eq!(read.terms, token().terms);
        assert_eq!(read.identities[0].private_key, token().identities[0].private_key);
    }

    #[test]
    fn a_token_that_was_cut_or_mistyped_is_refused() {
        let line = token().to_line();
        for end in 0..line.len() {
            assert!(Token::from_line(&line[..end]).is_err(), "{end}");
        }
        for at in 0..line.len() {
            let mut bytes = line.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(bytes).unwrap();
            assert!(Token::from_line(&text).is_err(), "{at}");
        }
        assert_eq!(Token::from_line("hello").unwrap_err(), TokenError::NotOne);
        assert_eq!(Token::from_line("usernet-vnet-2.x.y").unwrap_err(), TokenError::Version);
    }
}
