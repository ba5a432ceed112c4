//! One capture from its start to its end: the program that captures, the worker that hears it, the grant that allows it, the
//! client that reads. Each of them can end it.

use super::feed::{CaptureEvent, Feed, Slow};
use super::program::{Fault, Opened, Program};
use super::refusals::{given_up, no_push, no_sound, not_heard, not_now, pushed_or_not, revoked};
use super::{Answer, Awaited, CaptureRequest, CaptureService, Command, Known, PushSocket};
use crate::api::ApiError;
use crate::audit::{Masker, Who};
use crate::clock;
use crate::dispatch::{Heard, Listen, Listening};
use crate::grants::{GrantEnd, Holder};
use crate::workers::Said;
use ringfence_audit::{Event as Entry, Word};
use ringfence_grants::{AudioCapture, GrantId, Source, Transform};
use ringfence_protocol::{
    self as protocol, AUDIO_MS_MAX, AUDIO_RING_FRAMES_MAX, AudioError, CaptureEnd, CaptureStart, ChunkBytes,
    FromAudio, Level, Notice, Pushed, StreamPublic, TRANSFORMS_MAX, ToAudio, stream_pair,
};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long it may take until a worker can hear the stream: its model may have to be loaded.
const LISTENS_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a pushed stream is waited for.
const PUSH_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the program may take from its start to the first sample.
const STARTED_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it may take to end when it is told to. Then it is killed.
const END_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long what was said before the end may take to become text.
const FINALS_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a worker's own word is waited for where its stream has broken.
const WORD_WAIT_MAX: Duration = Duration::from_millis(500);
/// Frames of 20 ms that may be captured while the worker says nothing of how far it is: 20 s.
const UNHEARD_FRAMES_MAX: u64 = 1_000;
/// The longest capture, in milliseconds of sound: a stream's times are bounded as a file's are.
const CAPTURE_MS_MAX: u64 = AUDIO_MS_MAX - 60_000;
/// A frame's length, in milliseconds.
const FRAME_MS: u64 = 20;

/// Tells who asked for the capture that it has begun, or why not.
type Started = oneshot::Sender<Result<(), ApiError>>;

/// Why a capture ends.
enum Why {
    Stopped,
    Finished,
    Expired,
    Revoked,
    ClientGone,
    ReaderSlow,
    TooLong,
    ServerStopping,
    Failed(ApiError),
}

impl Why {
    fn reason(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::ClientGone => "client_gone",
            Self::ReaderSlow => "reader_slow",
            Self::TooLong => "too_long",
            Self::ServerStopping => "server_stopping",
            Self::Failed(_) => "failed",
        }
    }

    /// For the audit log.
    fn result(&self) -> &'static str {
        match self {
            Self::Failed(error) => error.code(),
            why => why.reason(),
        }
    }

    /// Whether what was said before it still becomes text.
    fn lets_finish(&self) -> bool {
        match self {
            Self::Stopped | Self::Finished | Self::Expired | Self::TooLong => true,
            Self::Revoked | Self::ClientGone | Self::ReaderSlow | Self::ServerStopping | Self::Failed(_) => {
                false
            }
        }
    }
}

impl From<Fault> for Why {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault.into())
    }
}

impl From<Slow> for Why {
    fn from(_: Slow) -> Self {
        Self::ReaderSlow
    }
}

/// Where the program stands, as far as it was told and has said.
enum Phase {
    Running,
    Pausing(Answer),
    Paused,
    Resuming(Answer),
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Pausing(_) => "about to be paused",
            Self::Paused => "paused",
            Self::Resuming(_) => "about to be resumed",
        }
    }
}

/// What a capture holds.
struct Open {
    program: Program,
    listening: Listening,
    /// Whether the worker has ended the job.
    heard_all: bool,
    capture: AudioCapture,
    end: GrantEnd,
    reader: StreamPublic,
    /// The program's end of the stream, until its start.
    stream: Option<OwnedFd>,
    phase: Phase,
    /// Who wants it stopped.
    stopping: Vec<Answer>,
    /// Frames that were captured when the worker last said how far it is.
    heard_at: u64,
    finals: u32,
    text: String,
}

/// A task that runs one capture.
pub(super) struct Task {
    service: Arc<CaptureService>,
    number: u64,
    known: Arc<Known>,
    feed: Feed,
    orders: mpsc::Receiver<(Command, Answer)>,
}

