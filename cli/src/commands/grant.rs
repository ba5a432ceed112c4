//! `ringfence grant`: what clients ask for and have, and the operator's answers.

use super::text;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, ask_once};
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::{Output, Style, bytes, table, utc};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use hyper::Method;
use ringfence_grants::{Approval, visible};
use ringfence_models::{SignBytes, SigningKey};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// How long the server lets us wait for a change.
const WAIT_MS: u64 = 30_000;
/// How long a command may take to decide: as long as the question waits.
const DECISION_WAIT_MAX: Duration = Duration::from_secs(60);
/// As much of a command's answer as is read.
const DECISION_BYTES_MAX: u64 = 1_024;
/// The longest lifetime that a number of minutes can say: a day.
const MINUTES_MAX: u64 = 24 * 60;

/// Say who may read or write which files or hear which microphone, and until when
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  ringfence grant list\n  ringfence grant approve 7 --minutes 10\n  ringfence grant revoke 7"
)]
pub struct GrantArgs {
    #[command(subcommand)]
    command: GrantCommand,
}

#[derive(Debug, Subcommand)]
enum GrantCommand {
    /// List what waits for an answer and what is granted
    #[command(
        after_help = "Examples:\n  ringfence grant list\n  ringfence grant list --all --json | jq '.grants[].path'"
    )]
    List {
        /// Also the last ones that have ended
        #[arg(long)]
        all: bool,
    },
    /// Show exactly what one is about
    #[command(after_help = "Examples:\n  ringfence grant show 7")]
    Show {
        /// Its number
        grant: u64,
    },
    /// Say yes
    #[command(after_help = "\
Examples:
  ringfence grant approve 7
  ringfence grant approve 7 8 9 --minutes 10

Nobody approves what he has asked for himself: where the asker's user is yours, the operator's passphrase is asked for.")]
    Approve {
        /// Its number, or several
        #[arg(required = true, value_name = "GRANT")]
        grants: Vec<u64>,
        /// For so long instead of as long as was asked for
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MINUTES_MAX))]
        minutes: Option<u64>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Say no
    #[command(after_help = "Examples:\n  ringfence grant deny 7")]
    Deny {
        /// Its number
        grant: u64,
    },
    /// Take one back, with all that was narrowed from it
    #[command(after_help = "Examples:\n  ringfence grant revoke 7")]
    Revoke {
        /// Its number
        grant: u64,
    },
    /// Show questions while they come, until ctrl-c, and let a command answer them
    #[command(after_help = "\
Examples:
  ringfence grant watch
  ringfence grant watch --exec /usr/local/bin/ask-me

