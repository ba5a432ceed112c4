//! `ringfence audit` on a log in a home, without a server.

use crate::command_line::{ringfence, stderr, stdout};
use ringfence_audit::{Entry, Event, Folder, KEYS_BYTES, Keys, Log, Word};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Output;

fn word(text: &str) -> Word {
    Word::new(text).unwrap()
}

/// A home whose log has 600 uses of grant 7 by two clients in turn, the first 300 in 1970.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("audit")).unwrap();
    let mut files = Folder::open(&home.path().join("audit")).unwrap();
    let keys = Keys::read_or_make(&mut files, &[7; KEYS_BYTES]).unwrap();
    let (mut log, _) = Log::open(files, keys, None).unwrap();
    for number in 0..600 {
        let client = Some(log.mask(if number % 2 == 0 { "notes" } else { "mail" }));
        let path = log.mask(&format!("/home/anna/{number}.txt"));
        let event = Event::GrantUsed { grant: 7 + number % 2, path };
        let time_ms = if number < 300 { number } else { 4_000_000_000_000 + number };
        let entry = Entry { client, uid: Some(1000), ..Entry::of_server(time_ms, word("r1"), event) };
        log.append(entry).unwrap();
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    home
}

fn audit(home: &Path, arguments: &[&str]) -> Output {
    ringfence(home, &[&["audit"], arguments].concat())
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stdout(output)))
}

#[test]
fn a_home_without_a_log_says_who_makes_it() {
    let home = tempfile::tempdir().unwrap();
    for command in [&["verify"][..], &["tail"], &["show", "0"], &["export", "x"], &["checkpoint"]] {
        let output = audit(home.path(), command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(stderr(&output).contains("ringfence serve"), "{}", stderr(&output));
    }
    let output = audit(home.path(), &["verify", "--json"]);
    assert_eq!(json_of(&output)["error"]["code"], "no_audit_log");
}

#[test]
fn a_log_is_verified_shown_and_found_broken() {
    let home = home();
    let output = audit(home.path(), &["checkpoint"]);
    let kept = home.path().join("kept");
    fs::write(&kept, &output.stdout).unwrap();
    let kept = kept.to_str().unwrap();
    let output = audit(home.path(), &["verify", "--checkpoint", kept]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("600 entries") && stdout(&output).contains("outside checkpoint of 600"));
    let output = audit(home.path(), &["verify", "--json"]);
    let body = json_of(&output);
    assert_eq!((&body["present"], &body["pruned"], &body["outside"]), (&json!(600), &json!(0), &Value::Null));

    let output = audit(home.path(), &["show", "3"]);
    let expected =
        "1970-01-01 00:00:00Z  #3  mail (uid 1000)  first used it: /home/anna/3.txt [grant 8, run r1]\n";
    assert_eq!(stdout(&output), expected);
    assert_eq!(audit(home.path(), &["show", "600"]).status.code(), Some(1));
    for (filter, lines) in
        [(&["--client", "notes"][..], 300), (&["--grant", "8"], 300), (&["--client", "x"], 0)]
    {
        let output = audit(home.path(), &[&["show"], filter].concat());
        assert_eq!(stdout(&output).lines().count(), lines, "{filter:?}");
    }
    let output = audit(home.path(), &["tail", "-n", "2", "--json"]);
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["index"], &lines[1]["entry"]["kind"]), (&json!(598), &json!("grant_used")));

    let file = home.path().join("audit/log/tile/entries/000");
    let mut bytes = fs::read(&file).unwrap();
    bytes[1_000] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = audit(home.path(), &["verify"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("log/tile/entries/000: the hash should be"), "{}", stderr(&output));
}

#[test]
fn an_export_has_one_clients_words_and_verifies_by_itself() {
    let home = home();
    let out = home.path().join("out");
    let out = out.to_str().unwrap();
    let output = audit(home.path(), &["export", out, "--client", "mail", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(json_of(&output)["reported"], 300);
    let report = fs::read_to_string(Path::new(out).join("report.txt")).unwrap();
    assert!(report.contains("/home/anna/1.txt") && !report.contains("/home/anna/2.txt"));
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(audit(elsewhere.path(), &["verify", "--log", out]).status.code(), Some(0));
    // A folder that is there is not written into.
    assert_eq!(audit(home.path(), &["export", out]).status.code(), Some(1));
}

#[test]
fn old_entries_are_pruned_while_nobody_else_has_the_log() {
    let home = home();
    let mut files = Folder::open(&home.path().join("audit")).unwrap();
    let lock = ringfence_audit::Files::lock(&mut files, "lock").unwrap();
    let output = audit(home.path(), &["prune", "--keep-days", "30", "--json"]);
    assert_eq!((lock, &json_of(&output)["error"]["code"]), (true, &json!("audit_locked")));
    drop(files);
    let output = audit(home.path(), &["prune", "--keep-days", "30", "--json"]);
    assert_eq!(json_of(&output)["pruned"], 256, "{}", stderr(&output));
    let output = audit(home.path(), &["verify"]);
    assert!(stdout(&output).contains("256 of them pruned, hashes hold"), "{}", stdout(&output));
    let output = audit(home.path(), &["show", "7"]);
    assert!(stderr(&output).contains("entry 7 was pruned"), "{}", stderr(&output));
}