impl Task {
    pub(super) fn new(
        service: Arc<CaptureService>,
        number: u64,
        known: Arc<Known>,
        feed: Feed,
        orders: mpsc::Receiver<(Command, Answer)>,
    ) -> Self {
        Self { service, number, known, feed, orders }
    }

    /// Runs it to its end. Nothing captures any more when this returns.
    pub(super) async fn run(mut self, request: CaptureRequest, started: Started) {
        let who = request.who.clone();
        let mut started = Some(started);
        match self.open(&request).await {
            Err(error) => {
                tracing::info!(capture = self.number, code = error.code(), "a capture does not begin");
                self.service.forget(self.number);
                answer(&mut started, Err(error));
            }
            Ok(mut open) => {
                let why = match self.begin(&mut open, request, &mut started).await {
                    Ok(()) => self.follow(&mut open, &who).await,
                    Err(why) => why,
                };
                self.finish(open, why, started, &who).await;
            }
        }
    }

    /// A program with its device open, and a worker that waits for its stream. Nothing is captured yet.
    async fn open(&mut self, request: &CaptureRequest) -> Result<Open, ApiError> {
        let CaptureRequest { who, client, capability, model, .. } = request;
        let holder = Holder::new(who, client, capability, Some(model.clone()));
        let (capture, end) = self.service.grants.capture(&holder).await?;
        let is_pushed = *capture.source() == Source::Pushed;
        if is_pushed != request.pushed.is_some() {
            return Err(pushed_or_not(is_pushed));
        }
        if capture.transforms().len() + request.transforms.len() > TRANSFORMS_MAX {
            let message = format!("with the operator's own there are more than {TRANSFORMS_MAX} transforms");
            return Err(ApiError::invalid("transforms_invalid", "transforms", message));
        }
        self.show(&capture);
        let program = self.service.programs.start(capture.source()).await?;
        match self.listener(request, &program, (capture.grant(), &end)).await {
            Ok((listening, reader, stream)) => Ok(Open {
                program,
                listening,
                heard_all: false,
                capture,
                end,
                reader,
                stream: Some(stream),
                phase: Phase::Running,
                stopping: Vec::new(),
                heard_at: 0,
                finals: 0,
                text: String::new(),
            }),
            Err(error) => {
                program.end().await;
                Err(error)
            }
        }
    }

    fn show(&self, capture: &AudioCapture) {
        let mut view = self.known.view();
        view.grant = capture.grant().0;
        view.is_of(&capture.source().to_string());
        view.until_ms = until_wall_ms(capture);
    }

    /// A worker with one end of a stream, its key, and the other end.
    async fn listener(
        &mut self,
        request: &CaptureRequest,
        program: &Program,
        (grant, end): (GrantId, &GrantEnd),
    ) -> Result<(Listening, StreamPublic, OwnedFd), ApiError> {
        let (stream, socket) = stream_pair().map_err(|error| ApiError::internal(&error))?;
        let listen = Listen {
            client: request.client.clone(),
            who: request.who.clone(),
            model: request.model.clone(),
            received: request.received,
            options: request.options.clone(),
            audio: program.key,
            socket,
            grant: end.again(),
        };
        let mut listening = self.service.dispatcher.listen(listen).await?;
        let heard = async {
            match timeout(LISTENS_WAIT_MAX, listening.next()).await {
                Ok(Heard::Said(Said::Listens(key))) => Ok(key),
                Ok(Heard::Said(_)) => Err(ApiError::internal(&"a live job that speaks before its key")),
                Ok(Heard::End(Err(error))) => Err(error),
                Ok(Heard::End(Ok(()))) => Err(ApiError::internal(&"a live job that ended before it began")),
                Err(_) => Err(not_heard()),
            }
        };
        let key = match self.unless_ended((grant, end), heard).await {
            Ok(key) => key?,
            Err(Why::Revoked) => return Err(revoked()),
            Err(_) => return Err(given_up()),
        };
        Ok((listening, key, stream))
    }

