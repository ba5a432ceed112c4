//! What the scheduler knows of one job and of each client, in the words and names of the server.

use super::{Dispatcher, State};
use crate::clock;
use ringfence_scheduler::{
    AHEAD_MAX, Action, ClientUsage, Decision, Explanation, JobId, JobState, Rate, Resource, Time, WaitsFor,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;

/// One job: where it is, and why.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct JobView {
    /// Its number, as in the `ringfence-job` header of its answer.
    pub(crate) job: u64,
    /// Whose.
    pub(crate) client: String,
    /// For which model.
    pub(crate) model: String,
    /// `waiting`, `running` or `ended`.
    pub(crate) state: &'static str,
    /// The whole story in a sentence or two.
    pub(crate) why: String,
    /// Since it came, in milliseconds.
    pub(crate) age_ms: u64,
    /// Deaths of workers in which it was and after which it was put back.
    pub(crate) replays: u32,
    /// While it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<WaitingView>,
    /// While it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) running: Option<RunningView>,
    /// When it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<EndedView>,
    /// What was decided about it, oldest first, as far as it is remembered.
    pub(crate) decisions: Vec<DecisionView>,
}

/// A job in a queue.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct WaitingView {
    /// 1 is the next to start if nothing else comes.
    pub(crate) position: u64,
    /// Jobs that would start before it, by client; other clients are not named to a client.
    pub(crate) behind: BTreeMap<String, u64>,
    /// `step`, `load`, `own_worker`, `memory`, `backoff` or `broken`.
    pub(crate) waits_for: &'static str,
    /// About how long until it starts, in milliseconds; absent until the model was measured. An estimate.
    pub(crate) estimate_ms: Option<u64>,
}

/// A job in a worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RunningView {
    /// The worker's number.
    pub(crate) worker: u64,
    /// Since it started, in milliseconds.
    pub(crate) running_ms: u64,
    /// Device time so far, in milliseconds.
    pub(crate) device_ms: u64,
    /// Its model's timeout of that, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// A job that is over.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct EndedView {
    /// `done`, or the code of the refusal or failure.
    pub(crate) code: &'static str,
    /// By which rule.
    pub(crate) rule: String,
    /// From its arrival to its last start, or to its end if it never started, in milliseconds.
    pub(crate) waited_ms: u64,
    /// From its last start to its end, in milliseconds; absent if it never started.
    pub(crate) ran_ms: Option<u64>,
    /// Device time that it took, in microseconds.
    pub(crate) device_us: u64,
}

/// One decision.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct DecisionView {
    /// How long ago, in milliseconds.
    pub(crate) ago_ms: u64,
    /// What had happened.
    pub(crate) event: &'static str,
    /// What was decided.
    pub(crate) action: String,
    /// By which rule.
    pub(crate) rule: String,
}

/// What clients have had and may have.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct UsageView {
    /// Since the server's start, in microseconds; all counts are since then.
    pub(crate) uptime_us: u64,
    /// By how much two clients of a class that always wait for one model can differ in device time for weight 1, as far
    /// as jobs so far tell.
    pub(crate) unfairness_bound_us: u64,
    /// Jobs that were not taken, by code; the client's own on a client's socket.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// On `admin.sock` all that are remembered, else the one that asks.
    pub(crate) clients: Vec<ClientUsageView>,
}

/// One client.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ClientUsageView {
    /// Its name.
    pub(crate) client: String,
    /// Its share of device time beside others of its class.
    pub(crate) weight: u16,
    /// `realtime`, `interactive` or `batch`.
    pub(crate) class: &'static str,
    /// Its jobs that wait.
    pub(crate) waiting: u32,
    /// Its jobs in workers.
    pub(crate) running: u32,
    /// Jobs that came.
    pub(crate) submitted: u64,
    /// Jobs with their output.
    pub(crate) done: u64,
    /// Jobs that were taken and have none.
    pub(crate) failed: u64,
    /// Jobs that were not taken, by code.
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// Device time in microseconds.
    pub(crate) device_us: u64,
    /// Tokens.
    pub(crate) tokens: u64,
    /// Audio in milliseconds.
    pub(crate) audio_ms: u64,
    /// Its rates.
    pub(crate) rates: RatesView,
}

