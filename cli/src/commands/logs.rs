//! `ringfence logs`: what happened to a model's workers, what they wrote, and what the kernel's drivers said meanwhile.

use super::kernel_log;
use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, Style, utc};
use clap::Args;
use hyper::Method;
use ringfence_grants::visible;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::thread;
use std::time::Duration;

/// How often `--follow` looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Show what happened to a model's workers and what they wrote
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence logs minilm
  ringfence logs minilm --follow
  ringfence logs minilm --json

The server keeps the last 500 lines of each model in its memory, in no file. Messages of GPU drivers (NVIDIA's Xid, amdgpu)
and of the kernel's out-of-memory killer stand between them by their time, where this user may read the kernel's log.")]
pub struct LogsArgs {
    /// The model
    model: String,
    /// Go on until ctrl-c
    #[arg(long, short)]
    follow: bool,
}

#[derive(Debug, Deserialize)]
struct Answer {
    lines: Vec<ServerLine>,
}

#[derive(Debug, Deserialize)]
struct ServerLine {
    number: u64,
    time_ms: u64,
    worker: u64,
    source: String,
    text: String,
}

/// A line of any source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `worker`, `server` or `kernel`.
    pub source: String,
    /// Which worker; none of the kernel's.
    pub worker: Option<u64>,
    /// What it says.
    pub text: String,
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: &LogsArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    let mut kernel = kernel_log::KernelLog::open();
    if let Err(why) = &kernel {
        output.note(&format!("without the kernel's log: {why}"));
    }
    let mut after = 0;
    loop {
        let answer =
            ask_once(&admin, &Ask::plain(Method::GET, format!("/models/{}/logs?after={after}", args.model)))?;
        let answer: Answer = serde_json::from_value(answer)
            .map_err(|source| CliError::Answer { request: "GET logs".to_owned(), source: source.into() })?;
        after = answer.lines.last().map_or(after, |line| line.number);
        let kernel = kernel.as_mut().map_or_else(|_| Vec::new(), kernel_log::KernelLog::lines);
        let lines = joined(answer.lines, kernel);
        match (args.follow, output.is_json()) {
            (true, true) => lines.iter().try_for_each(|line| output.line(&json!(line).to_string()))?,
            (true, false) if lines.is_empty() => {}
            (true, false) => output.line(&page(&lines, output.style()))?,
            (false, _) => return output.answer(&json!({"lines": lines}), |style| page(&lines, style)),
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// By time; the kernel's only while there was something to see of the model.
fn joined(server: Vec<ServerLine>, kernel: Vec<Line>) -> Vec<Line> {
    let from = server.first().map_or(clock::unix_ms() as u64, |line| line.time_ms);
    let line = |line: ServerLine| Line {
        time_ms: line.time_ms,
        source: line.source,
        worker: Some(line.worker),
        text: line.text,
    };
    let mut lines: Vec<Line> = server.into_iter().map(line).collect();
    lines.extend(kernel.into_iter().filter(|line| line.time_ms >= from));
    lines.sort_by_key(|line| line.time_ms);
    lines
}

fn page(lines: &[Line], style: Style) -> String {
    let shown = |line: &Line| {
        let time = utc(line.time_ms / 1_000);
        let when = format!("{}.{:03}Z", time.trim_end_matches('Z'), line.time_ms % 1_000);
        let who = match (line.source.as_str(), line.worker) {
            ("worker", Some(worker)) => format!("worker {worker}:"),
            (_, Some(worker)) => style.bold(&format!("worker {worker}")),
            (source, None) => style.red(&format!("{source}:")),
        };
        format!("{} {who} {}", style.dim(&when), visible(&line.text))
    };
    if lines.is_empty() {
        return "nothing has happened to workers of this model".to_owned();
    }
    lines.iter().map(shown).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_by_time_and_the_kernel_is_heard_only_from_the_first_on() {
        let server = |number, time_ms, text: &str| ServerLine {
            number,
            time_ms,
            worker: 3,
            source: "server".to_owned(),
            text: text.to_owned(),
        };
        let kernel = |time_ms, text: &str| Line {
            time_ms,
            source: "kernel".to_owned(),
            worker: None,
            text: text.to_owned(),
        };
        let lines = joined(
            vec![server(1, 1_000, "starts"), server(2, 5_250, "has ended")],
            vec![kernel(900, "before"), kernel(5_000, "NVRM: Xid 79")],
        );
        let page = page(&lines, Style::plain());
        let expected = "1970-01-01 00:00:01.000Z worker 3 starts\n\
                        1970-01-01 00:00:05.000Z kernel: NVRM: Xid 79\n\
                        1970-01-01 00:00:05.250Z worker 3 has ended";
        assert_eq!(page, expected);
    }
}
