//! `ringfence index` and `ringfence search` against a real server: through grants, only what has changed, and given back.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use support::{Home, Server};

/// A folder of the server's user.
struct Notes {
    home: Home,
    server: Server,
    folder: PathBuf,
}

impl Notes {
    fn new() -> Self {
        let home = Home::with_tiny();
        let server = home.start();
        let folder = home.folder.path().join("notes");
        fs::create_dir_all(folder.join("sub")).unwrap();
        let notes = Self { home, server, folder };
        for name in ["", "sub"] {
            notes.give(name);
        }
        notes.rule("allow");
        notes
    }

    fn give(&self, name: &str) {
        if rustix::process::getuid().is_root() {
            chown(self.folder.join(name), Some(65_534), Some(65_534)).unwrap();
        }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.join(name), text).unwrap();
        self.give(name);
    }

    /// For both kinds of grants, in this folder.
    fn rule(&self, decision: &str) {
        let rule = |kind: &str| {
            format!(
                "[[rule]]\nclient = \"*\"\nkind = \"{kind}\"\ndecision = \"{decision}\"\nuntil = 2100-01-01\nbelow = \"{}\"\n",
                self.folder.display()
            )
        };
        let file = self.home.path().join("grants.toml");
        fs::write(&file, rule("file_read") + &rule("file_write")).unwrap();
        if rustix::process::getuid().is_root() {
            chown(file, Some(65_534), Some(65_534)).unwrap();
        }
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        let folder = self.folder.to_str().unwrap();
        let arguments: Vec<&str> = [&[arguments[0], folder], &arguments[1..], &["--json"]].concat();
        self.home.cli(&arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn index(&self, more: &[&str]) -> Value {
        let counts = self.json(&[&["index", "--model", "tiny-bert", "--passage-tokens", "9"], more].concat());
        let counts =
            ["read", "unchanged", "forgotten", "skipped", "index"].map(|field| counts[field].clone());
        json!(counts)
    }

    fn search(&self, question: &str) -> Vec<(String, u64, String)> {
        let report = self.json(&["search", question, "--most", "2"]);
        let hit = |hit: &Value| {
            let text = hit["text"].as_str().unwrap_or_default().to_owned();
            (hit["path"].as_str().unwrap().to_owned(), hit["line"].as_u64().unwrap_or(0), text)
        };
        report["hits"].as_array().unwrap().iter().map(hit).collect()
    }
}

#[test]
fn a_folder_is_indexed_once_and_then_only_what_has_changed() {
    let notes = Notes::new();
    notes.write("water.md", "The water is hot.\n\nThey go to see the water all day.\n");
    notes.write("sub/number.md", "One, two and more numbers.");
    notes.write("sub/empty.md", "");
    notes.write("picture.png", [0x89, b'P', 0xff, 0xfe]);
    notes.write("build.log", "what is said by the other");
    notes.write(".gitignore", "*.log\n");
    notes.write(".hidden", "not this");
    let skipped = json!({"input_not_text": 1});
    let first = notes.index(&[]);
    assert_eq!(first, json!([4, 0, 0, skipped, {"files": 4, "skipped": 1, "passages": 3}]));
    assert_eq!(notes.index(&[]), json!([0, 4, 0, {}, {"files": 4, "skipped": 1, "passages": 3}]));

    // The very words are nearest to themselves.
    let (path, line, text) = &notes.search("They go to see the water all day.")[0];
    assert_eq!((path.as_str(), *line, text.as_str()), ("water.md", 3, "They go to see the water all day."));
    assert_eq!(notes.search("One, two and more numbers.")[0].0, "sub/number.md");

    notes.write("water.md", "The water is cold now.");
    fs::remove_file(notes.folder.join("sub/number.md")).unwrap();
    let changed = notes.index(&[]);
    assert_eq!(changed, json!([1, 2, 1, {}, {"files": 3, "skipped": 1, "passages": 1}]));
    assert_eq!(notes.search("The water is cold now.")[0].1, 1);
    // A file that has become another since is not shown as what it was.
    notes.write("water.md", "No.");
    assert_eq!(notes.search("The water is cold now.")[0].2, "");

    // Other passages are another index.
    let anew = notes.json(&["index", "--model", "tiny-bert", "--passage-tokens", "2"]);
    assert_eq!((&anew["read"], &anew["unchanged"]), (&json!(3), &json!(0)));
    let some = notes.index(&["--glob", "*.png"]);
    assert_eq!(some[4], json!({"files": 1, "skipped": 1, "passages": 0}));
    assert!(notes.search("anything").is_empty());

    let grants = notes.server.admin().get("/grants").ok();
    let ended = |grant: &Value| grant["state"] == "revoked";
    assert!(grants["grants"].as_array().unwrap().iter().all(ended), "all are given back: {grants:#}");
    let index = fs::metadata(notes.folder.join(".ringfence/index.sqlite")).unwrap();
    assert!(index.len() > 0);
}

#[test]
fn without_a_grant_or_an_index_nothing_is_found() {
    let notes = Notes::new();
    notes.write("water.md", "The water is hot.");
    let code = |arguments: &[&str]| {
        let output = notes.run(arguments);
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), error["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(code(&["search", "water"]), (1, "no_index".to_owned()));
    assert_eq!(code(&["index", "--model", "no-model"]), (5, "model_unknown".to_owned()));
    assert_eq!(code(&["index", "--glob", "a["]), (2, "usage".to_owned()));
    notes.write(".ringfence/index.sqlite", [b'x'; 5_000]);
    assert_eq!(code(&["search", "water"]), (1, "index_unusable".to_owned()));
    notes.index(&["--anew"]);
    assert_eq!(notes.search("water")[0].0, "water.md");
    notes.rule("deny");
    assert_eq!(code(&["index", "--model", "tiny-bert"]), (5, "grant_denied_by_rule".to_owned()));
    assert_eq!(code(&["search", "water"]), (5, "grant_denied_by_rule".to_owned()));
}
