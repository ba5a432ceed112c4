//! `ringfence trace`: what came to the server, recorded, and replayed under other quotas.

mod record;
mod replay;

use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Record what comes to the server, and replay it under other quotas
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence trace record monday.trace --seconds 600
  ringfence trace replay monday.trace --quotas new.toml

A trace has names of clients and models, sizes and times. It has no contents.")]
pub struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Write down which jobs come to the running server and how they end
    #[command(after_help = "Examples:\n  ringfence trace record monday.trace --seconds 600")]
    Record {
        /// The file, which is replaced
        file: PathBuf,
        /// For how long
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
    /// Say what would have been different for each client; needs no server
    #[command(after_help = "\
Examples:
  ringfence trace replay monday.trace --quotas new.toml
  ringfence trace replay monday.trace --quotas new.toml --json

The same scheduler decides as in the server, in virtual time, and each job takes as long as was measured. The last lines \
say how far the replay of the recorded quotas is what was recorded: so far the rest can be trusted.")]
    Replay {
        /// A trace
        file: PathBuf,
        /// The other quotas
        #[arg(long, value_name = "FILE")]
        quotas: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// [`CliError::Failed`] for a file that is wrong or can't be read or written; those of [`crate::http::Connection`].
pub fn run(args: TraceArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    match args.command {
        TraceCommand::Record { file, seconds } => record::run(&file, seconds, home, output),
        TraceCommand::Replay { file, quotas } => replay::run(&file, &quotas, output),
    }
}
