//! `ringfence why`: where a job is, what it waits for, or which rule ended it.

use super::text;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, Style, table};
use clap::Args;
use hyper::Method;
use serde_json::Value;

/// Say why a job waits, runs, was refused or failed
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence why 4711
  ringfence why 4711 --json | jq .waiting

Every answer about a job has its number in the header ringfence-job. Jobs that have ended are remembered for a while.")]
pub struct WhyArgs {
    /// The job's number
    pub job: u64,
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: &WhyArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    let job = ask_once(&admin, &Ask::plain(Method::GET, format!("/jobs/{}", args.job)))?;
    output.answer(&job, |style| page(&job, style))
}

/// A job for people.
pub fn page(job: &Value, style: Style) -> String {
    let head = format!(
        "{} {} of {} for {}, {} ms old: {}",
        style.bold("job"),
        text(job, "job"),
        text(job, "client"),
        text(job, "model"),
        text(job, "age_ms"),
        style.bold(&text(job, "state")),
    );
    let row = |decision: &Value| {
        vec![
            format!("{} ms ago", text(decision, "ago_ms")),
            text(decision, "event"),
            text(decision, "action"),
            text(decision, "rule"),
        ]
    };
    let rows = super::rows(job, "decisions", row);
    let mut page = format!("{head}\n{}", text(job, "why"));
    if !rows.is_empty() {
        page.push_str("\n\n");
        page.push_str(&table(style, &["WHEN", "AFTER", "DECIDED", "RULE"], &rows));
    }
    page
}
