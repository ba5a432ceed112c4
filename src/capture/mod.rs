//! Live sound: one `ringfence-audio` for each capture, from a client's grant to the texts of a worker. The server carries
//! public keys and descriptors; no sample comes through it.
//!
//! | file | holds |
//! | --- | --- |
//! | `task` | one capture from its start to its end |
//! | `program` | the process that captures |
//! | `push` | the connection over which a client pushes sound |
//! | `feed` | what the client is told meanwhile |
//! | `places` | where the sound server is |
//! | `view`, `refusals` | what is shown, and what is said where there is no sound |

mod feed;
mod places;
mod program;
mod push;
mod refusals;
mod task;
mod view;

pub(crate) use feed::{CaptureEvent, Reader};
pub(crate) use places::SoundPlaces;
pub(crate) use program::SoundPrograms;
pub(crate) use push::PushSocket;
pub(crate) use view::{CaptureView, CapturesView};

use crate::api::ApiError;
use crate::audit::{Audit, Who};
use crate::clock;
use crate::dispatch::Dispatcher;
use crate::grants::{GrantEnd, GrantService, Holder};
use axum::http::{HeaderMap, StatusCode};
use push::{UpgradeHeaders, upgrade_headers};
use refusals::{busy, unknown};
use ringfence_grants::{AudioCapture, Transform};
use ringfence_protocol::{Framing, Pushed, TranscribeOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use task::Task;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Captures at a time, those included that are about to start.
pub(crate) const CAPTURES_MAX: usize = 32;
/// Of those, one client's: others find room beside it.
const CAPTURES_PER_CLIENT_MAX: usize = 16;
/// Commands that wait for a capture.
const COMMANDS_MAX: usize = 8;
/// How long a capture may take over a command.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long all captures may take to end with the server.
const END_ALL_MAX: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct CaptureRequest {
    pub(crate) who: Who,
    pub(crate) client: String,
    pub(crate) capability: String,
    pub(crate) model: String,
    pub(crate) options: TranscribeOptions,
    /// After the operator's.
    pub(crate) transforms: Vec<Transform>,
    pub(crate) silence_ms: u32,
    /// Where the client sends its own sound; its head is empty yet.
    pub(crate) pushed: Option<Pushed>,
    pub(crate) received: Instant,
}

/// What a capture is told while it runs.
enum Command {
    Pause,
    Resume,
    Stop,
    Renew(AudioCapture, GrantEnd),
    /// The server ends.
    End,
}

type Answer = oneshot::Sender<Result<(), ApiError>>;

/// Who waits for a client's push.
struct Awaited {
    framing: Framing,
    to: oneshot::Sender<PushSocket>,
}

/// A capture as others reach it.
struct Known {
    view: Mutex<CaptureView>,
    commands: mpsc::Sender<(Command, Answer)>,
    awaited: Mutex<Option<Awaited>>,
}

impl Known {
    fn view(&self) -> MutexGuard<'_, CaptureView> {
        self.view.lock().expect("no thread panics with this lock")
    }

    fn awaited(&self) -> MutexGuard<'_, Option<Awaited>> {
        self.awaited.lock().expect("no thread panics with this lock")
    }
}

/// The captures of this run.
pub(crate) struct CaptureService {
    known: Mutex<BTreeMap<u64, Arc<Known>>>,
    last: Mutex<u64>,
    places: Arc<Semaphore>,
    programs: Arc<SoundPrograms>,
    grants: Arc<GrantService>,
    dispatcher: Arc<Dispatcher>,
    audit: Audit,
    /// Counts changes, for whoever waits for one.
    version: watch::Sender<u64>,
    /// True once the server ends: nothing starts any more.
    ending: watch::Sender<bool>,
}

impl CaptureService {
    /// None yet.
    pub(crate) fn new(
        programs: Arc<SoundPrograms>,
        grants: Arc<GrantService>,
        dispatcher: Arc<Dispatcher>,
        audit: Audit,
    ) -> Self {
        Self {
            known: Mutex::default(),
            last: Mutex::new(0),
            places: Arc::new(Semaphore::new(CAPTURES_MAX)),
            programs,
            grants,
            dispatcher,
            audit,
            version: watch::Sender::new(0),
            ending: watch::Sender::new(false),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Known>>> {
        self.known.lock().expect("no thread panics with this lock")
    }

    fn changed(&self) {
        let running = self.known().values().filter(|known| known.view().captures_now).count();
        metrics::gauge!("ringfence_captures_running").set(running as f64);
        self.version.send_modify(|version| *version += 1);
    }

    /// Starts one; what it tells comes over what is returned. Sound is captured from before this returns, or from when it is
    /// pushed. Dropping what is returned ends it.
    pub(crate) async fn start(self: &Arc<Self>, request: CaptureRequest) -> Result<Reader, ApiError> {
        let of_client = |known: &&Arc<Known>| known.view().client == request.client;
        if self.known().values().filter(of_client).count() >= CAPTURES_PER_CLIENT_MAX {
            return Err(busy(CAPTURES_PER_CLIENT_MAX));
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| busy(CAPTURES_MAX))?;
        if *self.ending.borrow() {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is shutting down",
            ));
        }
        let number = {
            let mut last = self.last.lock().expect("no thread panics with this lock");
            *last += 1;
            *last
        };
        let (commands, orders) = mpsc::channel(COMMANDS_MAX);
        let asked_ms = clock::moment().wall_ms;
        let view = CaptureView::new(number, request.client.clone(), request.model.clone(), asked_ms);
        let known = Arc::new(Known { view: Mutex::new(view), commands, awaited: Mutex::default() });
        self.known().insert(number, known.clone());
        let (feed, reader) = feed::feed();
        let (started, when_started) = oneshot::channel();
        let task = Task::new(self.clone(), number, known, feed, orders);
        // To its end, also where its client goes away: what captures must be gone, and the log must say so.
        tokio::spawn(async move {
            task.run(request, started).await;
            drop(place);
        });
        match when_started.await {
            Ok(started) => started.map(|()| reader),
            Err(_) => Err(ApiError::internal(&"a capture ended without a word")),
        }
    }

