//! A stand-in for the server: answers what a test tells it to, and keeps what it was asked.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::convert::Infallible;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;

/// What it answers to every request, or to the first one if there is another for the rest; that may have another in its turn.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) delay: Duration,
    pub(crate) then: Option<Box<Reply>>,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string().into_bytes(),
            delay: Duration::ZERO,
            then: None,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn then(self, rest: Self) -> Self {
        Self { then: Some(Box::new(rest)), ..self }
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// The body as it came.
    pub(crate) text: String,
}

/// Runs until it is dropped.
pub(crate) struct Server {
    state: Arc<State>,
    runtime: Runtime,
}

struct State {
    reply: Reply,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicU64,
}

impl State {
    fn reply_to(&self, asked: Asked) -> &Reply {
        let mut all = self.asked.lock().unwrap();
        all.push(asked);
        let mut reply = &self.reply;
        for _ in 1..all.len() {
            reply = reply.then.as_deref().unwrap_or(reply);
        }
        reply
    }
}

impl Server {
    fn new(reply: Reply) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let state = State { reply, asked: Mutex::default(), connections: AtomicU64::new(0) };
        Self { state: Arc::new(state), runtime }
    }

    /// On a socket below a folder, whose path may be longer than a socket address.
    pub(crate) fn on_socket(path: &Path, reply: Reply) -> Self {
        let server = Self::new(reply);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let folder =
            rustix::fs::open(path.parent().unwrap(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
                .unwrap();
        let short =
            format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), path.file_name().unwrap().to_str().unwrap());
        let listener = server.runtime.block_on(async { UnixListener::bind(short) }).unwrap();
        let state = Arc::clone(&server.state);
        server.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        server
    }

    /// On a free port, which is given back as `127.0.0.1:PORT`.
    pub(crate) fn on_tcp(reply: Reply) -> (Self, String) {
        let server = Self::new(reply);
        let listener = server.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::clone(&server.state);
        server.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        (server, address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    state.connections.fetch_add(1, Ordering::Relaxed);
    let service = service_fn(|request| answer(request, Arc::clone(&state)));
    // The client may go at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked = Asked {
        line: format!("{} {}", head.method, head.uri),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        text: String::from_utf8(body.to_vec()).unwrap(),
    };
    let reply = state.reply_to(asked);
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::new(Full::new(Bytes::from(reply.body.clone())));
    *response.status_mut() = reply.status.try_into().unwrap();
    for (name, value) in &reply.headers {
        response.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    Ok(response)
}
