//! The connection over which a client pushes its sound: after the upgrade its socket goes to the program that captures, with
//! what was read of it already. The server reads no more of it.

use crate::api::ApiError;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ringfence_protocol::{Framing, PUSHED_HEAD_BYTES_MAX};
use sha1::{Digest, Sha1};
use std::os::fd::OwnedFd;
use tokio::net::{TcpStream, UnixStream};

/// What a client of RFC 6455 upgrades to, and what one of plain or chunked samples does.
const WEBSOCKET: &str = "websocket";
const PCM: &str = "ringfence-pcm";
/// RFC 6455, section 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a client's nonce.
const NONCE_BYTES: usize = 16;

/// Headers of an answer.
pub(crate) type UpgradeHeaders = Vec<(HeaderName, HeaderValue)>;

/// A client's connection, from which only samples come any more.
#[derive(Debug)]
pub(crate) struct PushSocket {
    pub(super) socket: OwnedFd,
    /// Read already.
    pub(super) head: Vec<u8>,
}

impl PushSocket {
    /// Takes the connection from the server's HTTP.
    pub(crate) fn take(upgraded: Upgraded) -> Result<Self, std::io::Error> {
        let (socket, head) = match upgraded.downcast::<TokioIo<UnixStream>>() {
            Ok(parts) => (parts.io.into_inner().into_std()?.into(), parts.read_buf),
            Err(upgraded) => {
                let parts = upgraded.downcast::<TokioIo<TcpStream>>();
                let parts = parts.map_err(|_| std::io::Error::other("a connection of another kind"))?;
                (parts.io.into_inner().into_std()?.into(), parts.read_buf)
            }
        };
        if head.len() > PUSHED_HEAD_BYTES_MAX {
            return Err(std::io::Error::other("more was sent than may be before the answer"));
        }
        Ok(Self { socket, head: head.into() })
    }
}

/// The headers of the answer to a request that upgrades to what a capture waits for.
pub(super) fn upgrade_headers(framing: Framing, request: &HeaderMap) -> Result<UpgradeHeaders, ApiError> {
    let protocol = match framing {
        Framing::WebSocket => WEBSOCKET,
        Framing::Plain | Framing::HttpChunks => PCM,
    };
    let asked = |name: HeaderName, word: &str| {
        let words = request.get_all(name).iter().filter_map(|value| value.to_str().ok());
        words.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    if !asked(header::UPGRADE, protocol) || !asked(header::CONNECTION, "upgrade") {
        let message = format!(
            "this capture waits for a request with `Connection: Upgrade` and `Upgrade: {protocol}`, as its `framing` says"
        );
        return Err(ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    }
    let mut headers = vec![
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(protocol)),
    ];
    if framing == Framing::WebSocket {
        headers.push((header::SEC_WEBSOCKET_ACCEPT, accept(request)?));
    }
    Ok(headers)
}

/// The answer to a client's nonce.
fn accept(request: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let wrong =
        |message: &str| ApiError::new(StatusCode::BAD_REQUEST, "websocket_invalid", message.to_owned());
    if request.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(wrong("Sec-WebSocket-Version must be 13"));
    }
    let key = request.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).map(str::trim);
    let key = key
        .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == NONCE_BYTES))
        .ok_or_else(|| wrong("Sec-WebSocket-Key must be 16 bytes in base64"))?;
    let hash = Sha1::digest(format!("{key}{WEBSOCKET_GUID}"));
    HeaderValue::from_str(&STANDARD.encode(hash)).map_err(|error| ApiError::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn the_answer_to_the_nonce_of_rfc_6455_is_the_rfc_s() {
        let asked = request(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        let headers = upgrade_headers(Framing::WebSocket, &asked).unwrap();
        assert_eq!(headers[2].1, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_does_not_upgrade_to_the_framing_that_was_asked_for_is_refused() {
        let code = |framing, fields: &[(&'static str, &str)]| {
            upgrade_headers(framing, &request(fields)).err().map(|error| error.code())
        };
        let pcm = [("connection", "upgrade"), ("upgrade", "ringfence-pcm")];
        assert_eq!(code(Framing::Plain, &pcm), None);
        assert_eq!(code(Framing::HttpChunks, &pcm), None);
        assert_eq!(code(Framing::WebSocket, &pcm), Some("upgrade_required"));
        assert_eq!(code(Framing::Plain, &[]), Some("upgrade_required"));
        let socket = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        assert_eq!(code(Framing::Plain, &socket), Some("upgrade_required"));
        assert_eq!(code(Framing::WebSocket, &socket), Some("websocket_invalid"));
        for key in ["", "short", "dGhlIHNhbXBsZSBub25jZQ"] {
            let with_key = [&socket[..], &[("sec-websocket-key", key)]].concat();
            assert_eq!(code(Framing::WebSocket, &with_key), Some("websocket_invalid"), "{key}");
        }
    }
}
