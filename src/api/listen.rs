//! Listening: sockets in the home and loopback TCP, connections within bounds, and the drain at the end.

use super::identity::Peer;
use crate::clients::{self, Client, ClientsError};
use crate::home::{Home, HomeError, path_below};
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::fs::{AtFlags, Mode, chmodat};
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// The most connections at a time, over all sockets.
const CONNECTIONS_MAX: usize = 1_024;

/// Of these a number that only the operator can use, so that clients can't lock the operator out.
const ADMIN_CONNECTIONS_MAX: usize = 32;

/// The largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a client may take over a request's head.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);

/// How long connections may go on after the server was told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Pause after a failed accept, so that a full descriptor table does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Clients that wait for their socket to be listened on.
const NEW_LISTENERS_MAX: usize = 16;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// In the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// In a client's folder.
    #[error(transparent)]
    Clients(#[from] ClientsError),
    /// A Unix socket.
    #[error("can't listen on {name}: {source}")]
    Socket {
        /// Below the home.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The TCP address.
    #[error("can't listen on {address}: {source}")]
    Tcp {
        /// As given.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An address that the network could reach.
    #[error("{address} is not a loopback address; the server serves this machine only")]
    NotLoopback {
        /// As given.
        address: SocketAddr,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

/// Hands new sockets to the accepting loops.
#[derive(Debug, Clone)]
pub(crate) struct Listeners(mpsc::Sender<(UnixListener, Peer)>);

/// The receiving side of [`Listeners`].
#[derive(Debug)]
pub(crate) struct NewListeners(mpsc::Receiver<(UnixListener, Peer)>);

impl Listeners {
    /// Both sides.
    pub(crate) fn channel() -> (Self, NewListeners) {
        let (sender, receiver) = mpsc::channel(NEW_LISTENERS_MAX);
        (Self(sender), NewListeners(receiver))
    }

    /// Binds the sockets that every home has.
    pub(crate) async fn bind_home(&self, home: &Home) -> Result<(), ListenError> {
        let run = home.existing_folder("run")?;
        home.remove(run.as_fd(), "admin.sock")?;
        home.remove(run.as_fd(), "api.sock")?;
        let admin = bind(run.as_fd(), "admin.sock", 0o600)?;
        let local = bind(run.as_fd(), "api.sock", 0o666)?;
        self.add(admin, Peer::Admin { uid: 0 }).await?;
        self.add(local, Peer::Local { uid: 0 }).await
    }

    /// Binds a client's socket.
    pub(crate) async fn bind_client(&self, home: &Home, client: &Client) -> Result<(), ListenError> {
        let folder = clients::folder(home, &client.name)?;
        clients::clear_socket(home, &folder)?;
        // The folder decides who gets here.
        let listener = bind(folder.as_fd(), "api.sock", 0o666)?;
        self.add(listener, Peer::Client { name: client.name.clone(), uid: 0 }).await
    }

    async fn add(&self, listener: UnixListener, peer: Peer) -> Result<(), ListenError> {
        self.0.send((listener, peer)).await.map_err(|_| ListenError::Stopping)
    }
}

fn bind(folder: std::os::fd::BorrowedFd<'_>, name: &str, mode: u32) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Socket { name: name.to_owned(), source };
    let listener = UnixListener::bind(path_below(folder, name)).map_err(failed)?;
    chmodat(folder, name, Mode::from_raw_mode(mode), AtFlags::empty())
        .map_err(|error| failed(error.into()))?;
    Ok(listener)
}

/// Binds loopback TCP.
pub(crate) async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })
}

/// Accepts on every socket until `stop` turns true, then lets running requests end.
pub(crate) async fn serve(
    router: Router,
    tcp: Option<TcpListener>,
    mut new: NewListeners,
    mut stop: watch::Receiver<bool>,
) {
    let door = Arc::new(Door {
        router,
        graceful: GracefulShutdown::new(),
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX - ADMIN_CONNECTIONS_MAX)),
        admin_connections: Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX)),
    });
    let mut loops = JoinSet::new();
    if let Some(tcp) = tcp {
        loops.spawn(accept_tcp(door.clone(), tcp));
    }
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some((listener, peer)) = new.0.recv() => {
                loops.spawn(accept_unix(door.clone(), listener, peer));
            }
        }
    }
    loops.shutdown().await;
    let Some(door) = Arc::into_inner(door) else { return };
    if tokio::time::timeout(DRAIN_MAX, door.graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = DRAIN_MAX.as_secs(), "connections were still open at the end of the drain");
    }
}

/// What every accepting loop shares.
struct Door {
    router: Router,
    graceful: GracefulShutdown,
    connections: Arc<Semaphore>,
    admin_connections: Arc<Semaphore>,
}

async fn accept_tcp(door: Arc<Door>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: waiting for more would only delay them.
                if stream.set_nodelay(true).is_ok() {
                    door.open(stream, Peer::Tcp).await;
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_unix(door: Arc<Door>, listener: UnixListener, kind: Peer) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(credentials) => {
                    let uid = credentials.uid();
                    let peer = match &kind {
                        Peer::Admin { .. } => Peer::Admin { uid },
                        Peer::Local { .. } => Peer::Local { uid },
                        Peer::Client { name, .. } => Peer::Client { name: name.clone(), uid },
                        Peer::Tcp => Peer::Tcp,
                    };
                    door.open(stream, peer).await;
                }
                Err(error) => tracing::warn!(%error, "a connection without credentials was closed"),
            },
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Door {
    /// Serves one connection in a task of its own; waits while as many as may be are open.
    async fn open(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let places = match peer {
            Peer::Admin { .. } => &self.admin_connections,
            Peer::Client { .. } | Peer::Local { .. } | Peer::Tcp => &self.connections,
        };
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let router = self.router.clone();
        let service = tower_service(router, peer);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX).max_buf_size(HEAD_BYTES_MAX);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}

fn tower_service(
    router: Router,
    peer: Peer,
) -> impl hyper::service::Service<
    hyper::Request<Incoming>,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Future + Send,
> + Send {
    let inner = TowerToHyperService::new(router);
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        hyper::service::Service::call(&inner, request)
    })
}
