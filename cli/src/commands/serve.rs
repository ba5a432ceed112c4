//! `ringfence serve`: becomes the server.

use crate::error::CliError;
use crate::home::Home;
use clap::Args;
use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Start the server in the foreground
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence serve
  ringfence serve --listen 127.0.0.1:8080
  ringfence serve --user ringfence --ready-file /run/ringfence.json")]
pub struct ServeArgs {
    /// Also serve clients with an API key on this loopback address; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Write {"url","socket","admin_socket","pid"} to this file when ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Started as root: the user to become before anything is opened
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// More options for ringfence-server
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<OsString>,
}

/// Replaces this process by `ringfence-server` from this executable's own folder, so that both are of one build.
///
/// # Errors
/// [`CliError::Failed`] where it is not there; on success it does not return.
pub fn run(args: ServeArgs, home: &Home) -> Result<(), CliError> {
    let own = env::current_exe().map_err(|source| CliError::io("own executable", source))?;
    let server = own.with_file_name("ringfence-server");
    let source = Command::new(&server).args(arguments(args, home)).exec();
    Err(CliError::Failed {
        subject: server.display().to_string(),
        code: "server_not_started",
        source: source.into(),
        advice: "install ringfence-server in the same folder as ringfence".to_owned(),
    })
}

fn arguments(args: ServeArgs, home: &Home) -> Vec<OsString> {
    let mut list = vec![OsString::from("--home"), home.path().into()];
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            list.extend([OsString::from(name), value]);
        }
    };
    option("--listen", args.listen.map(|address| address.to_string().into()));
    option("--ready-file", args.ready_file.map(Into::into));
    option("--user", args.user.map(Into::into));
    list.extend(args.more);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gets_the_same_options_and_the_home() {
        let args = ServeArgs {
            listen: Some(([127, 0, 0, 1], 0).into()),
            ready_file: Some("/tmp/ready".into()),
            user: None,
            more: vec!["--verbose".into()],
        };
        let home = Home::resolve(Some("/srv/h".into())).unwrap();
        let expected =
            ["--home", "/srv/h", "--listen", "127.0.0.1:0", "--ready-file", "/tmp/ready", "--verbose"];
        assert_eq!(arguments(args, &home), expected);
    }
}
