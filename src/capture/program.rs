//! One `ringfence-audio`: the process that has one microphone or pushed stream, and whose end is the capture's.

use super::places::SoundPlaces;
use super::refusals::{no_sound, not_started};
use crate::api::ApiError;
use crate::workers::{Spawner, Start, end, is_sealed, prove_audio, receive, watch};
use axum::http::StatusCode;
use ringfence_grants::Source;
use ringfence_protocol::{
    self as protocol, AUDIO_DATA_BYTES_MAX, AudioError, AudioHost, AudioLink, CaptureEnd,
    DEVICE_NAME_BYTES_MAX, FromAudio, LinkError, StreamPublic, ToAudio, audio_places,
};
use ringfence_sandbox::{AudioKind, Child, StatusPage};
use rustix::net::{SendFlags, send};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// How long a program may take until its device is open and its sandbox complete.
const START_MAX: Duration = Duration::from_secs(10);

/// Starts programs that capture sound.
#[derive(Debug)]
pub(crate) struct SoundPrograms {
    spawner: Spawner,
    places: SoundPlaces,
    /// For which interfaces the sandbox is proven.
    proven: tokio::sync::Mutex<Vec<AudioKind>>,
}

/// What a program has opened. It does not capture yet.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// `pulse_audio` or `alsa`.
    pub(crate) host: &'static str,
    pub(crate) device: String,
    pub(crate) rate: u32,
    pub(crate) channels: u16,
}

/// A program that is sealed and waits for its start. Its process ends with this.
#[derive(Debug)]
pub(crate) struct Program {
    link: AsyncFd<AudioLink>,
    child: Child,
    /// The key that it made after its sandbox was complete.
    pub(crate) key: StreamPublic,
    /// None of a pushed stream.
    pub(crate) opened: Option<Opened>,
}

/// What ends the conversation with one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("there is no sound: {0}")]
    Sound(#[from] AudioError),
    #[error("it could not be started: {0}")]
    Start(String),
    #[error("it sent what it must not: {0}")]
    Illegal(&'static str),
    #[error("its sandbox is not what it reported: {0}")]
    Sandbox(String),
    #[error("its link failed: {0}")]
    Link(#[from] LinkError),
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Sound(error) => no_sound(error),
            fault => not_started(&fault),
        }
    }
}

impl SoundPrograms {
    /// None runs yet.
    pub(crate) fn new(spawner: Spawner, places: SoundPlaces) -> Self {
        Self { spawner, places, proven: tokio::sync::Mutex::default() }
    }

    /// Sees to it that the sandbox of programs for this source is proven; once is enough. No device is opened.
    pub(crate) async fn prove(&self, source: &str) -> Result<(), ApiError> {
        let source = Source::parse(source)
            .map_err(|error| ApiError::invalid("source_invalid", "path", error.to_string()))?;
        let kind = kind_of(&source);
        let mut proven = self.proven.lock().await;
        if proven.contains(&kind) {
            return Ok(());
        }
        if let Err(error) = prove_audio(&self.spawner, kind).await {
            tracing::error!(%error, "the sandbox of programs that capture does not hold: no sound is granted");
            let message = "the sandbox of programs that capture sound does not hold on this machine; the server's log says which layer";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "audio_sandbox_not_proven", message));
        }
        proven.push(kind);
        Ok(())
    }

    /// A program that has the source open, in its sandbox, and takes no sample.
    pub(crate) async fn start(&self, source: &Source) -> Result<Program, Fault> {
        let failed = |error: &dyn std::fmt::Display| Fault::Start(error.to_string());
        let (ours, theirs) = protocol::connected_pair().map_err(|error| failed(&error))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| failed(&error))?;
        // Not as words of its command line, which everybody can read.
        send(&ours, &self.first_packet(source), SendFlags::NOSIGNAL).map_err(|error| failed(&error))?;
        let link = AudioLink::new(ours);
        link.receive_credentials().map_err(|error| failed(&error))?;
        let link = watch(link).map_err(|error| failed(&error))?;
        let start = Start {
            arguments: vec![kind_of(source).name().to_owned()],
            threads: None,
            link: theirs,
            status_page: Arc::new(StatusPage::create().map_err(|error| failed(&error))?),
            data_bytes_max: Some(AUDIO_DATA_BYTES_MAX),
        };
        let child = self.spawner.start(start).await.map_err(|error| failed(&error))?;
        let pushed = *source == Source::Pushed;
        match timeout(START_MAX, handshake(&link, pushed)).await {
            Ok(Ok((key, opened))) => Ok(Program { link, child, key, opened }),
            Ok(Err(fault)) => {
                end(&child).await;
                Err(fault)
            }
            Err(_) => {
                end(&child).await;
                Err(failed(&"it did not open its device in time"))
            }
        }
    }

    fn first_packet(&self, source: &Source) -> Vec<u8> {
        match source {
            Source::Pulse(name) => audio_places(&[
                &self.places.socket(),
                &self.places.cookie(),
                name.as_deref().unwrap_or_default(),
            ]),
            Source::Alsa(name) => audio_places(&[name.as_deref().unwrap_or_default()]),
            Source::Pushed => audio_places(&[""]),
        }
    }
}

