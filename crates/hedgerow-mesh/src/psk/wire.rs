//! The four messages of the exchange; see `docs/spec/post-quantum.md`.

use minicbor::Encoder;

use super::agree::{CIPHERTEXT_BYTES, Check, ENCAPSULATION_KEY_BYTES, Exchange};
use crate::content::{MalformedContent, Reader};

const BEGIN: u8 = 1;
const ANSWER: u8 = 2;
const FINISH: u8 = 3;
const DONE: u8 = 4;

/// A message of the exchange, as bytes lie on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'b> {
    /// The beginning side's ML-KEM key. It fills the message: the X25519 half follows in `Finish`.
    Begin {
        /// Which exchange, chosen at random.
        exchange: Exchange,
        /// ML-KEM-768 encapsulation key.
        key: &'b [u8; ENCAPSULATION_KEY_BYTES],
    },
    /// The other side's half.
    Answer {
        /// Which exchange.
        exchange: Exchange,
        /// ML-KEM-768 ciphertext.
        ciphertext: &'b [u8; CIPHERTEXT_BYTES],
        /// X25519 key.
        x25519: &'b [u8; 32],
        /// Proves that the ciphertext was made for this key between these two.
        check: Check,
    },
    /// The beginning side's second half.
    Finish {
        /// Which exchange.
        exchange: Exchange,
        /// X25519 key.
        x25519: &'b [u8; 32],
        /// Proves that the beginning side has the secret.
        check: Check,
    },
    /// The other side has the secret too, and uses it.
    Done {
        /// Which exchange.
        exchange: Exchange,
        /// Proves it.
        check: Check,
    },
}

impl<'b> Message<'b> {
    /// Reads a message's content.
    ///
    /// # Errors
    ///
    /// [`MalformedContent`] for anything else.
    pub fn decode(bytes: &'b [u8]) -> Result<Self, MalformedContent> {
        let (number, mut reader) = Reader::open(bytes)?;
        let exchange = *reader.array()?;
        let message = match number {
            BEGIN => Self::Begin {
                exchange,
                key: reader.array()?,
            },
            ANSWER => Self::Answer {
                exchange,
                ciphertext: reader.array()?,
                x25519: reader.array()?,
                check: *reader.array()?,
            },
            FINISH => Self::Finish {
                exchange,
                x25519: reader.array()?,
                check: *reader.array()?,
            },
            DONE => Self::Done {
                exchange,
                check: *reader.array()?,
            },
            _ => return Err(MalformedContent),
        };
        reader.close()?;
        Ok(message)
    }

    /// Writes a message's content.
    pub fn encode(&self) -> Vec<u8> {
        let (number, exchange, parts): (u8, _, Vec<&[u8]>) = match self {
            Self::Begin { exchange, key } => (BEGIN, exchange, vec![*key]),
            Self::Answer {
                exchange,
                ciphertext,
                x25519,
                check,
            } => (ANSWER, exchange, vec![*ciphertext, *x25519, check]),
            Self::Finish {
                exchange,
                x25519,
                check,
            } => (FINISH, exchange, vec![*x25519, check]),
            Self::Done { exchange, check } => (DONE, exchange, vec![check]),
        };
        let mut out = Vec::new();
        let mut write = || -> Result<(), minicbor::encode::Error<_>> {
            let mut e = Encoder::new(&mut out);
            let elements = u64::try_from(parts.len() + 2).unwrap_or(u64::MAX);
            e.array(elements)?.u8(number)?.bytes(exchange)?;
            for part in &parts {
                e.bytes(part)?;
            }
            Ok(())
        };
        match write() {
            Ok(()) => out,
            // Memory takes everything.
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_model::message::MESSAGE_BYTES_MAX;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_message_fits_and_reads_back() {
        let all = [
            Message::Begin {
                exchange: [1; 8],
                key: &[2; ENCAPSULATION_KEY_BYTES],
            },
            Message::Answer {
                exchange: [1; 8],
                ciphertext: &[3; CIPHERTEXT_BYTES],
                x25519: &[4; 32],
                check: [5; 16],
            },
            Message::Finish {
                exchange: [1; 8],
                x25519: &[4; 32],
                check: [5; 16],
            },
            Message::Done {
                exchange: [1; 8],
                check: [5; 16],
            },
        ];
        for message in all {
            let bytes = message.encode();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
            assert_eq!(Message::decode(&bytes), Ok(message));
            assert!(Message::decode(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            if let Ok(message) = Message::decode(&bytes) {
                let again = message.encode();
                prop_assert_eq!(Message::decode(&again), Ok(message));
            }
        }
    }
}
