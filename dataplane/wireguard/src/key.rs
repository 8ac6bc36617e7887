//! Keys: 32 bytes, base64 in files and on terminals. Secret ones are overwritten when dropped and never printed by
//! `Debug`.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use zeroize::Zeroizing;

/// Bytes of any key.
pub const KEY_BYTES: usize = 32;

/// Not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key: a key is 44 characters of base64, as `wg genkey` prints it")]
pub struct KeyError;

/// Who somebody is to others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// Who somebody is: their secret.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

/// A secret of two.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; KEY_BYTES]>);

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| KeyError)?);
    let bytes: &[u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| KeyError)?;
    Ok(Zeroizing::new(*bytes))
}

impl PublicKey {
    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl PrivateKey {
    /// From 32 bytes of a good random source, or of a file.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whom others know by it.
    pub fn public(&self) -> PublicKey {
        let secret = x25519::StaticSecret::from(*self.0);
        PublicKey(x25519::PublicKey::from(&secret).to_bytes())
    }

    /// As in a file. What prints it prints the secret.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl PresharedKey {
    /// From 32 bytes of a good random source, or of a file.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// As in a file. What prints it prints the secret.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(secret)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_the_one_that_wg_computes() {
        let private: PrivateKey = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".parse().unwrap();
        assert_eq!(private.public().to_string(), "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=");
        assert_eq!(*private.to_base64(), "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=");
    }

    #[test]
    fn what_is_no_key_is_refused_and_no_secret_is_printed() {
        for text in
            ["", "AAAA", "not base64 at all!", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBg=="]
        {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text}");
        }
        let private = PrivateKey::from_bytes([7; 32]);
        assert!(!format!("{private:?}").contains(&*private.to_base64()));
    }
}
