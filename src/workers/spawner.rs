//! The thread that starts programs. It never ends while the server runs: a program's parent-death signal fires when
//! the thread that forked it ends.

use ringfence_sandbox::{Child, Environment, SpawnError, SpawnRequest, StatusPage};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Starts that wait for the thread.
const STARTS_MAX: usize = 64;

/// What to start.
#[derive(Debug)]
pub(crate) struct Start {
    /// Words after the program's name.
    pub(crate) arguments: Vec<String>,
    /// Compute threads, for the pools of the program's libraries.
    pub(crate) threads: Option<u16>,
    /// The program's end of the link.
    pub(crate) link: OwnedFd,
    /// Where the program and its shim leave word of how it ended.
    pub(crate) status_page: Arc<StatusPage>,
    /// RLIMIT_DATA from its first moment, for one that nobody sets a limit for later.
    pub(crate) data_bytes_max: Option<u64>,
}

type Answer = oneshot::Sender<Result<Child, SpawnError>>;

/// Hands starts to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Spawner(mpsc::SyncSender<(Start, Answer)>);

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{STARTS_MAX} programs wait to be started already")]
    Full,
    #[error("the starting thread has ended")]
    Ended,
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl Spawner {
    /// Begins the thread; `program` is the opened executable of every start.
    pub(crate) fn new(program: OwnedFd) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel::<(Start, Answer)>(STARTS_MAX);
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for (start, answer) in receiver {
                // A requester that has gone away gets its child killed by the child's drop.
                drop(answer.send(spawn(&program, start)));
            }
        })?;
        Ok(Self(sender))
    }

    /// Starts one program.
    pub(crate) async fn start(&self, start: Start) -> Result<Child, StartError> {
        let (answer, started) = oneshot::channel();
        self.0.try_send((start, answer)).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => StartError::Full,
            mpsc::TrySendError::Disconnected(_) => StartError::Ended,
        })?;
        Ok(started.await.map_err(|_| StartError::Ended)??)
    }
}

fn spawn(program: &OwnedFd, start: Start) -> Result<Child, SpawnError> {
    let arguments: Vec<&str> = start.arguments.iter().map(String::as_str).collect();
    ringfence_sandbox::spawn(SpawnRequest {
        program: program.as_fd(),
        arguments: &arguments,
        environment: Environment { threads: start.threads },
        link: start.link,
        status_page: &start.status_page,
        cgroup: None,
        user: None,
        data_bytes_max: start.data_bytes_max,
    })
}
