//! Two replays of one trace, and the difference.

use crate::durable;
use crate::error::CliError;
use crate::output::{Output, Style, table};
use ringfence_scheduler::quotas::{FILE_BYTES_MAX, Quotas};
use ringfence_scheduler::replay::{
    Agreement, ClientReport, Comparison, ReplayError, TRACE_BYTES_MAX, Trace, Waits, compare,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const HEADING: [&str; 11] = [
    "CLIENT",
    "QUOTAS",
    "JOBS",
    "DONE",
    "REFUSED",
    "FAILED",
    "P50 MS",
    "P95 MS",
    "MAX MS",
    "DEVICE MS",
    "SHARE",
];

pub(super) fn run(file: &Path, quotas: &Path, output: &Output) -> Result<(), CliError> {
    let text = read(file, TRACE_BYTES_MAX)?;
    let new = read(quotas, FILE_BYTES_MAX)?;
    let new = Quotas::parse(&new).map_err(|error| wrong(quotas, "quota_invalid", error))?;
    let trace = Trace::parse(&text).map_err(|error| wrong(file, "trace_invalid", error))?;
    let compared = compare(&trace, &new).map_err(|error| match error {
        ReplayError::Config(_) => wrong(quotas, "quota_invalid", error),
        ReplayError::Recorded(_) => wrong(file, "trace_invalid", error),
        ReplayError::TooLong => wrong(file, "trace_too_long", error),
    })?;
    output.answer(&compared, |style| page(&compared, style))
}

fn read(file: &Path, bytes_max: usize) -> Result<String, CliError> {
    let failed = |source| CliError::io(file.display().to_string(), source);
    let bytes = durable::read(file, bytes_max).map_err(failed)?;
    String::from_utf8(bytes)
        .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

fn wrong(
    file: &Path,
    code: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> CliError {
    CliError::Failed {
        subject: file.display().to_string(),
        code,
        source: source.into(),
        advice: String::new(),
    }
}

/// The comparison for people.
fn page(compared: &Comparison, style: Style) -> String {
    let (mut rows, mut reasons) = (Vec::new(), Vec::new());
    for (name, before) in &compared.recorded.clients {
        let after = compared.new.clients.get(name).cloned().unwrap_or_default();
        rows.push(row(name, "recorded", before));
        rows.push(row("", "new", &after));
        rows.push(difference(before, &after));
        reasons.extend(refusals(name, before, &after));
    }
    let table = table(style, &HEADING, &rows);
    [vec![table], reasons, agreement(&compared.agreement)].concat().join("\n")
}

fn row(name: &str, quotas: &str, client: &ClientReport) -> Vec<String> {
    let [p50, p95, max] = waits(client.wait).map(|us| millis(us as i128));
    let counts = counts(client).map(|count| count.to_string());
    let device = [millis(client.device_us.into()), format!("{:.1}%", client.share * 100.0)];
    let words = [name.to_owned(), quotas.to_owned()];
    [&words[..], &counts[..], &[p50, p95, max], &device[..]].concat()
}

fn difference(before: &ClientReport, after: &ClientReport) -> Vec<String> {
    let by = |before: u64, after: u64| i128::from(after) - i128::from(before);
    let signed = |text: String, by: i128| if by > 0 { format!("+{text}") } else { text };
    let mut cells = vec![String::new(), "difference".to_owned()];
    for (before, after) in counts(before).into_iter().zip(counts(after)) {
        let by = by(before, after);
        cells.push(signed(by.to_string(), by));
    }
    let times = |client: &ClientReport| {
        let [p50, p95, max] = waits(client.wait);
        [p50, p95, max, client.device_us]
    };
    for (before, after) in times(before).into_iter().zip(times(after)) {
        let by = by(before, after);
        cells.push(signed(millis(by), by));
    }
    cells.push(format!("{:+.1}", (after.share - before.share) * 100.0));
    cells
}

fn counts(client: &ClientReport) -> [u64; 4] {
    let sum = |codes: &BTreeMap<&str, u64>| codes.values().sum();
    [client.submitted, client.done, sum(&client.refused), sum(&client.failed)]
}

fn waits(Waits { p50_us, p95_us, max_us }: Waits) -> [u64; 3] {
    [p50_us, p95_us, max_us]
}

fn millis(us: i128) -> String {
    format!("{:.1}", us as f64 / 1e3)
}

/// A line for each code by which a client's jobs would have ended more or less often.
fn refusals(name: &str, before: &ClientReport, after: &ClientReport) -> Vec<String> {
    let of = |client: &ClientReport, code: &str| {
        let refused = client.refused.get(code).copied().unwrap_or(0);
        refused + client.failed.get(code).copied().unwrap_or(0)
    };
    let both = [before, after];
    let codes: BTreeSet<&str> =
        both.iter().flat_map(|client| client.refused.keys().chain(client.failed.keys())).copied().collect();
    let changed = codes.into_iter().filter(|code| of(before, code) != of(after, code));
    changed.map(|code| format!("{name}: {code}: {} -> {}", of(before, code), of(after, code))).collect()
}

/// What to trust.
fn agreement(agreement: &Agreement) -> Vec<String> {
    let Agreement { jobs, same, recorded_wait, replayed_wait } = agreement;
    let Some(percent) = (same * 1_000).checked_div(*jobs) else {
        return vec![
            "no job ended while the trace was recorded: nothing tells how good the replay is".to_owned(),
        ];
    };
    let wait = |of: Waits| {
        let [p50, p95, _] = waits(of).map(|us| millis(us.into()));
        format!("{p50} / {p95} ms")
    };
    vec![
        format!(
            "agreement: under the recorded quotas {same} of {jobs} jobs ({}.{}%) end in the replay as they did",
            percent / 10,
            percent % 10
        ),
        format!("  waits p50 / p95: recorded {}, replayed {}", wait(*recorded_wait), wait(*replayed_wait)),
    ]
}
