//! The command line of text generation against a real server, with SmolLM2-135M-Instruct, whose archive `make test` fetches.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Home, Server, WAIT_MAX};

const MODEL: &str = "smollm2-135m";

fn home() -> Home {
    Home::made("shell", |home| {
        let model = std::env::var("RINGFENCE_SMOLLM2").expect("set by `make test`: SmolLM2 as GGUF");
        let cache = Path::new(&model).parent().unwrap().with_file_name("archives");
        home.add_tiny("tiny-bert");
        home.cli_ok(&["model", "add", MODEL, "--cache", cache.to_str().unwrap()]);
    })
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Exit code, and the code of the error.
fn refused(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), json_of(output)["error"]["code"].as_str().unwrap().to_owned())
}

/// `ringfence` on this home, which can be typed to.
fn command(home: &Home, arguments: &[&str]) -> Command {
    let mut command = Command::new(support::programs().join("ringfence"));
    command.args(arguments).arg("--home").arg(home.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A folder of the server's user, which a rule lets the model read.
struct Texts<'a> {
    home: &'a Home,
    folder: PathBuf,
}

impl<'a> Texts<'a> {
    fn new(home: &'a Home) -> Self {
        let texts = Self { home, folder: home.folder.path().join("texts") };
        fs::create_dir(&texts.folder).unwrap();
        give(&texts.folder);
        texts.rule("allow");
        texts
    }

    fn rule(&self, decision: &str) {
        let rule = format!(
            "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"{decision}\"\nuntil = 2100-01-01\nbelow = \"{}\"\n",
            self.folder.display()
        );
        let file = self.home.path().join("grants.toml");
        fs::write(&file, rule).unwrap();
        give(&file);
    }

    /// Its path.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let file = self.folder.join(name);
        fs::write(&file, text).unwrap();
        give(&file);
        file.to_str().unwrap().to_owned()
    }
}

fn give(path: &Path) {
    if rustix::process::getuid().is_root() {
        chown(path, Some(65_534), Some(65_534)).unwrap();
    }
}

const BAKERS: &str = "On Monday the bakers of the town met in the old hall. They agreed to raise the price of bread by ten cents, \
    because flour has become more expensive since the spring. The oldest baker, Mr. Holm, was against it.\n";

#[test]
fn a_prompt_is_answered_and_the_same_seed_says_the_same() {
    let home = home();
    let _server = home.start();
    let raw = ["run", MODEL, "--raw", "--temperature", "0", "--max-tokens", "8", "The capital of France is"];
    let said = home.cli_ok(&raw);
    assert!(said.contains("Paris"), "{said}");
    let seeded = |seed: &str| {
        let options = ["--seed", seed, "--max-tokens", "12", "--json", "Tell me about the sea."];
        json_of(&home.cli(&[&["run", MODEL], &options[..]].concat()))
    };
    let (one, same, other) = (seeded("7"), seeded("7"), seeded("8"));
    assert_eq!((&one["text"], &one["finish_reason"]), (&same["text"], &json!("length")));
    assert_ne!(one["text"], other["text"]);
    assert_eq!(one["usage"]["completion_tokens"], 12);
    assert!(one["tokens_per_s"].as_f64().unwrap() > 0.0 && one["first_token_ms"].as_f64().unwrap() > 0.0);
    // As many tokens as there are of a schema's shortest object are few.
    let schema = home.folder.path().join("schema.json");
    let shape = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                       "required": ["n"], "additionalProperties": false});
    fs::write(&schema, shape.to_string()).unwrap();
    let held = home.cli_ok(&["run", MODEL, "Give me a number.", "--schema", schema.to_str().unwrap()]);
    let held: Value = serde_json::from_str(&held).unwrap();
    assert!((0..=9).contains(&held["n"].as_i64().unwrap()), "{held}");
}

