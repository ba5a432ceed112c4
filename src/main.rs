//! `ringfence-server`, started by `ringfence serve` or by systemd: HTTP in front, the scheduler in the middle,
//! sandboxed workers behind.
//!
//! | folder | holds |
//! | --- | --- |
//! | `api/` | routes, identity, bodies, errors on the wire, listening |
//! | `audit/` | what has to be in the audit log before it takes effect |
//! | `capture/` | live sound: the programs that capture, their grants, workers and clients |
//! | `dispatch/` | the scheduler's rim: jobs, models, workers' entries, canaries, files that change |
//! | `workers/` | worker processes: spawning, links, legal messages, their ends |
//!
//! `start` puts them together; the other files are what they say.

mod alerts;
mod api;
mod audit;
mod capture;
mod clients;
mod clock;
mod dispatch;
mod gpus;
mod grants;
mod home;
mod keys;
mod nvml;
mod oom;
mod packages;
mod quota_file;
mod ready_file;
mod settings;
mod start;
mod status;
mod workers;

use clap::Parser;
use ready_file::ReadyFile;
use start::{Options, serve};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(ReadyFile::SUBCOMMAND) {
        return ReadyFile::subcommand();
    }
    match serve(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfence-server: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
