//! `ringfence status`: what the server says about itself, its models and its workers.

use super::{rows, text};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::output::{Output, Style, bytes, table};
use clap::Args;
use hyper::Method;
use ringfence_grants::visible;
use serde_json::Value;

/// Show the server's health, models, workers, memory leases and sandbox
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence status
  ringfence status --json | jq '.workers[].tier'

What the server could not tell is shown as `-`.")]
pub struct StatusArgs {}

/// Runs it.
///
/// # Errors
/// Those of [`ask_once`].
pub fn run(_args: StatusArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let admin = Address::Unix(home.admin_socket());
    let status = ask_once(&admin, &Ask::plain(Method::GET, "/status"))?;
    output.answer(&status, |style| page(&status, style))
}

/// The status for people.
pub fn page(status: &Value, style: Style) -> String {
    [
        [summary(status, style), captures(status, style)].concat(),
        [devices(status, style), cards(&status["nvml"], style)].concat(),
        models(status, style),
        workers(status, style),
        sandbox(&status["sandbox"], style),
    ]
    .join("\n\n")
}

fn summary(status: &Value, style: Style) -> String {
    let host = &status["host"];
    let lines = [
        format!(
            "{} {}  pid {}  run {}  up {}  identity {}",
            style.bold("server"),
            text(status, "version"),
            text(status, "pid"),
            text(status, "run_id"),
            status["uptime_s"].as_u64().map_or("-".to_owned(), duration),
            text(status, "identity"),
        ),
        format!("{}   {}  listens on {}", style.bold("home"), text(status, "home"), text(status, "listen")),
        format!("{} {}{}", style.bold("health"), health(&status["health"], style), audit(&status["audit"])),
        format!(
            "{}   {} of {} available, load {}, {} cores",
            style.bold("host"),
            size(host, "memory_available_bytes"),
            size(host, "memory_total_bytes"),
            text(host, "load_1m"),
            text(host, "cores"),
        ),
    ];
    lines.join("\n")
}

/// Whoever is listened to, in red; nothing where nobody is.
fn captures(status: &Value, style: Style) -> String {
    let row = |capture: &Value| {
        let shown = |field: &str| visible(&text(capture, field));
        let words = format!(
            "listening: capture {} is {}: {} for {} to {}",
            shown("capture"),
            shown("state"),
            shown("source"),
            shown("client"),
            shown("model")
        );
        vec![format!("\n{}", style.red(&words))]
    };
    rows(status, "captures", row).concat().concat()
}

fn health(health: &Value, style: Style) -> String {
    let word = text(health, "status");
    if word == "ok" { style.green(&word) } else { style.red(&word) }
}

/// How long the audit log is, or why it is written no more; nothing of a server from before it had one.
fn audit(audit: &Value) -> String {
    match (audit["failure"].as_str(), audit["entries"].as_u64()) {
        (Some(failure), _) => format!("  audit log failed, restart needed: {failure}"),
        (None, Some(entries)) => {
            let covered = text(audit, "covered");
            let second = audit["second_failure"].as_str();
            let second = second.map_or(String::new(), |failure| format!(", second place: {failure}"));
            format!("  audit {entries} entries, {covered} in a checkpoint{second}")
        }
        (None, None) => String::new(),
    }
}

fn devices(status: &Value, style: Style) -> String {
    let row = |device: &Value| {
        let cores = match (device["cores_held"].as_u64(), device["cores"].as_u64()) {
            (Some(held), Some(cores)) => format!("{held} of {cores}"),
            _ => "-".to_owned(),
        };
        vec![text(device, "name"), size(device, "promised_bytes"), size(device, "budget_bytes"), cores]
    };
    table(style, &["DEVICE", "PROMISED", "BUDGET", "CORES"], &rows(status, "devices", row))
}

/// NVIDIA's cards and whose memory is on them; nothing where there are none.
fn cards(nvml: &Value, style: Style) -> String {
    let row = |card: &Value| {
        let processes = card["processes"].as_array().into_iter().flatten();
        let of = |process: &Value| format!("{}: {}", text(process, "pid"), size(process, "used_bytes"));
        vec![
            text(card, "index"),
            text(card, "name"),
            size(card, "used_bytes"),
            size(card, "total_bytes"),
            text(card, "busy_percent"),
            text(card, "temperature_c"),
            text(card, "mig"),
            processes.map(of).collect::<Vec<_>>().join(", "),
        ]
    };
    let rows = rows(nvml, "cards", row);
    if rows.is_empty() {
        return String::new();
    }
    let heading = ["CARD", "NAME", "USED", "MEMORY", "BUSY %", "CELSIUS", "MIG", "PROCESSES"];
    format!("\n\n{}", table(style, &heading, &rows))
}

fn models(status: &Value, style: Style) -> String {
    // Enough of a digest to tell two apart; `--json` has the whole.
    let short = |model: &Value, field| text(model, field).chars().take(16).collect::<String>();
    let row = |model: &Value| {
        vec![
            text(model, "name"),
            text(model, "state"),
            text(model, "queued"),
            text(model, "running"),
            short(model, "signer"),
            short(model, "digest"),
        ]
    };
    let rows = rows(status, "models", row);
    if rows.is_empty() {
        return "no models; add one: ringfence model add minilm".to_owned();
    }
    let mut page = table(style, &["MODEL", "STATE", "QUEUED", "RUNNING", "SIGNER", "DIGEST"], &rows);
    for model in status["models"].as_array().into_iter().flatten() {
        if let Some(reason) = model["reason"].as_str() {
            page.push_str(&format!("\n  {}: {reason}", text(model, "name")));
        }
        if let Some(reason) = model["changed_on_disk"]["reason"].as_str() {
            let line = format!("{}: changed on disk: {reason}", text(model, "name"));
            page.push_str(&format!("\n  {}", style.red(&line)));
        }
    }
    page
}