    /// What comes of something, unless the capture is ended first.
    async fn unless_ended<T>(
        &mut self,
        (grant, end): (GrantId, &GrantEnd),
        work: impl Future<Output = T>,
    ) -> Result<T, Why> {
        let mut ending = self.service.ending.subscribe();
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = end.comes() => {
                    let expired = self.service.grants.has_expired(grant);
                    return Err(if expired { Why::Expired } else { Why::Revoked });
                }
                () = self.feed.gone() => return Err(Why::ClientGone),
                () = has_come(&mut ending) => return Err(Why::ServerStopping),
                order = self.orders.recv() => match order {
                    Some((Command::Stop, answer)) => {
                        drop(answer.send(Ok(())));
                        return Err(Why::Stopped);
                    }
                    Some((Command::End, _)) | None => return Err(Why::ServerStopping),
                    Some((Command::Pause | Command::Resume | Command::Renew(..), answer)) => {
                        drop(answer.send(Err(not_now("about to begin"))));
                    }
                },
                done = work.as_mut() => return Ok(done),
            }
        }
    }

    /// Lets it begin: the push, the audit log's entry, the start.
    async fn begin(
        &mut self,
        open: &mut Open,
        request: CaptureRequest,
        started: &mut Option<Started>,
    ) -> Result<(), Why> {
        let pushed = match request.pushed {
            None => None,
            Some(pushed) => {
                let under = (open.capture.grant(), &open.end);
                let socket = self.wait_for_push(under, &pushed, started).await?;
                Some((pushed, socket))
            }
        };
        let (grant, source) = (open.capture.grant(), open.capture.source().to_string());
        self.record_start(&request.who, grant, source).await.map_err(Why::Failed)?;
        self.set_state("running", true);
        let transforms = open.capture.transforms().iter().chain(&request.transforms).map(|one| mapped(*one));
        let (pushed, socket) = pushed.map_or((None, None), |(pushed, PushSocket { socket, head })| {
            (Some(Pushed { head: ChunkBytes(head), ..pushed }), Some(socket))
        });
        let format = pushed.as_ref().map(|pushed| (pushed.rate, pushed.channels));
        let start = CaptureStart {
            reader: open.reader,
            until_boot_ms: open.capture.until_boot_ms(),
            ring_frames: AUDIO_RING_FRAMES_MAX,
            silence_ms: request.silence_ms,
            transforms: transforms.collect(),
            pushed,
        };
        let stream = open.stream.take().expect("a capture begins once");
        let descriptors = [Some(&stream), socket.as_ref()].into_iter().flatten().map(AsFd::as_fd);
        open.program.tell(&ToAudio::Start(start), &descriptors.collect::<Vec<_>>())?;
        drop((stream, socket));
        let known = self.known.clone();
        let running = async {
            let begun = timeout(STARTED_WAIT_MAX, has_started(&open.program, &known)).await;
            begun.unwrap_or(Err(Why::Failed(no_sound(AudioError::Interface))))
        };
        self.unless_ended((open.capture.grant(), &open.end), running).await??;
        self.tell_started(open, format)?;
        answer(started, Ok(()));
        Ok(())
    }

    async fn wait_for_push(
        &mut self,
        under: (GrantId, &GrantEnd),
        pushed: &Pushed,
        started: &mut Option<Started>,
    ) -> Result<PushSocket, Why> {
        let (to, comes) = oneshot::channel();
        *self.known.awaited() = Some(Awaited { framing: pushed.framing, to });
        self.set_state("waiting", false);
        let for_ms = PUSH_WAIT_MAX.as_secs() * 1_000;
        self.feed.tell(CaptureEvent::Waiting { capture: self.number, for_ms })?;
        // Its number has to be known before it can be pushed to.
        answer(started, Ok(()));
        let comes = self.unless_ended(under, timeout(PUSH_WAIT_MAX, comes)).await?;
        self.known.awaited().take();
        match comes {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(_)) | Err(_) => Err(Why::Failed(no_push())),
        }
    }

    fn tell_started(&self, open: &Open, pushed: Option<(u32, u16)>) -> Result<(), Slow> {
        let opened = open.program.opened.clone();
        let (rate, channels) = pushed.unwrap_or_default();
        let (host, device, rate, channels) = match opened {
            Some(Opened { host, device, rate, channels }) => (host, Some(device), rate, channels),
            None => ("pushed", None, rate, channels),
        };
        tracing::info!(
            capture = self.number,
            grant = open.capture.grant().0,
            job = open.listening.job,
            host,
            "sound is captured"
        );
        let (capture, job, until_ms) = (self.number, open.listening.job, until_wall_ms(&open.capture));
        self.feed.tell(CaptureEvent::Started { capture, job, host, device, rate, channels, until_ms })
    }

    /// Until something ends it.
    async fn follow(&mut self, open: &mut Open, who: &Who) -> Why {
        let mut ending = self.service.ending.subscribe();
        loop {
            let next = tokio::select! {
                biased;
                () = open.end.comes() => Err(self.by_grant(open).await),
                () = self.feed.gone() => Err(Why::ClientGone),
                () = has_come(&mut ending) => Err(Why::ServerStopping),
                order = self.orders.recv() => match order {
                    Some((command, answer)) => self.obey(open, command, answer, who).await,
                    None => Err(Why::ServerStopping),
                },
                heard = open.listening.next(), if !open.heard_all => self.heard(open, heard),
                said = open.program.hear() => match said {
                    Ok(said) => self.said(open, said).await,
                    Err(fault) => Err(fault.into()),
                },
            };
            if let Err(why) = next {
                return why;
            }
        }
    }

    /// The grant is over: by its time, at which the program ends by itself, or because it was taken back.
    async fn by_grant(&self, open: &mut Open) -> Why {
        if !self.service.grants.has_expired(open.capture.grant()) {
            return Why::Revoked;
        }
        self.halt(open).await;
        Why::Expired
    }

    async fn obey(&self, open: &mut Open, command: Command, answer: Answer, who: &Who) -> Result<(), Why> {
        match (command, &open.phase) {
            (Command::Pause, Phase::Running) => {
                open.program.tell(&ToAudio::Pause, &[])?;
                open.phase = Phase::Pausing(answer);
            }
            (Command::Resume, Phase::Paused) => {
                self.set_state("running", true);
                open.program.tell(&ToAudio::Resume, &[])?;
                open.phase = Phase::Resuming(answer);
            }
            (Command::Pause | Command::Resume, phase) => drop(answer.send(Err(not_now(phase.name())))),
            (Command::Renew(capture, end), _) => {
                let renewed = self.renew(open, capture, end, who).await;
                drop(answer.send(renewed));
            }
            (Command::Stop, _) => {
                self.halt(open).await;
                open.stopping.push(answer);
                return Err(Why::Stopped);
            }
            (Command::End, _) => return Err(Why::ServerStopping),
        }
        Ok(())
    }

    /// Puts it under another grant. What the log has of the old one is its end there.
    async fn renew(
        &self,
        open: &mut Open,
        capture: AudioCapture,
        end: GrantEnd,
        who: &Who,
    ) -> Result<(), ApiError> {
        let before = open.capture.grant();
        self.record_start(who, capture.grant(), capture.source().to_string()).await?;
        self.record_stop(who, before, "renewed").await;
        let until_boot_ms = capture.until_boot_ms();
        open.program.tell(&ToAudio::Renew { until_boot_ms }, &[])?;
        open.listening.renew(end.again());
        self.show(&capture);
        let until_ms = until_wall_ms(&capture);
        open.end = end;
        open.capture = capture;
        self.service.changed();
        tracing::info!(capture = self.number, from = before.0, grant = open.capture.grant().0, "renewed");
        // A reader that is too slow for this is found out by what comes next.
        let _told = self.feed.tell(CaptureEvent::Renewed { until_ms });
        Ok(())
    }

    /// What the worker says.
    fn heard(&self, open: &mut Open, heard: Heard) -> Result<(), Why> {
        match heard {
            Heard::Said(Said::Listens(_)) => {}
            Heard::Said(Said::Partial { start_ms, text }) => {
                self.feed.tell(CaptureEvent::Partial { start_ms, text })?;
            }
            Heard::Said(Said::Final(segment)) => {
                let event = CaptureEvent::of(open.finals, &segment);
                open.finals += 1;
                open.text.push_str(&segment.text);
                self.feed.tell(event)?;
            }
            Heard::Said(Said::Listened(listened)) => {
                let mut view = self.known.view();
                view.listened(&listened);
                open.heard_at = view.captured;
                if listened.audio_ms >= CAPTURE_MS_MAX {
                    return Err(Why::TooLong);
                }
            }
            // It has read the stream to its end; the program's own word is under way.
            Heard::End(Ok(())) => open.heard_all = true,
            Heard::End(Err(error)) => {
                open.heard_all = true;
                return Err(Why::Failed(error));
            }
        }
        Ok(())
    }

    /// What the program says.
    async fn said(&self, open: &mut Open, said: FromAudio) -> Result<(), Why> {
        match said {
            FromAudio::Level(Level { rms, peak }) => self.feed.tell(CaptureEvent::Level { rms, peak })?,
            FromAudio::Notice(notice) => self.feed.tell(noticed(notice))?,
            FromAudio::Statistics(now) => {
                self.known.view().count(&now);
                if now.captured.saturating_sub(open.heard_at) > UNHEARD_FRAMES_MAX {
                    return Err(Why::Failed(not_heard()));
                }
            }
            FromAudio::Paused => {
                let Phase::Pausing(answer) = std::mem::replace(&mut open.phase, Phase::Paused) else {
                    return Err(Fault::Illegal("a pause that nobody asked for").into());
                };
                self.set_state("paused", false);
                drop(answer.send(Ok(())));
                self.feed.tell(CaptureEvent::Paused)?;
            }
            FromAudio::Resumed => {
                let Phase::Resuming(answer) = std::mem::replace(&mut open.phase, Phase::Running) else {
                    return Err(Fault::Illegal("a resume that nobody asked for").into());
                };
                drop(answer.send(Ok(())));
                self.feed.tell(CaptureEvent::Resumed)?;
            }
            FromAudio::Ended { end } => return Err(self.ended(open, end).await),
            FromAudio::Hello { .. }
            | FromAudio::Opened { .. }
            | FromAudio::Sealed { .. }
            | FromAudio::Started => return Err(Fault::Illegal("a message out of its order").into()),
        }
        Ok(())
    }

    async fn ended(&self, open: &mut Open, end: CaptureEnd) -> Why {
        match end {
            CaptureEnd::Asked => Why::Stopped,
            CaptureEnd::Expired => Why::Expired,
            CaptureEnd::Finished => Why::Finished,
            CaptureEnd::Failed(AudioError::ReaderGone) => self.worker_s_word(open).await,
            CaptureEnd::Failed(error) => Why::Failed(no_sound(error)),
        }
    }

    /// The worker has closed the stream: it may say why.
    async fn worker_s_word(&self, open: &mut Open) -> Why {
        let word = async {
            loop {
                if open.heard_all {
                    return std::future::pending().await;
                }
                let heard = open.listening.next().await;
                if let Err(why) = self.heard(open, heard) {
                    return why;
                }
            }
        };
        timeout(WORD_WAIT_MAX, word).await.unwrap_or_else(|_| Why::Failed(no_sound(AudioError::ReaderGone)))
    }

    /// Tells the program to end, and waits until it has: no sample is taken any more. One that does not is killed later.
    async fn halt(&self, open: &mut Open) {
        if open.program.tell(&ToAudio::Stop, &[]).is_err() {
            return;
        }
        let over = async {
            loop {
                match open.program.hear().await {
                    Ok(FromAudio::Statistics(now)) => self.known.view().count(&now),
                    Ok(FromAudio::Ended { .. }) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        if timeout(END_WAIT_MAX, over).await.is_err() {
            tracing::warn!(capture = self.number, "a program does not end its capture, it is killed");
        }
    }

    /// Ends it: no sample is taken, keys are gone, the log says so, and the client hears what there is to hear.
    async fn finish(mut self, mut open: Open, mut why: Why, mut started: Option<Started>, who: &Who) {
        self.set_state("ending", false);
        if matches!(why, Why::TooLong) {
            self.halt(&mut open).await;
        }
        for answer in open.stopping.drain(..) {
            drop(answer.send(Ok(())));
        }
        // Of what was not started there is nothing to be heard.
        if why.lets_finish()
            && open.stream.is_none()
            && let Err(cut) = self.last_words(&mut open).await
        {
            why = cut;
        }
        let Open { program, listening, capture, end, text, .. } = open;
        // A job that has not ended is taken back; where the grant is gone its worker forgets, or is killed.
        drop(listening);
        program.end().await;
        self.record_stop(who, capture.grant(), why.result()).await;
        drop((capture, end));
        tracing::info!(
            capture = self.number,
            reason = why.reason(),
            code = why.result(),
            "no sound is captured any more"
        );
        metrics::counter!("ringfence_captures_ended_total", "why" => why.result()).increment(1);
        self.service.forget(self.number);
        let failure = if let Why::Failed(error) = &why { Some(error.clone()) } else { None };
        if let Some(started) = started.take() {
            let _left = started.send(Err(failure.unwrap_or_else(|| match why {
                Why::Revoked => revoked(),
                _ => given_up(),
            })));
            return;
        }
        let (audio_ms, dropped, lost) = {
            let view = self.known.view();
            (view.audio_ms, view.dropped, view.lost)
        };
        let (reason, code) = (why.reason(), failure.as_ref().map(ApiError::code));
        let advice = failure.map(|error| error.message().to_owned());
        let _always =
            self.feed.tell(CaptureEvent::Ended { reason, code, advice, audio_ms, dropped, lost, text });
    }

    /// What was said before the end becomes text, unless it is taken back.
    async fn last_words(&mut self, open: &mut Open) -> Result<(), Why> {
        let expired = self.service.grants.has_expired(open.capture.grant());
        let until = tokio::time::Instant::now() + FINALS_WAIT_MAX;
        let mut ending = self.service.ending.subscribe();
        while !open.heard_all {
            tokio::select! {
                biased;
                () = open.end.comes(), if !expired => {
                    if self.service.grants.has_expired(open.capture.grant()) {
                        return Box::pin(self.last_words(open)).await;
                    }
                    return Err(Why::Revoked);
                }
                () = self.feed.gone() => return Err(Why::ClientGone),
                () = has_come(&mut ending) => return Err(Why::ServerStopping),
                heard = open.listening.next() => match self.heard(open, heard) {
                    Ok(()) | Err(Why::TooLong) => {}
                    Err(why) => return Err(why),
                },
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
        Ok(())
    }

    fn set_state(&self, state: &'static str, captures_now: bool) {
        let mut view = self.known.view();
        (view.state, view.captures_now) = (state, captures_now);
        drop(view);
        self.service.changed();
    }

    async fn record_start(&self, who: &Who, grant: GrantId, source: String) -> Result<(), ApiError> {
        let event = move |masker: &mut Masker<'_>| {
            let source = masker.mask(&source);
            Entry::AudioStarted { grant: grant.0, source }
        };
        self.service.audit.record(who, event).await.map_err(ApiError::from)
    }

    /// The end counts also where it can't be written.
    async fn record_stop(&self, who: &Who, grant: GrantId, result: &str) {
        let captured_ms = self.known.view().captured * FRAME_MS;
        let result = Word::lossy(result);
        let event = move |_: &mut Masker<'_>| Entry::AudioStopped { grant: grant.0, captured_ms, result };
        if let Err(error) = self.service.audit.record(who, event).await {
            tracing::error!(%error, "the end of a capture is not in the audit log");
        }
    }
}

async fn has_started(program: &Program, known: &Known) -> Result<(), Why> {
    loop {
        match program.hear().await? {
            FromAudio::Started => return Ok(()),
            FromAudio::Statistics(now) => known.view().count(&now),
            FromAudio::Ended { end: CaptureEnd::Failed(error) } => return Err(Why::Failed(no_sound(error))),
            FromAudio::Ended { end: CaptureEnd::Expired } => return Err(Why::Expired),
            _ => return Err(Fault::Illegal("something before its start").into()),
        }
    }
}

/// Returns when the server is about to end.
async fn has_come(ending: &mut watch::Receiver<bool>) {
    // Without whoever sends it, it has.
    drop(ending.wait_for(|ending| *ending).await);
}

fn answer(started: &mut Option<Started>, answer: Result<(), ApiError>) {
    if let Some(started) = started.take() {
        // Who has left does not hear it.
        let _left = started.send(answer);
    }
}

fn until_wall_ms(capture: &AudioCapture) -> u64 {
    let now = clock::moment();
    now.wall_ms.saturating_add(capture.until_boot_ms().saturating_sub(now.boot_ms))
}

fn noticed(notice: Notice) -> CaptureEvent {
    match notice {
        Notice::OnlySilence { ms } => CaptureEvent::Notice { code: "only_silence", ms: Some(ms) },
        Notice::SoundAgain => CaptureEvent::Notice { code: "sound_again", ms: None },
    }
}

fn mapped(transform: Transform) -> protocol::Transform {
    match transform {
        Transform::HighPass { hz } => protocol::Transform::HighPass { hz },
        Transform::GainControl => protocol::Transform::GainControl,
        Transform::Obfuscate => protocol::Transform::Obfuscate,
        Transform::Decimate { factor } => protocol::Transform::Decimate { factor },
    }
}
