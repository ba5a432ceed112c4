//! `ringfence key`: API keys for clients that come over TCP.

use super::{rows, text, time};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, table, utc};
use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// Add, list and revoke API keys
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ringfence key add notes\n  ringfence key revoke 0a1b2c3d4e5f")]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it, once, alone on standard output
    #[command(after_help = "\
Examples:
  ringfence key add notes > notes.key
  ringfence key add notes --expires-in 30d
  ringfence key add prometheus --scope metrics")]
    Add {
        /// The client that the key stands for
        client: String,
        /// What the key opens
        #[arg(long, value_enum, default_value = "infer")]
        scope: Scope,
        /// How long it holds, for example 90s, 15m, 12h, 30d [default: until revoked]
        #[arg(long, value_name = "TIME", value_parser = time)]
        expires_in: Option<Duration>,
    },
    /// List the keys; what opens the door is not kept and can't be shown
    #[command(after_help = "Examples:\n  ringfence key list\n  ringfence key list --json")]
    List,
    /// Revoke a key at once
    #[command(after_help = "Examples:\n  ringfence key revoke 0a1b2c3d4e5f")]
    Revoke {
        /// From `ringfence key list`
        #[arg(value_parser = id)]
        id: String,
    },
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scope {
    /// The public routes, as its client
    Infer,
    /// The server's metrics, nothing else
    Metrics,
}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(args: KeyArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    match args.command {
        KeyCommand::Add { client, scope, expires_in } => add(&admin, &client, scope, expires_in, output),
        KeyCommand::List => list(&admin, output),
        KeyCommand::Revoke { id } => revoke(&admin, &id, output),
    }
}

fn add(
    admin: &Address,
    client: &str,
    scope: Scope,
    expires_in: Option<Duration>,
    output: &Output,
) -> Result<(), CliError> {
    let scope = match scope {
        Scope::Infer => "infer",
        Scope::Metrics => "metrics",
    };
    let mut body = json!({"client": client, "scope": scope});
    if let Some(time) = expires_in {
        body["expires_in_s"] = time.as_secs().into();
    }
    let added = ask_once(admin, &Ask::post("/keys", &body))?;
    output.note(&format!(
        "key {} for client {client}; it is shown only now, keep it secret (revoke: ringfence key revoke {0})",
        text(&added, "id")
    ));
    output.answer(&added, |_| text(&added, "key"))
}

fn list(admin: &Address, output: &Output) -> Result<(), CliError> {
    let listed = ask_once(admin, &Ask::plain(Method::GET, "/keys"))?;
    output.answer(&listed, |style| {
        let row = |key: &Value| {
            let plain = |field| text(key, field);
            let date = |field: &str| key[field].as_u64().map_or("-".to_owned(), utc);
            vec![
                plain("id"),
                plain("client"),
                plain("scope"),
                date("created_at"),
                date("expires_at"),
                plain("revoked"),
            ]
        };
        let heading = ["ID", "CLIENT", "SCOPE", "CREATED", "EXPIRES", "REVOKED"];
        table(style, &heading, &rows(&listed, "keys", row))
    })
}

fn revoke(admin: &Address, id: &str, output: &Output) -> Result<(), CliError> {
    let answer = ask_once(admin, &Ask::plain(Method::DELETE, format!("/keys/{id}")))?;
    let answer = if answer.is_null() { json!({"id": id, "revoked": true}) } else { answer };
    output.answer(&answer, |_| format!("key {id} is revoked"))
}

/// An id goes into a path, so nothing else may be in it.
fn id(text: &str) -> Result<String, &'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let is_id = !text.is_empty() && text.len() <= 64 && text.bytes().all(legal);
    if is_id { Ok(text.to_owned()) } else { Err("not the id of a key; `ringfence key list` shows them") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_can_not_leave_its_place_in_the_path() {
        assert_eq!(id("0aF_-"), Ok("0aF_-".to_owned()));
        for wrong in ["", "a/b", "..", "a b", "a?b", &"a".repeat(65)] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }
}