fn kind_of(source: &Source) -> AudioKind {
    match source {
        Source::Pulse(_) => AudioKind::Pulse,
        Source::Alsa(_) => AudioKind::Alsa,
        Source::Pushed => AudioKind::Pushed,
    }
}

async fn handshake(link: &AsyncFd<AudioLink>, pushed: bool) -> Result<(StreamPublic, Option<Opened>), Fault> {
    let hello = receive(link).await?;
    let pid = hello.pid.ok_or(Fault::Illegal("a message without a sender"))?;
    match hello.message {
        FromAudio::Hello { digest } if digest == protocol::DIGEST => {}
        FromAudio::Hello { .. } => return Err(Fault::Illegal("it is of another build than the server")),
        _ => return Err(Fault::Illegal("something before its hello")),
    }
    let opened = if pushed { None } else { Some(opened(next(link).await?)?) };
    let FromAudio::Sealed { layers, key, .. } = next(link).await? else {
        return Err(Fault::Illegal("something before its sandbox was complete"));
    };
    is_sealed(pid, &layers).map_err(Fault::Sandbox)?;
    Ok((key, opened))
}

fn opened(message: FromAudio) -> Result<Opened, Fault> {
    let FromAudio::Opened { host, device, rate, channels } = message else {
        return Err(Fault::Illegal("something before its device"));
    };
    if device.len() > DEVICE_NAME_BYTES_MAX {
        return Err(Fault::Illegal("a device's name that is too long"));
    }
    let host = match host {
        AudioHost::PulseAudio => "pulse_audio",
        AudioHost::Alsa => "alsa",
    };
    Ok(Opened { host, device, rate, channels })
}

/// The next message, which is not its last.
async fn next(link: &AsyncFd<AudioLink>) -> Result<FromAudio, Fault> {
    match hear(link).await? {
        FromAudio::Ended { end: CaptureEnd::Failed(error) } => Err(error.into()),
        FromAudio::Ended { .. } => Err(Fault::Illegal("an end before its start")),
        message => Ok(message),
    }
}

async fn hear(link: &AsyncFd<AudioLink>) -> Result<FromAudio, Fault> {
    let received = receive(link).await?;
    if received.descriptors.is_empty() {
        Ok(received.message)
    } else {
        Err(Fault::Illegal("a descriptor that nobody asked for"))
    }
}

impl Program {
    /// The next that it says.
    pub(crate) async fn hear(&self) -> Result<FromAudio, Fault> {
        hear(&self.link).await
    }

    /// Tells it something. It reads at once, and no more than a few messages are ever under way.
    pub(crate) fn tell(&self, message: &ToAudio, descriptors: &[BorrowedFd<'_>]) -> Result<(), Fault> {
        Ok(self.link.get_ref().send(message, descriptors)?)
    }

    /// Ends the process. When this returns it is gone, and with it every sample and key that it had.
    pub(crate) async fn end(self) {
        if !end(&self.child).await {
            tracing::error!(pid = self.child.pid, "a program that captures did not end");
        }
    }
}
