//! A file's samples over a connection of their own, at the pace at which they were spoken.

use super::wav::Format;
use crate::error::CliError;
use crate::http::{Address, upgrade};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until};

/// How much is sent at a time, in milliseconds.
const STEP_MS: u64 = 100;

/// Sends samples to a capture that waits for them. The end of what is sent is the end of the capture.
///
/// # Errors
/// Those of [`upgrade`]; a capture that has ended takes no more, which is no error here: its last event says why.
pub async fn push(address: &Address, capture: u64, samples: &[u8], format: &Format) -> Result<(), CliError> {
    let path = format!("/audio/captures/{capture}/push");
    let mut connection = upgrade(address, &path, "ringfence-pcm").await?;
    let begun = Instant::now();
    for (step, part) in samples.chunks(format.bytes_of(STEP_MS).max(1)).enumerate() {
        sleep_until(begun + Duration::from_millis(STEP_MS * step as u64)).await;
        if connection.write_all(part).await.is_err() {
            return Ok(());
        }
    }
    let _told = connection.shutdown().await;
    Ok(())
}
