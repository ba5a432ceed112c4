//! What is shown, worked out from the server's answers and those of the last seconds. Pure.

use super::sample::Sample;
use ringfence_grants::visible;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Shares and rates are those of this time.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Readings that are kept: those of the window at the shortest interval, and one before it.
const READINGS_MAX: usize = 64;

/// Rows of a section that are kept; a server has bounds of its own, and this holds without trust in them.
const ROWS_MAX: usize = 1_024;

/// The counters of the last seconds.
#[derive(Debug, Default)]
pub struct Window {
    run: String,
    readings: VecDeque<Reading>,
}

#[derive(Debug)]
struct Reading {
    at: Duration,
    device_us: BTreeMap<String, u64>,
    refusals: BTreeMap<String, u64>,
}

/// Everything on the screen.
#[derive(Debug, Default, Serialize)]
pub struct View {
    /// The line above all.
    pub summary: Summary,
    /// What captures sound, each in words.
    pub captures: Vec<String>,
    /// The workers.
    pub workers: Vec<WorkerRow>,
    /// The models.
    pub models: Vec<ModelRow>,
    /// The clients, busiest first; none where the server does not say.
    pub clients: Option<Vec<ClientRow>>,
    /// Refusals by rule, most frequent first; none where the server does not say.
    pub refusals: Option<Vec<RefusalRow>>,
    /// Seconds that shares and rates are of; 0 at the first look.
    pub window_s: f64,
}

/// The server as a whole.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// `ok`, or what is wrong.
    pub health: Option<String>,
    /// Load of the machine over a minute.
    pub load_1m: Option<f64>,
    /// Cores of the machine.
    pub cores: Option<u64>,
    /// Memory that is promised of what may be.
    pub devices: Vec<DeviceRow>,
    /// NVIDIA's cards.
    pub cards: Vec<CardRow>,
}

/// A card.
#[derive(Debug, Serialize)]
pub struct CardRow {
    /// Its number.
    pub index: Option<u64>,
    /// Memory in use, by whomever.
    pub used_bytes: Option<u64>,
    /// Memory that it has.
    pub total_bytes: Option<u64>,
    /// Part of the last second in which it computed.
    pub busy_percent: Option<u64>,
}

/// A device.
#[derive(Debug, Serialize)]
pub struct DeviceRow {
    /// Its name.
    pub name: String,
    /// Sum of the leases.
    pub promised_bytes: Option<u64>,
    /// Sum of what they may be.
    pub budget_bytes: Option<u64>,
    /// Cores that workers may use.
    pub cores: Option<u64>,
    /// Threads of workers that have jobs.
    pub cores_held: Option<u64>,
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerRow {
    /// Its process, once it said hello.
    pub pid: Option<u64>,
    /// What it runs.
    pub model: Option<String>,
    /// Its state.
    pub state: Option<String>,
    /// What it may take.
    pub lease_bytes: Option<u64>,
    /// What it has taken.
    pub used_bytes: Option<u64>,
    /// The most of that.
    pub peak_bytes: Option<u64>,
    /// What backs the lease.
    pub tier: Option<String>,
    /// Jobs in it.
    pub jobs: Option<u64>,
}

/// A model.
#[derive(Debug, Serialize)]
pub struct ModelRow {
    /// Its name.
    pub name: Option<String>,
    /// Its state.
    pub state: Option<String>,
    /// Jobs that wait.
    pub queued: Option<u64>,
    /// Jobs in workers.
    pub running: Option<u64>,
}

/// A client.
#[derive(Debug, Serialize)]
pub struct ClientRow {
    /// Its name.
    pub client: String,
    /// Its weight.
    pub weight: Option<u64>,
    /// Its class.
    pub class: Option<String>,
    /// Jobs that wait.
    pub waiting: Option<u64>,
    /// Jobs in workers.
    pub running: Option<u64>,
    /// Of all device time in the window; none before there is any.
    pub share: Option<f64>,
    /// What its weight comes to among the clients that are active; none for one that is not.
    pub entitled: Option<f64>,
}

/// Refusals by one rule.
#[derive(Debug, Serialize)]
pub struct RefusalRow {
    /// The stable code.
    pub rule: String,
    /// Since the server's start.
    pub count: u64,
    /// In the window.
    pub per_second: Option<f64>,
}

impl Window {
    /// Remembers a sample and forgets what is too old. Counters of another run of the server say nothing.
    pub fn remember(&mut self, sample: &Sample) {
        let run = text(&sample.status, "run_id").unwrap_or_default();
        if run != self.run {
            self.readings.clear();
            self.run = run;
        }
        let Some(usage) = &sample.usage else { return };
        self.readings.push_back(Reading {
            at: sample.at,
            device_us: list(usage, "clients")
                .filter_map(|client| Some((text(client, "client")?, number(client, "device_us")?)))
                .collect(),
            refusals: counts(&usage["refusals"]),
        });
        let begin = sample.at.saturating_sub(WINDOW);
        // The last one before the window is where it begins.
        while self.readings.len() > READINGS_MAX || self.readings.get(1).is_some_and(|next| next.at <= begin)
        {
            self.readings.pop_front();
        }
    }

