//! `ringfence listen`: what is said into a microphone, as it is said.

use super::index::Asker;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, Connection};
use crate::index::grants::{HeldGrants, Wanted};
use crate::listen::events::Events;
use crate::listen::push::push;
use crate::listen::screen::Screen;
use crate::listen::wav::{self, Format};
use crate::output::Output;
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// The longest that sound is granted for, in milliseconds.
const LIFETIME_MS_MAX: u64 = 15 * 60_000;
/// How long before its end a grant is asked for again, in milliseconds: the operator has a minute to answer.
const AHEAD_MS: u64 = 70_000;
/// The longest that the whole may go on: as long as a capture may.
const LASTS_MAX: Duration = Duration::from_secs(3 * 3_600);
/// The largest file that is pushed.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Write down what is said into a microphone, as it is said
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence listen
  ringfence listen --source alsa:hw:1,0 --for 15m --renew --language en
  ringfence listen --text-only >> note.txt
  ringfence listen --pushed meeting.wav --json

The operator is asked first, and sees which source, for whom and until when. Sound goes from a process of its own straight to
the model's, and nowhere else; the text that is still being said is shown until it is certain. Ctrl-c ends it, and so does the
grant's end. Exit code 0 if it was ended by that or by you, 1 if it failed, 5 if the server refused.")]
pub struct ListenArgs {
    #[command(flatten)]
    asker: Asker,
    /// The model
    #[arg(long, value_name = "MODEL", default_value = "whisper-tiny.en")]
    model: String,
    /// Where the sound comes from: pulse, pulse:SOURCE, alsa or alsa:DEVICE
    #[arg(long, value_name = "SOURCE", default_value = "pulse", conflicts_with = "pushed")]
    source: String,
    /// Push this WAV file at the pace of a clock instead of using a microphone
    #[arg(long, value_name = "FILE")]
    pushed: Option<PathBuf>,
    /// What the operator reads as the reason
    #[arg(long, value_name = "TEXT", default_value = "listen: to write down what is said")]
    reason: String,
    /// For how long at most, such as 90s or 5m; up to 15m
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = lifetime)]
    lifetime_ms: u64,
    /// Ask again before the time is over, and go on if the answer is yes
    #[arg(long)]
    renew: bool,
    /// What is spoken, such as en; else the model finds out
    #[arg(long, value_name = "CODE", conflicts_with = "translate")]
    language: Option<String>,
    /// Write English, whatever is spoken
    #[arg(long)]
    translate: bool,
    /// What was said before, or how names are spelled
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Show nothing but what was said
    #[arg(long)]
    text_only: bool,
}

fn lifetime(text: &str) -> Result<u64, &'static str> {
    let seconds = text.strip_suffix('s').map(|number| (number, 1_000));
    let minutes = || text.strip_suffix('m').map(|number| (number, 60_000));
    let (number, unit_ms) = seconds.or_else(minutes).ok_or("a number and s or m, such as 90s or 5m")?;
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.filter(|ms| (1..=LIFETIME_MS_MAX).contains(ms)).ok_or("from 1s to 15m")
}

/// What is known of the capture while it runs.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    capture: u64,
    /// It waits for a push.
    waits: bool,
    until_ms: u64,
}

/// Runs it.
///
/// # Errors
/// A grant that is not given, refusals of the server, a capture that fails.
pub fn run(args: ListenArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let address = args.asker.address(home);
    let file = args.pushed.as_deref().map(read).transpose()?;
    http::runtime()?.block_on(async {
        let held = HeldGrants::ask(&address, &[args.wanted()], output).await?;
        let capability = held.get(0).capability.clone();
        let ended = listen(&args, &address, &capability, file.as_ref(), output).await;
        held.give_back().await;
        told(&ended?)
    })
}

/// A file and where its samples are.
struct File {
    bytes: Vec<u8>,
    samples: std::ops::Range<usize>,
    format: Format,
}

fn read(path: &Path) -> Result<File, CliError> {
    let failed = |source| CliError::io(path.display().to_string(), source);
    let wrong = |what: &str| CliError::Usage {
        what: format!("{}: {what}", path.display()),
        advice: "give a WAV file of 16-bit numbers or floats; `ringfence transcribe` takes other forms"
            .to_owned(),
    };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(wrong("it has more than 1 GiB"));
    }
    let bytes = fs::read(path).map_err(failed)?;
    let (samples, format) = wav::samples(&bytes).ok_or_else(|| wrong("it is no such WAV file"))?;
    Ok(File { bytes, samples, format })
}

impl ListenArgs {
    fn wanted(&self) -> Wanted {
        Wanted {
            kind: "audio_capture",
            path: if self.pushed.is_some() { "pushed".to_owned() } else { self.source.clone() },
            model: Some(self.model.clone()),
            reason: self.reason.clone(),
            results: "the asker's screen".to_owned(),
            lifetime_ms: self.lifetime_ms,
            bytes_max: 0,
        }
    }

    fn body(&self, capability: &str, file: Option<&File>) -> Value {
        let pushed = file.map(|file| {
            let Format { encoding, rate, channels } = &file.format;
            json!({"encoding": encoding, "rate": rate, "channels": channels, "pace": "real_time", "framing": "plain"})
        });
        json!({"capability": capability, "model": self.model, "language": self.language, "prompt": self.prompt,
               "translate": self.translate, "silence_ms": 10_000, "pushed": pushed})
    }
}

