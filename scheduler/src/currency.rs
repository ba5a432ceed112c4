//! Clients: what each may do, has had and owes; and the bill of each job, from what is expected to what was used.
//!
//! The currency is device time as the server measures it. A job's expected time is put on its client's counter when it
//! starts, so that nobody gets ahead by starting much at once, and replaced by what it took. Only what was not used comes
//! back.

use crate::action::{Failure, Outcome, RateLimit, Resource};
use crate::config::{Class, ClientValues, Order, Rate};
use crate::event::Submit;
use crate::explain::Rule;
use crate::ids::{ClientId, JobId, ModelId, Time};
use crate::queue::Standing;
use crate::rate::Bucket;
use crate::state::{Job, Model, Scheduler};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Clients without a job whose past is remembered; beyond it the one that was here least recently is forgotten.
pub const CLIENTS_MAX: usize = 10_000;

/// The counter runs in device time of weight 1; this keeps its resolution for the largest weight.
pub(crate) const COUNTER_SCALE: u64 = crate::config::WEIGHT_MAX as u64;

/// One client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// Its own section; `None` is what unnamed ones may.
    pub(crate) config: Option<ClientValues>,
    pub(crate) waiting: u32,
    pub(crate) running: u32,
    /// Models for which its jobs wait.
    pub(crate) waits_for: BTreeSet<ModelId>,
    /// Device time that it has had, for its weight, in parts of a microsecond.
    had: u64,
    /// What its running jobs are expected to take beyond it.
    expected: u64,
    pub(crate) buckets: [Bucket; 4],
    /// Loads of workers that were killed on its account.
    pub(crate) forget_loads: Bucket,
    pub(crate) usage: Usage,
    bills: u32,
    /// It came back, and none of its jobs has started since.
    back: bool,
    /// Since when it has no job.
    idle: Option<Time>,
    /// Its class and what it has had, while it has jobs.
    active: Option<(Class, u64)>,
}

impl Client {
    /// What decides whose turn it is: the least comes first.
    pub(crate) fn counter(&self) -> u64 {
        self.had.saturating_add(self.expected)
    }
}

/// What a client has had since it was first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Jobs that came.
    pub submitted: u64,
    /// Jobs with their whole output.
    pub done: u64,
    /// Jobs that were taken and have no output.
    pub failed: u64,
    /// Jobs that were not taken, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Device time in microseconds.
    pub device_us: u64,
    /// Tokens, as workers counted them.
    pub tokens: u64,
    /// Audio in milliseconds, as workers heard it.
    pub audio_ms: u64,
}

/// One client as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientUsage {
    /// Which.
    pub client: ClientId,
    /// Its weight.
    pub weight: u16,
    /// Its class.
    pub class: Class,
    /// Its jobs that wait.
    pub waiting: u32,
    /// Its jobs in workers.
    pub running: u32,
    /// What it has had.
    pub usage: Usage,
    /// By [`Resource`]: its rate and the units that it may take now; negative where more was used than foreseen.
    pub rates: [Option<(Rate, i64)>; 4],
}

/// What a job that was taken is charged.
#[derive(Clone, Debug)]
pub(crate) struct Bill {
    client: ClientId,
    /// Taken from the buckets when it came.
    taken: [u64; 4],
    /// What it is expected to take beyond what it used, for its client's weight.
    expected: u64,
    used_us: u64,
    used_tokens: u64,
    /// As its worker says, once it has heard it.
    audio_ms: Option<u64>,
}

impl Scheduler {
    /// What a client may do.
    pub(crate) fn client_values(&self, id: ClientId) -> &ClientValues {
        let own = self.clients.get(&id).and_then(|client| client.config.as_ref());
        own.unwrap_or_else(|| self.config.values().client.values())
    }

    /// Changes a client, which is remembered from now on.
    pub(crate) fn change_client(&mut self, id: ClientId, change: impl FnOnce(&mut Client)) {
        let now = self.now;
        let client = self.clients.entry(id).or_default();
        change(client);
        // Those with a section of their own are never forgotten.
        let idle = client.waiting == 0 && client.running == 0 && client.bills == 0 && client.config.is_none();
        match (client.idle, idle) {
            (None, true) => {
                client.idle = Some(now);
                self.idle_clients.insert((now, id));
            }
            (Some(since), false) => {
                client.idle = None;
                self.idle_clients.remove(&(since, id));
            }
            (None, false) | (Some(_), true) => {}
        }
        if self.idle_clients.len() > CLIENTS_MAX
            && let Some((_, longest)) = self.idle_clients.pop_first()
        {
            self.clients.remove(&longest);
        }
        self.index(id);
    }

