//! What the server promises about live sound, held against a running one with a clip of speech that is pushed at the pace at
//! which it was spoken.

use super::grants::rules::{Original, until_tomorrow};
use super::promise::{Bound, Findings};
use super::server::Server;
use super::stats::percentile;
use super::{Extent, interrupted};
use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection, upgrade};
use crate::listen::events::Events;
use crate::listen::wav::{Format, samples};
use hyper::Method;
use indicatif::ProgressBar;
use rustix::process::Pid;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Who listens.
const CLIENT: &str = "stress-audio";
/// Streams at a time, where nobody says another number.
pub const STREAMS: u32 = 8;
/// How much is pushed at a time, in milliseconds.
const STEP_MS: u64 = 20;
/// How long a stream may take beyond its clip.
const BEYOND_MAX: Duration = Duration::from_secs(60);
/// A stream that still holds real time has its last words so soon after its last sample, in milliseconds.
const BEHIND_MS_MAX: f64 = 3_000.0;
/// End of a phrase to its final text.
const LATENCY_MS_MAX: f64 = 700.0;
/// A revocation.
const REVOKED_MS_MAX: f64 = 250.0;
/// Revocations where nobody says another number.
const REVOCATIONS_MAX: u32 = 20;
/// Samples of a window of the marker that is searched for.
const WINDOW: usize = 64;
/// Codes with which one stream too many is refused.
const REFUSALS: [&str; 4] = ["listeners_full", "captures_full", "queue_full_client", "out_of_memory"];

/// Speaks where nobody has a clip, and what it says: phrases with a pause between them.
const SYNTHESISER: &str = "espeak-ng";
const SENTENCES: &str = "The meeting has moved to Thursday at ten. Anna brings the numbers of the last quarter. \
                         Peter writes the summary for the whole team.";

/// A clip of speech.
pub struct Clip {
    bytes: Vec<u8>,
    format: Format,
}

impl Clip {
    /// From a WAV file.
    ///
    /// # Errors
    /// [`CliError::Failed`] where it can't be read, [`CliError::Usage`] where it is none.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let bytes = fs::read(path).map_err(|source| CliError::io(path.display().to_string(), source))?;
        Self::from_wav(bytes).ok_or_else(|| CliError::Usage {
            what: format!("{}: no WAV file of 16-bit numbers or floats", path.display()),
            advice: String::new(),
        })
    }

    /// From the synthesiser, where nobody has a clip.
    ///
    /// # Errors
    /// [`CliError::Failed`] where it is not installed or fails.
    pub fn spoken() -> Result<Self, CliError> {
        let failed = |what: String| CliError::Failed {
            subject: SYNTHESISER.to_owned(),
            code: "no_clip",
            source: what.into(),
            advice: "install it, or name a WAV file of speech with --clip".to_owned(),
        };
        let spoken = Command::new(SYNTHESISER).args(["-s", "150", "--stdout", SENTENCES]).output();
        let spoken = spoken.map_err(|error| failed(error.to_string()))?;
        Self::from_wav(spoken.stdout).ok_or_else(|| failed(format!("ended with {}", spoken.status)))
    }

    fn from_wav(mut bytes: Vec<u8>) -> Option<Self> {
        let (range, format) = samples(&bytes)?;
        bytes.truncate(range.end);
        Some(Self { bytes: bytes.split_off(range.start), format })
    }
}

/// What came of one stream.
#[derive(Debug, Default)]
struct Heard {
    /// The code of its refusal.
    refused: Option<String>,
    reason: String,
    text: String,
    lost: u64,
    /// From the last sample to the last event, in milliseconds.
    behind_ms: f64,
    /// From the end of each phrase to its text.
    latencies_ms: Vec<f64>,
}

/// Holds all of it against the server. Its rules are then those from before and its client gone, whatever happened.
///
/// # Errors
/// Those of the connections, and [`CliError::Failed`] where the rules can't be set or put back, or where somebody interrupts
/// it.
pub async fn run(
    server: &Server,
    clip: &Clip,
    (streams, extent): (u32, Extent),
    bar: &ProgressBar,
) -> Result<Vec<Findings>, CliError> {
    let address = server.client(CLIENT).await?;
    let rule = format!(
        "[[rule]]\nclient = \"{CLIENT}\"\nkind = \"audio_capture\"\ndecision = \"allow\"\nsource = \"pushed\"\nuntil = {}\n",
        until_tomorrow()
    );
    let rules = Original::precede(server.grant_rules(), &rule)?;
    let ground = Ground { server, address, clip, bar };
    let found = tokio::select! {
        found = ground.play(streams, extent) => found,
        stopped = interrupted() => stopped.and(Err(failed("interrupted", "a signal ended it"))),
    };
    let restored = rules.restore();
    server.remove_client(CLIENT).await?;
    restored.and(found)
}

