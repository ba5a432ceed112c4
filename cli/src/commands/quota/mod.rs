//! `ringfence quota`: what devices, models and clients may take.

mod current;
pub(crate) mod edit;

use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, Style, table};
use clap::{Args, Subcommand};
use current::Current;
use edit::Assignment;
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, IF_MATCH};
use ringfence_scheduler::quotas::Quotas;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Show, check and change what devices, models and clients may take
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence quota show
  ringfence quota set clients.notes.weight=4

They stand in one file, quotas.toml in the home; every value has a default. A change is taken whole while jobs run, \
or refused with the line that is wrong, and survives a restart.")]
pub struct QuotaArgs {
    #[command(subcommand)]
    command: QuotaCommand,
}

#[derive(Debug, Subcommand)]
enum QuotaCommand {
    /// Print the file, or what counts; without a server, by the file in the home
    #[command(after_help = "\
Examples:
  ringfence quota show > quotas.toml
  ringfence quota show --effective
  ringfence quota show --effective --json")]
    Show {
        /// Every value that counts, defaults included, with its unit
        #[arg(long)]
        effective: bool,
    },
    /// Say whether a file is legal, and if not, which line is wrong
    #[command(after_help = "Examples:\n  ringfence quota check quotas.toml")]
    Check {
        /// The file
        file: PathBuf,
    },
    /// Say what would change with a file; without a server, against the file in the home
    #[command(
        after_help = "Examples:\n  ringfence quota diff quotas.toml\n  ringfence quota diff quotas.toml --json"
    )]
    Diff {
        /// The file
        file: PathBuf,
    },
    /// Change values of a running server's file; comments stay
    #[command(after_help = "\
Examples:
  ringfence quota set clients.notes.weight=4 clients.notes.class=realtime
  ringfence quota set 'clients.\"uid:1000\".models=[\"minilm*\"]'
  ringfence quota set models.minilm.lease_mib=

A key is written as in `ringfence quota show --effective`. Without a value the default counts again. A first value for \
a model or client makes its section, and from then on `default` does not count for it.")]
    Set {
        /// What to set; a name with other characters than a-z 0-9 _ - is quoted
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = Assignment::parse)]
        assignments: Vec<Assignment>,
    },
    /// Replace a running server's file
    #[command(after_help = "Examples:\n  ringfence quota apply quotas.toml")]
    Apply {
        /// The file
        file: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// [`CliError::Failed`] for a file that is wrong or can't be read; those of [`ask_once`].
pub fn run(args: QuotaArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    match args.command {
        QuotaCommand::Show { effective: false } => show(&Current::read(home)?, output),
        QuotaCommand::Show { effective: true } => show_effective(&Current::read(home)?, output),
        QuotaCommand::Check { file } => check(&file, output),
        QuotaCommand::Diff { file } => diff(&file, home, output),
        QuotaCommand::Set { assignments } => set(&assignments, home, output),
        QuotaCommand::Apply { file } => apply(&file, home, output),
    }
}

fn show(current: &Current, output: &Output) -> Result<(), CliError> {
    current.remark(output);
    output.answer(current, |_| current.text.clone())
}

fn show_effective(current: &Current, output: &Output) -> Result<(), CliError> {
    current.remark(output);
    let effective = current.effective()?;
    let answer = json!({"from": current.from, "effective": effective});
    output.answer(&answer, |style| {
        let row = |value: &Value| ["field", "value", "unit"].map(|field| shown(&value[field])).to_vec();
        table(style, &["FIELD", "VALUE", "UNIT"], &super::rows(&answer, "effective", row))
    })
}

fn check(file: &Path, output: &Output) -> Result<(), CliError> {
    legal(file)?;
    output.answer(&json!({"file": file, "legal": true}), |_| format!("{} is legal", file.display()))
}

fn diff(file: &Path, home: &Home, output: &Output) -> Result<(), CliError> {
    let (_, new) = legal(file)?;
    let current = Current::read(home)?;
    current.remark(output);
    let answer = json!({"from": current.from, "changes": current.quotas()?.changes(&new)});
    output.answer(&answer, |style| changes(&answer, style))
}

fn set(assignments: &[Assignment], home: &Home, output: &Output) -> Result<(), CliError> {
    let current = Current::of_server(home)?;
    let text = edit::edit(&current.text, assignments)?;
    put(text, current.revision, home, output)
}

fn apply(file: &Path, home: &Home, output: &Output) -> Result<(), CliError> {
    let (text, _) = legal(file)?;
    put(text, None, home, output)
}

/// Replaces the server's file, if it still is the one of the revision that the text was made from.
fn put(text: String, made_from: Option<String>, home: &Home, output: &Output) -> Result<(), CliError> {
    let mut headers = vec![(CONTENT_TYPE, "application/toml".to_owned())];
    headers.extend(made_from.map(|revision| (IF_MATCH, format!("\"{revision}\""))));
    let ask = Ask { body: Bytes::from(text), headers, ..Ask::plain(Method::PUT, "/quotas") };
    let answer = ask_once(&Address::Unix(home.admin_socket()), &ask)?;
    output.answer(&answer, |style| changes(&answer, style))
}

/// The text of a file and what it says.
fn legal(file: &Path) -> Result<(String, Quotas), CliError> {
    let subject = || file.display().to_string();
    let bytes = fs::read(file).map_err(|source| CliError::io(subject(), source))?;
    let quotas = Quotas::parse_bytes(&bytes).map_err(|source| CliError::Failed {
        subject: subject(),
        code: "quota_invalid",
        source: source.into(),
        advice: String::new(),
    })?;
    Ok((String::from_utf8(bytes).expect("it was parsed"), quotas))
}

fn changes(answer: &Value, style: Style) -> String {
    let row = |change: &Value| ["field", "from", "to"].map(|field| shown(&change[field])).to_vec();
    let rows = super::rows(answer, "changes", row);
    if rows.is_empty() {
        return "no value that counts changes".to_owned();
    }
    table(style, &["FIELD", "FROM", "TO"], &rows)
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    }
}
