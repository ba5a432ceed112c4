//! The quotas as they are: the running server's, or the file's in the home.

use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::Output;
use hyper::Method;
use ringfence_scheduler::quotas::{FILE_BYTES_MAX, Quotas};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use std::path::Path;

/// The file, and what counts of it.
#[derive(Debug, Serialize)]
pub(super) struct Current {
    /// Who said so.
    pub(super) from: From,
    /// Names the text; only the server's.
    pub(super) revision: Option<String>,
    /// Names the text whose values count; only the server's.
    applied: Option<String>,
    /// `quotas.toml`.
    pub(super) text: String,
    #[serde(skip)]
    effective: Option<Value>,
}

/// Who says what the quotas are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum From {
    /// The running server.
    Server,
    /// The file in the home: no server runs.
    File,
}

/// The server's answer.
#[derive(Deserialize)]
struct Answer {
    revision: String,
    applied: String,
    text: String,
    effective: Value,
}

impl Current {
    /// The server's, or the file's where no server answers.
    ///
    /// # Errors
    /// [`CliError::Failed`] where there is no file either; those of [`Current::of_server`] but the first.
    pub(super) fn read(home: &Home) -> Result<Self, CliError> {
        match Self::of_server(home) {
            Err(CliError::Unreachable { .. }) => Self::of_file(home),
            answered => answered,
        }
    }

    /// The running server's.
    ///
    /// # Errors
    /// [`CliError::Unreachable`] where no server runs, and the others of [`ask_once`].
    pub(super) fn of_server(home: &Home) -> Result<Self, CliError> {
        let answer = ask_once(&Address::Unix(home.admin_socket()), &Ask::plain(Method::GET, "/quotas"))?;
        let answer: Answer = serde_json::from_value(answer).map_err(|source| CliError::Answer {
            request: "GET /quotas".to_owned(),
            source: source.into(),
        })?;
        Ok(Self {
            from: From::Server,
            revision: Some(answer.revision),
            applied: Some(answer.applied),
            text: answer.text,
            effective: Some(answer.effective),
        })
    }

    fn of_file(home: &Home) -> Result<Self, CliError> {
        // A change that was cut off is finished by the next start of the server.
        let next = text(&home.quotas_next()).ok().filter(|text| Quotas::parse(text).is_ok());
        let path = home.quotas();
        let text = match next {
            Some(next) => next,
            None => text(&path).map_err(|source| missing(&path, source))?,
        };
        Ok(Self { from: From::File, revision: None, applied: None, text, effective: None })
    }

    /// What the text says.
    ///
    /// # Errors
    /// [`CliError::Failed`] where somebody has made it wrong.
    pub(super) fn quotas(&self) -> Result<Quotas, CliError> {
        Quotas::parse(&self.text).map_err(|source| CliError::Failed {
            subject: "quotas.toml".to_owned(),
            code: "quota_invalid",
            source: source.into(),
            advice: "the server would not start with it: correct that line".to_owned(),
        })
    }

    /// Every value that counts.
    ///
    /// # Errors
    /// As [`Current::quotas`], where there is no server to ask.
    pub(super) fn effective(&self) -> Result<Value, CliError> {
        match &self.effective {
            Some(effective) => Ok(effective.clone()),
            None => Ok(serde_json::to_value(self.quotas()?.effective()).expect("texts and numbers encode")),
        }
    }

    /// Says what the reader might take for granted and is not so.
    pub(super) fn remark(&self, output: &Output) {
        match self.from {
            From::File => output.note("no server runs here: this is by the file"),
            From::Server if self.revision != self.applied => output.note(
                "quotas.toml was edited while the server ran, and not applied: ringfence quota apply takes it",
            ),
            From::Server => {}
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let bytes = durable::read(path, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn missing(path: &Path, source: io::Error) -> CliError {
    let advice = match source.kind() {
        io::ErrorKind::NotFound => "ringfence init makes it; without it every default counts".to_owned(),
        _ => String::new(),
    };
    CliError::Failed { subject: path.display().to_string(), code: "io_error", source: source.into(), advice }
}
