//! DSSE envelopes (Dead Simple Signing Envelope v1.0) with exactly one signature.

use crate::json::{Fault, Field, FieldError, Fields};
use crate::keys::{PublicKey, SignBytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// The longest `keyid`: a digest in hexadecimal.
const KEYID_BYTES_MAX: usize = 64;

/// Bytes, what they are, and a signature that nobody has checked yet.
#[derive(Debug)]
pub(crate) struct Envelope {
    payload: Vec<u8>,
    payload_type: &'static str,
    signature: Vec<u8>,
    keyid: Field,
}

/// The JSON of an envelope, its keys in the order of the format.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvelopeJson {
    payload: String,
    payload_type: &'static str,
    signatures: [SignatureJson; 1],
}

#[derive(Serialize)]
struct SignatureJson {
    sig: String,
    keyid: String,
}

/// Signs `payload`.
pub(crate) fn sign(
    payload_type: &'static str,
    payload: &[u8],
    keyid: &str,
    key: &dyn SignBytes,
) -> EnvelopeJson {
    let signature = key.sign_bytes(&signed_bytes(payload_type, payload));
    EnvelopeJson {
        payload: STANDARD.encode(payload),
        payload_type,
        signatures: [SignatureJson { sig: STANDARD.encode(signature), keyid: keyid.to_owned() }],
    }
}

impl Envelope {
    /// Reads an envelope of this type of payload, with one signature.
    pub(crate) fn read(mut fields: Fields, payload_type: &'static str) -> Result<Self, FieldError> {
        let payload = fields.base64("payload")?;
        fields.constant("payloadType", payload_type)?;
        let mut signature_fields = fields.single("signatures")?;
        let signature = signature_fields.base64("sig")?;
        let keyid = signature_fields.take("keyid")?;
        signature_fields.end()?;
        fields.end()?;
        Ok(Self { payload, payload_type, signature, keyid })
    }

    /// The signature's `keyid` as `read` understands it; anybody can write that.
    pub(crate) fn keyid<T>(&self, read: impl FnOnce(&str) -> Option<T>) -> Result<T, FieldError> {
        read(self.keyid.text(KEYID_BYTES_MAX)?).ok_or_else(|| self.keyid.fault(Fault::WrongValue))
    }

    /// The payload, if the signature over it holds.
    pub(crate) fn verify(&self, key: &PublicKey) -> Option<&[u8]> {
        let signed = signed_bytes(self.payload_type, &self.payload);
        key.verifies(&signed, &self.signature).then_some(&*self.payload)
    }
}

/// The pre-authentication encoding: what the signature is over.
fn signed_bytes(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_the_encoding_of_the_specification() {
        let expected: &[u8] = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(signed_bytes("http://example.com/HelloWorld", b"hello world"), expected);
    }
}
