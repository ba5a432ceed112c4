//! What each command does.

pub mod alert;
pub mod audio;
pub mod audit;
pub mod bench;
pub mod chat;
pub mod client;
pub mod doctor;
pub mod grant;
pub mod index;
pub mod init;
mod kernel_log;
pub mod key;
pub mod listen;
pub mod logs;
pub mod model;
pub mod quota;
pub mod run;
pub mod search;
pub mod serve;
pub mod status;
pub mod stress;
pub mod summarize;
pub mod top;
pub mod trace;
pub mod transcribe;
pub mod trust;
pub mod usage;
pub mod why;

use crate::args::Command;
use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;
use serde_json::Value;
use std::time::Duration;

/// Seconds of a day.
pub(crate) const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Runs one command.
///
/// # Errors
/// The command's own.
pub fn run(command: Command, home: &Home, output: &Output) -> Result<(), CliError> {
    match command {
        Command::Init(args) => init::run(args, home, output),
        Command::Model(args) => model::run(args, home, output),
        Command::Client(args) => client::run(args, home, output),
        Command::Key(args) => key::run(args, home, output),
        Command::Quota(args) => quota::run(args, home, output),
        Command::Trust(args) => trust::run(args, home, output),
        Command::Serve(args) => serve::run(args, home),
        Command::Doctor(args) => doctor::run(&args, home, output),
        Command::Status(args) => status::run(args, home, output),
        Command::Top(args) => top::run(args, home, output),
        Command::Usage(args) => usage::run(args, home, output),
        Command::Alert(args) => alert::run(args, home, output),
        Command::Index(args) => index::run(args, home, output),
        Command::Search(args) => search::run(args, home, output),
        Command::Run(args) => run::run(args, home, output),
        Command::Chat(args) => chat::run(args, home, output),
        Command::Summarize(args) => summarize::run(args, home, output),
        Command::Transcribe(args) => transcribe::run(args, home, output),
        Command::Listen(args) => listen::run(args, home, output),
        Command::Audio(args) => audio::run(args, home, output),
        Command::Grant(args) => grant::run(args, home, output),
        Command::Audit(args) => audit::run(args, home, output),
        Command::Logs(args) => logs::run(&args, home, output),
        Command::Why(args) => why::run(&args, home, output),
        Command::Trace(args) => trace::run(args, home, output),
        Command::Bench(args) => bench::run(args, home, output),
        Command::Stress(args) => stress::run(args, home, output),
    }
}

/// A field of the server's answer as text; `-` where it is missing, so that a newer server can still be read.
fn text(object: &Value, field: &str) -> String {
    match &object[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    }
}

/// The list in the answer's field `list`, one row each.
fn rows(answer: &Value, list: &str, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    answer[list].as_array().into_iter().flatten().map(row).collect()
}

/// A number and a unit, as on the command line.
fn time(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "give a number and a unit: s, m, h or d";
    let unit = text.chars().last().ok_or(WRONG)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(WRONG),
    };
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| WRONG)?;
    let total = count.checked_mul(seconds).ok_or(WRONG)?;
    if total == 0 { Err("give more than nothing") } else { Ok(Duration::from_secs(total)) }
}

/// The server's grammar of client names: they become part of a path here.
fn client_name(text: &str) -> Result<String, &'static str> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let legal = |byte: u8| alphanumeric(byte) || b"._-".contains(&byte);
    let first = text.bytes().next().is_some_and(alphanumeric);
    if first && text.len() <= 64 && text.bytes().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        let check = |text, seconds| assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        check("90s", 90);
        check("15m", 900);
        check("12h", 43_200);
        check("30d", 2_592_000);
        for wrong in ["", "30", "d", "-1d", "1.5h", "1w", "0s", "1ä", "18446744073709551615d"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_name_can_not_leave_its_folder() {
        for name in ["", ".", "..", "a/b", "-a", "A", &"a".repeat(65)] {
            assert!(client_name(name).is_err(), "{name}");
        }
        assert_eq!(client_name("notes.app-2"), Ok("notes.app-2".to_owned()));
    }
}