    /// Keeps the order of clients with jobs by class and by what they have had.
    fn index(&mut self, id: ClientId) {
        let class = self.client_values(id).class;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let now = (client.waiting + client.running > 0).then_some((class, client.had));
        let before = std::mem::replace(&mut client.active, now);
        if before != now {
            before.map(|(class, had)| self.active[class as usize].remove(&(had, id)));
            now.map(|(class, had)| self.active[class as usize].insert((had, id)));
        }
    }

    pub(crate) fn configure_client(&mut self, id: ClientId, config: Option<ClientValues>) {
        let class_before = self.client_values(id).class;
        self.change_client(id, |client| client.config = config);
        self.moved_class(id, class_before);
        self.move_lines(id);
    }

    /// Counters of two classes say nothing about each other.
    pub(crate) fn moved_class(&mut self, id: ClientId, before: Class) {
        let class = self.client_values(id).class;
        if class != before {
            let had = self.class_time(class);
            if let Some(client) = self.clients.get_mut(&id) {
                client.had = had;
            }
            self.index(id);
        }
    }

    pub(crate) fn standing(&self, id: ClientId) -> Standing {
        let ClientValues { class, weight, .. } = *self.client_values(id);
        let counter = self.clients.get(&id).map_or(0, Client::counter);
        Standing { class, weight, counter }
    }

    /// Puts a client's waiting jobs where its counter says.
    pub(crate) fn move_lines(&mut self, id: ClientId) {
        let standing = self.standing(id);
        let now = self.now;
        let Some(client) = self.clients.get(&id) else { return };
        for model in &client.waits_for {
            let model = self.models.get_mut(model).expect("jobs wait for known models");
            model.queue.move_line(now, id, standing);
        }
    }

    /// A client that comes back has no claim on the time in which it asked for nothing: it is put just before the one that
    /// has had the least of those that ask, and behind others that came back and wait for their first job to start.
    fn rejoin(&mut self, id: ClientId) {
        let now = self.class_time(self.client_values(id).class);
        self.change_client(id, |client| {
            if client.waiting == 0 && client.running == 0 {
                client.had = client.had.max(now);
                client.back = true;
            }
        });
    }

    fn class_time(&self, class: Class) -> u64 {
        match self.active[class as usize].first() {
            Some((had, client)) if self.clients[client].back => *had,
            Some((had, _)) => had.saturating_sub(1),
            None => self.virtual_time[class as usize],
        }
    }

    /// The rate that lets this job wait for longest, if one does.
    pub(crate) fn rate_limit(&self, submit: &Submit) -> Option<RateLimit> {
        let values = self.client_values(submit.client);
        let buckets = self.clients.get(&submit.client).map(|client| client.buckets).unwrap_or_default();
        let limit = |resource: Resource| {
            let rate = rate_of(values, resource)?;
            let bucket = buckets[resource as usize];
            let wanted = self.cost(submit, resource);
            let retry_after = bucket.wait(rate, self.now, wanted);
            let available = bucket.available(rate, self.now);
            (!retry_after.is_zero()).then_some(RateLimit { resource, rate, wanted, available, retry_after })
        };
        Resource::ALL.into_iter().filter_map(limit).max_by_key(|limit| limit.retry_after)
    }

    fn cost(&self, submit: &Submit, resource: Resource) -> u64 {
        match resource {
            Resource::Jobs => 1,
            Resource::DeviceTime => self.expected_us(&self.models[&submit.model], submit.tokens),
            Resource::Tokens => submit.tokens,
            Resource::Audio => submit.audio_ms,
        }
    }

    /// Takes what an accepted job is expected to use.
    pub(crate) fn open_bill(&mut self, submit: &Submit) {
        let now = self.now;
        self.rejoin(submit.client);
        let taken = Resource::ALL.map(|resource| {
            let burst = rate_of(self.client_values(submit.client), resource).map(|rate| rate.burst);
            self.cost(submit, resource).min(burst.unwrap_or(u64::MAX))
        });
        let values = self.client_values(submit.client).clone();
        self.change_client(submit.client, |client| {
            client.bills += 1;
            for resource in Resource::ALL {
                if let Some(rate) = rate_of(&values, resource) {
                    client.buckets[resource as usize].take(rate, now, taken[resource as usize]);
                }
            }
        });
        let bill =
            Bill { client: submit.client, taken, expected: 0, used_us: 0, used_tokens: 0, audio_ms: None };
        self.bills.insert(submit.job, bill);
    }

