//! Who is asking: by socket, by key, by uid; and which requests are not answered at all.

use super::App;
use super::error::ApiError;
use crate::audit::{SESSION_BYTES_MAX, Who};
use crate::clients::ClientName;
use crate::clock;
use crate::keys::{self, Scope};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header, uri::Authority};
use std::sync::Arc;

/// What a connection is, fixed when it is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// On `admin.sock`.
    Admin {
        /// As the kernel states it.
        uid: u32,
    },
    /// On `clients/NAME/api.sock`.
    Client {
        /// Whose socket it is.
        name: ClientName,
        /// As the kernel states it. It does not identify the client.
        uid: u32,
    },
    /// On `api.sock`.
    Local {
        /// As the kernel states it.
        uid: u32,
    },
    /// On loopback TCP.
    Tcp,
}

/// Which routes a connection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surface {
    /// Everywhere, without a key.
    Open,
    /// To clients.
    Public,
    /// To clients what is theirs, on `admin.sock` everybody's.
    Own,
    /// On `admin.sock` only.
    Admin,
    /// On `admin.sock`, and over TCP with a key of scope `metrics`.
    Metrics,
}

/// Random for each request, and in every log line and audit entry about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(pub(crate) String);

/// An identified client with its request's id.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// NAME or `uid:N`.
    pub(crate) client: String,
    /// The same, and what else is known of who asks.
    pub(crate) who: Who,
}

impl FromRequestParts<Arc<App>> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let missing = || ApiError::internal(&"a request that nobody has let in");
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

/// What a client calls its session, for the audit log: a word of at most 64 letters, digits and `. _ : + -`.
pub(super) fn session(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("ringfence-session") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.len() <= SESSION_BYTES_MAX);
    let word = text.and_then(|text| ringfence_audit::Word::new(text).ok());
    word.map(|word| Some(word.into())).ok_or_else(|| {
        let message = format!("Ringfence-Session is 1 to {SESSION_BYTES_MAX} of a-z A-Z 0-9 . _ : + -");
        ApiError::invalid("session_invalid", "Ringfence-Session", message)
    })
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let missing = || ApiError::internal(&"a public route without an identified client");
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

/// Whose things a request may see: a client's own, or everybody's for the operator.
#[derive(Debug, Clone)]
pub(crate) struct Viewer(pub(crate) Option<String>);

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().map(|caller| caller.client.clone());
        match parts.extensions.get::<Peer>() {
            Some(Peer::Admin { .. }) => Ok(Self(None)),
            Some(Peer::Client { .. } | Peer::Local { .. } | Peer::Tcp) if caller.is_some() => {
                Ok(Self(caller))
            }
            Some(_) | None => Err(ApiError::internal(&"a client's route without an identified client")),
        }
    }
}

/// The uid of the process at the other end, where the kernel states one that is somebody's: none over TCP, and none of
/// another user namespace, which would all look alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerUid(pub(crate) Option<u32>);

/// What the kernel shows of a uid that has no name in our user namespace.
const OVERFLOW_UID: u32 = 65_534;

impl FromRequestParts<Arc<App>> for PeerUid {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        Ok(Self(parts.extensions.get::<Peer>().and_then(Peer::uid)))
    }
}

impl Peer {
    /// The uid of the process at the other end, where the kernel states one that is somebody's.
    pub(super) fn uid(&self) -> Option<u32> {
        match self {
            Self::Admin { uid } | Self::Client { uid, .. } | Self::Local { uid } => Some(*uid),
            Self::Tcp => None,
        }
        .filter(|uid| *uid != OVERFLOW_UID)
    }
}

