//! Grants of this command: asked for together, answered by the operator, given back when it ends.

use crate::error::CliError;
use crate::http::{Address, Answer, Ask, Connection};
use crate::output::Output;
use hyper::Method;
use hyper::header::{HeaderName, RANGE};
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;

/// How long a question waits for its answer, in milliseconds, and so do we.
const ANSWER_WAIT_MS: u64 = 60_000;
/// How long a whole file may take beyond what any answer may.
const WHOLE_WAIT_MAX: Duration = Duration::from_secs(600);
/// What a capability string is sent in.
const CAPABILITY: HeaderName = HeaderName::from_static("ringfence-capability");
/// Characters of a path that stand for themselves in a query.
const PLAIN: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `file_read` or `file_write`.
    pub kind: &'static str,
    /// An absolute path.
    pub path: String,
    /// The model that gets the bytes; without one we do.
    pub model: Option<String>,
    /// Why.
    pub reason: String,
    /// Where results go.
    pub results: String,
    /// For so long after the approval.
    pub lifetime_ms: u64,
    /// Bytes in all.
    pub bytes_max: u64,
}

/// A grant that we hold.
#[derive(Clone, Debug)]
pub struct Held {
    number: u64,
    /// The string that opens it.
    pub capability: String,
    /// The model that it is for.
    pub model: Option<String>,
}

/// All that this command holds, in the order in which it was asked for.
#[derive(Debug)]
pub struct HeldGrants {
    address: Address,
    grants: Vec<Held>,
}

impl HeldGrants {
    /// Asks for all, says what waits for an answer, and waits for it.
    ///
    /// # Errors
    /// The server's refusals; [`CliError::Failed`] where an answer is no or none.
    pub async fn ask(address: &Address, wanted: &[Wanted], output: &Output) -> Result<Self, CliError> {
        let mut connection = Connection::open(address).await?;
        let mut held = Self { address: address.clone(), grants: Vec::new() };
        let asked = held.ask_all(&mut connection, wanted, output).await;
        match asked {
            Ok(()) => Ok(held),
            Err(error) => {
                held.give_back().await;
                Err(error)
            }
        }
    }

    async fn ask_all(
        &mut self,
        connection: &mut Connection,
        wanted: &[Wanted],
        output: &Output,
    ) -> Result<(), CliError> {
        let mut waiting = Vec::new();
        for wanted in wanted {
            let asked = connection.send(&Ask::post("/grants", &wanted.body())).await?.json()?;
            let number = asked["grant"].as_u64().unwrap_or(0);
            self.grants.push(Held { number, capability: String::new(), model: wanted.model.clone() });
            if asked["state"] == "pending" {
                waiting.push(number.to_string());
            }
        }
        if !waiting.is_empty() {
            let numbers = waiting.join(" ");
            output
                .note(&format!("waiting for the operator, for a minute: ringfence grant approve {numbers}"));
        }
        for grant in &mut self.grants {
            grant.capability = claimed(connection, grant.number).await?;
        }
        Ok(())
    }

    /// The one that was asked for at this place.
    pub fn get(&self, at: usize) -> &Held {
        &self.grants[at]
    }

    /// Gives all back. What the server can't be told ends by its time.
    pub async fn give_back(self) {
        let Ok(mut connection) = Connection::open(&self.address).await else { return };
        for grant in self.grants {
            drop(connection.send(&Ask::plain(Method::DELETE, format!("/grants/{}", grant.number))).await);
        }
    }
}

impl Wanted {
    fn body(&self) -> Value {
        let Self { kind, path, model, reason, results, lifetime_ms, bytes_max } = self;
        let mut body = json!({"kind": kind, "path": path, "reason": reason, "results": results,
                              "lifetime_ms": lifetime_ms, "bytes_max": bytes_max});
        if let Some(model) = model {
            body["model"] = model.as_str().into();
        }
        body
    }
}

/// The string of a grant as soon as it is approved.
async fn claimed(connection: &mut Connection, number: u64) -> Result<String, CliError> {
    let path = format!("/grants/{number}?wait_ms={ANSWER_WAIT_MS}");
    let answered = connection.send(&Ask::plain(Method::GET, path)).await?.json()?;
    let state = answered["state"].as_str().unwrap_or("unknown");
    if state != "live" {
        let why = if state == "pending" { "nobody has answered" } else { state };
        return Err(CliError::Failed {
            subject: format!("grant {number}"),
            code: "grant_not_given",
            source: why.to_owned().into(),
            advice: "ask again and have it approved within a minute, or write a rule: docs/grants.md"
                .to_owned(),
        });
    }
    let claimed =
        connection.send(&Ask::plain(Method::POST, format!("/grants/{number}/claim"))).await?.json()?;
    Ok(claimed["capability"].as_str().unwrap_or_default().to_owned())
}

impl Held {
    /// Reads a file, or a range of it, for ourselves.
    ///
    /// # Errors
    /// Those of [`Connection::send`].
    pub async fn read(
        &self,
        connection: &mut Connection,
        path: &str,
        range: Option<Range<u64>>,
    ) -> Result<Answer, CliError> {
        let mut ask = Ask::plain(Method::GET, file(path));
        ask.headers.push((CAPABILITY, self.capability.clone()));
        if let Some(range) = range {
            ask.headers.push((RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1))));
        }
        connection.send(&ask).await
    }

    /// Reads a whole file that may be large.
    ///
    /// # Errors
    /// Those of [`Connection::stream`]; [`CliError::Failed`] for one of more than `bytes_max`.
    pub async fn read_whole(
        &self,
        connection: &mut Connection,
        path: &str,
        bytes_max: usize,
    ) -> Result<Vec<u8>, CliError> {
        let mut ask = Ask::plain(Method::GET, file(path));
        ask.headers.push((CAPABILITY, self.capability.clone()));
        let mut whole = Vec::new();
        let mut take = |bytes: &[u8]| {
            whole.extend_from_slice(bytes);
            if whole.len() <= bytes_max {
                return Ok(());
            }
            Err(CliError::Failed {
                subject: path.to_owned(),
                code: "file_too_large",
                source: format!("it has more than {bytes_max} bytes").into(),
                advice: String::new(),
            })
        };
        connection.stream(&ask, WHOLE_WAIT_MAX, &mut take).await?;
        Ok(whole)
    }

    /// Writes a file whole.
    ///
    /// # Errors
    /// Those of [`Connection::send`].
    pub async fn write(
        &self,
        connection: &mut Connection,
        path: &str,
        bytes: Vec<u8>,
    ) -> Result<(), CliError> {
        let mut ask = Ask::plain(Method::PUT, file(path));
        ask.headers.push((CAPABILITY, self.capability.clone()));
        ask.headers.push((hyper::header::CONTENT_TYPE, "application/octet-stream".to_owned()));
        ask.body = bytes.into();
        connection.send(&ask).await.map(drop)
    }
}

/// The route of a file.
fn file(path: &str) -> String {
    let mut route = "/grants/file?path=".to_owned();
    for byte in path.bytes() {
        if PLAIN.contains(&byte) { route.push(byte.into()) } else { route.push_str(&format!("%{byte:02X}")) }
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_so_that_nothing_in_it_is_of_the_query() {
        assert_eq!(file("notes/a b&c=é?.md"), "/grants/file?path=notes/a%20b%26c%3D%C3%A9%3F.md");
    }
}