/// Shows events until the last, which it returns.
async fn listen(
    args: &ListenArgs,
    address: &Address,
    capability: &str,
    file: Option<&File>,
    output: &Output,
) -> Result<Value, CliError> {
    let mut connection = Connection::open(address).await?;
    let (tell, known) = watch::channel(Known::default());
    let (mut events, mut screen, mut last) = (Events::default(), Screen::new(output, args.text_only), None);
    let mut take = |bytes: &[u8]| {
        for event in events.take(bytes) {
            screen.show(&event)?;
            let number = |field: &str| event[field].as_u64().unwrap_or(0);
            match event["event"].as_str() {
                Some("waiting") => {
                    let _heard =
                        tell.send(Known { capture: number("capture"), waits: true, until_ms: u64::MAX });
                }
                Some("started" | "renewed") => tell.send_modify(|known| {
                    known.capture = known.capture.max(number("capture"));
                    known.until_ms = number("until_ms");
                }),
                Some("ended") => last = Some(event),
                _ => {}
            }
        }
        Ok(())
    };
    let ask = Ask::post("/audio/captures", &args.body(capability, file));
    tokio::select! {
        streamed = connection.stream(&ask, LASTS_MAX, &mut take) => streamed?,
        failed = attend(args, address, known, file, output) => return Err(failed),
    }
    last.ok_or_else(|| CliError::Answer {
        request: "POST /audio/captures".to_owned(),
        source: "it broke off before the last event".into(),
    })
}

/// Sends what is to be pushed, asks for more time, and stops at ctrl-c; returns only where that fails.
async fn attend(
    args: &ListenArgs,
    address: &Address,
    known: watch::Receiver<Known>,
    file: Option<&File>,
    output: &Output,
) -> CliError {
    let work = async {
        tokio::try_join!(
            send_file(address, known.clone(), file),
            keep_renewing(args, address, known.clone(), output),
            stop_when_told(address, known.clone()),
        )
    };
    match work.await {
        Err(error) => error,
        Ok(_) => std::future::pending().await,
    }
}

async fn send_file(
    address: &Address,
    mut known: watch::Receiver<Known>,
    file: Option<&File>,
) -> Result<(), CliError> {
    let Some(File { bytes, samples, format }) = file else { return Ok(()) };
    let Ok(capture) = known.wait_for(|known| known.waits).await.map(|known| known.capture) else {
        return Ok(());
    };
    push(address, capture, &bytes[samples.clone()], format).await
}

async fn stop_when_told(address: &Address, mut known: watch::Receiver<Known>) -> Result<(), CliError> {
    let interrupted = |source| CliError::io("ctrl-c", source);
    tokio::signal::ctrl_c().await.map_err(interrupted)?;
    let capture = known.borrow_and_update().capture;
    if capture == 0 {
        return Err(CliError::Usage {
            what: "interrupted before it began".to_owned(),
            advice: String::new(),
        });
    }
    let stop = Ask::plain(Method::POST, format!("/audio/captures/{capture}/stop"));
    // One that has ended meanwhile is stopped.
    let _stopped = Connection::open(address).await?.send(&stop).await;
    // Whoever presses it again does not want to wait for the last words.
    tokio::signal::ctrl_c().await.map_err(interrupted)?;
    Err(CliError::Usage { what: "interrupted before the last words came".to_owned(), advice: String::new() })
}

async fn keep_renewing(
    args: &ListenArgs,
    address: &Address,
    mut known: watch::Receiver<Known>,
    output: &Output,
) -> Result<(), CliError> {
    if !args.renew {
        return Ok(());
    }
    loop {
        let running = |known: &Known| known.until_ms > 0 && known.until_ms < u64::MAX;
        let Ok(Known { capture, until_ms, .. }) = known.wait_for(running).await.map(|known| *known) else {
            return Ok(());
        };
        let ahead = AHEAD_MS.min(args.lifetime_ms / 2);
        let left = until_ms.saturating_sub(crate::clock::unix_ms() as u64);
        tokio::time::sleep(Duration::from_millis(left.saturating_sub(ahead))).await;
        // A no, or no answer, lets it end at its time.
        let Ok(held) = HeldGrants::ask(address, &[args.wanted()], output).await else {
            output.note("it is not renewed");
            return Ok(());
        };
        let renew = json!({"capability": held.get(0).capability});
        let ask = Ask::post(format!("/audio/captures/{capture}/renew"), &renew);
        Connection::open(address).await?.send(&ask).await?;
        let is_renewed = |known: &Known| known.until_ms != until_ms;
        if known.wait_for(is_renewed).await.is_err() {
            return Ok(());
        }
    }
}

/// What the last event means for whoever reads the exit code.
fn told(ended: &Value) -> Result<(), CliError> {
    match ended["reason"].as_str() {
        Some("stopped" | "finished" | "expired") => Ok(()),
        reason => Err(CliError::Failed {
            subject: "the capture".to_owned(),
            code: "capture_failed",
            source: ended["code"].as_str().or(reason).unwrap_or("it ended").to_owned().into(),
            advice: ended["advice"].as_str().unwrap_or_default().to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_minutes_up_to_a_quarter_of_an_hour() {
        for (text, ms) in [("90s", 90_000), ("5m", 300_000), ("15m", 900_000)] {
            assert_eq!(lifetime(text), Ok(ms));
        }
        for text in ["", "m", "0s", "16m", "5", "5h", "-1s", "99999999999999999999m", "5µ"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_end_that_was_wanted_is_no_failure() {
        for reason in ["stopped", "finished", "expired"] {
            assert!(told(&json!({ "reason": reason })).is_ok());
        }
        let failed =
            told(&json!({"reason": "failed", "code": "audio_device_vanished", "advice": "plug it in"}));
        let error = failed.unwrap_err();
        assert_eq!(
            (error.to_string(), error.advice()),
            ("the capture: audio_device_vanished".to_owned(), "plug it in".to_owned())
        );
        assert!(told(&json!({"reason": "revoked"})).is_err());
    }
}
