//! What people type: keys, models, clients, the server's status and a load generator.
//!
//! A library beside the executable, so that the demonstration and the tests can use its HTTP client.

pub mod args;
pub mod bench;
pub mod clock;
pub mod commands;
pub mod doctor;
pub mod durable;
pub mod error;
pub mod generate;
pub mod home;
pub mod http;
pub mod index;
pub mod listen;
pub mod operator;
pub mod output;
pub mod stress;
pub mod top;
pub mod trust;

use args::Cli;
use clap::Parser;
use error::{CliError, Exit};
use output::Output;
use std::ffi::OsString;
use std::process::ExitCode;

/// Parses the command line, runs the command and reports its error: to standard error, or as JSON to standard
/// output with `--json`.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    match Cli::try_parse_from(arguments) {
        Ok(cli) => finish(cli),
        Err(error) => report_usage(&error, wants_json),
    }
}

fn finish(cli: Cli) -> ExitCode {
    let output = Output::new(cli.global.json);
    let result =
        home::Home::resolve(cli.global.home).and_then(|home| commands::run(cli.command, &home, &output));
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            // Reports of these are one JSON document, with what is wrong in it.
            let reported = matches!(error, CliError::Broken { .. } | CliError::Unready { .. });
            if !(output.is_json() && reported) {
                output.error(&error);
            }
            error.exit().into()
        }
    }
}

/// Help and version are answers and go to standard output; a usage error ends with 2.
fn report_usage(error: &clap::Error, wants_json: bool) -> ExitCode {
    if error.use_stderr() && wants_json {
        let what = error.to_string();
        Output::new(true).error(&CliError::Usage { what: what.trim_end().to_owned(), advice: String::new() });
        return Exit::Usage.into();
    }
    // Nobody is left to tell when the terminal has gone.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}
