//! Rates, what they say of the next try, and what the server says of each job and client.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{Answer, Home, Target};

const RATED: &str = "[clients.notes]\nweight = 3\nclass = \"batch\"\njobs_per_minute = 120\njobs_burst = 2\n";

fn embed(target: &Target) -> Answer {
    target.embed(&json!({ "model": "tiny-bert", "input": "hello" }))
}

fn job_of(answer: &Answer) -> u64 {
    answer.header("ringfence-job").unwrap().parse().unwrap()
}

#[test]
fn a_rate_that_is_used_up_says_exactly_when_to_come_again() {
    let home = Home::with_tiny();
    home.quotas(RATED);
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let notes = server.client("notes");
    // The first job loads the model, during which the rate fills up again.
    embed(&notes).ok();
    std::thread::sleep(Duration::from_millis(1_200));
    embed(&notes).ok();
    embed(&notes).ok();
    let refused = embed(&notes);
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_jobs"), "{}", refused.json());
    assert_eq!(refused.header("ringfence-retry"), Some("exact"));
    let told: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((1..=500).contains(&told), "{told}");
    std::thread::sleep(Duration::from_millis(told));
    embed(&notes).ok();
    // Others have rates of their own.
    (0..5).for_each(|_| drop(embed(&server.api()).ok()));
}

#[test]
fn every_job_can_be_asked_about_by_its_client_and_by_the_operator_only() {
    let home = Home::with_tiny();
    home.quotas(RATED);
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let notes = server.client("notes");
    let done = embed(&notes);
    done.ok();
    let path = format!("/jobs/{}", job_of(&done));
    let seen = notes.get(&path).ok();
    assert_eq!(
        (&seen["state"], &seen["client"], &seen["model"]),
        (&json!("ended"), &json!("notes"), &json!("tiny-bert"))
    );
    assert_eq!(seen["ended"]["code"], "done");
    assert!(seen["ended"]["device_us"].as_u64().unwrap() > 0, "{seen}");
    assert!(seen["decisions"].as_array().unwrap().len() >= 2, "{seen}");
    assert_eq!(server.admin().get(&path).ok()["client"], "notes");
    assert_eq!(server.api().get(&path).code(), "job_unknown");
    assert_eq!(notes.get("/jobs/999999").code(), "job_unknown");
    assert_eq!(notes.get("/jobs/x").code(), "job_unknown");

    let refused = std::iter::repeat_with(|| embed(&notes)).find(|answer| answer.status == 429).unwrap();
    let number = job_of(&refused);
    let why = server.admin().get(&format!("/jobs/{number}")).ok();
    let sentence = why["why"].as_str().unwrap();
    assert!(sentence.contains("rate_jobs") && sentence.contains("120 jobs a minute"), "{sentence}");
    let said = home.cli_ok(&["why", &number.to_string()]);
    assert!(said.contains("refused (rate_jobs)"), "{said}");
}

#[test]
fn usage_shows_a_client_itself_and_the_operator_everybody() {
    let home = Home::with_tiny();
    home.quotas(RATED);
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let notes = server.client("notes");
    embed(&notes).ok();
    let other = server.api();
    embed(&other).ok();
    let refusals = (0..4).filter(|_| embed(&notes).status == 429).count();
    assert!(refusals > 0);
    let own = notes.get("/usage").ok();
    let [mine]: &[Value; 1] = own["clients"].as_array().unwrap().as_slice().try_into().unwrap();
    assert_eq!(
        (&mine["client"], &mine["weight"], &mine["class"]),
        (&json!("notes"), &json!(3), &json!("batch"))
    );
    assert_eq!(mine["refused"]["rate_jobs"], json!(refusals));
    assert_eq!(mine["submitted"].as_u64().unwrap(), 5);
    assert!(mine["device_us"].as_u64().unwrap() > 0 && mine["tokens"].as_u64().unwrap() > 0);
    assert_eq!(mine["rates"]["jobs"]["per_minute"], 120);
    let all = server.admin().get("/usage").ok();
    assert!(all["clients"].as_array().unwrap().iter().any(|client| client["client"] != "notes"));
    assert_eq!(all["refusals"]["rate_jobs"], json!(refusals));
    assert!(home.cli_ok(&["usage"]).contains("batch"));
    let metrics = server.admin().get("/metrics");
    let text = String::from_utf8(metrics.body.clone()).unwrap();
    assert!(text.contains("ringfence_client_device_microseconds{client=\"notes\"}"), "{text}");
    assert!(text.contains("ringfence_unfairness_bound_microseconds"), "{text}");
}

#[test]
fn a_weight_that_changes_while_jobs_run_is_the_share_from_then_on() {
    let home = Home::with_tiny();
    home.quotas("[models.default]\nconcurrency = 8\n");
    let server = home.start();
    for name in ["light", "heavy"] {
        home.cli_ok(&["client", "add", name]);
    }
    home.cli_ok(&["quota", "set", "clients.heavy.weight=4"]);
    // Much work, so that the worker and not the server is what both wait for.
    let texts: Vec<String> =
        (0..64).map(|n| format!("{n} words and more words of a text").repeat(3)).collect();
    let body = json!({ "model": "tiny-bert", "input": texts, "truncate": true });
    embed(&server.api()).ok();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["light", "heavy"] {
            for _ in 0..6 {
                let (client, body, over) = (server.client(name), &body, &over);
                scope.spawn(move || {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        client.embed(body).ok();
                    }
                });
            }
        }
        std::thread::sleep(Duration::from_secs(6));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let usage = server.admin().get("/usage").ok();
    let had = |name: &str| {
        let client =
            usage["clients"].as_array().unwrap().iter().find(|client| client["client"] == name).unwrap();
        client["device_us"].as_f64().unwrap()
    };
    let ratio = had("heavy") / had("light");
    assert!((2.5..6.0).contains(&ratio), "{ratio}: {usage}");
}

#[test]
fn a_model_that_can_t_run_falls_back_to_the_one_that_the_operator_named_and_says_so() {
    let home = Home::with_tiny();
    home.add_tiny("other");
    // Larger than the device: it can never start.
    home.quotas(
        "[devices.cpu]\nmemory_mib = 600\n[models.tiny-bert]\nlease_mib = 700\nfallback = \"other\"\n",
    );
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let answer = embed(&server.client("notes"));
    assert_eq!(
        (&answer.ok()["model"], answer.header("ringfence-fallback-from")),
        (&json!("other"), Some("tiny-bert"))
    );
    // A client that may not use the other one gets the refusal.
    home.cli_ok(&["quota", "set", "clients.notes.models=[\"tiny-*\"]"]);
    assert_eq!(embed(&server.client("notes")).code(), "lease_too_large");
}
