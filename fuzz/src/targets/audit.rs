//! The files of an audit log: tail, bundle, checkpoint, public key, entry.

use ringfence_audit::{Checkpoint, Entry, KEYS_BYTES, Keys, PublicKey, Tail, decode_bundle};

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let _ = (Tail::decode(bytes), decode_bundle(bytes, 256), Entry::decode(bytes));
    let _ = Checkpoint::open(bytes, &Keys::generate(&[7; KEYS_BYTES]).public());
    let _ = std::str::from_utf8(bytes).map(PublicKey::parse);
}