#[test]
fn a_chat_in_a_pipe_remembers_its_first_turn_until_it_is_cleared() {
    let home = home();
    let _server = home.start();
    let talk = |lines: &str| -> Vec<Value> {
        let options = ["chat", MODEL, "--temperature", "0", "--max-tokens", "40", "--json"];
        let mut child = command(&home, &options).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let (first, question) = ("My name is Rosalind.\n", "What is my name?\n");
    let answers = talk(&format!("{first}{question}"));
    // What so small a model makes of what it was told says little; that it was told is in what it read.
    let used = |answer: &Value, what: &str| answer["usage"][what].as_u64().unwrap();
    let said = used(&answers[0], "prompt_tokens") + used(&answers[0], "completion_tokens");
    assert!(used(&answers[1], "prompt_tokens") > said, "{answers:?}");
    let forgotten = talk(&format!("{first}/clear\n{question}"));
    assert_eq!(forgotten[0]["text"], answers[0]["text"]);
    assert!(used(&forgotten[1], "prompt_tokens") < said, "{forgotten:?}");
    assert_ne!(forgotten[1]["text"], answers[1]["text"]);
}

#[test]
fn granted_files_are_summed_up_one_by_one_and_together_and_the_grant_is_given_back() {
    let home = home();
    let texts = Texts::new(&home);
    let server = home.start();
    let (bakers, boats) = (
        texts.write("bakers.txt", BAKERS),
        texts.write("boats.txt", "The boats left the harbour at dawn.\n"),
    );
    let one = home.cli_ok(&["summarize", &bakers]);
    assert!(one.to_lowercase().contains("bak") && one.contains("bread"), "{one}");
    let both = json_of(&home.cli(&["summarize", &bakers, &boats, "--max-tokens", "40", "--json"]));
    let files = both["files"].as_array().unwrap();
    assert_eq!((&files[0]["file"], &files[1]["file"]), (&json!(bakers), &json!(boats)));
    assert!(
        files.iter().chain([&both["together"]]).all(|part| !part["text"].as_str().unwrap().is_empty()),
        "{both}"
    );
    let grants = server.admin().get("/grants").ok();
    let grants = grants["grants"].as_array().unwrap();
    assert!(grants.len() == 2 && grants.iter().all(|grant| grant["state"] == "revoked"), "{grants:#?}");
}

#[test]
fn what_can_t_be_done_ends_with_its_code() {
    let home = home();
    let texts = Texts::new(&home);
    let server = home.start();
    let refused = |arguments: &[&str]| refused(&home.cli(&[arguments, &["--json"]].concat()));
    assert_eq!(refused(&["run", "none", "hello"]), (5, "model_unknown".to_owned()));
    assert_eq!(refused(&["run", "tiny-bert", "hello"]), (5, "task_unsupported".to_owned()));
    let schema = home.folder.path().join("schema.json");
    fs::write(&schema, r#"{"type": "no such type"}"#).unwrap();
    let arguments = ["run", MODEL, "hello", "--schema", schema.to_str().unwrap()];
    assert_eq!(refused(&arguments), (5, "schema_refused".to_owned()));
    let long = texts.write("long.txt", "one two three ".repeat(4_000));
    let output = home.cli(&["summarize", &long, "--json"]);
    assert_eq!(self::refused(&output), (5, "context_length_exceeded".to_owned()));
    let message = json_of(&output)["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("long.txt (56000 bytes)") && message.contains("8192"), "{message}");
    let picture = texts.write("picture.png", [0x89, b'P', 0xff, 0xfe]);
    assert_eq!(refused(&["summarize", &picture]), (5, "input_not_text".to_owned()));
    let bakers = texts.write("bakers.txt", BAKERS);
    texts.rule("deny");
    assert_eq!(refused(&["summarize", &bakers]), (5, "grant_denied_by_rule".to_owned()));
    server.stop();
    assert_eq!(refused(&["run", MODEL, "hello"]), (4, "server_unreachable".to_owned()));
}

/// Jobs that are in workers.
fn running(server: &Server) -> u64 {
    let status = server.status();
    let workers = status["workers"].as_array().unwrap().iter();
    workers.map(|worker| worker["running"].as_u64().unwrap()).sum()
}

fn wait_until(what: &str, server: &Server, is_so: impl Fn() -> bool) {
    let until = Instant::now() + WAIT_MAX;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: {}", server.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ctrl_c_takes_the_job_back_and_the_grant_too_and_a_revocation_is_told() {
    let home = home();
    let texts = Texts::new(&home);
    let server = home.start();
    let interrupt = |child: &std::process::Child| {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    };
    let long =
        ["run", MODEL, "Write a very long story.", "--max-tokens", "4000", "--temperature", "1.5", "--json"];
    let child = command(&home, &long).spawn().unwrap();
    wait_until("the job runs", &server, || running(&server) > 0);
    interrupt(&child);
    assert_eq!(refused(&child.wait_with_output().unwrap()), (1, "interrupted".to_owned()));
    wait_until("the job is gone", &server, || running(&server) == 0);

    let file = texts.write("story.txt", BAKERS.repeat(60));
    let summing_up = || {
        let child = command(&home, &["summarize", &file, "--max-tokens", "2000", "--json"]).spawn().unwrap();
        wait_until("the job runs", &server, || running(&server) > 0);
        child
    };
    let child = summing_up();
    interrupt(&child);
    assert_eq!(refused(&child.wait_with_output().unwrap()), (1, "interrupted".to_owned()));
    let child = summing_up();
    home.cli_ok(&["grant", "revoke", "2"]);
    assert_eq!(refused(&child.wait_with_output().unwrap()), (5, "grant_revoked".to_owned()));
    let grants = server.admin().get("/grants").ok();
    assert!(
        grants["grants"].as_array().unwrap().iter().all(|grant| grant["state"] == "revoked"),
        "{grants:#}"
    );
    wait_until("the job is gone", &server, || running(&server) == 0);
}

#[test]
fn a_bench_of_chats_has_answers_of_one_length_and_what_they_took() {
    let home = home();
    let _server = home.start();
    let options = ["--clients", "2", "--requests", "4", "--prompt-tokens", "16", "--max-tokens", "12"];
    let report = json_of(&home.cli(&[&["bench", "chat", "--model", MODEL, "--json"], &options[..]].concat()));
    assert_eq!((&report["answered"], &report["errors"]), (&json!(4), &json!({})), "{report:#}");
    let (seconds, together) =
        (report["elapsed_s"].as_f64().unwrap(), report["tokens_per_s"].as_f64().unwrap());
    assert!((seconds * together - 48.0).abs() < 0.5, "all tokens were written: {report:#}");
    assert!(report["prompt_tokens_per_request"].as_f64().unwrap() > 16.0, "{report:#}");
    assert!(report["first_token_ms"]["p50"].as_f64().unwrap() > 0.0, "{report:#}");
}
