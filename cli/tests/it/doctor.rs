//! `ringfence doctor` on this very machine.

use crate::command_line::{ringfence, stdout};
use serde_json::Value;

fn report(home: &std::path::Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = ringfence(home, &[&["doctor", "--json"], arguments].concat());
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("one JSON document"))
}

fn answer<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[test]
fn a_home_that_is_not_there_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let (code, report) = report(&folder.path().join("none"), &["--config", config.to_str().unwrap()]);
    assert_eq!((code, &report["ready"]), (Some(1), &Value::Bool(false)));
    assert_eq!(answer(&report, "home")["answer"], "no");
    assert!(answer(&report, "home")["advice"].as_str().unwrap().starts_with("ringfence init"));
}

#[test]
fn a_new_home_is_ready_and_what_it_could_have_beside_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (home, config) = (folder.path().join("home"), folder.path().join("config"));
    let passphrase = folder.path().join("passphrase");
    std::fs::write(&passphrase, "a long passphrase\n").unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let user = if rustix::process::geteuid().is_root() { &["--user", "nobody"][..] } else { &[] };
    let init = ["init", "--passphrase-file", passphrase.to_str().unwrap()];
    assert!(ringfence(&home, &[&init[..], &config, user].concat()).status.success());
    let (code, report) = report(&home, &config);
    assert_eq!((code, &report["ready"]), (Some(0), &Value::Bool(true)), "{report}");
    for (name, expected) in
        [("landlock", "yes"), ("trust", "yes"), ("quotas", "yes"), ("models", "absent"), ("server", "absent")]
    {
        assert_eq!(answer(&report, name)["answer"], expected, "{name}");
    }
    // Mesa's software driver is installed wherever the tests run; the worker lies beside the command.
    let software = answer(&report, "vulkan-software");
    assert_eq!(software["answer"], "yes", "{software}");
    assert!(software["found"].as_str().unwrap().contains("tier polled-kill"), "{software}");
    std::fs::write(home.join("quotas.toml"), "[clients.a]\nweight = 0\n").unwrap();
    let output = ringfence(&home, &[&["doctor"][..], &config].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("no      quotas") && stdout(&output).contains("line 2"), "{output:?}");
}
