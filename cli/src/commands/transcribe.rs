//! `ringfence transcribe`: what is said in audio files.

use super::index::{Asker, absolute};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, Connection};
use crate::index::grants::{HeldGrants, Wanted};
use crate::listen::events::Events;
use crate::output::{Output, seconds_of};
use clap::{Args, ValueEnum};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest file that the server takes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long one file may take: two hours of audio at half its pace.
const LASTS_MAX: Duration = Duration::from_secs(4 * 3_600);
/// How long a grant is asked for, in milliseconds.
const LIFETIME_MS: u64 = 60 * 60_000;

/// Write down what is said in audio files
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence transcribe meeting.wav
  ringfence transcribe meeting.mp3 --model whisper-base --language de --format srt > meeting.srt
  ringfence transcribe notes/*.flac --grant --json
  ringfence transcribe interview.ogg --translate

Files are WAV, FLAC, MP3 or OGG Vorbis, at most two hours each. They are uploaded; with --grant the model's sandboxed process
reads them itself once the operator has approved, and they pass through nothing else.")]
pub struct TranscribeArgs {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    asker: Asker,
    /// The model
    #[arg(long, value_name = "MODEL", default_value = "whisper-tiny.en")]
    model: String,
    /// What is spoken, such as en; else the model finds out
    #[arg(long, value_name = "CODE", conflicts_with = "translate")]
    language: Option<String>,
    /// Write English, whatever is spoken
    #[arg(long)]
    translate: bool,
    /// What was said before, or how names are spelled
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// In which form
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Ask the operator for each file instead of uploading it
    #[arg(long)]
    grant: bool,
}

/// The forms of OpenAI's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The text alone
    Text,
    /// SubRip subtitles
    Srt,
    /// WebVTT subtitles
    Vtt,
    /// JSON with times and probabilities
    VerboseJson,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::VerboseJson => "verbose_json",
        }
    }
}

/// Runs it.
///
/// # Errors
/// A file that can't be read, refusals of the server, a grant that is not given.
pub fn run(args: TranscribeArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let address = args.asker.address(home);
    let texts = http::runtime()?.block_on(transcribe_all(&args, &address, output))?;
    let several = texts.len() > 1;
    let body: Vec<Value> =
        args.files.iter().zip(&texts).map(|(file, text)| told(file, text, output)).collect();
    output.answer(&json!({"model": args.model, "files": body}), |style| {
        let page = |(file, text): (&PathBuf, &String)| {
            let text = text.trim_end();
            if several {
                format!("{}\n{text}", style.bold(&file.display().to_string()))
            } else {
                text.to_owned()
            }
        };
        args.files.iter().zip(&texts).map(page).collect::<Vec<_>>().join("\n\n")
    })
}

/// One file for machines, who get all that is known of it.
fn told(file: &Path, text: &str, output: &Output) -> Value {
    let mut told =
        if output.is_json() { serde_json::from_str(text).unwrap_or(Value::Null) } else { json!({}) };
    told["file"] = file.display().to_string().into();
    told
}

async fn transcribe_all(
    args: &TranscribeArgs,
    address: &Address,
    output: &Output,
) -> Result<Vec<String>, CliError> {
    let format = if output.is_json() { Format::VerboseJson } else { args.format };
    if !args.grant {
        return each(args, address, output, |file| uploaded(args, format, file)).await;
    }
    let mut wanted = Vec::new();
    for file in &args.files {
        wanted.push(wanted_file(args, &absolute(file)?));
    }
    let held = HeldGrants::ask(address, &wanted, output).await?;
    let mut at = 0;
    let texts = each(args, address, output, |_| {
        at += 1;
        Ok(granted(args, format, &held.get(at - 1).capability))
    });
    let texts = texts.await;
    held.give_back().await;
    texts
}

fn wanted_file(args: &TranscribeArgs, path: &str) -> Wanted {
    Wanted {
        kind: "file_read",
        path: path.to_owned(),
        model: Some(args.model.clone()),
        reason: "transcribe: what is said in it".to_owned(),
        results: "the asker's screen".to_owned(),
        lifetime_ms: LIFETIME_MS,
        bytes_max: FILE_BYTES_MAX,
    }
}

async fn each(
    args: &TranscribeArgs,
    address: &Address,
    output: &Output,
    mut ask: impl FnMut(&Path) -> Result<Ask, CliError>,
) -> Result<Vec<String>, CliError> {
    let mut connection = Connection::open(address).await?;
    let mut texts = Vec::new();
    for file in &args.files {
        let ask = ask(file)?;
        let bar = seconds_of(output, &file.display().to_string());
        let mut answer = Pieces { request: ask.name(), events: Events::default(), bar, whole: None };
        connection.stream(&ask, LASTS_MAX, &mut |bytes: &[u8]| answer.take(bytes)).await?;
        answer.bar.finish_and_clear();
        let cut_off = || CliError::Answer { request: ask.name(), source: "it has no end".into() };
        texts.push(answer.whole.ok_or_else(cut_off)?);
    }
    Ok(texts)
}

/// An answer that comes in pieces.
struct Pieces {
    request: String,
    events: Events,
    bar: ProgressBar,
    /// The last one has it.
    whole: Option<String>,
}

impl Pieces {
    fn take(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.bar.tick();
        for event in self.events.take(bytes) {
            let seconds = |name: &str| event[name].as_f64().unwrap_or_default() as u64;
            match event["type"].as_str() {
                Some("transcript.text.delta") => {
                    self.bar.set_length(seconds("duration"));
                    self.bar.set_position(seconds("end"));
                }
                Some("transcript.text.done") => {
                    let whole = event["body"].as_str().or_else(|| event["text"].as_str());
                    self.whole = Some(whole.unwrap_or_default().to_owned());
                }
                _ if event["error"].is_object() => return Err(http::refusal_in_event(&self.request, &event)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn path(args: &TranscribeArgs) -> &'static str {
    if args.translate { "/v1/audio/translations" } else { "/v1/audio/transcriptions" }
}

fn granted(args: &TranscribeArgs, format: Format, capability: &str) -> Ask {
    let mut body = json!({
        "model": args.model,
        "file": {"grant": capability},
        "response_format": format.name(),
        "stream": true,
    });
    if let Some(language) = &args.language {
        body["language"] = language.as_str().into();
    }
    if let Some(prompt) = &args.prompt {
        body["prompt"] = prompt.as_str().into();
    }
    Ask::post(path(args), &body)
}

fn uploaded(args: &TranscribeArgs, format: Format, file: &Path) -> Result<Ask, CliError> {
    let failed = |source| CliError::io(file.display().to_string(), source);
    if fs::metadata(file).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(CliError::Usage {
            what: format!("{} has more than {FILE_BYTES_MAX} bytes", file.display()),
            advice: "compress it (MP3, OGG), or cut it into pieces".to_owned(),
        });
    }
    let bytes = fs::read(file).map_err(failed)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| failed(std::io::Error::from(error)))?;
    let boundary = format!("ringfence-{}", random.map(|byte| format!("{byte:02x}")).concat());
    let mut body = Vec::with_capacity(bytes.len() + 1024);
    let fields = [
        ("model", Some(args.model.as_str())),
        ("response_format", Some(format.name())),
        ("stream", Some("true")),
        ("language", args.language.as_deref()),
        ("prompt", args.prompt.as_deref()),
    ];
    for (name, value) in fields {
        let Some(value) = value else { continue };
        body.extend_from_slice(
            format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                .as_bytes(),
        );
    }
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"audio\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(&bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    let mut ask = Ask::plain(hyper::Method::POST, path(args));
    (ask.body, ask.headers) = (Bytes::from(body), vec![(CONTENT_TYPE, kind)]);
    Ok(ask)
}
