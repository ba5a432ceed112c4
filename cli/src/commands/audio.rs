//! `ringfence audio`: who listens, and a command that is told of it.

use super::text;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, ask_once};
use crate::output::{Output, Style, table, utc};
use clap::{Args, Subcommand};
use hyper::Method;
use ringfence_grants::visible;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How long the server lets us wait for a change.
const WAIT_MS: u64 = 30_000;

/// Show who listens, and end it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  ringfence audio list\n  ringfence audio stop 3\n  ringfence audio watch --exec /usr/local/bin/light-the-lamp"
)]
pub struct AudioArgs {
    #[command(subcommand)]
    command: AudioCommand,
}

#[derive(Debug, Subcommand)]
enum AudioCommand {
    /// List what captures sound, or is about to
    #[command(
        after_help = "Examples:\n  ringfence audio list\n  ringfence audio list --json | jq '.captures[].source'"
    )]
    List,
    /// Take no sample until it is resumed
    #[command(after_help = "Examples:\n  ringfence audio pause 3")]
    Pause {
        /// Its number
        capture: u64,
    },
    /// Go on after a pause
    #[command(after_help = "Examples:\n  ringfence audio resume 3")]
    Resume {
        /// Its number
        capture: u64,
    },
    /// End one; what was said until then still becomes text
    #[command(after_help = "Examples:\n  ringfence audio stop 3")]
    Stop {
        /// Its number
        capture: u64,
    },
    /// Show each start and end while they come, until ctrl-c, and have a command told of them
    #[command(after_help = "\
Examples:
  ringfence audio watch
  ringfence audio watch --exec /usr/local/bin/light-the-lamp

Each is one line of JSON on the command's standard input: {\"event\",\"capture\"}. event is started, paused, resumed or ended;
capture is as `audio list --json` has it, with \"shown_source\" for people, in which nothing hides. What runs already when the
watch begins is told as started. One command runs at a time, for at most 30 s.")]
    Watch {
        /// Run this by the shell for each
        #[arg(long, value_name = "CMD")]
        exec: Option<String>,
    },
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: AudioArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    let order = |capture: u64, order: &str| {
        let path = format!("/audio/captures/{capture}/{order}");
        let capture = ask_once(&admin, &Ask::plain(Method::POST, path))?;
        output.answer(&capture, |_| row(&capture).join("  "))
    };
    match args.command {
        AudioCommand::List => {
            let captures = ask_once(&admin, &Ask::plain(Method::GET, "/audio/captures"))?;
            output.answer(&captures, |style| list(&captures, style))
        }
        AudioCommand::Pause { capture } => order(capture, "pause"),
        AudioCommand::Resume { capture } => order(capture, "resume"),
        AudioCommand::Stop { capture } => order(capture, "stop"),
        AudioCommand::Watch { exec } => watch(&admin, exec.as_deref(), output),
    }
}

fn list(captures: &Value, style: Style) -> String {
    const HEADING: [&str; 8] = ["CAPTURE", "STATE", "CLIENT", "MODEL", "GRANT", "UNTIL", "HEARD", "SOURCE"];
    let rows = super::rows(captures, "captures", row);
    if rows.is_empty() { "nothing is captured".to_owned() } else { table(style, &HEADING, &rows) }
}

fn row(capture: &Value) -> Vec<String> {
    vec![
        text(capture, "capture"),
        text(capture, "state"),
        visible(&text(capture, "client")),
        visible(&text(capture, "model")),
        text(capture, "grant"),
        capture["until_ms"].as_u64().map_or("-".to_owned(), |ms| utc(ms / 1_000)),
        format!("{} s", capture["audio_ms"].as_u64().unwrap_or(0) / 1_000),
        visible(&text(capture, "source")),
    ]
}

fn watch(admin: &Address, exec: Option<&str>, output: &Output) -> Result<(), CliError> {
    let runtime = http::runtime()?;
    let (mut known, mut path) = (BTreeMap::new(), "/audio/captures".to_owned());
    loop {
        let answer = ask_once(admin, &Ask::plain(Method::GET, &*path))?;
        path = format!("/audio/captures?after={}&wait_ms={WAIT_MS}", answer["version"].as_u64().unwrap_or(0));
        let now = by_number(&answer);
        for change in changes(&known, &now) {
            if output.is_json() {
                output.line(&change.to_string())?;
            } else {
                output.line(&format!(
                    "{}  {}",
                    text(&change, "event"),
                    row(&change["capture"]).join("  ")
                ))?;
            }
            if let Some(exec) = exec
                && let Err(why) = runtime.block_on(super::alert::tell(exec, &change))
            {
                output.note(&format!("capture {}: {exec}: {why}", text(&change["capture"], "capture")));
            }
        }
        known = now;
    }
}

/// Those that have begun, by number.
fn by_number(answer: &Value) -> BTreeMap<u64, Value> {
    let begun = |capture: &&Value| !matches!(capture["state"].as_str(), Some("opening" | "waiting"));
    let captures = answer["captures"].as_array().into_iter().flatten().filter(begun);
    captures.filter_map(|capture| Some((capture["capture"].as_u64()?, capture.clone()))).collect()
}

/// What has begun, ended or changed between two looks.
fn changes(before: &BTreeMap<u64, Value>, now: &BTreeMap<u64, Value>) -> Vec<Value> {
    let told = |event: &str, capture: &Value| json!({"event": event, "capture": capture});
    let ended =
        before.iter().filter(|(number, _)| !now.contains_key(number)).map(|(_, was)| told("ended", was));
    let others = now.iter().filter_map(|(number, is)| {
        let was = before.get(number).map(|was| was["state"] == "paused");
        match (was, is["state"] == "paused") {
            (None, _) => Some(told("started", is)),
            (Some(false), true) => Some(told("paused", is)),
            (Some(true), false) => Some(told("resumed", is)),
            (Some(_), _) => None,
        }
    });
    ended.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(of: &[(u64, &str)]) -> BTreeMap<u64, Value> {
        let capture = |(number, state): &(u64, &str)| json!({"capture": number, "state": state, "source": "pulse:a\u{202e}"});
        by_number(&json!({"captures": of.iter().map(capture).collect::<Vec<_>>()}))
    }

    #[test]
    fn each_start_pause_and_end_is_told_once() {
        let names = |before: &[(u64, &str)], now: &[(u64, &str)]| {
            let changes = changes(&captures(before), &captures(now));
            changes
                .iter()
                .map(|change| format!("{} {}", text(change, "event"), change["capture"]["capture"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[], &[(1, "running"), (2, "waiting")]), ["started 1"]);
        assert_eq!(names(&[(1, "running")], &[(1, "paused"), (2, "running")]), ["paused 1", "started 2"]);
        assert_eq!(names(&[(1, "paused"), (2, "running")], &[(1, "running")]), ["ended 2", "resumed 1"]);
        assert_eq!(names(&[(1, "running")], &[(1, "running")]), Vec::<String>::new());
    }

    #[test]
    fn a_list_hides_nothing() {
        let page = list(&json!({"captures": [captures(&[(1, "running")])[&1]]}), Style::plain());
        assert!(page.contains("pulse:a\\u{202e}"), "{page}");
    }
}
