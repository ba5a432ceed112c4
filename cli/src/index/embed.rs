//! Files to vectors: several at a time, each read by the model's worker through the grant.

use super::grants::Held;
use super::store::Passage;
use super::walk::Found;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Files that are with the server at a time: enough to fill a step of the model with small ones.
const CONNECTIONS: usize = 8;
/// How often a file is offered again where the server is full.
const TRIES_MAX: usize = 30;
/// The longest pause before that.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What became of a file: its passages, or the code of why it has none.
pub type Embedded = (Found, Result<Vec<Passage>, String>);

#[derive(Deserialize)]
struct Answer {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    embedding: String,
    start: u64,
    end: u64,
}

/// Embeds files and gives each to `done` as it comes. The first error that is not about one file ends it.
///
/// # Errors
/// That error, or one of `done`.
pub async fn files(
    address: &Address,
    reads: &Held,
    passage_tokens: u32,
    files: Vec<Found>,
    mut done: impl AsyncFnMut(Embedded) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let queue = Arc::new(Mutex::new(VecDeque::from(files)));
    let (sender, mut embedded) = mpsc::channel(CONNECTIONS);
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, reads, queue, sender) = (address.clone(), reads.clone(), queue.clone(), sender.clone());
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            while let Some(file) = next(&queue) {
                let passages = one(&mut connection, &reads, passage_tokens, &file).await?;
                if sender.send((file, passages)).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
    }
    drop(sender);
    while let Some(embedded) = embedded.recv().await {
        done(embedded).await?;
        // One that has failed is not waited for behind the others.
        while let Some(ended) = tasks.try_join_next() {
            ended.expect("a task neither panics nor is aborted")?;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a task neither panics nor is aborted")?;
    }
    Ok(())
}

fn next(queue: &Mutex<VecDeque<Found>>) -> Option<Found> {
    queue.lock().expect("no thread panics with this lock").pop_front()
}

/// The inner error is about this file.
async fn one(
    connection: &mut Connection,
    reads: &Held,
    passage_tokens: u32,
    file: &Found,
) -> Result<Result<Vec<Passage>, String>, CliError> {
    let input = json!({"grant": reads.capability, "path": file.path, "passage_tokens": passage_tokens});
    let ask = Ask::post(
        "/v1/embeddings",
        &json!({"model": reads.model, "input": input, "encoding_format": "base64"}),
    );
    let mut tries = 0;
    loop {
        tries += 1;
        match connection.send(&ask).await {
            Ok(answer) => {
                let unreadable = |source| CliError::Answer { request: answer.request.clone(), source };
                return passages(&answer.body).map(Ok).map_err(unreadable);
            }
            Err(CliError::Refused { code, .. }) if is_about_the_file(&code) => return Ok(Err(code)),
            Err(CliError::Refused { status: 429 | 503, retry_after_ms: Some(wait), .. })
                if tries < TRIES_MAX =>
            {
                tokio::time::sleep(Duration::from_millis(wait).min(PAUSE_MAX)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Another file may well be taken.
fn is_about_the_file(code: &str) -> bool {
    matches!(
        code,
        "file_refused"
            | "input_not_text"
            | "input_too_large"
            | "input_not_tokenizable"
            | "input_unavailable"
            | "out_of_memory"
            | "job_too_large"
            | "output_not_finite"
            | "grant_path_refused"
    )
}

fn passages(body: &[u8]) -> Result<Vec<Passage>, crate::error::Source> {
    let answer: Answer = serde_json::from_slice(body)?;
    let passage = |row: Row| {
        let bytes = STANDARD.decode(row.embedding)?;
        let vector = bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        Ok(Passage { bytes: row.start..row.end, vector })
    };
    answer.data.into_iter().map(passage).collect()
}