/// A client's rates; absent where it has none.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RatesView {
    /// Of jobs.
    pub(crate) jobs: Option<RateView>,
    /// Of device time in microseconds.
    pub(crate) device_us: Option<RateView>,
    /// Of tokens.
    pub(crate) tokens: Option<RateView>,
    /// Of audio in milliseconds.
    pub(crate) audio_ms: Option<RateView>,
}

/// One rate.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct RateView {
    /// Units in a minute.
    pub(crate) per_minute: u64,
    /// Units at once.
    pub(crate) burst: u64,
    /// Units that may be taken now; negative where more was used than could be foreseen.
    pub(crate) available: i64,
}

impl Dispatcher {
    /// What is known of a job, if the viewer may know it: a client sees its own, `None` sees all.
    pub(crate) fn job(&self, job: u64, viewer: Option<&str>) -> Option<JobView> {
        let state = self.lock();
        let explained = state.scheduler.explain(JobId(job))?;
        let client = state.client_name(explained.client);
        if viewer.is_some_and(|viewer| viewer != client) {
            return None;
        }
        Some(view(&state, explained, viewer))
    }

    /// What clients have had: the viewer's own, or everybody's for `None`.
    pub(crate) fn usage(&self, viewer: Option<&str>) -> UsageView {
        let state = self.lock();
        let clients = match viewer {
            None => state.scheduler.usage(None),
            Some(name) => {
                let known = state.clients.get(name);
                known.map(|client| state.scheduler.usage(Some(client.id))).unwrap_or_default()
            }
        };
        let refusals = match viewer {
            None => state.scheduler.refusals().clone(),
            Some(_) => clients.first().map(|client| client.usage.refused.clone()).unwrap_or_default(),
        };
        let bound = state.scheduler.unfairness_bound();
        let clients = clients.into_iter().map(|client| usage(&state, client)).collect();
        UsageView { uptime_us: clock::now().0, unfairness_bound_us: micros(bound), refusals, clients }
    }
}

fn usage(state: &State, client: ClientUsage) -> ClientUsageView {
    let rate = |resource: Resource| {
        client.rates[resource as usize].map(|(Rate { per_minute, burst }, available)| RateView {
            per_minute,
            burst,
            available,
        })
    };
    let rates = RatesView {
        jobs: rate(Resource::Jobs),
        device_us: rate(Resource::DeviceTime),
        tokens: rate(Resource::Tokens),
        audio_ms: rate(Resource::Audio),
    };
    let had = client.usage;
    ClientUsageView {
        client: state.client_name(client.client).to_owned(),
        weight: client.weight,
        class: client.class.name(),
        waiting: client.waiting,
        running: client.running,
        submitted: had.submitted,
        done: had.done,
        failed: had.failed,
        refused: had.refused,
        device_us: had.device_us,
        tokens: had.tokens,
        audio_ms: had.audio_ms,
        rates,
    }
}

fn view(state: &State, explained: Explanation, viewer: Option<&str>) -> JobView {
    let model = state.models.name(explained.model).to_owned();
    let now = clock::now();
    let mut view = JobView {
        job: explained.job.0,
        client: state.client_name(explained.client).to_owned(),
        model,
        state: "ended",
        why: String::new(),
        age_ms: since(now, explained.submitted),
        replays: explained.replays,
        waiting: None,
        running: None,
        ended: None,
        decisions: explained.decisions.iter().map(|decision| decided(now, decision)).collect(),
    };
    match explained.state {
        JobState::Waiting { ahead, behind, waits_for, estimate } => {
            let name = |client| match viewer {
                Some(viewer) if state.client_name(client) != viewer => "others".to_owned(),
                Some(_) | None => state.client_name(client).to_owned(),
            };
            let mut named = BTreeMap::new();
            for (client, jobs) in behind {
                *named.entry(name(client)).or_default() += jobs;
            }
            let (code, reason) = waits(now, &view.model, waits_for);
            view.state = "waiting";
            view.why = waiting_sentence(ahead, &named, &reason, estimate);
            view.waiting = Some(WaitingView {
                position: ahead + 1,
                behind: named,
                waits_for: code,
                estimate_ms: estimate.map(millis),
            });
        }
        JobState::Running { worker, started, device_time, timeout } => {
            let running = RunningView {
                worker: worker.0,
                running_ms: since(now, started),
                device_ms: millis(device_time),
                timeout_ms: millis(timeout),
            };
            view.state = "running";
            view.why = format!(
                "It runs in worker {} since {} ms and has had {} ms of device time, of {} ms that {} allows.",
                running.worker, running.running_ms, running.device_ms, running.timeout_ms, view.model
            );
            view.running = Some(running);
        }
        JobState::Ended { at, outcome, rule, started, device_time } => {
            let ended = EndedView {
                code: outcome.code(),
                rule: format!("{rule:?}"),
                waited_ms: since(started.unwrap_or(at), explained.submitted),
                ran_ms: started.map(|started| since(at, started)),
                device_us: micros(device_time),
            };
            view.why = ended_sentence(&outcome, &ended, explained.replays);
            view.ended = Some(ended);
        }
    }
    view
}

