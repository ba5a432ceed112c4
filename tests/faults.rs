//! Faults of the machine and of other programs: killed workers, killed servers, swapped files, jobs over their limits.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::time::{Duration, Instant};
use support::{Home, Server, is_alive};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn good(server: &Server) -> u16 {
    server.api().embed(&json!({ "model": "tiny-bert", "input": "good" })).status
}

/// How often a fault is repeated; `make soak` sets more.
fn rounds() -> usize {
    std::env::var("RINGFENCE_FAULT_ROUNDS").map_or(3, |text| text.parse().expect("a number"))
}

#[test]
fn a_worker_killed_in_the_middle_of_work_loses_no_job() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(good(&server), 200);
    for round in 0..rounds() {
        std::thread::scope(|scope| {
            let jobs: Vec<_> = (0..4)
                .map(|_| {
                    let api = server.api();
                    let texts: Vec<String> = (0..200).map(|index| format!("word {index} and more")).collect();
                    scope.spawn(move || api.embed(&json!({ "model": "tiny-bert", "input": texts })))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(5));
            kill(server.worker_pid());
            for job in jobs {
                let answer = job.join().unwrap();
                assert_eq!(answer.status, 200, "round {round}: {answer:?}");
            }
        });
        assert_eq!(good(&server), 200);
    }
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced_at_the_next_job() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(good(&server), 200);
    let pid = server.worker_pid();
    kill(pid);
    server.await_status("no worker", |status| {
        status["workers"].as_array().unwrap().iter().all(|worker| worker["pid"] != pid)
    });
    assert_eq!(good(&server), 200);
    assert_ne!(server.worker_pid(), pid);
}

#[test]
fn what_happened_to_a_model_s_workers_can_be_read_afterwards() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(good(&server), 200);
    let pid = server.worker_pid();
    kill(pid);
    server.await_status("no worker", |status| status["workers"].as_array().is_some_and(Vec::is_empty));
    let lines = |after: u64| {
        let answer = server.admin().get(&format!("/models/tiny-bert/logs?after={after}")).ok();
        let texts = answer["lines"].as_array().unwrap().iter();
        texts.map(|line| line["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = lines(0);
    let begins =
        ["starts on cpu with a lease of", "is ready after", "has ended: it died with wait status 0x9"];
    assert!(all.len() == 3 && all.iter().zip(begins).all(|(line, begin)| line.starts_with(begin)), "{all:?}");
    assert_eq!(lines(2), all[2..]);
    let page = home.cli_ok(&["logs", "tiny-bert"]);
    assert!(begins.iter().all(|begin| page.contains(begin)), "{page}");
    assert_eq!(server.admin().get("/models/none/logs").code(), "model_unknown");
    assert_eq!(server.api().get("/models/tiny-bert/logs").code(), "admin_only");
}

#[test]
fn a_killed_server_leaves_no_orphan_and_can_be_started_again() {
    let home = Home::with_tiny();
    let mut server = home.start();
    assert_eq!(good(&server), 200);
    let pid = server.worker_pid();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    while is_alive(pid) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!is_alive(pid), "the worker outlived its server by a second");
    assert_eq!(good(&home.start()), 200);
}

#[test]
fn a_file_swapped_after_verification_changes_nothing_until_it_would_be_read_again() {
    let home = Home::with_tiny();
    home.quotas("[models.default]\non_disk_change = \"ignore\"\n");
    let server = home.start();
    let ask = || server.api().embed(&json!({ "model": "tiny-bert", "input": "same" }));
    let before = ask().ok()["data"].clone();
    let weights = home.path().join("models/tiny-bert/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(ask().ok()["data"], before, "the running worker has the bytes that were verified");
    kill(server.worker_pid());
    let answer = ask();
    // A respawn runs from the held memory; a fresh load is refused. Neither runs the changed bytes.
    assert!(answer.status == 503 || answer.ok()["data"] == before, "{answer:?}");
}

#[test]
fn a_job_that_can_t_fit_its_lease_is_refused_before_it_runs() {
    let home = Home::with_tiny();
    // Steps may be so large here that a large job needs more for one than the lease has.
    home.quotas("[models.tiny-bert]\nlease_mib = 8\nstep_tokens = 65536\n");
    let server = home.start();
    assert_eq!(good(&server), 200);
    let long = vec!["word ".repeat(60); 2_000];
    let answer = server.api().embed(&json!({ "model": "tiny-bert", "input": long, "truncate": true }));
    assert_eq!((answer.status, answer.code().as_str()), (413, "job_too_large"), "{answer:?}");
    assert_eq!(good(&server), 200);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_come_back() {
    let home = Home::with_tiny();
    home.quotas("[queues]\nper_client = 1\n[models.default]\nconcurrency = 1\n");
    let server = home.start();
    let texts: Vec<String> =
        (0..2_000).map(|index| format!("text {index} of many words that take a while")).collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..8)
            .map(|_| {
                let (api, texts) = (server.api(), &texts);
                scope.spawn(move || api.embed(&json!({ "model": "tiny-bert", "input": texts })))
            })
            .collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty(), "eight jobs at once do not fit a queue of one");
    for answer in refused {
        assert_eq!(answer.code(), "queue_full_client");
        assert!(answer.header("retry-after").is_some() && answer.header("retry-after-ms").is_some());
    }
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 429)));
    assert_eq!(good(&server), 200);
}

#[test]
fn a_client_that_goes_away_takes_its_job_with_it() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(good(&server), 200);
    let texts: Vec<String> =
        (0..2_000).map(|index| format!("text {index} of many words that take a while")).collect();
    let body = json!({ "model": "tiny-bert", "input": texts }).to_string();
    for _ in 0..8 {
        let mut stream = server.api().connect();
        let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        std::io::Write::write_all(
            &mut stream,
            format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        )
        .unwrap();
    }
    server.await_status("an idle model", |status| {
        let model = &status["models"][0];
        model["queued"] == 0 && model["running"] == 0
    });
    assert_eq!(good(&server), 200);
}
