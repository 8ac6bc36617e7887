//! Keys in files and messages of ours: base64, as wg(8) writes them.

use serde::{Deserialize, Deserializer, Serializer, de};
use usernet_wireguard::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::cli::error::Error;

/// A new one, of the kernel's random numbers.
pub(super) fn generate() -> Result<PrivateKey, Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    rustix::rand::getrandom(bytes.as_mut_slice(), rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::system("cannot draw random numbers")(errno.into()))?;
    // The library clamps it when it is used; others who read the file expect it clamped (RFC 7748, section 5).
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 127 | 64;
    Ok(PrivateKey::from_bytes(*bytes))
}

/// For `#[serde(with = …)]`: what is written is the secret.
pub(super) mod private {
    use super::{Deserialize, Deserializer, PrivateKey, Serializer, Zeroizing, de};

    pub(in super::super) fn serialize<S: Serializer>(
        key: &PrivateKey,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&key.to_base64())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PrivateKey, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        text.parse().map_err(de::Error::custom)
    }
}

/// For `#[serde(with = …)]`.
pub(super) mod public {
    use super::{Deserialize, Deserializer, PublicKey, Serializer, de};

    pub(in super::super) fn serialize<S: Serializer>(
        key: &PublicKey,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PublicKey, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
