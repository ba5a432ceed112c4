//! The command line.

use crate::commands::alert::AlertArgs;
use crate::commands::audio::AudioArgs;
use crate::commands::audit::AuditArgs;
use crate::commands::bench::BenchArgs;
use crate::commands::chat::ChatArgs;
use crate::commands::client::ClientArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::grant::GrantArgs;
use crate::commands::index::IndexArgs;
use crate::commands::init::InitArgs;
use crate::commands::key::KeyArgs;
use crate::commands::listen::ListenArgs;
use crate::commands::logs::LogsArgs;
use crate::commands::model::ModelArgs;
use crate::commands::quota::QuotaArgs;
use crate::commands::run::RunArgs;
use crate::commands::search::SearchArgs;
use crate::commands::serve::ServeArgs;
use crate::commands::status::StatusArgs;
use crate::commands::stress::StressArgs;
use crate::commands::summarize::SummarizeArgs;
use crate::commands::top::TopArgs;
use crate::commands::trace::TraceArgs;
use crate::commands::transcribe::TranscribeArgs;
use crate::commands::trust::TrustArgs;
use crate::commands::usage::UsageArgs;
use crate::commands::why::WhyArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs local models for the apps of this machine, each in a sandboxed process under enforced quotas.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ringfence init --passphrase-file pass.txt
  ringfence model add minilm --passphrase-file pass.txt
  ringfence serve
  ringfence client add notes

Exit codes:
  0  done
  1  failed on this machine
  2  wrong usage
  3  a signature, digest or trust file did not hold
  4  no server answered
  5  the server refused (4xx or 5xx)

Errors go to standard error as text; with --json to standard output, as
{\"error\":{\"code\",\"message\",\"advice\"}}.";

/// Options of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// Folder of models, clients, keys and sockets [default: /var/lib/ringfence as root, else
    /// $XDG_DATA_HOME/ringfence]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Print JSON on standard output, errors included
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the home folder, the operator's keys and the trust file
    Init(InitArgs),
    /// Add, list, verify and sign models
    Model(ModelArgs),
    /// Add and list clients
    Client(ClientArgs),
    /// Add, list and revoke API keys
    Key(KeyArgs),
    /// Show, check and change what devices, models and clients may take
    Quota(QuotaArgs),
    /// Show and change whose signature counts for which models
    Trust(TrustArgs),
    /// Start the server in the foreground
    Serve(ServeArgs),
    /// Look at the kernel, devices, drivers, trust and the server, and say what to do about what is missing
    Doctor(DoctorArgs),
    /// Show the server's health, models, workers, memory leases and sandbox
    Status(StatusArgs),
    /// Watch workers, models, clients and refusals
    Top(TopArgs),
    /// Show what each client has had, has left and was refused
    Usage(UsageArgs),
    /// Show what went wrong, and have a command told of it
    Alert(AlertArgs),
    /// Say who may read or write which files or hear which microphone, and until when
    Grant(GrantArgs),
    /// Make a folder searchable by meaning, through grants
    Index(IndexArgs),
    /// Find passages of an indexed folder by what they mean
    Search(SearchArgs),
    /// Ask a model once
    Run(RunArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Sum up text files, through grants
    Summarize(SummarizeArgs),
    /// Write down what is said in audio files
    Transcribe(TranscribeArgs),
    /// Write down what is said into a microphone, as it is said
    Listen(ListenArgs),
    /// Show who listens, and end it
    Audio(AudioArgs),
    /// Check, read, export and prune the log of what was asked, decided and used
    Audit(AuditArgs),
    /// Show what happened to a model's workers and what they wrote
    Logs(LogsArgs),
    /// Say why a job waits, runs, was refused or failed
    Why(WhyArgs),
    /// Record what comes to the server, and replay it under other quotas
    Trace(TraceArgs),
    /// Measure a running server
    Bench(BenchArgs),
    /// Hold a running server's promises against what it does under stress
    Stress(StressArgs),
}
