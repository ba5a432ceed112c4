//! A client that asks for grants and uses them.

use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use hyper::Method;
use serde_json::{Value, json};
use std::path::Path;

/// From the approval on, in milliseconds, where a part does not say.
const LIFETIME_MS: u64 = 600_000;
/// Bytes of a grant, where a part does not say: the big file many times.
const BYTES_MAX: u64 = 1 << 40;

/// What a use was that was not refused.
pub(super) const SERVED: &str = "served";

/// A live grant of ours.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) number: u64,
    pub(super) string: String,
    /// Its end, in milliseconds since 1970.
    pub(super) until_ms: f64,
}

/// A client with one connection, which is opened when it is needed.
pub(super) struct Holder {
    address: Address,
    model: String,
    kept: Option<Connection>,
}

impl Holder {
    pub(super) fn new(address: &Address, model: &str) -> Self {
        Self { address: address.clone(), model: model.to_owned(), kept: None }
    }

    async fn send(&mut self, ask: &Ask) -> Result<Value, CliError> {
        let mut connection = match self.kept.take() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await?,
        };
        let answer = connection.send(ask).await;
        // After a refusal the connection is as good as before; after anything else it is not.
        if matches!(answer, Ok(_) | Err(CliError::Refused { .. })) {
            self.kept = Some(connection);
        }
        answer?.json()
    }

    /// Asks for a path, with other values than the usual ones for some fields.
    pub(super) async fn ask(&mut self, path: &Path, changes: &[(&str, Value)]) -> Result<Value, CliError> {
        let mut body = json!({"kind": "file_read", "path": path, "model": self.model, "lifetime_ms": LIFETIME_MS,
            "reason": "a stress test", "results": "compared and dropped", "bytes_max": BYTES_MAX});
        for (field, value) in changes {
            body[*field] = value.clone();
        }
        self.send(&Ask::post("/grants", &body)).await
    }

    /// A live grant with its string, as our rule allows it.
    pub(super) async fn granted(
        &mut self,
        path: &Path,
        changes: &[(&str, Value)],
    ) -> Result<Granted, CliError> {
        let asked = self.ask(path, changes).await?;
        let number = asked["grant"].as_u64().unwrap_or(0);
        let claimed = self.send(&Ask::post(format!("/grants/{number}/claim"), &json!({}))).await?;
        Ok(granted(&claimed))
    }

    /// A grant of less.
    pub(super) async fn narrowed(
        &mut self,
        string: &str,
        changes: &[(&str, Value)],
    ) -> Result<Granted, CliError> {
        let mut body = json!({"capability": string, "model": self.model});
        for (field, value) in changes {
            body[*field] = value.clone();
        }
        Ok(granted(&self.send(&Ask::post("/grants/narrow", &body)).await?))
    }

    /// A job with a granted file.
    pub(super) async fn read(&mut self, string: &str, path: &str) -> Result<Value, CliError> {
        let model = self.model.clone();
        self.read_for(&model, string, path).await
    }

    /// The same for another model than that of the server under stress.
    pub(super) async fn read_for(
        &mut self,
        model: &str,
        string: &str,
        path: &str,
    ) -> Result<Value, CliError> {
        let body = json!({"model": model, "input": {"grant": string, "path": path}, "truncate": true});
        self.send(&Ask::post("/v1/embeddings", &body)).await
    }

    /// A job without files.
    pub(super) async fn embed(&mut self, text: &str) -> Result<Value, CliError> {
        self.send(&Ask::post("/v1/embeddings", &json!({"model": self.model, "input": text}))).await
    }

    /// The models that there are: a request that asks for no grant.
    pub(super) async fn models(&mut self) -> Result<Value, CliError> {
        self.send(&Ask::plain(Method::GET, "/v1/models")).await
    }

    /// A page of a granted folder.
    pub(super) async fn entries(&mut self, string: &str, path: &str) -> Result<Value, CliError> {
        let body = json!({"capability": string, "model": self.model, "path": path});
        self.send(&Ask::post("/grants/entries", &body)).await
    }

    /// Gives a grant back.
    pub(super) async fn revoke(&mut self, number: u64) -> Result<Value, CliError> {
        self.send(&Ask::plain(Method::DELETE, format!("/grants/{number}"))).await
    }

    /// Gives back grants that ended by themselves, or not.
    pub(super) async fn forget(&mut self, number: u64) -> Result<(), CliError> {
        match self.revoke(number).await {
            Ok(_) | Err(CliError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn granted(claimed: &Value) -> Granted {
    Granted {
        number: claimed["grant"]["grant"].as_u64().unwrap_or(0),
        string: claimed["capability"].as_str().unwrap_or_default().to_owned(),
        until_ms: claimed["grant"]["until_ms"].as_f64().unwrap_or(0.0),
    }
}

/// The code of a refusal; [`SERVED`] where there was none. What is no answer of the server's is an error.
pub(super) fn code_of(answer: Result<Value, CliError>) -> Result<String, CliError> {
    match answer {
        Ok(_) => Ok(SERVED.to_owned()),
        Err(CliError::Refused { code, .. }) => Ok(code),
        Err(error) => Err(error),
    }
}
