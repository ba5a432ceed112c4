//! Checkpoints: how many entries there are and what they hash to, as a signed note (C2SP signed-note, tlog-checkpoint).

use crate::tree::{Hash, hex};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// Bytes of a checkpoint, signatures of others included.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a public key in text.
pub const PUBLIC_KEY_BYTES_MAX: usize = 512;
/// What every origin of ours begins with.
const ORIGIN: &str = "ringfence.local/";
/// The number of ed25519 among the algorithms of signed notes.
const ED25519: u8 = 1;
/// What a line with a signature begins with.
const DASH: &str = "\u{2014} ";

/// Whose checkpoints count: the log's origin and its public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    origin: String,
    key: VerifyingKey,
}

/// Why a checkpoint or a public key does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It has not the form of one.
    #[error("is not of the form of a signed checkpoint")]
    Form,
    /// It is of another log.
    #[error("is of another log")]
    Origin,
    /// No line has a signature by this key.
    #[error("has no signature by the log's key")]
    Unsigned,
    /// The signature is not of these lines.
    #[error("has a signature that does not hold")]
    Signature,
    /// It is no public key in the form of signed notes.
    #[error("is not a public key of the form ORIGIN+ID+KEY")]
    Key,
}

impl PublicKey {
    /// The public half; the origin is named after it.
    pub(crate) fn of(key: &SigningKey) -> Self {
        let key = key.verifying_key();
        let installation = hex(&Sha256::digest(key.as_bytes())[..8]);
        Self { origin: format!("{ORIGIN}{installation}"), key }
    }

    /// The log's name: `ringfence.local/` and the installation's id.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// In the text form of signed notes: origin, id of the key, and the key in base64.
    pub fn to_text(&self) -> String {
        let key = STANDARD.encode(self.tagged());
        format!("{}+{}+{key}", self.origin, hex(&self.id()))
    }

    /// From that text.
    ///
    /// # Errors
    /// [`CheckpointError::Key`].
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let read = || {
            let mut parts = text.trim_end_matches('\n').splitn(3, '+');
            let (origin, id, key) = (parts.next()?, parts.next()?, parts.next()?);
            let key: [u8; 33] = STANDARD.decode(key).ok()?.try_into().ok()?;
            let (ED25519, key) = (key[0], &key[1..]) else { return None };
            let key = VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
            let legal = !origin.is_empty() && !origin.contains(|c: char| c.is_whitespace());
            let public = Self { origin: origin.to_owned(), key };
            (legal && hex(&public.id()) == id).then_some(public)
        };
        read().ok_or(CheckpointError::Key)
    }

    fn tagged(&self) -> Vec<u8> {
        [&[ED25519], self.key.as_bytes().as_slice()].concat()
    }

    fn id(&self) -> [u8; 4] {
        let hash = Sha256::new_with_prefix(&self.origin).chain_update("\n").chain_update(self.tagged());
        *hash.finalize().first_chunk().expect("SHA-256 has 32 bytes")
    }
}

/// The state of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Entries.
    pub size: u64,
    /// Their tree's hash.
    pub root: Hash,
}

impl Checkpoint {
    /// The signed note.
    pub(crate) fn sign(&self, key: &SigningKey) -> String {
        let public = PublicKey::of(key);
        let text = format!("{}\n{}\n{}\n", public.origin, self.size, STANDARD.encode(self.root));
        let signature = key.sign(text.as_bytes()).to_bytes();
        let signature = STANDARD.encode([public.id().as_slice(), &signature].concat());
        format!("{text}\n{DASH}{} {signature}\n", public.origin)
    }

    /// Reads a note and checks this key's signature on it. Those of others, such as witnesses, are passed over.
    ///
    /// # Errors
    /// [`CheckpointError`], saying what does not hold.
    pub fn open(note: &[u8], public: &PublicKey) -> Result<Self, CheckpointError> {
        use CheckpointError::Form;
        let note = std::str::from_utf8(note).map_err(|_| Form)?;
        let (text, signatures) = note.split_once("\n\n").ok_or(Form)?;
        let text = format!("{text}\n");
        let mut lines = text.lines();
        if lines.next().ok_or(Form)? != public.origin {
            return Err(CheckpointError::Origin);
        }
        let size = decimal(lines.next().ok_or(Form)?).ok_or(Form)?;
        let root = STANDARD.decode(lines.next().ok_or(Form)?).map_err(|_| Form)?;
        let root = root.try_into().map_err(|_| Form)?;
        if lines.next().is_some() {
            return Err(Form);
        }
        public.check(&text, signatures)?;
        Ok(Self { size, root })
    }
}

impl PublicKey {
    fn check(&self, text: &str, signatures: &str) -> Result<(), CheckpointError> {
        let signatures = signatures.strip_suffix('\n').ok_or(CheckpointError::Form)?;
        for line in signatures.split('\n') {
            let (name, signature) =
                line.strip_prefix(DASH).and_then(|rest| rest.split_once(' ')).ok_or(CheckpointError::Form)?;
            let signature = STANDARD.decode(signature).map_err(|_| CheckpointError::Form)?;
            let (id, signature) = signature.split_first_chunk().ok_or(CheckpointError::Form)?;
            if name == self.origin && *id == self.id() {
                let signature = Signature::from_slice(signature).map_err(|_| CheckpointError::Signature)?;
                let held = self.key.verify_strict(text.as_bytes(), &signature);
                return held.map_err(|_| CheckpointError::Signature);
            }
        }
        Err(CheckpointError::Unsigned)
    }
}

/// A number in its one form.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    #[test]
    fn a_checkpoint_and_a_key_survive_their_texts_and_no_flipped_bit() {
        let (public, checkpoint) = (PublicKey::of(&key()), Checkpoint { size: 258, root: [5; 32] });
        assert_eq!(PublicKey::parse(&public.to_text()), Ok(public.clone()));
        let note = checkpoint.sign(&key()).into_bytes();
        assert_eq!(Checkpoint::open(&note, &public), Ok(checkpoint));
        for bit in 0..note.len() * 8 {
            let mut flipped = note.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::open(&flipped, &public).is_err(), "bit {bit}");
        }
        for length in 0..note.len() {
            assert!(Checkpoint::open(&note[..length], &public).is_err(), "{length} bytes");
        }
        let text = public.to_text().into_bytes();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let parsed = std::str::from_utf8(&flipped).ok().and_then(|text| PublicKey::parse(text).ok());
            assert_eq!(parsed, None, "bit {bit}");
        }
    }

    #[test]
    fn signatures_of_witnesses_are_passed_over() {
        let (public, checkpoint) = (PublicKey::of(&key()), Checkpoint { size: 1, root: [5; 32] });
        let note = checkpoint.sign(&key());
        let witnessed = format!("{note}{DASH}witness.example {}\n", STANDARD.encode([1; 76]));
        assert_eq!(Checkpoint::open(witnessed.as_bytes(), &public), Ok(checkpoint));
        let other = PublicKey::of(&SigningKey::from_bytes(&[8; 32]));
        assert_eq!(Checkpoint::open(note.as_bytes(), &other), Err(CheckpointError::Origin));
    }
}
