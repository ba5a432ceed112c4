//! `ringfence client`: names that may use the server, each with a socket of its own.

use super::{client_name, text};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, table};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

/// Add and list clients
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ringfence client add notes\n  ringfence client list")]
pub struct ClientArgs {
    #[command(subcommand)]
    command: ClientCommand,
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Add a client: whoever reaches its socket is that client
    #[command(
        after_help = "Examples:\n  ringfence client add notes\n  ringfence client add notes --uid 1001"
    )]
    Add {
        /// 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit
        #[arg(value_parser = client_name)]
        name: String,
        /// The uid that may reach the socket beside the server's own
        #[arg(long)]
        uid: Option<u32>,
    },
    /// List the clients
    #[command(after_help = "Examples:\n  ringfence client list\n  ringfence client list --json")]
    List,
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: ClientArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    match args.command {
        ClientCommand::Add { name, uid } => add(&admin, &name, uid, output),
        ClientCommand::List => list(&admin, output),
    }
}

fn add(admin: &Address, name: &str, uid: Option<u32>, output: &Output) -> Result<(), CliError> {
    let mut body = json!({"name": name});
    if let Some(uid) = uid {
        body["uid"] = uid.into();
    }
    let added = ask_once(admin, &Ask::post("/clients", &body))?;
    output.answer(&added, |_| {
        format!("client {} has the socket {}", text(&added, "name"), text(&added, "socket"))
    })
}

fn list(admin: &Address, output: &Output) -> Result<(), CliError> {
    let listed = ask_once(admin, &Ask::plain(Method::GET, "/clients"))?;
    output.answer(&listed, |style| {
        let row = |client: &Value| ["name", "uid", "socket"].map(|field| text(client, field)).to_vec();
        table(style, &["NAME", "UID", "SOCKET"], &super::rows(&listed, "clients", row))
    })
}
