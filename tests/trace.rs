//! A trace of a running server: recorded while real jobs come, and replayed under other quotas.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Home, Server, Target};

fn embed(target: &Target) -> u16 {
    target.embed(&json!({ "model": "tiny-bert", "input": ["hello", "a longer text for the model"] })).status
}

/// The lines of a recording that is under way, when it has ended.
fn recorded(server: &Server, seconds: u64, meanwhile: impl FnOnce()) -> Vec<Value> {
    std::thread::scope(|scope| {
        let admin = server.admin();
        let reader = scope.spawn(move || admin.get(&format!("/trace?seconds={seconds}")));
        // One that comes second is told so.
        while server.admin().get("/trace?seconds=0").status != 400 || !is_busy(server) {
            std::thread::yield_now();
        }
        meanwhile();
        let answer = reader.join().unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
        let text = String::from_utf8(answer.body).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    })
}

/// Asks for a recording, which is refused while there is one; else the reader leaves at once.
fn is_busy(server: &Server) -> bool {
    use std::io::{Read, Write};
    let mut stream = server.admin().connect();
    stream
        .write_all(b"GET /trace?seconds=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    &head == b"HTTP/1.1 409"
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
    let began = Instant::now();
    let lines = recorded(&server, 3_600, || {
        assert_eq!(admin.get("/trace?seconds=1").code(), "trace_busy");
        assert_eq!(embed(&server.api()), 200);
        home.cli_ok(&["quota", "set", "queues.total=77"]);
    });
    assert_eq!(lines.last().unwrap()["stop"], "quotas_changed");
    let ended = lines.iter().find(|line| line["end"].is_object()).unwrap();
    assert_eq!(ended["end"]["code"], "done");
    assert!(ended["end"]["tokens"].as_u64() > Some(4), "{ended}");
    // Nothing of the reader who left is in the way of the next.
    assert!(!is_busy(&server));
    let lines = loop {
        if !is_busy(&server) {
            break recorded(&server, 1, || {});
        }
    };
    assert_eq!(lines.last().unwrap()["stop"], "time");
    assert!(began.elapsed() < Duration::from_secs(60));
    let lines = recorded(&server, 3_600, || {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(server.pid() as i32).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
    });
    assert_eq!(lines.last().unwrap()["stop"], "draining");
}