fn workers(status: &Value, style: Style) -> String {
    const HEADING: [&str; 11] =
        ["WORKER", "PID", "MODEL", "STATE", "DEVICE", "LEASE", "USED", "PEAK", "RSS", "TIER", "JOBS"];
    let row = |worker: &Value| {
        let plain = |field| text(worker, field);
        let size = |field| size(worker, field);
        let [id, pid, model, state, device] = ["id", "pid", "model", "state", "device"].map(plain);
        let [lease, used, peak, rss] = ["lease_bytes", "used_bytes", "peak_bytes", "rss_bytes"].map(size);
        vec![id, pid, model, state, device, lease, used, peak, rss, plain("tier"), plain("running")]
    };
    let rows = rows(status, "workers", row);
    if rows.is_empty() {
        return "no workers; a model's first job starts one".to_owned();
    }
    let layers = status["workers"].as_array().into_iter().flatten().map(|worker| layers_of(worker, style));
    [table(style, &HEADING, &rows), layers.collect::<Vec<_>>().join("\n")].join("\n")
}

fn layers_of(worker: &Value, style: Style) -> String {
    let start = if worker["cold"].as_bool() == Some(true) { "cold" } else { "from the held memfd" };
    let line = format!(
        "  worker {}: layers {}; ready after {} ({start}), of which sandbox {}, warm-up {}",
        text(worker, "id"),
        names(&worker["layers"]),
        millis(&worker["ready_after_ms"], 1.0),
        millis(&worker["sandbox_setup_us"], 1e3),
        millis(&worker["warm_up_us"], 1e3),
    );
    style.dim(&line)
}

/// A time given in units of which `per_milli` are a millisecond.
fn millis(time: &Value, per_milli: f64) -> String {
    time.as_f64().map_or("-".to_owned(), |time| format!("{:.1} ms", time / per_milli))
}

fn sandbox(sandbox: &Value, style: Style) -> String {
    let probes = sandbox["probes"].as_array().map_or(0, Vec::len);
    let lines = [
        format!(
            "{} layers {}; landlock ABI {}",
            style.bold("sandbox"),
            names(&sandbox["layers"]),
            text(sandbox, "landlock_abi")
        ),
        format!("  forbidden acts tried at the start and stopped: {probes} (--json names them)"),
        format!("  floors that this kernel lacks: {}", missing(&sandbox["missing"], style)),
    ];
    lines.join("\n")
}

/// Each with what compensates for it, on a line of its own.
fn missing(floors: &Value, style: Style) -> String {
    match floors.as_array() {
        None => "-".to_owned(),
        Some(floors) if floors.is_empty() => style.green("none"),
        Some(floors) => floors.iter().map(|floor| format!("\n    {}", style.red(&name(floor)))).collect(),
    }
}

fn names(list: &Value) -> String {
    match list.as_array().map(|entries| entries.iter().map(name).collect::<Vec<_>>()) {
        None => "-".to_owned(),
        Some(names) if names.is_empty() => "none".to_owned(),
        Some(names) => names.join(", "),
    }
}

fn name(entry: &Value) -> String {
    entry.as_str().map_or_else(|| entry.to_string(), str::to_owned)
}

fn size(object: &Value, field: &str) -> String {
    object[field].as_u64().map_or("-".to_owned(), bytes)
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_worker_is_shown_with_its_lease_tier_and_layers() {
        let status = json!({
            "version": "0.1.0", "pid": 7, "uptime_s": 3_700, "health": {"status": "ok"},
            "models": [{"name": "minilm", "state": "loaded", "queued": 0, "running": 1},
                       {"name": "other", "state": "refused", "reason": "other has no signature"}],
            "workers": [{"id": 1, "pid": 8, "model": "minilm", "tier": "kernel", "lease_bytes": 1 << 30,
                         "layers": ["namespaces", "seccomp"], "ready_after_ms": 310.25, "sandbox_setup_us": 4_200}],
            "nvml": {"absent": null, "cards": [{"index": 0, "name": "A card", "used_bytes": 3_u64 << 30,
                     "total_bytes": 8_u64 << 30, "busy_percent": 73, "temperature_c": 41, "mig": false,
                     "processes": [{"pid": 8, "used_bytes": 1_u64 << 30}, {"pid": 9, "used_bytes": null}]}]},
            "sandbox": {"layers": ["landlock"], "landlock_abi": 6, "missing": ["cgroup: RLIMIT_DATA"],
                        "probes": ["open", "connect"]},
        });
        let page = page(&status, Style::plain());
        for expected in [
            "up 1 h 1 min",
            "health ok",
            "minilm  loaded",
            "1.0 GiB",
            "kernel",
            "layers namespaces, seccomp; ready after 310.2 ms (from the held memfd), of which sandbox 4.2 ms, warm-up -",
            "lacks: \n    cgroup: RLIMIT_DATA",
            "stopped: 2 (",
            "other: other has no signature",
            "A card  3.0 GiB  8.0 GiB",
            "8: 1.0 GiB, 9: -",
        ] {
            assert!(page.contains(expected), "{expected:?} is not in\n{page}");
        }
    }

    #[test]
    fn a_status_without_anything_in_it_is_still_a_page() {
        let page = page(&json!({}), Style::plain());
        assert!(page.contains("no workers") && page.contains("kernel lacks: -"), "{page}");
    }
}
