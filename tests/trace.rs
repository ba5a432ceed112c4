//! A trace of a running server: recorded while real jobs come, and replayed under other quotas.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Home, Server, Stream, Target};

fn embed(target: &Target) -> u16 {
    target.embed(&json!({ "model": "tiny-bert", "input": ["hello", "a longer text for the model"] })).status
}

/// A recording that has begun.
struct Recording(Box<dyn Stream>);

impl Recording {
    /// Begins one, once the one before is over.
    fn begin(server: &Server, seconds: u64) -> Self {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let mut stream = server.admin().connect();
            let head = format!(
                "GET /trace?seconds={seconds} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            if &status == b"HTTP/1.1 200" {
                return Self(stream);
            }
            assert_eq!(&status, b"HTTP/1.1 409");
            assert!(Instant::now() < until, "the recording before does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its lines, when it has ended: each is a chunk of its own.
    fn lines(mut self) -> Vec<Value> {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        assert!(text.contains("application/x-ndjson"), "{text}");
        let lines = text.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn two_seconds_of_real_jobs_are_replayed_as_they_were_and_under_a_rate() {
    let home = Home::with_tiny();
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let (api, notes) = (server.api(), server.client("notes"));
    assert_eq!((embed(&api), embed(&notes)), (200, 200));
    let file = home.folder.path().join("two-seconds.trace");
    let file = file.to_str().unwrap();
    let over = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        for target in [&api, &notes] {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(embed(target), 200);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let said = home.cli_ok(&["trace", "record", file, "--seconds", "2", "--json"]);
        over.store(true, Ordering::Relaxed);
        serde_json::from_str::<Value>(&said).unwrap()
    });
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(
        (&said["stopped"], said["lines"].as_u64()),
        (&json!("time"), Some(text.lines().count() as u64))
    );
    assert!(!text.contains("hello") && !text.contains("system"), "{text}");
    let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let model = &header["models"]["tiny-bert"];
    assert!(model["token_ns"].as_u64() > Some(0) && model["load_us"].as_u64() > Some(0), "{header}");
    assert_eq!(
        (&model["ready"], header["quotas"].as_str()),
        (&json!(1), fs::read_to_string(home.path().join("quotas.toml")).ok().as_deref())
    );

    let new = home.folder.path().join("new.toml");
    fs::write(&new, "[clients.notes]\njobs_per_minute = 60\njobs_burst = 2\n").unwrap();
    let replay = ["trace", "replay", file, "--quotas", new.to_str().unwrap()];
    let compared: Value = serde_json::from_str(&home.cli_ok(&[&replay[..], &["--json"]].concat())).unwrap();
    let agreement = &compared["agreement"];
    assert!(agreement["jobs"].as_u64() > Some(20), "{compared}");
    assert_eq!(agreement["jobs"], agreement["same"], "{compared}");
    let (before, after) = (&compared["recorded"]["clients"]["notes"], &compared["new"]["clients"]["notes"]);
    assert_eq!(before["done"], before["submitted"]);
    assert!((2..=5).contains(&after["done"].as_u64().unwrap()), "{after}");
    let refused = after["refused"]["rate_jobs"].as_u64().unwrap();
    assert_eq!(refused + after["done"].as_u64().unwrap(), after["submitted"].as_u64().unwrap());
    let page = home.cli_ok(&replay);
    assert!(page.contains("difference") && page.contains("(100.0%)"), "{page}");
    assert!(page.contains(&format!("notes: rate_jobs: 0 -> {refused}")), "{page}");
}

#[test]
fn a_recording_is_alone_and_ends_when_other_quotas_count_or_its_reader_leaves() {
    let home = Home::with_tiny();
    let server = home.start();
    let admin = server.admin();
    for wrong in ["/trace", "/trace?seconds=0", "/trace?seconds=3601", "/trace?seconds=x"] {
        let answer = admin.get(wrong);
        assert_eq!((answer.status, answer.code().as_str()), (400, "seconds_invalid"), "{wrong}");
    }
    assert_eq!(server.api().get("/trace?seconds=1").code(), "admin_only");
    let recording = Recording::begin(&server, 3_600);
    let busy = admin.get("/trace?seconds=1");
    assert_eq!((busy.status, busy.code().as_str()), (409, "trace_busy"));
    assert_eq!(embed(&server.api()), 200);
    home.cli_ok(&["quota", "set", "queues.total=77"]);
    let lines = recording.lines();
    assert_eq!(lines.last().unwrap()["stop"], "quotas_changed");
    let ended = lines.iter().find(|line| line["end"].is_object()).unwrap();
    assert_eq!(ended["end"]["code"], "done");
    assert!(ended["end"]["tokens"].as_u64() > Some(4), "{ended}");
    // A reader who leaves is not in the way of the next.
    drop(Recording::begin(&server, 3_600));
    let lines = Recording::begin(&server, 1).lines();
    assert_eq!(lines.last().unwrap()["stop"], "time");
    let recording = Recording::begin(&server, 3_600);
    assert!(server.stop().success());
    assert_eq!(recording.lines().last().unwrap()["stop"], "draining");
}
