//! HTTP/1.1 to the server, over a Unix socket or TCP, on connections that are kept.

use crate::error::CliError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The longest answer that is read: a full batch of embeddings as JSON stays below it.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a connection may take to open.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the server may take to answer: a cold model is loaded within it.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(120);

/// How often whoever takes a long answer hears that nothing came.
const TICK: Duration = Duration::from_millis(250);

/// The longest path that fits in a socket address (`sun_path` of unix(7), less its final zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where a server listens, and what proves who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the home folder: reaching it is the proof.
    Unix(PathBuf),
    /// `host:port`, with an API key where the route wants one.
    Tcp {
        /// Host and port.
        authority: String,
        /// Sent as `Authorization: Bearer`.
        key: Option<ApiKey>,
    },
}

/// An API key; its debug form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes the key without the white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority, .. } => write!(f, "http://{authority}"),
        }
    }
}

impl Address {
    /// From a URL like `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// [`CliError::Usage`] where it is not plain HTTP with a host.
    pub fn from_url(url: &str, key: Option<ApiKey>) -> Result<Self, CliError> {
        let wrong = |what: String| CliError::Usage {
            what: format!("{url}: {what}"),
            advice: "give a URL like http://127.0.0.1:8080".to_owned(),
        };
        let uri: Uri = url.parse().map_err(|error| wrong(format!("{error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("not an http URL".to_owned()));
        }
        let authority = uri.authority().ok_or_else(|| wrong("no host".to_owned()))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self::Tcp { authority: format!("{}:{port}", authority.host()), key })
    }

    /// What to send as `Host`: the server refuses names that are not its own.
    fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp { authority, .. } => authority,
        }
    }

    fn key(&self) -> Option<&ApiKey> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp { key, .. } => key.as_ref(),
        }
    }
}

/// What to ask.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The method.
    pub method: Method,
    /// The path, with a leading `/`.
    pub path: String,
    /// JSON if no header says otherwise, or empty.
    pub body: Bytes,
    /// More headers.
    pub headers: Vec<(HeaderName, String)>,
}

impl Ask {
    /// A request without a body.
    pub fn plain(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Bytes::new(), headers: Vec::new() }
    }

    /// A POST with a JSON body.
    pub fn post(path: impl Into<String>, body: &Value) -> Self {
        Self { body: Bytes::from(body.to_string()), ..Self::plain(Method::POST, path) }
    }

    /// Method and path, as errors name them.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A whole answer with a status of 2xx.
#[derive(Debug)]
pub struct Answer {
    /// Which request it answers, for errors.
    pub request: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null where it is empty.
    ///
    /// # Errors
    /// [`CliError::Answer`] where it is not JSON.
    pub fn json(&self) -> Result<Value, CliError> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body)
            .map_err(|source| CliError::Answer { request: self.request.clone(), source: source.into() })
    }
}

/// A connection that carries one request after the other.
pub struct Connection {
    address: Address,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`CliError::Unreachable`].
    pub async fn open(address: &Address) -> Result<Self, CliError> {
        let connected = timeout(CONNECT_WAIT_MAX, connect(address)).await;
        let sender = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| CliError::Unreachable { address: address.to_string(), source })?;
        Ok(Self { address: address.clone(), sender })
    }

    /// Sends one request and reads the whole answer. A connection that the server has closed is opened again first.
    ///
    /// # Errors
    /// [`CliError::Refused`] for 4xx and 5xx, [`CliError::Answer`] where the answer is cut off, too long or late,
    /// [`CliError::Unreachable`] where the connection is gone and can't be opened again.
    pub async fn send(&mut self, ask: &Ask) -> Result<Answer, CliError> {
        let exchanged = timeout(ANSWER_WAIT_MAX, self.exchange(ask)).await;
        let late =
            |_| Err(CliError::Answer { request: ask.name(), source: "it did not come in time".into() });
        exchanged.unwrap_or_else(late)
    }

    /// Sends one request and takes its answer as it comes; it goes on for about `lasts`.
    ///
    /// # Errors
    /// As [`Connection::send`], and those of `take`.
    pub async fn stream(
        &mut self,
        ask: &Ask,
        lasts: Duration,
        take: &mut impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let taken = timeout(lasts.saturating_add(ANSWER_WAIT_MAX), self.take_all(ask, take)).await;
        let late = |_| Err(CliError::Answer { request: ask.name(), source: "it did not end in time".into() });
        taken.unwrap_or_else(late)
    }

    async fn take_all(
        &mut self,
        ask: &Ask,
        take: &mut impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let unreadable =
            |source: hyper::Error| CliError::Answer { request: ask.name(), source: source.into() };
        let response = self.sender.send_request(self.message(ask)?).await.map_err(unreadable)?;
        if !response.status().is_success() {
            return read(ask, response).await.map(drop);
        }
        let mut body = response.into_body();
        loop {
            // Whoever watches sees the time pass.
            match timeout(TICK, body.frame()).await {
                Err(_) => take(&[])?,
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => take(&frame.map_err(unreadable)?.into_data().unwrap_or_default())?,
            }
        }
    }

    async fn exchange(&mut self, ask: &Ask) -> Result<Answer, CliError> {
        let unreadable =
            |source: hyper::Error| CliError::Answer { request: ask.name(), source: source.into() };
        if self.sender.ready().await.is_err() {
            *self = Self::open(&self.address).await?;
        }
        let response = self.sender.send_request(self.message(ask)?).await.map_err(unreadable)?;
        read(ask, response).await
    }

    fn message(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, CliError> {
        let mut builder =
            Request::builder().method(&ask.method).uri(&ask.path).header(HOST, self.address.host());
        for (name, value) in &ask.headers {
            builder = builder.header(name, value);
        }
        if !ask.body.is_empty() && !ask.headers.iter().any(|(name, _)| name == CONTENT_TYPE) {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        if let Some(ApiKey(key)) = self.address.key() {
            builder = builder.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        builder.body(Full::new(ask.body.clone())).map_err(|error| CliError::Usage {
            what: format!("{}: {error}", ask.name()),
            advice: "look for line breaks or spaces in the key or the name".to_owned(),
        })
    }
}

/// A connection that speaks another protocol from its answer on.
///
/// # Errors
/// As [`Connection::send`]; [`CliError::Answer`] where the server goes on with HTTP.
pub async fn upgrade(
    address: &Address,
    path: &str,
    protocol: &str,
) -> Result<TokioIo<hyper::upgrade::Upgraded>, CliError> {
    let mut ask = Ask::plain(Method::GET, path);
    ask.headers = vec![(CONNECTION, "Upgrade".to_owned()), (UPGRADE, protocol.to_owned())];
    let unreadable = |source: hyper::Error| CliError::Answer { request: ask.name(), source: source.into() };
    let mut connection = Connection::open(address).await?;
    let response = connection.sender.send_request(connection.message(&ask)?).await.map_err(unreadable)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        read(&ask, response).await?;
        return Err(CliError::Answer { request: ask.name(), source: "it is no upgrade".into() });
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(unreadable)?))
}

