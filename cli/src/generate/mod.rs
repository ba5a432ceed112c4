//! Text from a model: what the commands that ask for it have in common.
//!
//! ```text
//! options   how an answer is to be made, from the command line
//! answer    a request, and its answer as it is written
//! history   what was said in a chat, kept in memory
//! ```

pub mod answer;
pub mod history;
pub mod options;

use crate::error::CliError;
use std::future::Future;

/// The model where none is named.
pub const MODEL: &str = "smollm2-135m";

/// Does something until it is done or ctrl-c is pressed. What is dropped then takes its job along: the server cancels a job
/// whose client has gone.
///
/// # Errors
/// Those of `work`; [`CliError::Failed`] with the code `interrupted`.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => Err(CliError::Failed {
            subject: "the answer".to_owned(),
            code: "interrupted",
            source: "stopped by ctrl-c".into(),
            advice: String::new(),
        }),
    }
}