    /// The first job of a client's line is about to start.
    pub(crate) fn advance_time(&mut self, model: ModelId, client: ClientId) {
        let class = self.client_values(client).class;
        let counter = self.clients[&client].counter();
        let time = &mut self.virtual_time[class as usize];
        *time = (*time).max(counter);
        let now = self.now;
        self.models.get_mut(&model).expect("jobs wait for known models").queue.serve(now, client);
    }

    /// A job starts: what it is expected to take is counted for its client as if it had it already.
    pub(crate) fn expect_charge(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        let expected = self.expected_us(&self.models[&job.model], job.tokens);
        let weight = self.client_values(job.client).weight;
        let Some(bill) = self.bills.get_mut(&id) else { return };
        bill.expected = weighted(expected, weight);
        let (client, expected) = (bill.client, bill.expected);
        self.largest_charge = self.largest_charge.max(expected);
        self.count(client, |client| {
            client.expected = client.expected.saturating_add(expected);
            client.back = false;
        });
    }

    /// A job has used device time, and tokens as its worker says.
    pub(crate) fn charge(&mut self, id: JobId, client: ClientId, device_us: u64, tokens: u32) {
        let weight = self.client_values(client).weight;
        let Some(known) = self.clients.get_mut(&client) else { return };
        known.usage.device_us = known.usage.device_us.saturating_add(device_us);
        known.usage.tokens = known.usage.tokens.saturating_add(u64::from(tokens));
        let Some(bill) = self.bills.get_mut(&id) else { return };
        bill.used_us = bill.used_us.saturating_add(device_us);
        bill.used_tokens = bill.used_tokens.saturating_add(u64::from(tokens));
        self.largest_charge = self.largest_charge.max(weighted(bill.used_us, weight));
        let had = weighted(device_us, weight);
        // What takes longer than expected is expected to take as long again, so that a long job moves its client a few
        // times and not at each of its steps.
        let more = if had > bill.expected { weighted(bill.used_us, weight) } else { 0 };
        bill.expected = bill.expected.saturating_add(more).saturating_sub(had);
        self.count(client, |client| {
            client.had = client.had.saturating_add(had);
            client.expected = client.expected.saturating_add(more).saturating_sub(had);
        });
    }

    /// A job's worker has heard how long its audio is; what it says first counts.
    pub(crate) fn heard(&mut self, id: JobId, audio_ms: u64) {
        let Some(bill) = self.bills.get_mut(&id).filter(|bill| bill.audio_ms.is_none()) else { return };
        bill.audio_ms = Some(audio_ms);
        let client = bill.client;
        self.change_client(client, |client| {
            client.usage.audio_ms = client.usage.audio_ms.saturating_add(audio_ms);
        });
        let worker = self.jobs.get(&id).and_then(|job| job.worker);
        let slot = worker.and_then(|worker| self.workers.get_mut(&worker)?.slots.get_mut(&id));
        if let Some(slot) = slot {
            slot.audio = Duration::from_millis(audio_ms);
        }
    }

    /// How long a job's audio is, as far as a worker has heard it.
    pub(crate) fn audio_of(&self, id: JobId) -> Duration {
        Duration::from_millis(self.bills.get(&id).and_then(|bill| bill.audio_ms).unwrap_or(0))
    }

    /// A live job's worker has heard so much of it; what it says beyond what was taken is taken now. Where that is more than
    /// the client may have, the job ends.
    pub(crate) fn listened(&mut self, id: JobId, audio_ms: u64) {
        let now = self.now;
        if !self.jobs.get(&id).is_some_and(|job| job.live) {
            return;
        }
        let Some(bill) = self.bills.get_mut(&id) else { return };
        let before = bill.audio_ms.replace(audio_ms.max(bill.audio_ms.unwrap_or(0))).unwrap_or(0);
        let more = audio_ms.saturating_sub(before);
        let taken = &mut bill.taken[Resource::Audio as usize];
        let beyond = audio_ms.saturating_sub(*taken);
        *taken += beyond;
        let client = bill.client;
        let rate = rate_of(self.client_values(client), Resource::Audio);
        let mut left = 0;
        self.change_client(client, |client| {
            client.usage.audio_ms = client.usage.audio_ms.saturating_add(more);
            if let Some(rate) = rate {
                let bucket = &mut client.buckets[Resource::Audio as usize];
                bucket.take(rate, now, beyond);
                left = bucket.available(rate, now);
            }
        });
        if let Some(rate) = rate.filter(|_| left < 0) {
            let wanted = left.unsigned_abs();
            let retry_after = self.clients[&client].buckets[Resource::Audio as usize].wait(rate, now, 1);
            let limit = RateLimit { resource: Resource::Audio, rate, wanted, available: left, retry_after };
            self.end(id, Outcome::Failed(Failure::RateLimited(limit)), Rule::Rate);
        }
    }

