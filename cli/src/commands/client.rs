//! `ringfence client`: names that may use the server, each with a socket of its own.

use super::{client_name, text};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, table};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

/// Add, list and remove clients
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
    /// Remove a client: its socket, keys and grants are gone with the answer, its jobs are cancelled
    #[command(after_help = "\
Examples:
  ringfence client remove notes

Its section of quotas.toml stays, and counts for whoever is added under this name again.")]
    Remove {
        /// From `ringfence client list`
        #[arg(value_parser = client_name)]
        name: String,
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
        ClientCommand::Remove { name } => remove(&admin, &name, output),
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

fn remove(admin: &Address, name: &str, output: &Output) -> Result<(), CliError> {
    let removed = ask_once(admin, &Ask::plain(Method::DELETE, format!("/clients/{name}")))?;
    output.answer(&removed, |_| {
        let count = |field| text(&removed, field);
        let (keys, grants) = (count("keys_revoked"), count("grants_ended"));
        format!("client {name} is removed; {keys} of its keys are revoked, {grants} of its grants ended")
    })
}

fn list(admin: &Address, output: &Output) -> Result<(), CliError> {
    let listed = ask_once(admin, &Ask::plain(Method::GET, "/clients"))?;
    output.answer(&listed, |style| {
        let row = |client: &Value| ["name", "uid", "socket"].map(|field| text(client, field)).to_vec();
        table(style, &["NAME", "UID", "SOCKET"], &super::rows(&listed, "clients", row))
    })
}
