//! The lines of the server, into a file that is there when the trace is whole.

use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, Connection, runtime};
use crate::output::{Output, progress_of};
use hyper::Method;
use ringfence_scheduler::replay::{ErrorLine, Line, Stop, TRACE_BYTES_MAX, What};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use tempfile::NamedTempFile;

/// The longest last line.
const LAST_LINE_BYTES_MAX: usize = 4 * 1024;

/// What has come so far.
#[derive(Default)]
struct Come {
    bytes: usize,
    lines: u64,
    /// The last line, or its beginning.
    last: Vec<u8>,
    /// The last line has ended: the next byte begins another.
    ended: bool,
}

pub(super) fn run(file: &Path, seconds: u64, home: &Home, output: &Output) -> Result<(), CliError> {
    let failed = |source: std::io::Error| CliError::io(file.display().to_string(), source);
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = NamedTempFile::new_in(folder).map_err(failed)?;
    let ask = Ask::plain(Method::GET, format!("/trace?seconds={seconds}"));
    let (bar, began) = (progress_of(output, seconds, "recording"), clock::now());
    let mut come = Come::default();
    let mut take = |bytes: &[u8]| {
        bar.set_position(began.elapsed().as_secs().min(seconds));
        come.take(bytes);
        if come.bytes > TRACE_BYTES_MAX {
            return Err(cut_off(file, "it is longer than a trace can be"));
        }
        temporary.write_all(bytes).map_err(failed)
    };
    runtime()?.block_on(async {
        let mut connection = Connection::open(&Address::Unix(home.admin_socket())).await?;
        // Left by ctrl-c, the temporary file would stay.
        tokio::select! {
            streamed = connection.stream(&ask, std::time::Duration::from_secs(seconds), &mut take) => streamed,
            _ = tokio::signal::ctrl_c() => Err(cut_off(file, "it was interrupted")),
        }
    })?;
    bar.finish_and_clear();
    let stopped = come.stopped(file)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(file).map_err(|error| failed(error.error))?;
    let answer = json!({"file": file, "lines": come.lines, "stopped": stopped});
    output.answer(&answer, |_| {
        let why = match stopped {
            Stop::Time => "",
            Stop::Full => "; it ended early: a trace holds no more",
            Stop::QuotasChanged => "; it ended early: the quotas were changed",
            Stop::ModelsChanged => "; it ended early: models were added, changed or removed",
            Stop::Draining => "; it ended early: the server is shutting down",
        };
        format!("{} has {} lines{why}", file.display(), come.lines)
    })
}

impl Come {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        for byte in bytes {
            if self.ended {
                self.last.clear();
                self.ended = false;
            }
            if *byte == b'\n' {
                self.lines += 1;
                self.ended = true;
            } else if self.last.len() < LAST_LINE_BYTES_MAX {
                self.last.push(*byte);
            }
        }
    }

    /// Why the recording ended, by its last line.
    fn stopped(&self, file: &Path) -> Result<Stop, CliError> {
        if let Ok(Line { what: What::Stop(stop), .. }) = serde_json::from_slice(&self.last) {
            return Ok(stop);
        }
        match serde_json::from_slice(&self.last) {
            Ok(ErrorLine { error }) => Err(cut_off(file, &error)),
            Err(_) => Err(cut_off(file, "the server ended before the trace did")),
        }
    }
}

fn cut_off(file: &Path, why: &str) -> CliError {
    CliError::Failed {
        subject: file.display().to_string(),
        code: "trace_failed",
        source: format!("the recording failed, nothing was written: {why}").into(),
        advice: "try again".to_owned(),
    }
}