fn waiting_sentence(
    ahead: u64,
    behind: &BTreeMap<String, u64>,
    reason: &str,
    estimate: Option<Duration>,
) -> String {
    let place = match ahead {
        0 => "It is the next to start".to_owned(),
        AHEAD_MAX.. => format!("It waits behind {AHEAD_MAX} jobs or more"),
        _ => {
            let of: Vec<String> = behind.iter().map(|(client, jobs)| format!("{jobs} of {client}")).collect();
            format!("It waits behind {ahead} jobs ({})", of.join(", "))
        }
    };
    let when = estimate.map_or_else(
        || "how long is not known yet".to_owned(),
        |estimate| format!("it starts in about {} ms", millis(estimate)),
    );
    format!("{place}; {reason}; {when}.")
}

fn waits(now: Time, model: &str, waits_for: WaitsFor) -> (&'static str, String) {
    match waits_for {
        WaitsFor::Step => ("step", format!("the jobs in {model}'s workers fill their steps")),
        WaitsFor::Cores { threads, free } => (
            "cores",
            format!(
                "a worker of {model} has room, but needs {threads} cores of which {free} are free: jobs of other \
                 models run, or come before"
            ),
        ),
        WaitsFor::Load => ("load", format!("a worker is loading {model}")),
        WaitsFor::OwnWorker => (
            "own_worker",
            "the first was in a worker's death and runs alone, once a worker is empty".to_owned(),
        ),
        WaitsFor::Memory { lease, device_lease, package } => (
            "memory",
            format!(
                "{model} needs {lease} more bytes for a lease, {device_lease} for one on the GPU, and {package} for its \
                 package, which others hold"
            ),
        ),
        WaitsFor::Backoff { until } => {
            let wait = since(until, now);
            ("backoff", format!("workers of {model} died, the next one starts in {wait} ms"))
        }
        WaitsFor::Broken(cause) => ("broken", format!("{model} is broken: {cause}")),
    }
}

fn ended_sentence(outcome: &ringfence_scheduler::Outcome, ended: &EndedView, replays: u32) -> String {
    use ringfence_scheduler::Outcome;
    let times = match ended.ran_ms {
        None => format!("after {} ms without having started", ended.waited_ms),
        Some(ran) => format!(
            "after {} ms of waiting and {ran} ms in a worker, {} us of device time",
            ended.waited_ms, ended.device_us
        ),
    };
    let again = if replays == 0 { String::new() } else { format!(", {replays} times put back") };
    let how = match outcome {
        Outcome::Done => "It was answered".to_owned(),
        Outcome::Refused(refusal) => format!("It was refused ({}): {refusal};", ended.code),
        Outcome::Failed(failure) => format!("It failed ({}): {failure};", ended.code),
    };
    format!("{how} {times}{again}. The rule: {}.", ended.rule)
}

fn decided(now: Time, decision: &Decision) -> DecisionView {
    let action = match &decision.action {
        Action::Run { worker, .. } => format!("run in worker {}", worker.0),
        Action::CancelJob { worker, .. } => format!("cancel in worker {}", worker.0),
        Action::End { outcome, .. } => format!("end: {}", outcome.code()),
        Action::Kill { worker, why } => format!("kill worker {}: {}", worker.0, why.code()),
        Action::Spawn { .. } | Action::Stop { .. } | Action::DropPackage { .. } => String::new(),
    };
    DecisionView {
        ago_ms: since(now, decision.at),
        event: decision.event,
        action,
        rule: format!("{:?}", decision.rule),
    }
}

fn since(now: Time, earlier: Time) -> u64 {
    millis(now.since(earlier))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
