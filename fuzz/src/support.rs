//! What the targets share: a lease, conversions in memory, and envelopes whose signature holds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use ringfence_kernels::OutOfMemory;
use ringfence_protocol::{ConvertError, Facts, SourceForm};
use ringfence_sandbox::Denial;
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Memory;
use ringfence_worker::package::{FileBytes, Files};
use std::sync::Arc;

/// The most that one request may take; a parser that asks first is refused, one that does not is killed by the fuzzer's
/// own limit.
const LEASE_BYTES: u64 = 256 * 1024 * 1024;

/// A lease that refuses single requests above it.
pub(crate) struct Lease;

impl Memory for Lease {
    fn check(&self, bytes: u64) -> Result<(), Denial> {
        if bytes <= LEASE_BYTES { Ok(()) } else { Err(Denial { wanted: bytes, used: 0, limit: LEASE_BYTES }) }
    }

    fn denied(&self, allocation: OutOfMemory) -> Denial {
        Denial { wanted: allocation.bytes as u64, used: 0, limit: LEASE_BYTES }
    }

    fn used(&self) -> u64 {
        0
    }

    fn peak(&self) -> u64 {
        0
    }

    fn restart_peak(&self) {}
}

/// Files of these names and bytes.
pub(crate) fn files(named: &[(&str, &[u8])]) -> Files {
    named.iter().map(|(name, bytes)| ((*name).to_owned(), Arc::new(bytes.to_vec()) as FileBytes)).collect()
}

/// Converts in memory; any refusal is fine.
pub(crate) fn converted(form: SourceForm, named: &[(&str, &[u8])]) -> Result<Facts, ConvertError> {
    let files = files(named);
    let mut output = InMemory::new(&files);
    convert(form, &mut Work { files: &files, output: &mut output, memory: &Lease })
}

/// A key that only fuzzing knows.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The payload in an envelope whose signature holds, so that what is read after the check is reached as well.
pub(crate) fn envelope(kind: &str, keyid: &str, payload: &[u8]) -> serde_json::Value {
    let mut signed = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    signed.extend(payload);
    let signature = STANDARD.encode(key().sign(&signed).to_bytes());
    serde_json::json!({
        "payload": STANDARD.encode(payload),
        "payloadType": kind,
        "signatures": [{ "sig": signature, "keyid": keyid }],
    })
}
