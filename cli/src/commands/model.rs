//! The command `model`.

use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;
use clap::Args;

/// Options of `ringfence model`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ringfence model")]
pub struct ModelArgs {}

/// Runs it.
///
/// # Errors
/// See [`CliError`].
pub fn run(_args: ModelArgs, _home: &Home, _output: &Output) -> Result<(), CliError> {
    Ok(())
}
