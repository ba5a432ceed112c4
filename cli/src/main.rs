//! The executable `ringfence`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringfence_cli::run(std::env::args_os())
}
