//! Speech through a real server: uploads and granted files, every form of answer, quotas, refusals, the `openai` package and
//! the command line. Weights are those of tiny.en, which `make test` fetches.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Answer, Home, Server, Target, python};

const MODEL: &str = "whisper-tiny.en";
/// What is said in the sample.
const WORDS: &str = "and so my fellow americans ask not what your country can do for you ask what you can do for your country";

fn speech(file: &str) -> PathBuf {
    let folder = std::env::var("RINGFENCE_SPEECH").expect("set by `make test`: the folder of speech samples");
    Path::new(&folder).join(file)
}

fn home() -> Home {
    Home::made("transcribes", |home| {
        let cache = speech("").with_file_name("archives");
        home.add_tiny("tiny-bert");
        home.cli_ok(&["model", "add", MODEL, "--cache", cache.to_str().unwrap()]);
    })
}

/// Small letters and spaces: how word errors are counted.
fn plain(text: &str) -> String {
    let letters = |c: char| if c.is_alphanumeric() || c == '\'' { c.to_ascii_lowercase() } else { ' ' };
    text.chars().map(letters).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A form with these fields and a file.
fn upload(target: &Target, route: &str, fields: &[(&str, &str)], file: &[u8]) -> Answer {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    body.extend_from_slice(
        b"--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n",
    );
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--b--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=b")];
    target.send("POST", &format!("/v1/audio/{route}"), &headers, &body)
}

fn transcribe(server: &Server, fields: &[(&str, &str)], file: &[u8]) -> Answer {
    upload(&server.api(), "transcriptions", &[&[("model", MODEL)], fields].concat(), file)
}

#[test]
fn an_upload_is_transcribed_in_every_form_and_counted() {
    let home = home();
    let server = home.start();
    let jfk = fs::read(speech("jfk.wav")).unwrap();
    let answer = transcribe(&server, &[], &jfk);
    let said = answer.ok();
    assert_eq!(plain(said["text"].as_str().unwrap()), WORDS);
    assert_eq!(said["usage"], json!({"type": "duration", "seconds": 11}));
    assert!(answer.header("ringfence-job").is_some() && answer.header("server-timing").is_some());
    let text = transcribe(&server, &[("response_format", "text")], &jfk);
    assert_eq!((text.status, plain(&text.text())), (200, WORDS.to_owned()));
    let srt = transcribe(&server, &[("response_format", "srt")], &jfk).text();
    assert!(srt.starts_with("1\n00:00:00,000 --> 00:00:"), "{srt}");
    let vtt = transcribe(&server, &[("response_format", "vtt")], &jfk).text();
    assert!(vtt.starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:"), "{vtt}");
    let fields =
        [("response_format", "verbose_json"), ("timestamp_granularities[]", "segment"), ("temperature", "0")];
    let verbose = transcribe(&server, &fields, &jfk).ok();
    assert_eq!(
        (&verbose["language"], &verbose["duration"], &verbose["task"]),
        (&"en".into(), &11.0.into(), &"transcribe".into())
    );
    let segments = verbose["segments"].as_array().unwrap();
    let joined: String = segments.iter().map(|segment| segment["text"].as_str().unwrap()).collect();
    assert_eq!(plain(&joined), WORDS);
    assert!(segments.iter().all(|segment| segment["avg_logprob"].as_f64().unwrap() > -1.0));
    let usage = server.api().get("/usage").ok();
    assert_eq!(usage["clients"][0]["audio_ms"], 55_000, "{usage}");
}

#[test]
fn what_can_t_be_transcribed_is_refused_with_its_code() {
    let home = home();
    let server = home.start();
    let jfk = fs::read(speech("jfk.wav")).unwrap();
    for (fields, file, code) in [
        (&[][..], &b"this is no audio at all, it is a text"[..], "audio_unsupported"),
        (&[], &jfk[..jfk.len() / 2], "audio_truncated"),
        (&[], b"", "input_empty"),
        (&[("language", "de")], &jfk, "language_unknown"),
        (&[("language", "German!")], &jfk, "option_invalid"),
        (&[("temperature", "1.5")], &jfk, "option_invalid"),
        (&[("response_format", "xml")], &jfk, "option_invalid"),
        (&[("timestamp_granularities[]", "word")], &jfk, "option_invalid"),
        (&[("stream", "maybe")], &jfk, "option_invalid"),
        (&[("stream", "true")], &jfk[..jfk.len() / 2], "audio_truncated"),
        (&[("ringfence_deadline_ms", "soon")], &jfk, "option_invalid"),
    ] {
        let answer = transcribe(&server, fields, file);
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{fields:?}");
    }
    let translated = upload(&server.api(), "translations", &[("model", MODEL)], &jfk);
    assert_eq!((translated.status, translated.code().as_str()), (400, "language_unknown"));
    let text_model = upload(&server.api(), "transcriptions", &[("model", "tiny-bert")], &jfk);
    assert_eq!((text_model.status, text_model.code().as_str()), (400, "task_unsupported"));
    let embedded = server.api().embed(&json!({"model": MODEL, "input": "a"}));
    assert_eq!((embedded.status, embedded.code().as_str()), (400, "task_unsupported"));
    assert_eq!(upload(&server.api(), "transcriptions", &[], &jfk).code(), "field_missing");
    assert_eq!(upload(&server.api(), "transcriptions", &[("model", "none")], &jfk).code(), "model_unknown");
    // The worker has lived through all of it.
    assert_eq!(plain(transcribe(&server, &[], &jfk).ok()["text"].as_str().unwrap()), WORDS);
    assert_eq!(server.status()["workers"].as_array().unwrap().len(), 1);
}

/// The sample in a folder of the server's user.
fn granted(home: &Home) -> PathBuf {
    let folder = home.folder.path().join("clips");
    fs::create_dir(&folder).unwrap();
    fs::copy(speech("jfk.wav"), folder.join("jfk.wav")).unwrap();
    if rustix::process::getuid().is_root() {
        chown(&folder, Some(65_534), Some(65_534)).unwrap();
        chown(folder.join("jfk.wav"), Some(65_534), Some(65_534)).unwrap();
    }
    folder
}

#[test]
fn a_granted_file_goes_straight_to_the_worker_also_as_a_copy() {
    let home = home();
    let folder = granted(&home);
    let server = home.start();
    for snapshot in [false, true] {
        let capability = capability(&home, &server, &folder, snapshot);
        let body = json!({"model": MODEL, "file": {"grant": capability, "path": "jfk.wav"}});
        let said = server.api().post("/v1/audio/transcriptions", &body).ok();
        assert_eq!(plain(said["text"].as_str().unwrap()), WORDS, "snapshot: {snapshot}");
    }
    let log = home.cli_ok(&["audit", "tail", "-n", "1000"]);
    assert!(
        log.contains(&format!("had {} bytes of", fs::metadata(speech("jfk.wav")).unwrap().len())),
        "{log}"
    );
}

/// The capability string for the sample's folder, of which a copy is given or not.
fn capability(home: &Home, server: &Server, folder: &Path, snapshot: bool) -> Value {
    let question = json!({"kind": "file_read", "path": folder.to_str().unwrap(), "model": MODEL, "reason": "to know what was said",
        "results": "an answer to the asker", "lifetime_ms": 600_000, "bytes_max": 10_000_000, "snapshot": snapshot});
    let grant = server.api().post("/grants", &question).ok()["grant"].as_u64().unwrap();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    server.api().post(&format!("/grants/{grant}/claim"), &json!({})).ok()["capability"].clone()
}

#[test]
fn a_granted_file_goes_to_no_model_that_its_own_falls_back_to() {
    let home = home();
    let folder = granted(&home);
    // No model loads in so little.
    home.quotas("[models.\"whisper-tiny.en\"]\nlease_mib = 1\nfallback = \"tiny-bert\"\n");
    let server = home.start();
    let jfk = fs::read(speech("jfk.wav")).unwrap();
    assert_eq!(
        transcribe(&server, &[], &jfk).code(),
        "task_unsupported",
        "an upload is given to the other one"
    );
    let capability = capability(&home, &server, &folder, false);
    let body = json!({"model": MODEL, "file": {"grant": capability, "path": "jfk.wav"}});
    let refused = server.api().post("/v1/audio/transcriptions", &body).code();
    assert!(refused != "task_unsupported", "{refused}");
}

#[test]
fn audio_has_a_rate_of_its_own() {
    let home = home();
    home.quotas("[clients.default]\naudio_s_per_minute = 1\naudio_s_burst = 15\n");
    let server = home.start();
    let jfk = fs::read(speech("jfk.wav")).unwrap();
    transcribe(&server, &[], &jfk).ok();
    let refused = transcribe(&server, &[], &jfk);
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_audio"));
    let after: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((300_000..500_000).contains(&after), "7 s are missing at one in a minute: {after}");
    // Texts are not audio.
    server.api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
}

/// Eleven seconds, so many times.
fn many_times_over(jfk: &[u8], times: usize) -> Vec<u8> {
    let data = jfk.windows(4).position(|window| window == b"data").unwrap() + 8;
    let (head, samples) = jfk.split_at(data);
    let mut long = head.to_vec();
    long.extend_from_slice(&samples.repeat(times));
    let bytes = |count: usize| u32::try_from(count).unwrap().to_le_bytes();
    let (all, data_bytes) = (bytes(long.len() - 8), bytes(long.len() - data));
    long[4..8].copy_from_slice(&all);
    long[data - 4..data].copy_from_slice(&data_bytes);
    long
}

#[test]
fn a_text_job_is_answered_while_audio_is_heard_and_a_cancelled_one_ends() {
    let home = home();
    let server = home.start();
    let jfk = fs::read(speech("jfk.wav")).unwrap();
    let long = many_times_over(&jfk, 20);
    let late = transcribe(&server, &[("ringfence_deadline_ms", "1500")], &long);
    assert_eq!((late.status, late.code().as_str()), (504, "deadline_passed"));
    assert_eq!(plain(transcribe(&server, &[], &jfk).ok()["text"].as_str().unwrap()), WORDS);
}

const SCRIPT: &str = r#"
import json, sys
import openai

url, key, model, path = sys.argv[1:5]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
result = {}
with open(path, "rb") as audio:
    result["json"] = client.audio.transcriptions.create(model=model, file=audio).text
with open(path, "rb") as audio:
    answer = client.audio.transcriptions.create(model=model, file=audio, response_format="verbose_json", language="en")
    result["verbose"] = [answer.text, answer.duration, len(answer.segments), answer.segments[0].start]
with open(path, "rb") as audio:
    result["srt"] = client.audio.transcriptions.create(model=model, file=audio, response_format="srt")
with open(path, "rb") as audio:
    events = list(client.audio.transcriptions.create(model=model, file=audio, stream=True))
result["stream"] = ["".join(event.delta for event in events[:-1]), events[-1].text, events[-1].type]
try:
    client.audio.transcriptions.create(model=model, file=("a.wav", b"nothing of the kind"))
    result["error"] = None
except openai.BadRequestError as error:
    result["error"] = error.code
print(json.dumps(result))
"#;

#[test]
fn the_openai_package_and_the_command_line_transcribe() {
    let home = home();
    let server = home.start();
    let jfk = speech("jfk.wav");
    let jfk = jfk.to_str().unwrap();
    let result = python(&server, &home, SCRIPT, &[MODEL, jfk]);
    assert_eq!(plain(result["json"].as_str().unwrap()), WORDS);
    assert_eq!(
        (plain(result["verbose"][0].as_str().unwrap()), &result["verbose"][1]),
        (WORDS.to_owned(), &11.0.into())
    );
    assert!(result["srt"].as_str().unwrap().starts_with("1\n00:00:00,000"));
    let pieces = &result["stream"];
    assert_eq!((&pieces[0], &pieces[2]), (&pieces[1], &"transcript.text.done".into()));
    assert_eq!(plain(pieces[0].as_str().unwrap()), WORDS);
    assert_eq!(result["error"], "audio_unsupported");

    assert_eq!(plain(&home.cli_ok(&["transcribe", jfk])), WORDS);
    let json: Value = serde_json::from_str(&home.cli_ok(&["--json", "transcribe", jfk])).unwrap();
    assert_eq!(plain(json["files"][0]["text"].as_str().unwrap()), WORDS);
    assert_eq!(json["files"][0]["segments"][0]["start"], 0.0);
}

const INTERRUPTED: &str = r#"
import sys
import openai

url, key, model, path = sys.argv[1:5]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
with open(path, "rb") as audio:
    events = iter(client.audio.transcriptions.create(model=model, file=audio, stream=True))
print(next(events).delta, flush=True)
sys.stdin.readline()
try:
    print([event.type for event in events])
except openai.APIError as error:
    print(error.code)
"#;

#[test]
fn pieces_come_before_the_end_and_are_not_repeated_where_a_worker_dies() {
    let home = home();
    let server = home.start();
    let key = home.cli_ok(&["key", "add", "python"]);
    let url = server.facts["url"].as_str().unwrap().trim_end_matches('/').to_owned();
    let long = home.folder.path().join("long.wav");
    fs::write(&long, many_times_over(&fs::read(speech("jfk.wav")).unwrap(), 8)).unwrap();
    let python = std::env::var("RINGFENCE_PYTHON").unwrap();
    let mut client = Command::new(python);
    client.args(["-c", INTERRUPTED, &url, key.trim(), MODEL, long.to_str().unwrap()]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(plain(&first).contains("fellow americans"), "{first}");
    let worker = server.status()["workers"][0]["pid"].as_i64().unwrap();
    let worker = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "interrupted");
    client.wait().unwrap();
}