/// Decides whether a request on this connection may have a route of this surface, and as whom.
pub(super) fn admit(
    app: &App,
    peer: &Peer,
    surface: Surface,
    headers: &HeaderMap,
    authority: Option<&Authority>,
) -> Result<Option<String>, ApiError> {
    refuse_browsers(peer, headers, authority)?;
    match (surface, peer) {
        (Surface::Open, Peer::Admin { .. } | Peer::Client { .. } | Peer::Local { .. } | Peer::Tcp)
        | (Surface::Own | Surface::Admin | Surface::Metrics, Peer::Admin { .. }) => Ok(None),
        (Surface::Metrics, Peer::Tcp) => metrics_key(app, headers).map(|()| None),
        (Surface::Admin, Peer::Client { .. } | Peer::Local { .. } | Peer::Tcp)
        | (Surface::Metrics, Peer::Client { .. } | Peer::Local { .. }) => {
            Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", "this route is served on admin.sock only"))
        }
        (Surface::Public, Peer::Admin { .. }) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "public_only",
            "admin.sock serves no jobs; use api.sock or a client's own socket",
        )),
        (Surface::Public | Surface::Own, Peer::Client { name, .. }) => {
            on_client_socket(app, name, headers).map(Some)
        }
        (Surface::Public | Surface::Own, Peer::Local { uid }) => on_api_socket(app, *uid, headers).map(Some),
        (Surface::Public | Surface::Own, Peer::Tcp) => on_tcp(app, headers).map(Some),
    }
}

fn on_client_socket(app: &App, name: &ClientName, headers: &HeaderMap) -> Result<String, ApiError> {
    match presented(headers).filter(|key| keys::is_ours(key)) {
        None => Ok(name.to_string()),
        Some(key) if infer_key(app, key)? == *name => Ok(name.to_string()),
        Some(_) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "key_of_another_client",
            format!("the API key belongs to another client than this socket, which is {name}'s"),
        )),
    }
}

fn on_api_socket(app: &App, uid: u32, headers: &HeaderMap) -> Result<String, ApiError> {
    match presented(headers).filter(|key| keys::is_ours(key)) {
        None => Ok(format!("uid:{uid}")),
        Some(key) => Ok(infer_key(app, key)?.to_string()),
    }
}

fn on_tcp(app: &App, headers: &HeaderMap) -> Result<String, ApiError> {
    Ok(infer_key(app, presented(headers).ok_or_else(key_missing)?)?.to_string())
}

fn infer_key(app: &App, key: &str) -> Result<ClientName, ApiError> {
    match check_key(app, key)? {
        (client, Scope::Infer) => Ok(client),
        (_, Scope::Metrics) => Err(wrong_scope("this key reads metrics only")),
    }
}

fn metrics_key(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    match check_key(app, presented(headers).ok_or_else(key_missing)?)? {
        (_, Scope::Metrics) => Ok(()),
        (_, Scope::Infer) => Err(wrong_scope("metrics over TCP need a key made with --scope metrics")),
    }
}

fn check_key(app: &App, key: &str) -> Result<(ClientName, Scope), ApiError> {
    let keys = app.keys.lock().expect("no thread panics with this lock");
    let checked = keys.check(key, clock::unix_seconds());
    checked
        .map(|(client, scope)| (client.clone(), scope))
        .map_err(|refusal| ApiError::new(StatusCode::UNAUTHORIZED, "key_invalid", refusal.to_string()))
}

fn key_missing() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "key_missing",
        "send `Authorization: Bearer KEY`; `ringfence key add CLIENT` makes a key",
    )
}

fn wrong_scope(message: &'static str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "key_scope", message)
}

/// The value of the Authorization header without its scheme; a header of several or odd bytes is a wrong key.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?;
    let text = value.to_str().unwrap_or("");
    let stripped = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Some(stripped.map_or(text, |(_, key)| key.trim()))
}

/// Pages in a browser reach loopback too: by a cross-origin request, or by a name that they rebind to 127.0.0.1.
fn refuse_browsers(peer: &Peer, headers: &HeaderMap, authority: Option<&Authority>) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_refused",
            "requests from web pages are not answered: leave the Origin header out",
        ));
    }
    if *peer != Peer::Tcp {
        return Ok(());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().is_some_and(is_loopback),
        (None | Some(_), _) => false,
    };
    if named && authority.is_none_or(|authority| is_loopback(authority.as_str())) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "host_refused",
        "the Host header must be 127.0.0.1, [::1] or localhost",
    ))
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some(_) | None => host,
    };
    name == "127.0.0.1" || name == "[::1]" || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_are_answered() {
        for host in ["127.0.0.1", "127.0.0.1:80", "localhost:1", "LOCALHOST", "[::1]", "[::1]:443"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "127.0.0.1.example.org",
            "localhost.",
            "127.0.0.2",
            "::1",
            "localhost:x",
            "127.0.0.1:99999",
            "a@127.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