    fn forget(&self, number: u64) {
        self.known().remove(&number);
        self.changed();
    }

    /// One of a client's; nobody is the operator.
    fn find(&self, number: u64, viewer: Option<&str>) -> Result<Arc<Known>, ApiError> {
        let known = self.known().get(&number).cloned();
        let is_mine = |known: &Arc<Known>| viewer.is_none_or(|viewer| viewer == known.view().client);
        known.filter(is_mine).ok_or_else(unknown)
    }

    /// All that the viewer may see, as soon as there was a change after this version, or after this time.
    pub(crate) async fn list(
        &self,
        viewer: Option<&str>,
        after: Option<u64>,
        wait: Duration,
    ) -> CapturesView {
        let mut version = self.version.subscribe();
        if let Some(after) = after {
            drop(tokio::time::timeout(wait, version.wait_for(|version| *version != after)).await);
        }
        let version = *version.borrow();
        let views = self.known().values().map(|known| known.view().clone()).collect::<Vec<_>>();
        let mine = |view: &CaptureView| viewer.is_none_or(|viewer| viewer == view.client);
        CapturesView { version, captures: views.into_iter().filter(mine).collect() }
    }

    /// Those that run, for the operator.
    pub(crate) fn running(&self) -> Vec<CaptureView> {
        self.known().values().map(|known| known.view().clone()).collect()
    }

    async fn command(&self, known: &Known, command: Command) -> Result<(), ApiError> {
        let (answer, answered) = oneshot::channel();
        let waits = |_| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "capture_busy", "the capture has orders enough")
        };
        known.commands.try_send((command, answer)).map_err(waits)?;
        match tokio::time::timeout(COMMAND_WAIT_MAX, answered).await {
            Ok(Ok(answer)) => answer,
            // It has ended meanwhile.
            Ok(Err(_)) => Err(unknown()),
            Err(_) => Err(ApiError::internal(&"a capture does not answer")),
        }
    }

    /// Takes no sample until it is resumed. When this returns none is taken any more.
    pub(crate) async fn pause(&self, number: u64, viewer: Option<&str>) -> Result<CaptureView, ApiError> {
        self.order(number, viewer, Command::Pause).await
    }

    /// Goes on.
    pub(crate) async fn resume(&self, number: u64, viewer: Option<&str>) -> Result<CaptureView, ApiError> {
        self.order(number, viewer, Command::Resume).await
    }

    /// Ends it; what was said until then still becomes text. When this returns no sample is taken any more.
    pub(crate) async fn stop(&self, number: u64, viewer: Option<&str>) -> Result<CaptureView, ApiError> {
        self.order(number, viewer, Command::Stop).await
    }

    async fn order(
        &self,
        number: u64,
        viewer: Option<&str>,
        command: Command,
    ) -> Result<CaptureView, ApiError> {
        let known = self.find(number, viewer)?;
        self.command(&known, command).await?;
        let view = known.view().clone();
        Ok(view)
    }

    /// Lets it go on under another grant for the same source, whose end is its own from then on.
    pub(crate) async fn renew(
        &self,
        number: u64,
        who: &Who,
        client: &str,
        capability: &str,
    ) -> Result<CaptureView, ApiError> {
        let known = self.find(number, Some(client))?;
        let (model, source) = {
            let view = known.view();
            (view.model.clone(), view.source.clone())
        };
        let holder = Holder::new(who, client, capability, Some(model));
        let (capture, end) = self.grants.capture(&holder).await?;
        if capture.source().to_string() != source {
            let message =
                format!("the capability is for another source than this capture's, which is {source}");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "grant_out_of_scope", message));
        }
        self.command(&known, Command::Renew(capture, end)).await?;
        let view = known.view().clone();
        Ok(view)
    }

    /// How the connection of a client's push is to look, by its headers, and where it is waited for: once.
    pub(crate) fn pushes(
        &self,
        number: u64,
        client: &str,
        request: &HeaderMap,
    ) -> Result<(UpgradeHeaders, oneshot::Sender<PushSocket>), ApiError> {
        let known = self.find(number, Some(client))?;
        let mut awaited = known.awaited();
        let Some(Awaited { framing, to }) = awaited.take() else {
            let message = "this capture waits for no push: it was not asked for one, or has it already";
            return Err(ApiError::new(StatusCode::CONFLICT, "push_unexpected", message));
        };
        match upgrade_headers(framing, request) {
            Ok(headers) => Ok((headers, to)),
            Err(error) => {
                *awaited = Some(Awaited { framing, to });
                Err(error)
            }
        }
    }

    /// Ends them all: the server is about to. When this returns no sample is taken any more.
    pub(crate) async fn end_all(&self) {
        self.ending.send_replace(true);
        let known: Vec<_> = self.known().values().cloned().collect();
        for known in known {
            let (answer, _) = oneshot::channel();
            // One that is full or has ended hears it by the flag.
            drop(known.commands.try_send((Command::End, answer)));
        }
        let all = self.places.acquire_many(CAPTURES_MAX as u32);
        if tokio::time::timeout(END_ALL_MAX, all).await.is_err() {
            tracing::error!("captures go on at the end of the server; they end with it");
        }
    }
}