struct Ground<'a> {
    server: &'a Server,
    address: Address,
    clip: &'a Clip,
    bar: &'a ProgressBar,
}

impl Ground<'_> {
    async fn play(&self, streams: u32, extent: Extent) -> Result<Vec<Findings>, CliError> {
        self.bar.set_message("one-stream");
        let (one, text) = self.one_stream().await?;
        self.bar.set_message("streams");
        let many = self.many(streams, &text).await?;
        self.bar.set_message("revocation");
        let revoked = self.revocations(extent.rounds.min(REVOCATIONS_MAX)).await?;
        self.bar.set_message("marker");
        Ok(vec![one, many, revoked, self.marker().await?])
    }

    /// One stream alone: what is right, and how soon it is there.
    async fn one_stream(&self) -> Result<(Findings, String), CliError> {
        // The first loads the model.
        self.stream(&self.clip.bytes).await?;
        let heard = self.stream(&self.clip.bytes).await?;
        let mut findings = Findings::new("one-stream");
        let p50 = percentile(&heard.latencies_ms, 0.5);
        findings.judge("phrase-to-final-p50", p50, (Bound::AtMost(LATENCY_MS_MAX), "ms"), "");
        findings.judge(
            "frames-lost",
            Some(heard.lost as f64),
            (Bound::AtMost(0.0), "frames"),
            &*heard.reason,
        );
        findings.figure("phrases", Some(heard.latencies_ms.len() as f64), "");
        Ok((findings, heard.text))
    }

    /// Several at a time: each holds real time, or was refused before it began.
    async fn many(&self, streams: u32, text: &str) -> Result<Findings, CliError> {
        let mut running = JoinSet::new();
        for _ in 0..streams {
            let (address, model) = (self.address.clone(), self.server.model.clone());
            let (bytes, format) = (self.clip.bytes.clone(), self.clip.format.clone());
            running.spawn(async move { stream(&address, &model, &bytes, &format).await });
        }
        let mut all = Vec::new();
        while let Some(heard) = running.join_next().await {
            all.push(heard.map_err(|error| failed("task", &error.to_string()))??);
            self.bar.inc(1);
        }
        let (refused, taken): (Vec<_>, Vec<_>) = all.iter().partition(|heard| heard.refused.is_some());
        let odd = refused
            .iter()
            .filter(|heard| !heard.refused.as_deref().is_some_and(|code| REFUSALS.contains(&code)));
        let mut findings = Findings::new("streams");
        findings.judge("other-refusals", Some(odd.count() as f64), (Bound::AtMost(0.0), "streams"), "");
        let lost: u64 = taken.iter().map(|heard| heard.lost).sum();
        findings.judge("frames-lost", Some(lost as f64), (Bound::AtMost(0.0), "frames"), "");
        let behind = taken.iter().map(|heard| heard.behind_ms).fold(0.0, f64::max);
        findings.judge("behind-the-clip", Some(behind), (Bound::AtMost(BEHIND_MS_MAX), "ms"), "");
        let other = taken.iter().filter(|heard| heard.text != text).count();
        findings.figure("other texts than alone", Some(other as f64), "streams");
        findings.figure("taken", Some(taken.len() as f64), "streams");
        findings.figure("refused at admission", Some(refused.len() as f64), "streams");
        let latencies: Vec<f64> = taken.iter().flat_map(|heard| heard.latencies_ms.clone()).collect();
        findings.figure("phrase to final p50", percentile(&latencies, 0.5), "ms");
        Ok(findings)
    }

    /// Taken back while somebody speaks: when that is answered nobody listens any more.
    async fn revocations(&self, rounds: u32) -> Result<Findings, CliError> {
        let (mut times, mut open) = (Vec::new(), 0);
        for _ in 0..rounds {
            let (grant, capability) = granted(&self.address, &self.server.model).await?;
            let (address, model) = (self.address.clone(), self.server.model.clone());
            let (bytes, format) = (self.clip.bytes.clone(), self.clip.format.clone());
            let speaking =
                tokio::spawn(async move { listen(&address, &model, &capability, &bytes, &format).await });
            self.await_running(grant).await?;
            let begun = clock::now();
            let revoke = Ask::plain(Method::DELETE, format!("/grants/{grant}"));
            Connection::open(&self.address).await?.send(&revoke).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            open += usize::from(self.running(grant).await?);
            let heard = speaking.await.map_err(|error| failed("task", &error.to_string()))??;
            if heard.reason != "revoked" {
                return Err(failed("not_revoked", &heard.reason));
            }
        }
        let mut findings = Findings::new("revocation");
        findings.judge("captures-after", Some(open as f64), (Bound::AtMost(0.0), "captures"), "");
        let longest = times.iter().copied().reduce(f64::max);
        findings.judge("longest", longest, (Bound::AtMost(REVOKED_MS_MAX), "ms"), "");
        findings.figure("p50", percentile(&times, 0.5), "ms");
        Ok(findings)
    }

    async fn running(&self, grant: u64) -> Result<bool, CliError> {
        let captures = self.server.ask(&Ask::plain(Method::GET, "/audio/captures")).await?;
        let mut captures = captures["captures"].as_array().into_iter().flatten();
        Ok(captures.any(|capture| {
            capture["grant"] == grant
                && capture["captures_now"] == true
                && capture["captured"].as_u64() > Some(0)
        }))
    }

    async fn await_running(&self, grant: u64) -> Result<(), CliError> {
        let wait = async {
            while !self.running(grant).await? {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        timeout(BEYOND_MAX, wait)
            .await
            .unwrap_or_else(|_| Err(failed("not_running", "a capture does not begin")))
    }

    /// A sound that is in nothing else is in no memory of the server.
    async fn marker(&self) -> Result<Findings, CliError> {
        let mut findings = Findings::new("marker");
        let (bound, name) = ((Bound::AtMost(0.0), "windows"), "in-the-server");
        let format = Format { encoding: "s16le", rate: 16_000, channels: 1 };
        let marker = marker(16_000 * 5);
        let heard = stream(&self.address, &self.server.model, &marker, &format).await?;
        findings.figure("frames lost", Some(heard.lost as f64), "frames");
        match self.server.pid().await?.map(|process| found(process, &marker)) {
            Some(Ok(found)) => findings.judge(name, Some(found as f64), bound, ""),
            Some(Err(error)) => findings.skip(name, bound, format!("its memory can't be read: {error}")),
            None => findings.skip(name, bound, "its process is not seen"),
        }
        Ok(findings)
    }

    async fn stream(&self, bytes: &[u8]) -> Result<Heard, CliError> {
        let heard = stream(&self.address, &self.server.model, bytes, &self.clip.format).await?;
        match heard.refused {
            Some(code) => Err(failed("refused", &code)),
            None => Ok(heard),
        }
    }
}

/// A live grant and its string, as our rule allows it.
async fn granted(address: &Address, model: &str) -> Result<(u64, String), CliError> {
    let body = json!({"kind": "audio_capture", "path": "pushed", "model": model, "lifetime_ms": 15 * 60_000,
                      "reason": "a stress test", "results": "compared and dropped"});
    let mut connection = Connection::open(address).await?;
    let grant = connection.send(&Ask::post("/grants", &body)).await?.json()?["grant"].as_u64().unwrap_or(0);
    let claimed = connection.send(&Ask::post(format!("/grants/{grant}/claim"), &json!({}))).await?.json()?;
    Ok((grant, claimed["capability"].as_str().unwrap_or_default().to_owned()))
}

/// One stream from its grant to its end.
async fn stream(address: &Address, model: &str, bytes: &[u8], format: &Format) -> Result<Heard, CliError> {
    let (_, capability) = granted(address, model).await?;
    listen(address, model, &capability, bytes, format).await
}

async fn listen(
    address: &Address,
    model: &str,
    capability: &str,
    bytes: &[u8],
    format: &Format,
) -> Result<Heard, CliError> {
    let Format { encoding, rate, channels } = format;
    let pushed = json!({"encoding": encoding, "rate": rate, "channels": channels, "pace": "real_time", "framing": "plain"});
    let ask =
        Ask::post("/audio/captures", &json!({"capability": capability, "model": model, "pushed": pushed}));
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut events = Events::default();
    let mut take = |part: &[u8]| {
        for event in events.take(part) {
            // Who has ended does not hear it.
            let _heard = tell.send((clock::now(), event));
        }
        Ok(())
    };
    let lasts = Duration::from_secs_f64(bytes.len() as f64 / format.bytes_of(1_000).max(1) as f64);
    let mut connection = Connection::open(address).await?;
    let follow = async {
        let (_, waiting) = told.recv().await.unwrap_or((clock::now(), Value::Null));
        let (begun, ended) = push(address, waiting["capture"].as_u64().unwrap_or(0), bytes, format).await?;
        let mut heard = Heard::default();
        while let Some((at, event)) = told.recv().await {
            note(&mut heard, &event, at, begun, ended);
            if event["event"] == "ended" {
                break;
            }
        }
        Ok::<_, CliError>(heard)
    };
    let streaming = connection.stream(&ask, lasts + BEYOND_MAX, &mut take);
    tokio::pin!(streaming, follow);
    tokio::select! {
        biased;
        heard = &mut follow => heard,
        streamed = &mut streaming => match streamed {
            Err(CliError::Refused { code, .. }) => Ok(Heard { refused: Some(code), ..Heard::default() }),
            Err(error) => Err(error),
            Ok(()) => follow.await,
        },
    }
}

fn note(heard: &mut Heard, event: &Value, at: Instant, begun: Instant, ended: Instant) {
    let number = |field: &str| event[field].as_u64().unwrap_or(0);
    match event["event"].as_str() {
        Some("final") => {
            let due = begun + Duration::from_millis(number("end_ms"));
            heard.latencies_ms.push(at.saturating_duration_since(due).as_secs_f64() * 1e3);
        }
        Some("ended") => {
            heard.reason = event["reason"].as_str().unwrap_or_default().to_owned();
            heard.text = event["text"].as_str().unwrap_or_default().to_owned();
            heard.lost = number("dropped") + number("lost");
            heard.behind_ms = at.saturating_duration_since(ended).as_secs_f64() * 1e3;
        }
        _ => {}
    }
}

/// When it began and when it had all.
async fn push(
    address: &Address,
    capture: u64,
    bytes: &[u8],
    format: &Format,
) -> Result<(Instant, Instant), CliError> {
    let mut connection =
        upgrade(address, &format!("/audio/captures/{capture}/push"), "ringfence-pcm").await?;
    let begun = clock::now();
    for (step, part) in bytes.chunks(format.bytes_of(STEP_MS).max(1)).enumerate() {
        tokio::time::sleep_until((begun + Duration::from_millis(STEP_MS * step as u64)).into()).await;
        // A capture that has ended takes no more.
        if connection.write_all(part).await.is_err() {
            break;
        }
    }
    let _told = connection.shutdown().await;
    Ok((begun, clock::now()))
}

/// Numbers in no order, as samples.
fn marker(samples: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 48) as i16) / 4
    };
    (0..samples).flat_map(|_| next().to_le_bytes()).collect()
}

