//! Keys for secrets, and what is done with them: XChaCha20-Poly1305 with a random nonce for each value. Reads and writes no
//! file; never shows a key or a value, in no error and no debug output.

use std::{fmt, sync::Arc};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, Payload},
};
use sha2::{Digest as _, Sha256};
use taper_model::Name;
use zeroize::{Zeroize, Zeroizing};

/// Most keys in one ring; every rotation leaves one behind at most.
const MOST: usize = 100;
/// Bytes of a key.
const KEY: usize = 32;
/// Bytes before the encrypted ones: the nonce.
const NONCE: usize = 24;

/// The keys that secrets may be encrypted with: the first is used from now on, the others still read what is there.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRing(Vec<Key>);

/// A key stays where it is in memory, and is overwritten when nobody needs it any more.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    bytes: Arc<Zeroizing<[u8; KEY]>>,
    print: Print,
}

/// What a key is recognised by without being known: the beginning of a hash.
pub(crate) type Print = [u8; 8];

impl KeyRing {
    /// Reads keys of 64 hexadecimal digits each, one per line (or otherwise apart), the current one first.
    ///
    /// # Errors
    /// Says which key is wrong and how to make a right one; never what was read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (index, word) in text.split_ascii_whitespace().enumerate() {
            let key = Key::parse(word).ok_or_else(|| {
                format!("key {} is not 64 hexadecimal digits; make one with: openssl rand -hex 32", index + 1)
            })?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        match keys.len() {
            0 => Err("it holds no key; make one with: openssl rand -hex 32".into()),
            1..=MOST => Ok(Self(keys)),
            more => Err(format!("it holds {more} keys; at most {MOST} are allowed")),
        }
    }

    /// A ring with one key that nobody had before.
    pub(crate) fn generate() -> Self {
        let mut fresh = <[u8; KEY]>::generate();
        let key = Key::new(|bytes| {
            bytes.copy_from_slice(&fresh);
            Some(())
        });
        fresh.zeroize();
        Self(vec![key.expect("it was given")])
    }

    /// The text that [`parse`](Self::parse) reads.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        // Of the right size from the beginning: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(self.0.len() * (2 * KEY + 1)));
        for key in &self.0 {
            for byte in key.bytes.iter() {
                for digit in [byte >> 4, byte & 15] {
                    text.push(char::from_digit(digit.into(), 16).expect("four bits"));
                }
            }
            text.push('\n');
        }
        text
    }

    /// A new key, and behind it as many of these as there is room for.
    pub(crate) fn with_new(&self) -> Self {
        let mut ring = Self::generate();
        ring.0.extend(self.0.iter().take(MOST - 1).cloned());
        ring
    }

    /// The current key alone.
    pub(crate) fn current(&self) -> Self {
        Self(vec![self.0[0].clone()])
    }

    /// Whether what was encrypted with this key can be read.
    pub(crate) fn holds(&self, print: &[u8]) -> bool {
        self.0.iter().any(|key| key.print == print)
    }

    /// Encrypts with the current key, and says which that is. What is encrypted cannot be read as any other secret or version.
    pub(crate) fn seal(&self, secret: &(Name, Name), version: i64, value: &[u8]) -> (Print, Vec<u8>) {
        let (key, nonce) = (&self.0[0], XNonce::generate());
        let payload = Payload { msg: value, aad: &identity(secret, version) };
        let sealed = key.cipher().encrypt(&nonce, payload).expect("a secret is far smaller than what the cipher takes");
        (key.print, [nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts what [`seal`](Self::seal) made.
    pub(crate) fn open(
        &self,
        print: &[u8],
        secret: &(Name, Name),
        version: i64,
        sealed: &[u8],
    ) -> Result<Vec<u8>, &'static str> {
        let key = self.0.iter().find(|key| key.print == print).ok_or("its key is not known here")?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE).ok_or("it is cut off")?;
        let nonce = XNonce::try_from(nonce).map_err(|_| "it is cut off")?;
        let payload = Payload { msg: sealed, aad: &identity(secret, version) };
        key.cipher().decrypt(&nonce, payload).map_err(|_| "it is not what was written there")
    }
}

impl Key {
    /// Has its bytes written where they will stay: moving them would leave copies behind.
    fn new(fill: impl FnOnce(&mut [u8; KEY]) -> Option<()>) -> Option<Self> {
        let mut bytes = Arc::new(Zeroizing::new([0; KEY]));
        fill(Arc::get_mut(&mut bytes).expect("nobody else has it yet"))?;
        let hash = Sha256::new().chain_update(b"taper secret key\0").chain_update(**bytes).finalize();
        let mut print = Print::default();
        print.copy_from_slice(&hash[..size_of::<Print>()]);
        Some(Self { bytes, print })
    }

