//! Sending: closed loop (each connection sends the next request when the last is answered) and open loop (requests
//! are due at a fixed rate, whatever the server does).

use super::tally::{Micros, Stamps, Tally, as_micros, micros};
use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Answer, Ask, Connection};
use hyper::Method;
use hyper::body::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

/// Open loop: requests that are due while every connection is busy; those beyond are counted and not sent.
pub const WAITING_MAX: usize = 1_024;

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: Address,
    /// The path of each POST.
    pub path: &'static str,
    /// Sent in turn; at least one.
    pub bodies: Vec<Bytes>,
    /// How requests follow each other.
    pub pace: Pace,
    /// Connections, at least one; each carries one request at a time.
    pub connections: usize,
    /// When to stop.
    pub until: Until,
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When the one before is answered.
    Closed,
    /// At this rate. A latency counts from the time at which the request was due, so that a slow server can't hide
    /// the requests that it kept from being sent (Tene, "How NOT to Measure Latency": coordinated omission).
    Open {
        /// Requests due in a second.
        per_second: f64,
    },
}

/// When a run stops. Requests under way are finished and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After this many requests.
    Requests(u64),
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was counted.
    pub tally: Tally,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Open loop only.
    pub schedule: Option<Schedule>,
}

/// How well the open loop kept its own schedule.
#[derive(Debug)]
pub struct Schedule {
    /// Requests that were due but not sent, as [`WAITING_MAX`] others waited.
    pub overflow: u64,
    /// How late the generator itself was; it is part of the latencies.
    pub lag: Micros,
}

/// Progress of a run, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Requests that have ended.
    pub fn ended(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs the plan.
///
/// # Errors
/// [`CliError::Unreachable`] where the server is or goes away. All other errors are counted.
pub async fn run(plan: Plan, progress: Arc<Progress>) -> Result<Outcome, CliError> {
    let mut connections = Vec::new();
    for _ in 0..plan.connections {
        connections.push(Connection::open(&plan.address).await?);
    }
    let pace = plan.pace;
    let run = Arc::new(Run { plan, progress, taken: AtomicU64::new(0), started: clock::now() });
    match pace {
        Pace::Closed => closed(&run, connections).await,
        Pace::Open { per_second } => open(&run, connections, per_second).await,
    }
}

/// What the connections of a run share.
struct Run {
    plan: Plan,
    progress: Arc<Progress>,
    taken: AtomicU64,
    started: Instant,
}

impl Run {
    /// The number of the next request, or none when the run is over; `at` is when that request is to start.
    fn take(&self, at: Instant) -> Option<u64> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let more = match self.plan.until {
            Until::Elapsed(time) => at.saturating_duration_since(self.started) < time,
            Until::Requests(count) => number < count,
        };
        more.then_some(number)
    }

    fn ask(&self, number: u64) -> Ask {
        let turn = number % self.plan.bodies.len() as u64;
        let body = self.plan.bodies[turn as usize].clone();
        Ask { body, ..Ask::plain(Method::POST, self.plan.path) }
    }

    /// Sends one request and counts it, with a latency from `since`.
    async fn send(
        &self,
        connection: &mut Connection,
        (number, since): (u64, Instant),
        tally: &mut Tally,
    ) -> Result<(), CliError> {
        let result = connection.send(&self.ask(number)).await;
        let latency = clock::now().saturating_duration_since(since);
        self.progress.0.fetch_add(1, Ordering::Relaxed);
        count(tally, latency, result)
    }

    fn outcome(&self, tally: Tally, schedule: Option<Schedule>) -> Outcome {
        Outcome { tally, elapsed: clock::now().saturating_duration_since(self.started), schedule }
    }
}

/// A server that is gone ends the run; every other error is part of the result.
fn count(tally: &mut Tally, latency: Duration, result: Result<Answer, CliError>) -> Result<(), CliError> {
    match result {
        Ok(answer) => tally.answer(latency, Stamps::from_headers(&answer.headers)),
        Err(gone @ CliError::Unreachable { .. }) => return Err(gone),
        Err(error) => tally.error(&error),
    }
    Ok(())
}

async fn closed(run: &Arc<Run>, connections: Vec<Connection>) -> Result<Outcome, CliError> {
    let mut senders = JoinSet::new();
    for connection in connections {
        senders.spawn(closed_sender(Arc::clone(run), connection));
    }
    let tally = merged(senders).await?;
    Ok(run.outcome(tally, None))
}

async fn closed_sender(run: Arc<Run>, mut connection: Connection) -> Result<Tally, CliError> {
    let mut tally = Tally::default();
    loop {
        let since = clock::now();
        let Some(number) = run.take(since) else { return Ok(tally) };
        run.send(&mut connection, (number, since), &mut tally).await?;
    }
}

/// A request's number and the time at which it is due.
type Due = (u64, Instant);

async fn open(run: &Arc<Run>, connections: Vec<Connection>, per_second: f64) -> Result<Outcome, CliError> {
    let (due, waiting) = mpsc::channel(WAITING_MAX);
    let waiting = Arc::new(Mutex::new(waiting));
    let mut senders = JoinSet::new();
    for connection in connections {
        senders.spawn(open_sender(Arc::clone(run), connection, Arc::clone(&waiting)));
    }
    drop(waiting);
    let generator = Arc::clone(run);
    // A thread of its own, as the event loop's timers are only as fine as a millisecond.
    let generator = tokio::task::spawn_blocking(move || generate(&generator, per_second, &due));
    let tally = merged(senders).await?;
    let schedule = generator.await.expect("the generator does not panic");
    Ok(run.outcome(tally, Some(schedule)))
}

async fn open_sender(
    run: Arc<Run>,
    mut connection: Connection,
    waiting: Arc<Mutex<mpsc::Receiver<Due>>>,
) -> Result<Tally, CliError> {
    let mut tally = Tally::default();
    loop {
        let next = waiting.lock().await.recv().await;
        let Some(due) = next else { return Ok(tally) };
        run.send(&mut connection, due, &mut tally).await?;
    }
}

/// Makes requests due until the run is over or every sender has ended.
fn generate(run: &Run, per_second: f64, due: &mpsc::Sender<Due>) -> Schedule {
    let mut schedule = Schedule { overflow: 0, lag: micros() };
    for turn in 0_u64.. {
        let at = run.started + Duration::from_secs_f64(turn as f64 / per_second);
        let Some(number) = run.take(at) else { break };
        thread::sleep(at.saturating_duration_since(clock::now()));
        schedule.lag.saturating_record(as_micros(clock::now().saturating_duration_since(at)));
        match due.try_send((number, at)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => schedule.overflow += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => break,
        }
    }
    schedule
}

async fn merged(mut senders: JoinSet<Result<Tally, CliError>>) -> Result<Tally, CliError> {
    let mut whole = Tally::default();
    while let Some(ended) = senders.join_next().await {
        whole.merge(&ended.expect("a sender does not panic")?);
    }
    Ok(whole)
}
