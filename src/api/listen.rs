//! Listening: sockets in the home and loopback TCP, connections within bounds, and the drain at the end.

use super::identity::Peer;
use crate::clients::{self, CLIENTS_MAX, Client, ClientName, ClientsError};
use crate::home::{Home, HomeError, path_below};
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::{AtFlags, Mode, chmodat};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
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
    /// What is done for a removed client did not end.
    #[error("requests of client {client:?} go on")]
    StillServed {
        /// Whose.
        client: String,
    },
}

/// How long what is done for a removed client may take to be given up: it is dropped, not waited for.
const GONE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Whether a client is still one. What is done for it ends when it is not.
#[derive(Debug, Clone)]
pub(super) struct Presence(watch::Receiver<bool>);

impl Presence {
    /// Of whom nobody can remove.
    fn lasting() -> Self {
        Self(watch::channel(true).1)
    }

    /// Returns when the client has been removed.
    pub(super) async fn ended(&mut self) {
        if self.0.wait_for(|present| !present).await.is_err() {
            // Nobody is left who could remove it.
            std::future::pending().await
        }
    }
}

/// Hands new sockets to the accepting loops, and ends them and what came over them.
#[derive(Debug)]
pub(crate) struct Listeners {
    new: mpsc::Sender<NewListener>,
    /// By name; one that was removed stays here as such until it is added again.
    clients: Mutex<HashMap<ClientName, watch::Sender<bool>>>,
    /// One client is added or removed at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct NewListener {
    listener: UnixListener,
    peer: Peer,
    presence: Presence,
}

/// The receiving side of [`Listeners`].
#[derive(Debug)]
pub(crate) struct NewListeners(mpsc::Receiver<NewListener>);

impl Listeners {
    /// Both sides.
    pub(crate) fn channel() -> (Self, NewListeners) {
        let (new, receiver) = mpsc::channel(NEW_LISTENERS_MAX);
        let listeners = Self { new, clients: Mutex::default(), changing: tokio::sync::Mutex::default() };
        (listeners, NewListeners(receiver))
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<ClientName, watch::Sender<bool>>> {
        self.clients.lock().expect("no thread panics with this lock")
    }

    /// A client's, if it has been one in this run.
    pub(super) fn presence(&self, client: &str) -> Option<Presence> {
        let name = ClientName::new(client).ok()?;
        self.clients().get(&name).map(|present| Presence(present.subscribe()))
    }

    fn arrives(&self, client: &ClientName) -> Presence {
        let (present, presence) = watch::channel(true);
        let mut clients = self.clients();
        if clients.len() >= 2 * CLIENTS_MAX {
            clients.retain(|_, present| *present.borrow());
        }
        clients.insert(client.clone(), present);
        Presence(presence)
    }

    /// Closes a client's socket and its connections, and gives up what is asked for in its name. When this returns nothing
    /// of it is left, and no answer goes to it any more.
    pub(super) async fn remove_client(&self, client: &ClientName) -> Result<(), ListenError> {
        let present = self.clients().get(client).cloned();
        let Some(present) = present else { return Ok(()) };
        present.send_replace(false);
        let closed = tokio::time::timeout(GONE_WAIT_MAX, present.closed()).await;
        closed.map_err(|_| ListenError::StillServed { client: client.to_string() })
    }

    /// Binds the sockets that every home has.
    pub(crate) async fn bind_home(&self, home: &Home) -> Result<(), ListenError> {
        let run = home.existing_folder("run")?;
        home.remove(run.as_fd(), "admin.sock")?;
        home.remove(run.as_fd(), "api.sock")?;
        let admin = bind(run.as_fd(), "admin.sock", 0o600)?;
        let local = bind(run.as_fd(), "api.sock", 0o666)?;
        self.add(admin, Peer::Admin { uid: 0 }, Presence::lasting()).await?;
        self.add(local, Peer::Local { uid: 0 }, Presence::lasting()).await
    }

    /// Binds a client's socket.
    pub(crate) async fn bind_client(&self, home: &Home, client: &Client) -> Result<(), ListenError> {
        let folder = clients::folder(home, &client.name)?;
        clients::clear_socket(home, &folder)?;
        // The folder decides who gets here.
        let listener = bind(folder.as_fd(), "api.sock", 0o666)?;
        let presence = self.arrives(&client.name);
        self.add(listener, Peer::Client { name: client.name.clone(), uid: 0 }, presence).await
    }

    async fn add(&self, listener: UnixListener, peer: Peer, presence: Presence) -> Result<(), ListenError> {
        let new = NewListener { listener, peer, presence };
        self.new.send(new).await.map_err(|_| ListenError::Stopping)
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
        stopping: watch::Sender::new(false),
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
            Some(new) = new.0.recv() => {
                loops.spawn(accept_while_present(door.clone(), new));
            }
            // Those of removed clients.
            Some(_) = loops.join_next() => {}
        }
    }
    loops.shutdown().await;
    let Some(door) = Arc::into_inner(door) else { return };
    door.stopping.send_replace(true);
    if tokio::time::timeout(DRAIN_MAX, door.stopping.closed()).await.is_err() {
        tracing::warn!(seconds = DRAIN_MAX.as_secs(), "connections were still open at the end of the drain");
    }
}

/// What every accepting loop shares.
struct Door {
    router: Router,
    /// True once no connection is to take another request; each of them listens to it until it ends.
    stopping: watch::Sender<bool>,
    connections: Arc<Semaphore>,
    admin_connections: Arc<Semaphore>,
}

async fn accept_tcp(door: Arc<Door>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: waiting for more would only delay them.
                if stream.set_nodelay(true).is_ok() {
                    door.open(stream, Peer::Tcp, Presence::lasting()).await;
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_while_present(door: Arc<Door>, new: NewListener) {
    let NewListener { listener, peer, presence } = new;
    let mut present = presence.clone();
    tokio::select! {
        () = present.ended() => {}
        () = accept_unix(door, listener, peer, presence) => {}
    }
}

async fn accept_unix(door: Arc<Door>, listener: UnixListener, kind: Peer, presence: Presence) {
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
                    door.open(stream, peer, presence.clone()).await;
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
    /// Serves one connection in a task of its own, until its client is removed; waits while as many as may be are open.
    async fn open(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        mut presence: Presence,
    ) {
        let places = match peer {
            Peer::Admin { .. } => &self.admin_connections,
            Peer::Client { .. } | Peer::Local { .. } | Peer::Tcp => &self.connections,
        };
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let router = self.router.clone();
        let service = tower_service(router, peer);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX).max_buf_size(HEAD_BYTES_MAX);
        // A stream of sound that a client pushes goes on where its request ends.
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut stopping = self.stopping.subscribe();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                biased;
                () = presence.ended() => {
                    tracing::debug!("a connection of a removed client was closed");
                    Ok(())
                }
                ended = connection.as_mut() => ended,
                () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        () = presence.ended() => Ok(()),
                        ended = connection.as_mut() => ended,
                    }
                }
            };
            if let Err(error) = ended {
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