    /// The first and the last reading, if they are two.
    fn ends(&self) -> Option<(&Reading, &Reading)> {
        let (first, last) = (self.readings.front()?, self.readings.back()?);
        (last.at > first.at).then_some((first, last))
    }
}

/// What to show of a sample that `window` remembers.
pub fn view(sample: &Sample, window: &Window) -> View {
    let status = &sample.status;
    let ends = window.ends();
    View {
        summary: summary(status),
        captures: list(status, "captures").take(ROWS_MAX).map(capture).collect(),
        workers: list(status, "workers").map(worker).collect(),
        models: list(status, "models").map(model).collect(),
        clients: sample.usage.as_ref().map(|usage| clients(usage, ends)),
        refusals: sample.usage.as_ref().map(|usage| refusals(usage, ends)),
        window_s: ends.map_or(0.0, |(first, last)| (last.at - first.at).as_secs_f64()),
    }
}

fn summary(status: &Value) -> Summary {
    let device = |device| DeviceRow {
        name: text(device, "name").unwrap_or_else(|| "-".to_owned()),
        promised_bytes: number(device, "promised_bytes"),
        budget_bytes: number(device, "budget_bytes"),
        cores: number(device, "cores"),
        cores_held: number(device, "cores_held"),
    };
    Summary {
        health: text(&status["health"], "status"),
        load_1m: status["host"]["load_1m"].as_f64(),
        cores: number(&status["host"], "cores"),
        devices: list(status, "devices").map(device).collect(),
        cards: list(&status["nvml"], "cards").map(card).collect(),
    }
}

fn capture(capture: &Value) -> String {
    let shown = |field: &str| visible(&text(capture, field).unwrap_or_else(|| "-".to_owned()));
    format!("{} {} for {} to {}", shown("state"), shown("source"), shown("client"), shown("model"))
}

fn card(card: &Value) -> CardRow {
    CardRow {
        index: number(card, "index"),
        used_bytes: number(card, "used_bytes"),
        total_bytes: number(card, "total_bytes"),
        busy_percent: number(card, "busy_percent"),
    }
}

fn worker(worker: &Value) -> WorkerRow {
    WorkerRow {
        pid: number(worker, "pid"),
        model: text(worker, "model"),
        state: text(worker, "state"),
        lease_bytes: number(worker, "lease_bytes"),
        used_bytes: number(worker, "used_bytes"),
        peak_bytes: number(worker, "peak_bytes"),
        tier: text(worker, "tier"),
        jobs: number(worker, "running"),
    }
}

fn model(model: &Value) -> ModelRow {
    ModelRow {
        name: text(model, "name"),
        state: text(model, "state"),
        queued: number(model, "queued"),
        running: number(model, "running"),
    }
}

fn clients(usage: &Value, ends: Option<(&Reading, &Reading)>) -> Vec<ClientRow> {
    let had = ends.map(|(first, last)| deltas(&first.device_us, &last.device_us)).unwrap_or_default();
    let all: u64 = had.values().sum();
    let delta = |name: &str| had.get(name).copied().unwrap_or(0);
    let active = |client: &Value| {
        let jobs = ["waiting", "running"].map(|field| number(client, field).unwrap_or(0));
        jobs.iter().any(|&jobs| jobs > 0) || delta(&text(client, "client").unwrap_or_default()) > 0
    };
    let weight = |client: &Value| number(client, "weight").unwrap_or(1);
    let weights: u64 = list(usage, "clients").filter(|client| active(client)).map(weight).sum();
    let row = |client: &Value| {
        let name = text(client, "client").unwrap_or_else(|| "-".to_owned());
        ClientRow {
            weight: number(client, "weight"),
            class: text(client, "class"),
            waiting: number(client, "waiting"),
            running: number(client, "running"),
            share: ratio(delta(&name), all),
            entitled: if active(client) { ratio(weight(client), weights) } else { None },
            client: name,
        }
    };
    let mut rows: Vec<ClientRow> = list(usage, "clients").map(row).collect();
    let busy = |row: &ClientRow| (row.entitled.is_some(), delta(&row.client));
    rows.sort_by(|a, b| busy(b).cmp(&busy(a)).then_with(|| a.client.cmp(&b.client)));
    rows
}

fn refusals(usage: &Value, ends: Option<(&Reading, &Reading)>) -> Vec<RefusalRow> {
    let rates = ends
        .map(|(first, last)| (deltas(&first.refusals, &last.refusals), (last.at - first.at).as_secs_f64()));
    let per_second = |rule: &str| {
        rates.as_ref().map(|(new, seconds)| new.get(rule).copied().unwrap_or(0) as f64 / seconds)
    };
    let row = |(rule, count): (String, u64)| RefusalRow { per_second: per_second(&rule), rule, count };
    let mut rows: Vec<RefusalRow> = counts(&usage["refusals"]).into_iter().map(row).collect();
    rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.rule.cmp(&b.rule)));
    rows
}

