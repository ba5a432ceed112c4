//! `ringfence stress` against a real server: the scenarios whose promises don't depend on how fast the machine is.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::Value;
use std::fs;
use support::Home;

#[test]
fn floods_and_edits_under_load_break_no_promise_and_the_quotas_come_back() {
    let home = Home::with_tiny();
    let server = home.start();
    let file = home.path().join("quotas.toml");
    let before = fs::read_to_string(&file).unwrap();
    let chart = home.path().join("run/stress.svg");
    let chart = chart.to_str().unwrap();
    let words =
        ["stress", "flood", "quota-edits", "--model", "tiny-bert", "--tokens", "16", "--seconds", "2"];
    let words = [&words[..], &["--rounds", "1", "--json", "--chart", chart]].concat();
    let report: Value = serde_json::from_str(&home.cli_ok(&words)).unwrap();
    let text = report.to_string();
    assert!(text.contains("retry") && text.contains("quota-edits"), "{text}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert!(fs::read_to_string(chart).unwrap().starts_with("<svg"));
    assert_eq!(server.admin().get("/health").status, 200);
}
