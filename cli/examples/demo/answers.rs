//! Embeddings through the public API, and the passages nearest to a question.

use crate::programs::failed;
use ringfence_cli::error::CliError;
use ringfence_cli::http::{Address, Ask, Connection};
use ringfence_cli::passages::Passage;
use serde::Deserialize;
use serde_json::json;

/// Texts in a request.
const BATCH: usize = 16;

/// Passages and their embeddings.
pub(crate) struct Embedded(Vec<(Passage, Vec<f32>)>);

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Embedding {
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
}

impl Embedded {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The `count` passages most similar to a question, by cosine, the best first.
    pub(crate) fn nearest(&self, question: &[f32], count: usize) -> Vec<(f32, &Passage)> {
        let scored = self.0.iter().map(|(passage, vector)| (cosine(question, vector), passage));
        let mut scored: Vec<(f32, &Passage)> = scored.collect();
        scored.sort_by(|left, right| right.0.total_cmp(&left.0));
        scored.truncate(count);
        scored
    }
}

/// Embeds the passages in batches; gives them with the number of requests and of tokens. `done` is told how many
/// passages are embedded.
///
/// # Errors
/// Those of [`Connection`], and [`CliError::Failed`] for an answer that does not fit the question.
pub(crate) async fn embed(
    address: &Address,
    passages: Vec<Passage>,
    done: impl Fn(u64),
) -> Result<(Embedded, usize, u64), CliError> {
    let mut connection = Connection::open(address).await?;
    let (mut vectors, mut requests, mut tokens) = (Vec::new(), 0, 0);
    for batch in passages.chunks(BATCH) {
        let texts: Vec<String> = batch.iter().map(Passage::with_heading).collect();
        let (batch, used) = request(&mut connection, &texts).await?;
        vectors.extend(batch);
        requests += 1;
        tokens += used;
        done(vectors.len() as u64);
    }
    Ok((Embedded(passages.into_iter().zip(vectors).collect()), requests, tokens))
}

/// Embeds a few texts.
///
/// # Errors
/// As [`embed`].
pub(crate) async fn embed_texts(address: &Address, texts: &[String]) -> Result<Vec<Vec<f32>>, CliError> {
    let mut connection = Connection::open(address).await?;
    Ok(request(&mut connection, texts).await?.0)
}

async fn request(connection: &mut Connection, texts: &[String]) -> Result<(Vec<Vec<f32>>, u64), CliError> {
    let body = json!({"model": "minilm", "input": texts, "truncate": true});
    let answer = connection.send(&Ask::post("/v1/embeddings", &body)).await?;
    let unreadable = |source| CliError::Answer { request: answer.request.clone(), source: Box::new(source) };
    let answer: Embeddings = serde_json::from_slice(&answer.body).map_err(unreadable)?;
    let in_order = answer.data.iter().enumerate().all(|(place, embedding)| embedding.index == place);
    if answer.data.len() != texts.len() || !in_order {
        return Err(failed("/v1/embeddings", "the embeddings are not those of the texts"));
    }
    Ok((answer.data.into_iter().map(|embedding| embedding.embedding).collect(), answer.usage.prompt_tokens))
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}