    fn parse(word: &str) -> Option<Self> {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        if word.len() != 2 * KEY {
            return None;
        }
        Self::new(|bytes| {
            bytes.iter_mut().zip(word.as_bytes().chunks(2)).try_for_each(|(byte, pair)| {
                *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
                Some(())
            })
        })
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&**self.bytes).into())
    }
}

/// What a value is bound to. Names hold no zero byte, so no two secrets come to the same.
fn identity((namespace, name): &(Name, Name), version: i64) -> Vec<u8> {
    let parts = [&b"taper secret"[..], namespace.as_str().as_bytes(), name.as_str().as_bytes(), &version.to_le_bytes()];
    parts.join(&0)
}

/// Without the keys.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(namespace: &str, name: &str) -> (Name, Name) {
        (Name::new(namespace).unwrap(), Name::new(name).unwrap())
    }

    #[test]
    fn a_ring_is_read_as_it_was_written() {
        let ring = KeyRing::generate().with_new().with_new();
        assert_eq!(ring.0.len(), 3);
        assert_eq!(KeyRing::parse(&ring.text()).unwrap(), ring);
        assert_eq!(KeyRing::parse(&ring.text().to_uppercase().replace('\n', "\r\n \t")).unwrap(), ring);
        assert_eq!(KeyRing::parse(&ring.text().repeat(200)).unwrap(), ring, "the same again is the same");
        assert!(ring.current().0 == ring.0[..1]);
        let full = (0..MOST + 5).fold(ring, |ring, _| ring.with_new());
        assert_eq!(KeyRing::parse(&full.text()).unwrap(), full);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        let good = KeyRing::generate().text();
        let many: String = (0..=MOST).map(|_| KeyRing::generate().text().to_string()).collect();
        for (text, expect) in [
            ("", "no key"),
            (" \n\t", "no key"),
            ("hunter2", "key 1 is not 64"),
            (&*"ä".repeat(32), "key 1 is not 64"),
            (&*format!("{}hunter2", *good), "key 2 is not 64"),
            (&*format!("{}0", good.trim_end()), "key 1 is not 64"),
            (&*good.replacen(|c: char| c.is_ascii_hexdigit(), "g", 1), "key 1 is not 64"),
            (&*many, "at most 100"),
        ] {
            let said = KeyRing::parse(text).unwrap_err();
            assert!(said.contains(expect) && !said.contains("hunter2") && !said.contains(&good[..8]), "{said}");
        }
    }

    #[test]
    fn a_value_is_read_with_its_key_its_names_and_its_version_only() {
        let (ring, key) = (KeyRing::generate(), secret("a", "b"));
        for value in [&b""[..], b"hunter2", &[7; 1 << 20]] {
            let (print, sealed) = ring.seal(&key, 3, value);
            assert!(value.is_empty() || !sealed.windows(value.len()).any(|w| w == value));
            assert_eq!(ring.open(&print, &key, 3, &sealed).unwrap(), value);
            assert_eq!(ring.with_new().open(&print, &key, 3, &sealed).unwrap(), value);
            assert!(ring.open(&print, &key, 4, &sealed).is_err());
            for other in [secret("b", "a"), secret("a", "c"), secret("a-b", "b"), secret("ab", "b")] {
                assert!(ring.open(&print, &other, 3, &sealed).is_err(), "{other:?}");
            }
            let (other, _) = KeyRing::generate().seal(&key, 3, value);
            assert!(ring.open(&other, &key, 3, &sealed).is_err());
            assert!(KeyRing::generate().open(&print, &key, 3, &sealed).is_err());
        }
        assert_ne!(ring.seal(&key, 3, b"x").1, ring.seal(&key, 3, b"x").1, "each has a nonce of its own");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let (ring, key) = (KeyRing::generate(), secret("a", "b"));
        let (print, sealed) = ring.seal(&key, 1, b"hunter2");
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.open(&print, &key, 1, &flipped).is_err(), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert!(ring.open(&print, &key, 1, &sealed[..cut]).is_err(), "cut at {cut}");
        }
        assert!(ring.open(&print[..7], &key, 1, &sealed).is_err());
    }

    #[test]
    fn debug_output_shows_no_key() {
        let ring = KeyRing::parse(&"ab".repeat(32)).unwrap();
        assert_eq!(format!("{ring:?}"), "KeyRing(1 keys)");
    }
}
