//! `ringfence usage`: what clients have had, may have and were refused.

use super::text;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, Style, table};
use clap::Args;
use hyper::Method;
use serde_json::Value;

/// Show what each client has had, what is left of its rates, and what it was refused
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence usage
  ringfence usage --json | jq '.clients[] | {client, device_us}'

Counts are since the server's start. LEFT is what may come at once now, of jobs, milliseconds of device time and tokens.")]
pub struct UsageArgs {}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(_args: UsageArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    let usage = ask_once(&admin, &Ask::plain(Method::GET, "/usage"))?;
    output.answer(&usage, |style| page(&usage, style))
}

/// Usage for people.
pub fn page(usage: &Value, style: Style) -> String {
    const HEADING: [&str; 11] = [
        "CLIENT",
        "WEIGHT",
        "CLASS",
        "WAITING",
        "RUNNING",
        "DONE",
        "FAILED",
        "REFUSED",
        "DEVICE MS",
        "TOKENS",
        "LEFT",
    ];
    let row = |client: &Value| {
        let plain = |field| text(client, field);
        let refused = client["refused"].as_object().into_iter().flat_map(|codes| codes.values());
        let refused: u64 = refused.filter_map(Value::as_u64).sum();
        let device_ms = client["device_us"].as_u64().map_or("-".to_owned(), |us| (us / 1_000).to_string());
        vec![
            plain("client"),
            plain("weight"),
            plain("class"),
            plain("waiting"),
            plain("running"),
            plain("done"),
            plain("failed"),
            refused.to_string(),
            device_ms,
            plain("tokens"),
            left(&client["rates"]),
        ]
    };
    let rows = super::rows(usage, "clients", row);
    if rows.is_empty() {
        return "no client has asked for anything yet".to_owned();
    }
    let mut page = table(style, &HEADING, &rows);
    for (code, count) in usage["refusals"].as_object().into_iter().flatten() {
        page.push_str(&format!("\nrefused {count} times: {code}"));
    }
    page
}

fn left(rates: &Value) -> String {
    let of = |field: &str, divisor: i64| {
        rates[field]["available"].as_i64().map_or("-".to_owned(), |left| (left / divisor).to_string())
    };
    let audio = of("audio_ms", 1_000);
    format!("{} / {} / {} / {audio}", of("jobs", 1), of("device_us", 1_000), of("tokens", 1))
}