    /// A client pays for device time that none of its jobs had.
    pub(crate) fn charge_client(&mut self, id: ClientId, device_us: u64) {
        let (now, values) = (self.now, self.client_values(id).clone());
        let had = weighted(device_us, values.weight);
        self.largest_charge = self.largest_charge.max(had);
        let least = self.class_time(values.class);
        self.change_client(id, |client| {
            if client.waiting == 0 && client.running == 0 {
                // Or it would be lifted past what it pays when it comes back.
                client.had = client.had.max(least);
            }
            client.had = client.had.saturating_add(had);
            client.usage.device_us = client.usage.device_us.saturating_add(device_us);
            if let Some(rate) = values.device_us {
                client.buckets[Resource::DeviceTime as usize].take(rate, now, device_us);
            }
        });
        self.move_lines(id);
    }

    /// What was expected and not used is not counted any more: the job has ended, or runs again elsewhere.
    pub(crate) fn uncount(&mut self, id: JobId) {
        let Some(bill) = self.bills.get_mut(&id) else { return };
        let (client, unused) = (bill.client, std::mem::take(&mut bill.expected));
        self.count(client, |client| client.expected = client.expected.saturating_sub(unused));
    }

    fn count(&mut self, id: ClientId, change: impl FnOnce(&mut Client)) {
        let client = self.clients.get_mut(&id).expect("a client with a bill is known");
        let before = client.counter();
        change(client);
        let moved = client.counter() != before;
        self.index(id);
        if moved {
            self.move_lines(id);
        }
    }

    /// A job will never use anything again.
    pub(crate) fn settle(&mut self, id: JobId) {
        self.uncount(id);
        let Some(bill) = self.bills.remove(&id) else { return };
        let now = self.now;
        let values = self.client_values(bill.client).clone();
        // A worker that says more tokens than the job can have had is not believed.
        let tokens = bill.used_tokens.min(bill.taken[Resource::Tokens as usize]);
        self.change_client(bill.client, |client| {
            client.bills -= 1;
            let used = [
                (Resource::DeviceTime, bill.used_us),
                (Resource::Tokens, tokens),
                (Resource::Audio, bill.audio_ms.unwrap_or(0)),
            ];
            for (resource, used) in used {
                if let Some(rate) = rate_of(&values, resource) {
                    let taken = bill.taken[resource as usize];
                    client.buckets[resource as usize].reconcile(rate, now, taken, used);
                }
            }
        });
    }

