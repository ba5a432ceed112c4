//! The command `init`.

use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;
use clap::Args;

/// Options of `ringfence init`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ringfence init")]
pub struct InitArgs {}

/// Runs it.
///
/// # Errors
/// See [`CliError`].
pub fn run(_args: InitArgs, _home: &Home, _output: &Output) -> Result<(), CliError> {
    Ok(())
}