Each question is one line of JSON on the command's standard input, as `grant show --json` has it; show people \"shown_path\",
in which nothing hides. Its first line of output is the answer: `approve`, `approve 10` (minutes) or `deny`. Anything else,
or nothing within a minute, is no answer, and the question is denied by the server. Questions of your own user need the
operator's passphrase: --passphrase-file.")]
    Watch {
        /// Run this by the shell for each question
        #[arg(long, value_name = "CMD")]
        exec: Option<String>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`], and of the operator's key.
pub fn run(args: GrantArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    match args.command {
        GrantCommand::List { all } => {
            let mut grants = ask_once(&admin, &Ask::plain(Method::GET, "/grants"))?;
            if let Some(list) = grants["grants"].as_array_mut().filter(|_| !all) {
                list.retain(|grant| grant["state"] == "pending" || grant["state"] == "live");
            }
            output.answer(&grants, |style| list(&grants, style))
        }
        GrantCommand::Show { grant } => {
            let grant = show(&admin, grant)?;
            output.answer(&grant, |_| page(&grant))
        }
        GrantCommand::Approve { grants, minutes, operator } => {
            let mut approver = Approver::new(&admin, &operator);
            grants.into_iter().try_for_each(|grant| {
                let grant = approver.approve(grant, minutes)?;
                output.answer(&grant, |_| page(&grant) + "\n")
            })
        }
        GrantCommand::Deny { grant } => {
            let grant = ask_once(&admin, &Ask::plain(Method::POST, format!("/grants/{grant}/deny")))?;
            output.answer(&grant, |_| page(&grant))
        }
        GrantCommand::Revoke { grant } => {
            let grant = ask_once(&admin, &Ask::plain(Method::DELETE, format!("/grants/{grant}")))?;
            output.answer(&grant, |_| page(&grant))
        }
        GrantCommand::Watch { exec, operator } => watch(&admin, exec.as_deref(), &operator, output),
    }
}

fn show(admin: &Address, grant: u64) -> Result<Value, CliError> {
    ask_once(admin, &Ask::plain(Method::GET, format!("/grants/{grant}")))
}

fn list(grants: &Value, style: Style) -> String {
    const HEADING: [&str; 7] = ["GRANT", "STATE", "CLIENT", "KIND", "FOR", "UNTIL", "PATH"];
    let rows = super::rows(grants, "grants", row);
    if rows.is_empty() { "no grants".to_owned() } else { table(style, &HEADING, &rows) }
}

fn row(grant: &Value) -> Vec<String> {
    vec![
        text(grant, "grant"),
        text(grant, "state"),
        shown(grant, "client"),
        text(grant, "kind"),
        shown(grant, "audience"),
        until(grant),
        shown(grant, "path"),
    ]
}

/// A stranger's text: nothing in it hides.
fn shown(grant: &Value, field: &str) -> String {
    visible(&text(grant, field))
}

fn until(grant: &Value) -> String {
    match (grant["until_ms"].as_u64(), grant["lifetime_ms"].as_u64()) {
        (Some(until), _) => utc(until / 1_000),
        (None, Some(lifetime)) => format!("{} min after approval", lifetime.div_ceil(60_000)),
        (None, None) => "-".to_owned(),
    }
}

/// All that is decided, one fact a line.
fn page(grant: &Value) -> String {
    let number = |field: &str| grant[field].as_u64();
    let object = &grant["object"];
    let of_sound = grant["kind"] == "audio_capture";
    let object = match object["kind"].as_str() {
        None if of_sound => "a source of sound, which is opened when it is listened to".to_owned(),
        None => "not opened".to_owned(),
        Some(kind) => format!(
            "{kind} {}:{} of uid {}, {}, changed {}",
            text(object, "device"),
            text(object, "inode"),
            text(object, "owner"),
            object["size"].as_u64().map_or("-".to_owned(), bytes),
            object["modified_ms"].as_u64().map_or("-".to_owned(), |ms| utc(ms / 1_000)),
        ),
    };
    let moved = if of_sound {
        "bounded by the time".to_owned()
    } else {
        format!("{} of {}", bytes(number("bytes").unwrap_or(0)), bytes(number("bytes_max").unwrap_or(0)))
    };
    let uses = number("uses_max").map_or("any number of times".to_owned(), |most| format!("{most} times"));
    let copies = if grant["snapshot"] == true {
        "may be handed over, and can't be called back"
    } else {
        "are not handed over"
    };
    let facts = [
        ("grant", format!("{} ({})", text(grant, "grant"), text(grant, "state"))),
        ("client", format!("{} (uid {})", shown(grant, "client"), text(grant, "uid"))),
        ("wants", text(grant, "kind")),
        ("path", shown(grant, "path")),
        ("object", object),
        ("for", shown(grant, "audience")),
        ("reason", shown(grant, "reason")),
        ("results", shown(grant, "results")),
        ("until", until(grant)),
        ("bytes", moved),
        ("uses", format!("{} of {uses}", number("uses").unwrap_or(0))),
        ("copies", copies.to_owned()),
    ];
    facts.map(|(name, fact)| format!("{name:8} {fact}")).join("\n")
}

/// Approves; with the operator's key where the server wants that, which is opened once.
struct Approver<'a> {
    admin: &'a Address,
    operator: &'a OperatorArgs,
    key: Option<SigningKey>,
}

impl<'a> Approver<'a> {
    fn new(admin: &'a Address, operator: &'a OperatorArgs) -> Self {
        Self { admin, operator, key: None }
    }

    fn approve(&mut self, grant: u64, minutes: Option<u64>) -> Result<Value, CliError> {
        let lifetime_ms = minutes.map(|minutes| minutes * 60_000);
        let path = format!("/grants/{grant}/approve");
        let plain = ask_once(self.admin, &Ask::post(&*path, &json!({"lifetime_ms": lifetime_ms})));
        match plain {
            Err(CliError::Refused { code, .. }) if code == "operator_proof_needed" => {
                let text = approval_text(self.admin, grant, lifetime_ms)?;
                let signature = STANDARD.encode(self.key()?.sign_bytes(text.as_bytes()));
                let body = json!({"lifetime_ms": lifetime_ms, "signature": signature});
                ask_once(self.admin, &Ask::post(path, &body))
            }
            answered => answered,
        }
    }

    fn key(&mut self) -> Result<&SigningKey, CliError> {
        let key = match self.key.take() {
            Some(key) => key,
            None => self.operator.config()?.open(KeyFile::Operator, &self.operator.passphrase()?)?,
        };
        Ok(self.key.insert(key))
    }
}

/// What the key signs: made of what is shown to the operator, not taken from the server as a text.
fn approval_text(admin: &Address, grant: u64, lifetime_ms: Option<u64>) -> Result<String, CliError> {
    let run = ask_once(admin, &Ask::plain(Method::GET, "/grants"))?;
    let view = show(admin, grant)?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let object = &view["object"];
    let approval = Approval {
        run: &text(&run, "run"),
        grant,
        client: &text(&view, "client"),
        kind: &text(&view, "kind"),
        path: &text(&view, "path"),
        audience: &text(&view, "audience"),
        object: (number(&object["device"]), number(&object["inode"])),
        lifetime_ms: lifetime_ms.unwrap_or(number(&view["lifetime_ms"])),
        bytes_max: number(&view["bytes_max"]),
        snapshot: view["snapshot"] == true,
    };
    Ok(approval.text())
}

fn watch(
    admin: &Address,
    exec: Option<&str>,
    operator: &OperatorArgs,
    output: &Output,
) -> Result<(), CliError> {
    let runtime = http::runtime()?;
    let mut asked = 0;
    let mut path = "/grants".to_owned();
    loop {
        let grants = ask_once(admin, &Ask::plain(Method::GET, &*path))?;
        let version = grants["version"].as_u64().unwrap_or(0);
        path = format!("/grants?after={version}&wait_ms={WAIT_MS}");
        let list = grants["grants"].as_array().into_iter().flatten();
        // A server that was started anew counts from 1 again.
        let last = list.clone().filter_map(|grant| grant["grant"].as_u64()).max().unwrap_or(0);
        asked = if last < asked { 0 } else { asked };
        for grant in list.filter(|grant| grant["state"] == "pending") {
            let number = grant["grant"].as_u64().unwrap_or(0);
            if number <= asked {
                continue;
            }
            output.line(&if output.is_json() { grant.to_string() } else { page(grant) + "\n" })?;
            if let Some(exec) = exec {
                let answered = runtime.block_on(question(exec, grant)).and_then(|answer| {
                    answered(admin, number, answer, operator).map_err(|error| error.to_string())
                });
                match answered {
                    Ok(state) => output.note(&format!("grant {number}: {state}")),
                    Err(why) => output.note(&format!("grant {number} is not answered: {why}")),
                }
            }
        }
        asked = asked.max(last);
    }
}

/// What a command says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Approve(Option<u64>),
    Deny,
}

fn answered(admin: &Address, grant: u64, said: Said, operator: &OperatorArgs) -> Result<String, CliError> {
    let grant = match said {
        Said::Approve(minutes) => Approver::new(admin, operator).approve(grant, minutes)?,
        Said::Deny => ask_once(admin, &Ask::plain(Method::POST, format!("/grants/{grant}/deny")))?,
    };
    Ok(text(&grant, "state"))
}

/// Gives a question to a command and reads its answer.
async fn question(exec: &str, grant: &Value) -> Result<Said, String> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", exec]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (mut input, output) = (input.expect("it is piped"), output.expect("it is piped"));
    let talk = async {
        // A command that does not read is its own business.
        let _ = input.write_all(format!("{grant}\n").as_bytes()).await;
        drop(input);
        let mut said = String::new();
        output.take(DECISION_BYTES_MAX).read_to_string(&mut said).await.map_err(|error| error.to_string())?;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if status.success() { Ok(said) } else { Err(format!("the command failed: {status}")) }
    };
    match timeout(DECISION_WAIT_MAX, talk).await {
        Err(_) => Err(format!("the command was killed after {} s", DECISION_WAIT_MAX.as_secs())),
        Ok(said) => said.and_then(|said| parse(&said)),
    }
}

fn parse(said: &str) -> Result<Said, String> {
    let words: Vec<&str> = said.lines().next().unwrap_or_default().split_whitespace().collect();
    let minutes = |text: &str| text.parse().ok().filter(|minutes| (1..=MINUTES_MAX).contains(minutes));
    match words[..] {
        ["deny"] => Ok(Said::Deny),
        ["approve"] => Ok(Said::Approve(None)),
        ["approve", text] if minutes(text).is_some() => Ok(Said::Approve(minutes(text))),
        _ => Err("the command's first line must be `approve`, `approve MINUTES` or `deny`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Value {
        json!({"grant": 7, "client": "notes", "uid": 1000, "state": "pending", "kind": "file_read",
               "path": "/home/anna/a\u{202e}b\nApproved", "audience": "model minilm", "reason": "to find passages",
               "results": "an index", "snapshot": false, "uses_max": null, "uses": 0, "bytes_max": 1048576, "bytes": 0,
               "lifetime_ms": 600_000, "until_ms": null,
               "object": {"kind": "folder", "device": 1, "inode": 2, "owner": 1000, "size": 4096, "modified_ms": 0}})
    }

    #[test]
    fn a_name_can_not_pass_for_a_line_of_the_question() {
        let page = page(&grant());
        assert_eq!(page.lines().count(), 12, "{page}");
        assert!(page.contains("path     /home/anna/a\\u{202e}b\\u{a}Approved"), "{page}");
        assert!(page.contains("folder 1:2 of uid 1000") && page.contains("10 min after approval"), "{page}");
        let list = list(&json!({"grants": [grant()]}), Style::plain());
        assert_eq!(list.lines().count(), 2, "{list}");
    }

    #[test]
    fn a_question_about_sound_says_from_where_and_for_how_long() {
        let sound = json!({"grant": 8, "client": "notes", "uid": 1000, "state": "pending", "kind": "audio_capture",
               "path": "pulse:fakemic.monitor", "audience": "model whisper", "reason": "a note", "results": "a text",
               "snapshot": false, "uses_max": null, "uses": 0, "bytes_max": 0, "bytes": 0, "lifetime_ms": 300_000,
               "until_ms": null, "object": null});
        let page = page(&sound);
        assert!(
            page.contains("wants    audio_capture") && page.contains("path     pulse:fakemic.monitor"),
            "{page}"
        );
        assert!(page.contains("5 min after approval") && page.contains("bounded by the time"), "{page}");
    }

    #[test]
    fn a_command_answers_by_its_first_line_or_not_at_all() {
        let runtime = http::runtime().unwrap();
        let ask = |command: &str| runtime.block_on(question(command, &grant()));
        assert_eq!(ask("echo approve"), Ok(Said::Approve(None)));
        assert_eq!(ask("read question; echo approve 10"), Ok(Said::Approve(Some(10))));
        assert_eq!(ask("grep -q notes && echo deny"), Ok(Said::Deny));
        for command in [
            "true",
            "echo yes",
            "echo approve 0",
            "echo approve 1441",
            "echo approve; exit 1",
            "echo; echo approve",
        ] {
            assert!(ask(command).is_err(), "{command}");
        }
    }
}