/// One request on a connection of its own, for commands that ask once.
///
/// # Errors
/// As [`Connection::open`] and [`Connection::send`].
pub fn ask_once(address: &Address, ask: &Ask) -> Result<Value, CliError> {
    runtime()?.block_on(async { Connection::open(address).await?.send(ask).await?.json() })
}

/// A runtime on the calling thread.
///
/// # Errors
/// [`CliError::Failed`] where the system gives no descriptors for it.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("event loop", source))
}

async fn connect(address: &Address) -> io::Result<SendRequest<Full<Bytes>>> {
    match address {
        Address::Unix(path) => handshake(connect_unix(path).await?).await,
        Address::Tcp { authority, .. } => {
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            handshake(stream).await
        }
    }
}

/// A path too long for a socket address is reached through a descriptor of its folder.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    UnixStream::connect(short).await
}

async fn handshake<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // What ends the connection also ends the request that waits on it, which reports it.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn read(ask: &Ask, response: Response<Incoming>) -> Result<Answer, CliError> {
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = collected.map_err(|source| CliError::Answer { request: ask.name(), source })?.to_bytes();
    if head.status.is_success() {
        return Ok(Answer { request: ask.name(), headers: head.headers, body });
    }
    Err(refusal(ask, head.status.as_u16(), &head.headers, &body))
}

/// Reads `{"error":{"message","code"}}`; whatever else the body is, the status still says something.
fn refusal(ask: &Ask, status: u16, headers: &HeaderMap, body: &[u8]) -> CliError {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    refused(ask.name(), status, &body, retry_after_ms(headers))
}

/// An error that ends an answer's events: the same body, with the status that the answer would have had.
pub fn refusal_in_event(request: &str, event: &Value) -> CliError {
    let status = event["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    refused(request.to_owned(), status.unwrap_or(500), event, None)
}

fn refused(request: String, status: u16, body: &Value, retry_after_ms: Option<u64>) -> CliError {
    let field = |name: &str| body["error"][name].as_str().map(str::to_owned);
    CliError::Refused {
        request,
        status,
        code: field("code").unwrap_or_else(|| format!("http_{status}")),
        message: field("message").unwrap_or_else(|| "it gave no reason".to_owned()),
        retry_after_ms,
        rung: field("rung"),
    }
}

fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let number = |value: &HeaderValue| value.to_str().ok()?.parse::<u64>().ok();
    let exact = headers.get("retry-after-ms").and_then(number);
    exact.or_else(|| headers.get(RETRY_AFTER).and_then(number).map(|seconds| seconds.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_plain_http_with_a_host() {
        let address = |url| Address::from_url(url, None).map(|address| address.to_string());
        assert_eq!(address("http://127.0.0.1:8080").unwrap(), "http://127.0.0.1:8080");
        assert_eq!(address("http://localhost/v1").unwrap(), "http://localhost:80");
        for wrong in ["https://localhost", "localhost:80", "/v1", "http://", "http:// x"] {
            assert!(matches!(address(wrong), Err(CliError::Usage { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_says_when_to_try_again_as_exactly_as_the_server_did() {
        let check = |headers: &[(&'static str, &'static str)], expected| {
            let map = headers.iter().map(|(name, value)| {
                (hyper::header::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            assert_eq!(retry_after_ms(&map.collect()), expected, "{headers:?}");
        };
        check(&[("retry-after", "2"), ("retry-after-ms", "1500")], Some(1500));
        check(&[("retry-after", "2")], Some(2000));
        check(&[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], None);
        check(&[], None);
    }

    #[test]
    fn a_key_is_not_in_debug_output() {
        assert!(!format!("{:?}", ApiKey::new("rf_secret\n")).contains("secret"));
    }
}
