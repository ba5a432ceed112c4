//! The commands of the README's operator section, run as they stand against a server with jobs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::Home;

/// The lines of the first shell block after this heading.
fn commands(heading: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, section) = readme.split_once(heading).unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block.lines().map(|line| line.split(" #").next().unwrap().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_operators_commands_do_what_the_readme_says() {
    let home = Home::with_tiny();
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let files = tempfile::tempdir().unwrap();
    let placed = |argument: &str| match argument.ends_with(".toml") || argument.ends_with(".jsonl") {
        true => files.path().join(argument).to_str().unwrap().to_owned(),
        false => argument.to_owned(),
    };
    std::fs::write(placed("new.toml"), "[clients.notes]\nweight = 8\njobs_per_minute = 6\n").unwrap();
    let commands = commands("## Operate it");
    assert!(commands.iter().any(|command| command.starts_with("ringfence trace replay")), "{commands:?}");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (notes, api, over) = (server.client("notes"), server.api(), &over);
        for target in [notes, api] {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    target.embed(&json!({ "model": "tiny-bert", "input": "hello" })).ok();
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        // The threads end whatever becomes of the commands.
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for command in &commands {
                let words: Vec<String> = command.split(' ').map(placed).collect();
                assert_eq!(words[0], "ringfence", "{command}");
                let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                let said = home.cli_ok(&words);
                if command.contains("replay") {
                    assert!(said.contains("notes") && said.contains("rate_jobs"), "{said}");
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        said.unwrap();
    });
}
