//! What each command does.

pub mod init;
pub mod model;

use crate::args::Command;
use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;

/// Runs one command.
///
/// # Errors
/// The command's own.
pub fn run(command: Command, home: &Home, output: &Output) -> Result<(), CliError> {
    match command {
        Command::Init(args) => init::run(args, home, output),
        Command::Model(args) => model::run(args, home, output),
    }
}