/// How much each counter grew; one that is new began at nothing.
fn deltas(first: &BTreeMap<String, u64>, last: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = |name: &String, now: u64| now.saturating_sub(first.get(name).copied().unwrap_or(0));
    last.iter().map(|(name, &now)| (name.clone(), grown(name, now))).collect()
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object[field].as_array().into_iter().flatten().take(ROWS_MAX)
}

fn counts(object: &Value) -> BTreeMap<String, u64> {
    let entries = object.as_object().into_iter().flatten().take(ROWS_MAX);
    entries.filter_map(|(name, count)| Some((clean(name), count.as_u64()?))).collect()
}

fn number(object: &Value, field: &str) -> Option<u64> {
    object[field].as_u64()
}

fn text(object: &Value, field: &str) -> Option<String> {
    object[field].as_str().map(clean)
}

/// Whatever a name holds, it can't steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A server with one busy model and clients of weights 1 and 3, at second `at`, when they had these microseconds.
    pub(in crate::top) fn sample(at: u64, light_us: u64, heavy_us: u64) -> Sample {
        let client = |client, weight, waiting, device_us| {
            json!({"client": client, "weight": weight, "class": "interactive", "waiting": waiting, "running": 1,
                   "device_us": device_us})
        };
        let mut idle = client("idle", 5, 0, 7);
        idle["running"] = json!(0);
        Sample {
            at: Duration::from_secs(at),
            status: json!({
                "run_id": "a", "health": {"status": "ok"}, "host": {"load_1m": 1.25, "cores": 2},
                "devices": [{"name": "cpu", "promised_bytes": 512 << 20, "budget_bytes": 4_u64 << 30}],
                "workers": [{"pid": 4242, "model": "minilm", "state": "ready", "lease_bytes": 400 << 20,
                             "used_bytes": 100 << 20, "peak_bytes": 200 << 20, "tier": "kernel", "running": 2}],
                "models": [{"name": "minilm", "state": "ready", "queued": 9, "running": 2}],
            }),
            usage: Some(json!({
                "uptime_us": at * 1_000_000,
                "refusals": {"rate_jobs": 3 * at, "queue_full_client": 40 * at},
                "clients": [idle, client("light", 1, 4, light_us), client("heavy", 3, 5, heavy_us)],
            })),
        }
    }

    /// The view after these samples.
    pub(in crate::top) fn after(samples: &[Sample]) -> View {
        let mut window = Window::default();
        samples.iter().for_each(|sample| window.remember(sample));
        view(samples.last().unwrap(), &window)
    }

    #[test]
    fn a_share_is_that_of_the_window_beside_what_the_weight_entitles_to() {
        let view = after(&[sample(1, 500, 0), sample(2, 1_500, 3_000)]);
        let clients = view.clients.unwrap();
        let found: Vec<_> =
            clients.iter().map(|row| (row.client.as_str(), row.share, row.entitled)).collect();
        let expected =
            [("heavy", Some(0.75), Some(0.75)), ("light", Some(0.25), Some(0.25)), ("idle", Some(0.0), None)];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_window_forgets_what_is_older_than_ten_seconds() {
        // All of light's time is older than the window.
        let samples: Vec<Sample> = (0..30).map(|at| sample(at, 1_000 * at.min(15), 1_000 * at)).collect();
        let view = after(&samples);
        let clients = view.clients.unwrap();
        assert_eq!((clients[0].client.as_str(), clients[0].share), ("heavy", Some(1.0)));
        assert_eq!(view.window_s, 10.0);
    }

    #[test]
    fn the_window_is_bounded_however_often_is_asked() {
        let mut window = Window::default();
        for turn in 0..1_000 {
            window.remember(&Sample { at: Duration::from_millis(turn), ..sample(1, 0, 0) });
        }
        assert!(window.readings.len() <= READINGS_MAX);
    }

    #[test]
    fn refusals_are_counted_and_rated() {
        let view = after(&[sample(1, 0, 0), sample(3, 0, 0)]);
        let found: Vec<_> =
            view.refusals.unwrap().into_iter().map(|row| (row.rule, row.count, row.per_second)).collect();
        let expected =
            [("queue_full_client".to_owned(), 120, Some(40.0)), ("rate_jobs".to_owned(), 9, Some(3.0))];
        assert_eq!(found, expected);
    }

    #[test]
    fn counters_of_another_run_say_nothing() {
        let mut restarted = sample(2, 10, 10);
        restarted.status["run_id"] = json!("b");
        let view = after(&[sample(1, 5_000, 5_000), restarted]);
        assert_eq!((view.window_s, view.clients.unwrap()[0].share), (0.0, None));
    }

    #[test]
    fn a_server_that_says_nothing_is_a_view_of_nothing() {
        let nothing = Sample { at: Duration::ZERO, status: json!({}), usage: None };
        let view = after(&[nothing]);
        assert!(view.workers.is_empty() && view.clients.is_none() && view.refusals.is_none());
        let odd = json!({"clients": [{}, 7, null], "refusals": [1]});
        let odd =
            Sample { at: Duration::ZERO, status: json!({"workers": 7, "models": [7]}), usage: Some(odd) };
        assert_eq!(after(&[odd]).clients.unwrap().len(), 3);
    }

    #[test]
    fn a_name_can_not_steer_the_terminal() {
        let mut odd = sample(1, 0, 0);
        odd.status["models"][0]["name"] = json!("a\u{1b}[2Jb");
        assert_eq!(after(&[odd]).models[0].name.as_deref(), Some("a?[2Jb"));
    }
}