/// Windows of the marker that a process has in memory that it may write.
fn found(process: Pid, marker: &[u8]) -> io::Result<usize> {
    let pid = process.as_raw_nonzero();
    let memory = fs::OpenOptions::new().read(true).open(format!("/proc/{pid}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let windows: HashMap<&[u8], &[u8]> =
        marker.chunks_exact(2 * WINDOW).step_by(16).map(|window| (&window[..8], window)).collect();
    let mut found = 0;
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")))
    {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let Some((from, to)) = range.and_then(|(from, to)| Some((number(from)?, number(to)?))) else {
            continue;
        };
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
        let count = memory.read_at(&mut bytes, from).unwrap_or(0);
        let held = &bytes[..count];
        let is_one = |(at, eight): (usize, &[u8])| {
            windows.get(eight).is_some_and(|window| held[at..].starts_with(window))
        };
        found += held.windows(8).enumerate().filter(|at| is_one(*at)).count();
    }
    Ok(found)
}

fn failed(code: &'static str, what: &str) -> CliError {
    let subject = "stress --audio".to_owned();
    CliError::Failed { subject, code, source: what.to_owned().into(), advice: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_ours_is_found_in_our_own_memory() {
        let marker = marker(WINDOW * 40);
        let copy = marker.clone();
        let own = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        assert!(found(own, &marker).unwrap() >= 2);
        drop(copy);
    }

    #[test]
    fn a_phrase_s_text_is_timed_from_the_end_of_the_phrase() {
        let begun = clock::now();
        let mut heard = Heard::default();
        let at = begun + Duration::from_millis(1_500);
        note(&mut heard, &json!({"event": "final", "end_ms": 1_200}), at, begun, at);
        let ended = json!({"event": "ended", "reason": "finished", "text": "a", "dropped": 1, "lost": 2});
        note(&mut heard, &ended, at + Duration::from_millis(5), begun, at);
        assert_eq!((heard.latencies_ms, heard.lost, heard.behind_ms.round()), (vec![300.0], 3, 5.0));
    }
}
