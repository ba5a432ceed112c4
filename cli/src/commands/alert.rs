//! `ringfence alert`: what the operator wants to be told of, and a command that tells somebody.

use super::text;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, ask_once};
use crate::output::{Output, Style, table, utc};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long the server lets us wait for an alert.
const WAIT_MS: u64 = 30_000;
/// How long a command may take over one alert; then it is killed.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(30);

/// See what went wrong, and have a command told of it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  ringfence alert list\n  ringfence alert watch --exec /usr/local/bin/page-me"
)]
pub struct AlertArgs {
    #[command(subcommand)]
    command: AlertCommand,
}

#[derive(Debug, Subcommand)]
enum AlertCommand {
    /// List the last alerts, at most 1024, of this run of the server
    #[command(
        after_help = "Examples:\n  ringfence alert list\n  ringfence alert list --json | jq '.alerts[-1]'"
    )]
    List,
    /// Show alerts while they come, until ctrl-c
    #[command(after_help = "\
Examples:
  ringfence alert watch
  ringfence alert watch --json >> /var/log/ringfence-alerts
  ringfence alert watch --exec /usr/local/bin/page-me

Each alert is one line of JSON on the command's standard input: {\"id\",\"time\",\"kind\",\"model\",\"device\",\"rung\",\"message\",
\"left_out\"}. kind is out_of_memory, package_refused, package_changed, device_failed or worker_illegal. One command runs at
a time, for at most 30 s; that it failed is said, and the next alert gets another.")]
    Watch {
        /// Run this by the shell for each alert
        #[arg(long, value_name = "CMD")]
        exec: Option<String>,
        /// Also those that came before, of this run of the server
        #[arg(long)]
        all: bool,
    },
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: AlertArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    match args.command {
        AlertCommand::List => {
            let alerts = ask_once(&admin, &Ask::plain(Method::GET, "/alerts"))?;
            output.answer(&alerts, |style| page(&alerts, style))
        }
        AlertCommand::Watch { exec, all } => watch(&admin, exec.as_deref(), all, output),
    }
}

fn page(alerts: &Value, style: Style) -> String {
    const HEADING: [&str; 7] = ["ID", "TIME", "KIND", "MODEL", "DEVICE", "RUNG", "MESSAGE"];
    let rows = super::rows(alerts, "alerts", row);
    if rows.is_empty() {
        "no alerts since the server's start".to_owned()
    } else {
        table(style, &HEADING, &rows)
    }
}

fn row(alert: &Value) -> Vec<String> {
    let left_out = alert["left_out"].as_u64().filter(|left_out| *left_out > 0);
    let more = left_out.map_or(String::new(), |left_out| format!(" (and {left_out} like it before)"));
    vec![
        text(alert, "id"),
        alert["time"].as_u64().map_or("-".to_owned(), utc),
        text(alert, "kind"),
        text(alert, "model"),
        text(alert, "device"),
        text(alert, "rung"),
        format!("{}{more}", text(alert, "message")),
    ]
}

fn watch(admin: &Address, exec: Option<&str>, all: bool, output: &Output) -> Result<(), CliError> {
    let runtime = http::runtime()?;
    let mut known = if all { 0 } else { last(&ask_once(admin, &Ask::plain(Method::GET, "/alerts"))?) };
    loop {
        let path = format!("/alerts?after={known}&wait_ms={WAIT_MS}");
        let answer = ask_once(admin, &Ask::plain(Method::GET, path))?;
        // One that was started anew counts from 1 again.
        known = if last(&answer) < known { 0 } else { last(&answer) };
        for alert in answer["alerts"].as_array().into_iter().flatten() {
            if output.is_json() {
                output.line(&alert.to_string())?;
            } else {
                output.line(&row(alert).join("  "))?;
            }
            if let Some(exec) = exec
                && let Err(why) = runtime.block_on(tell(exec, alert))
            {
                output.note(&format!("alert {}: {exec}: {why}", text(alert, "id")));
            }
        }
    }
}

/// The number to go on from.
fn last(answer: &Value) -> u64 {
    answer["last"].as_u64().unwrap_or(0)
}

/// Gives an alert, or what else a command is to hear of, to it.
pub(super) async fn tell(exec: &str, alert: &Value) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", exec]).stdin(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut input = child.stdin.take().expect("it is piped");
    let told = async {
        // A command that does not read is its own business.
        let _ = input.write_all(format!("{alert}\n").as_bytes()).await;
        drop(input);
        child.wait().await
    };
    match timeout(COMMAND_WAIT_MAX, told).await {
        Err(_) => Err(format!("killed after {} s", COMMAND_WAIT_MAX.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it failed: {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn alert() -> Value {
        json!({"id": 3, "time": 0, "kind": "out_of_memory", "model": "minilm", "device": "cpu",
               "rung": "killed-by-kernel", "message": "m", "left_out": 2})
    }

    #[test]
    fn the_page_says_what_was_left_out() {
        let page = page(&json!({"alerts": [alert()], "last": 3}), Style::plain());
        assert!(page.contains("killed-by-kernel") && page.contains("m (and 2 like it before)"), "{page}");
        assert!(super::page(&json!({"alerts": [], "last": 0}), Style::plain()).contains("no alerts"));
    }

    #[test]
    fn a_command_hears_the_alert_and_its_failure_is_said() {
        let runtime = http::runtime().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let heard = folder.path().join("heard");
        let command = format!("cat > {}", heard.display());
        assert_eq!(runtime.block_on(tell(&command, &alert())), Ok(()));
        let text = std::fs::read_to_string(heard).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), alert());
        let failed = runtime.block_on(tell("exit 3", &alert())).unwrap_err();
        assert!(failed.contains('3'), "{failed}");
    }
}
