//! Every want of too much memory is stopped on a rung that the answer and the metrics name, and costs nobody else.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use support::{Answer, Home, Server};

fn ask(server: &Server, model: &str, input: &Value) -> Answer {
    server.api().embed(&json!({"model": model, "input": input}))
}

fn rung(answer: &Answer) -> Option<String> {
    answer.json()["error"]["rung"].as_str().map(str::to_owned)
}

/// What `ringfence_oom_total` says of a rung.
fn counted(server: &Server, rung: &str, model: &str) -> u64 {
    let answer = server.admin().get("/metrics");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let labels = [format!("rung=\"{rung}\""), format!("model=\"{model}\"")];
    let lines = text.lines().filter(|line| line.starts_with("ringfence_oom_total{"));
    let of = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    of.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// The worker of a model, once it is ready.
fn worker(server: &Server, model: &str) -> Value {
    let ready = |worker: &&Value| worker["model"] == model && worker["state"] == "ready";
    let find = |status: &Value| status["workers"].as_array().unwrap().iter().find(ready).cloned();
    find(&server.await_status("a ready worker", |status| find(status).is_some())).unwrap()
}

fn drill(server: &Server, worker: &Value, take_mib: u64) -> Answer {
    let body = json!({ "take_mib": take_mib });
    server.admin().post(&format!("/workers/{}/drill", worker["id"]), &body)
}

#[test]
fn what_can_not_fit_is_refused_before_anything_is_started_for_it() {
    let home = Home::with_tiny();
    home.quotas("[devices.cpu]\nmemory_mib = 64\n[models.tiny-bert]\nlease_mib = 65\n");
    let server = home.start();
    let answer = ask(&server, "tiny-bert", &json!("a"));
    assert_eq!((answer.status, answer.code().as_str()), (507, "lease_too_large"));
    assert_eq!(rung(&answer).as_deref(), Some("refused-by-profile"));
    assert_eq!(counted(&server, "refused-by-profile", "tiny-bert"), 1);
    assert_eq!(server.status()["workers"], json!([]));
}

#[test]
fn a_job_that_does_not_fit_in_the_lease_is_refused_by_its_worker_which_goes_on() {
    let home = Home::with_tiny();
    home.quotas("[models.tiny-bert]\nlease_mib = 1\n");
    let server = home.start();
    ask(&server, "tiny-bert", &json!("a")).ok();
    let pid = server.worker_pid();
    let answer = ask(&server, "tiny-bert", &json!(vec!["a quick brown fox ".repeat(50); 1_000]));
    assert_eq!((answer.status, answer.code().as_str()), (507, "out_of_memory"));
    assert_eq!(rung(&answer).as_deref(), Some("refused-by-worker"));
    assert_eq!(counted(&server, "refused-by-worker", "tiny-bert"), 1, "{}", server.log());
    ask(&server, "tiny-bert", &json!("a")).ok();
    assert_eq!(server.worker_pid(), pid, "a refusal costs nobody else anything");
}

#[test]
fn a_worker_that_takes_memory_past_its_allocator_is_stopped_by_the_kernel_and_the_jobs_in_it_are_answered() {
    let home = Home::with_tiny();
    home.quotas("[models.tiny-bert]\nlease_mib = 64\n");
    let server = home.start();
    ask(&server, "tiny-bert", &json!("a")).ok();
    let worker = worker(&server, "tiny-bert");
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| ask(&server, "tiny-bert", &json!(vec!["a quick brown fox"; 64])).status))
            .collect();
        assert_eq!(drill(&server, &worker, 4_096).status, 202);
        for job in jobs {
            assert_eq!(job.join().unwrap(), 200, "{}", server.log());
        }
    });
    let pid = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
    server.await_status("the hoarding worker's end", |_| !support::is_alive(pid));
    ask(&server, "tiny-bert", &json!("a")).ok();
    assert_eq!(counted(&server, "killed-by-kernel", "tiny-bert"), 1, "{}", server.log());
    let alerts = server.admin().get("/alerts?after=0&wait_ms=1000").ok();
    let alert = &alerts["alerts"][0];
    assert_eq!(
        (&alert["kind"], &alert["rung"]),
        (&json!("out_of_memory"), &json!("killed-by-kernel")),
        "{alerts}"
    );
    assert_eq!((&alert["model"], &alert["device"]), (&json!("tiny-bert"), &json!("cpu")));
    let shown = home.cli_ok(&["alert", "list"]);
    assert!(shown.contains("killed-by-kernel"), "{shown}");
    assert_eq!(server.api().get("/alerts").status, 403, "clients hear nothing of it");
}

#[test]
fn a_drill_within_the_limits_costs_nothing_and_a_wrong_one_is_refused() {
    let home = Home::with_tiny();
    home.quotas("[models.tiny-bert]\nlease_mib = 64\n");
    let server = home.start();
    ask(&server, "tiny-bert", &json!("a")).ok();
    let worker = worker(&server, "tiny-bert");
    assert_eq!(drill(&server, &worker, 8).status, 202);
    ask(&server, "tiny-bert", &json!("a")).ok();
    assert_eq!(server.worker_pid(), i32::try_from(worker["pid"].as_i64().unwrap()).unwrap());
    assert_eq!(drill(&server, &worker, 0).code(), "drill_invalid");
    assert_eq!(drill(&server, &json!({"id": 999}), 1).code(), "worker_unknown");
    let refused = server.api().send("POST", "/workers/1/drill", &[], b"{}");
    assert_eq!(refused.status, 403, "{refused:?}");
}
