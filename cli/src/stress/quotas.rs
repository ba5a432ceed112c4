//! The quotas of the server under stress: read before a scenario, changed in it, put back after it.

use super::server::Server;
use crate::commands::quota::edit::{Assignment, edit};
use crate::error::CliError;
use crate::http::Ask;
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, IF_MATCH};
use serde_json::Value;

/// The quotas as they were.
#[derive(Clone, Debug)]
pub struct Original {
    /// The whole text.
    pub text: String,
    /// Names it.
    pub revision: String,
}

/// The quotas now; none where this server can't change them.
///
/// # Errors
/// Those of the connection.
pub async fn read(server: &Server) -> Result<Option<Original>, CliError> {
    let Some(quotas) = server.ask_if_there("/quotas").await? else { return Ok(None) };
    let field = |name: &str| quotas[name].as_str().map(str::to_owned);
    let (text, revision) = (field("text"), field("revision"));
    match text.zip(revision) {
        Some((text, revision)) => Ok(Some(Original { text, revision })),
        None => Err(CliError::Answer {
            request: "GET /quotas".to_owned(),
            source: "it has no text or no revision".into(),
        }),
    }
}

/// Replaces them; `made_from` refuses that where they are others by now.
///
/// # Errors
/// [`CliError::Refused`] where the server refuses the text, and those of the connection.
pub async fn put(server: &Server, text: &str, made_from: Option<&str>) -> Result<Value, CliError> {
    let mut ask = Ask::plain(Method::PUT, "/quotas");
    ask.body = Bytes::from(text.to_owned());
    ask.headers.push((CONTENT_TYPE, "application/toml".to_owned()));
    ask.headers.extend(made_from.map(|revision| (IF_MATCH, format!("\"{revision}\""))));
    server.ask(&ask).await
}

/// Puts the original text back, unless it is there.
///
/// # Errors
/// [`CliError::Failed`] where that was not possible; the message holds what to do.
pub async fn restore(server: &Server, original: &Original) -> Result<(), CliError> {
    let restored = async {
        let now = read(server).await?;
        if now.is_some_and(|now| now.text == original.text) {
            return Ok(());
        }
        put(server, &original.text, None).await.map(drop)
    };
    restored.await.map_err(|error: CliError| CliError::Failed {
        subject: "quotas.toml".to_owned(),
        code: "quotas_not_restored",
        source: format!("it is not what it was before: {error}").into(),
        advice:
            "take what the scenario set out of it again: the clients stress-*, queues.order, step_limit_ms"
                .to_owned(),
    })
}

/// The original text with these values set, each as in `clients.notes.weight=3`.
///
/// # Errors
/// [`CliError::Failed`] where the original is no TOML.
pub fn with(original: &Original, values: &[&str]) -> Result<String, CliError> {
    let parse = |text: &&str| Assignment::parse(text).expect("scenarios name keys that are legal");
    let assignments: Vec<Assignment> = values.iter().map(parse).collect();
    edit(&original.text, &assignments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml_edit::DocumentMut;

    fn original(text: &str) -> Original {
        Original { text: text.to_owned(), revision: "1".to_owned() }
    }

    #[test]
    fn values_are_set_beside_those_that_are_there() {
        let original = original("# why\n[clients.\"uid:7\"]\nweight = 2\n[queues]\ntotal = 9\n");
        let text = with(
            &original,
            &[
                "queues.order=arrival",
                "clients.stress-a.weight=3",
                "models.\"minilm-1.5\".step_limit_ms=1000",
            ],
        );
        let table: DocumentMut = text.unwrap().parse().unwrap();
        assert_eq!(table["queues"]["total"].as_integer(), Some(9));
        assert_eq!(table["queues"]["order"].as_str(), Some("arrival"));
        assert_eq!(table["clients"]["uid:7"]["weight"].as_integer(), Some(2));
        assert_eq!(table["clients"]["stress-a"]["weight"].as_integer(), Some(3));
        assert_eq!(table["models"]["minilm-1.5"]["step_limit_ms"].as_integer(), Some(1_000));
    }

    #[test]
    fn an_original_that_can_not_be_read_is_an_error() {
        for text in ["[queues", "queues = 7\n"] {
            assert!(with(&original(text), &["queues.order=fair"]).is_err(), "{text}");
        }
    }
}
