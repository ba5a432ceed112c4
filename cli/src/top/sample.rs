//! Asks the server again and again.

use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use hyper::Method;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long the server may take for one refresh; a later answer is no longer news.
const REFRESH_WAIT_MAX: Duration = Duration::from_secs(5);

/// One look at the server.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was taken, since the sampler began.
    pub at: Duration,
    /// `GET /status`.
    pub status: Value,
    /// `GET /usage`; none from a server that has no such route.
    pub usage: Option<Value>,
}

/// Takes samples on a connection that is kept, and opened again after an error.
pub struct Sampler {
    address: Address,
    connection: Option<Connection>,
    began: Instant,
}

impl Sampler {
    /// Of the operator's socket.
    pub fn new(address: Address) -> Self {
        Self { address, connection: None, began: clock::now() }
    }

    /// One sample.
    ///
    /// # Errors
    /// Those of [`Connection`], and [`CliError::Answer`] where the answer is late.
    pub async fn take(&mut self) -> Result<Sample, CliError> {
        // Taken out, so that an answer that comes after its time is never read as that to the next question.
        let kept = self.connection.take();
        let taken = timeout(REFRESH_WAIT_MAX, ask(&self.address, kept)).await;
        let late = |_| {
            let request = "GET /status".to_owned();
            Err(CliError::Answer { request, source: "it did not come in time".into() })
        };
        let (connection, status, usage) = taken.unwrap_or_else(late)?;
        self.connection = Some(connection);
        Ok(Sample { at: clock::now().saturating_duration_since(self.began), status, usage })
    }
}

async fn ask(
    address: &Address,
    kept: Option<Connection>,
) -> Result<(Connection, Value, Option<Value>), CliError> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let status = connection.send(&Ask::plain(Method::GET, "/status")).await?.json()?;
    let usage = match connection.send(&Ask::plain(Method::GET, "/usage")).await {
        Ok(answer) => Some(answer.json()?),
        Err(CliError::Refused { status: 404, .. }) => None,
        Err(error) => return Err(error),
    };
    Ok((connection, status, usage))
}