    /// Counts how a job that was taken has ended.
    pub(crate) fn count_outcome(&mut self, job: &Job, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(refusal) => self.count_refusal(job.client, refusal.code()),
            Outcome::Done => self.change_client(job.client, |client| client.usage.done += 1),
            Outcome::Failed(_) => self.change_client(job.client, |client| client.usage.failed += 1),
        }
    }

    pub(crate) fn count_submitted(&mut self, id: ClientId) {
        self.change_client(id, |client| client.usage.submitted += 1);
    }

    pub(crate) fn count_refusal(&mut self, id: ClientId, code: &'static str) {
        *self.refusals.entry(code).or_default() += 1;
        self.change_client(id, |client| *client.usage.refused.entry(code).or_default() += 1);
    }

    /// The device time that a job should take; zero until the model was measured.
    pub(crate) fn expected_us(&self, model: &Model, tokens: u64) -> u64 {
        let nanos = u128::from(expected_tokens(model, tokens)) * u128::from(model.token_time.micros());
        u64::try_from(nanos / 1_000).unwrap_or(u64::MAX)
    }

    /// Tokens of a job, in parts of a million of what it could have had by its size; unknown where its worker said none.
    pub(crate) fn token_part(&self, id: JobId) -> Option<u64> {
        let (job, bill) = (self.jobs.get(&id)?, self.bills.get(&id)?);
        let whole = u128::from(job.tokens.max(1));
        let part = u128::from(bill.used_tokens) * u128::from(crate::state::WHOLE) / whole;
        (part > 0).then(|| u64::try_from(part).unwrap_or(u64::MAX).min(crate::state::WHOLE))
    }

    /// How much of a step a job takes, in tokens.
    pub(crate) fn load_of(&self, job: &Job) -> u64 {
        let model = &self.models[&job.model];
        expected_tokens(model, job.tokens).clamp(1, step_budget(model))
    }

    /// How much device time a job's bill says it took.
    pub(crate) fn billed_us(&self, id: JobId) -> u64 {
        self.bills.get(&id).map_or(0, |bill| bill.used_us)
    }

    /// What a client has had, may do and has left; of all that are remembered if none is named.
    pub fn usage(&self, client: Option<ClientId>) -> Vec<ClientUsage> {
        let one = |(id, client): (&ClientId, &Client)| {
            let values = self.client_values(*id);
            ClientUsage {
                client: *id,
                weight: values.weight,
                class: values.class,
                waiting: client.waiting,
                running: client.running,
                usage: client.usage.clone(),
                rates: Resource::ALL.map(|resource| {
                    let rate = rate_of(values, resource)?;
                    Some((rate, client.buckets[resource as usize].available(rate, self.now)))
                }),
            }
        };
        match client {
            Some(id) => self.clients.get_key_value(&id).map(one).into_iter().collect(),
            None => self.clients.iter().map(one).collect(),
        }
    }

    /// Jobs that were not taken, by code.
    pub fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    /// By how much two clients of a class that both always wait for one model can differ in the device time that they have
    /// had for their weight, as far as jobs so far tell: for each worker, two of the largest jobs, as they were
    /// expected to be or were, and two steps. For weight 1.
    pub fn unfairness_bound(&self) -> Duration {
        let steps = self.models.values().map(|model| model.config.step_target);
        let step = weighted(crate::ids::micros(steps.max().unwrap_or_default()), 1);
        let workers = self.workers.len().max(1) as u64;
        let bound = self.largest_charge.saturating_add(step).saturating_mul(2 * workers);
        Duration::from_micros(bound / COUNTER_SCALE)
    }

    /// Jobs that would start before a new one of this client, as far as that can be known.
    pub(crate) fn ahead(&self, model: &Model, client: ClientId) -> u64 {
        let all = model.queue.len() as u64;
        match self.config.values().order {
            Order::Arrival => all,
            Order::Fair => {
                let ClientValues { class, weight, .. } = *self.client_values(client);
                let own = model.queue.of(client) as u64;
                let (better, beside) = model.queue.weights(class);
                let weights = beside + if own == 0 { u64::from(weight) } else { 0 };
                let turns = (own + 1).saturating_mul(weights).div_ceil(u64::from(weight)) - 1;
                better.saturating_add(turns).min(all)
            }
        }
    }
}

/// What a charge of device time adds to the counter of a client of this weight.
pub(crate) fn weighted(us: u64, weight: u16) -> u64 {
    us.saturating_mul(COUNTER_SCALE) / u64::from(weight)
}

/// The rate of a resource, where there is one.
pub(crate) fn rate_of(values: &ClientValues, resource: Resource) -> Option<Rate> {
    match resource {
        Resource::Jobs => values.jobs,
        Resource::DeviceTime => values.device_us,
        Resource::Tokens => values.tokens,
        Resource::Audio => values.audio_ms,
    }
}

/// A job's tokens: what it could have by its size, times the part that jobs of this model turned out to have.
pub(crate) fn expected_tokens(model: &Model, tokens: u64) -> u64 {
    let part = model.token_part.value().unwrap_or(crate::state::WHOLE);
    let expected = u128::from(tokens) * u128::from(part) / u128::from(crate::state::WHOLE);
    u64::try_from(expected).unwrap_or(u64::MAX)
}

/// Tokens of a step that lasts as long as a step should, by the speed that was measured.
pub(crate) fn step_budget(model: &Model) -> u64 {
    let most = u64::from(model.config.step_tokens);
    let target_ns = crate::ids::micros(model.config.step_target).saturating_mul(1_000);
    match model.token_time.value() {
        None | Some(0) => most,
        Some(token_ns) => (target_ns / token_ns).clamp(1, most),
    }
}
