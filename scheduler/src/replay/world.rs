//! The world of a replay: virtual time, a fresh scheduler, and workers that take as long as was measured.

use super::report::{ClientReport, Report, Waits};
use super::trace::{Ended, Input, Submitted, TRACE_US_MAX, Trace, TracedModel};
use super::worker::{Slot, StepSize, Work, Worker};
use super::{REPLAY_STEPS_MAX, ReplayError};
use crate::action::{Action, Outcome};
use crate::config::{Class, ClientConfig, ClientValues, QUEUE_MAX};
use crate::event::{Event, Exit, JobEnd, Submit};
use crate::ids::{ClientId, JobId, ModelId, Time, WorkerId};
use crate::quotas::Quotas;
use crate::state::Scheduler;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Device time of a token in nanoseconds where neither the server nor the trace's jobs tell.
const TOKEN_NS_UNKNOWN: u64 = 10_000;

/// Parts of a token bound.
const WHOLE: u128 = 1_000_000;

/// A model as its jobs in the trace were.
struct Model {
    traced: TracedModel,
    /// Device time of a token in nanoseconds.
    token_ns: u64,
    /// Tokens that a job has, in parts of a million of its bound.
    part: u128,
    step: StepSize,
    /// As the average job was.
    average: Work,
    average_bound: u64,
    /// Whether anything was measured.
    known: bool,
}

/// What becomes of a job here.
#[derive(Clone, Default)]
struct Fate {
    submitted: u64,
    started: Option<u64>,
    ended: Option<(u64, Outcome)>,
}

/// What will happen.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Ready(WorkerId),
    Step(WorkerId),
    Exit(WorkerId, Exit),
}

pub(super) struct World<'a> {
    trace: &'a Trace,
    quotas: &'a Quotas,
    scheduler: Scheduler,
    models: Vec<Model>,
    names: HashMap<&'a str, usize>,
    workers: BTreeMap<WorkerId, Worker>,
    /// By time, then by order of decision.
    pending: BTreeMap<(u64, u64), Pending>,
    decided: u64,
    /// Warm-up jobs, one a model, then the trace's.
    fates: Vec<Fate>,
    open: usize,
    now: u64,
    steps: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(trace: &'a Trace, quotas: &'a Quotas) -> Result<Self, ReplayError> {
        let machine = trace.header.machine;
        let config = quotas.config(machine.memory_bytes, machine.cores)?;
        let mut scheduler = Scheduler::new(config);
        let mut measured: HashMap<&str, Measured> = HashMap::new();
        for job in &trace.jobs {
            if let Some(ended) = job.ended.as_ref().filter(|ended| ended.code == "done") {
                measured.entry(&job.submitted.model).or_default().add(&job.submitted, ended);
            }
        }
        let (mut models, mut names) = (Vec::new(), HashMap::new());
        for (index, (name, traced)) in trace.header.models.iter().enumerate() {
            let quota = quotas.model(name);
            let lease = quota.lease_bytes().unwrap_or(traced.default_lease_bytes);
            let threads = quotas.threads(name, machine.cores);
            let package_bytes = traced.package_bytes;
            let config = quotas.config_of(&quota, threads, lease, package_bytes, traced.shares_steps)?;
            scheduler.step(Time(0), Event::ModelAdded { model: ModelId(index as u32), config });
            let measured = measured.get(name.as_str()).copied().unwrap_or_default();
            models.push(measured.model(*traced, quota.step_tokens, quota.step_ms));
            names.insert(name.as_str(), index);
        }
        for (index, name) in trace.clients.iter().enumerate() {
            if let Some(config) = quotas.client(name) {
                let client = ClientId(index as u32);
                scheduler.step(Time(0), Event::ClientConfigured { client, config: Some(config) });
            }
        }
        let fates = vec![Fate::default(); models.len() + trace.jobs.len()];
        Ok(Self {
            trace,
            quotas,
            scheduler,
            models,
            names,
            workers: BTreeMap::new(),
            pending: BTreeMap::new(),
            decided: 0,
            fates,
            open: 0,
            now: 0,
            steps: 0,
        })
    }

    pub(super) fn run(mut self) -> Result<Report, ReplayError> {
        self.warm_up()?;
        let trace = self.trace;
        let begin = self.now;
        for (t, input) in &trace.inputs {
            self.run_until(begin + t, |_| false)?;
            match *input {
                Input::Submit(job) => self.submit(job),
                Input::Cancel(job) => self.tell(Event::Cancel { job: self.id_of(job) }),
                Input::Forget(job) => self.tell(Event::Forget { job: self.id_of(job) }),
            }
        }
        self.run_until(begin + trace.length_us, |_| false)?;
        let until_end = self.device_us();
        self.run_until(u64::MAX, |world| world.open == 0)?;
        Ok(self.report(&until_end))
    }

    /// Brings the scheduler to where the recorded one was: it knows how long jobs take, and what was loaded is.
    fn warm_up(&mut self) -> Result<(), ReplayError> {
        let values = ClientValues {
            weight: 1,
            class: Class::Batch,
            queue_max: QUEUE_MAX,
            jobs: None,
            device_us: None,
            tokens: None,
            audio_ms: None,
        };
        let config = Some(ClientConfig::new(values).expect("these values are within their ranges"));
        let client = ClientId(self.trace.clients.len() as u32);
        self.tell(Event::ClientConfigured { client, config });
        for index in 0..self.models.len() {
            if !self.models[index].known {
                continue;
            }
            let model = ModelId(index as u32);
            self.fates[index].submitted = self.now;
            self.open += 1;
            let tokens = self.models[index].average_bound;
            let submit = Submit {
                job: JobId(index as u64),
                client,
                model,
                deadline: None,
                tokens,
                tokens_bound: 0,
                audio_ms: 0,
                canary: false,
                live: false,
            };
            self.tell(Event::Submit(submit));
            self.run_until(u64::MAX, |world| world.open == 0)?;
            self.tell(Event::Unload { model });
            self.run_until(u64::MAX, |world| world.workers.is_empty())?;
        }
        for index in 0..self.models.len() {
            if self.models[index].traced.ready > 0 {
                self.tell(Event::Load { model: ModelId(index as u32) });
                let loaded = |world: &Self| world.workers.values().all(|worker| worker.ready);
                self.run_until(u64::MAX, loaded)?;
            }
        }
        Ok(())
    }

    fn id_of(&self, job: usize) -> JobId {
        JobId((self.models.len() + job) as u64)
    }

    fn submit(&mut self, job: usize) {
        let id = self.id_of(job);
        let trace = self.trace;
        let traced = &trace.jobs[job];
        let Submitted { client, model, tokens, tokens_bound, audio_ms, deadline_us, .. } = &traced.submitted;
        let fate = &mut self.fates[id.0 as usize];
        fate.submitted = self.now;
        let found = self.names.get(model.as_str()).filter(|_| self.quotas.may_use(client, model));
        let Some(model) = found.copied() else {
            // The server answers this before the scheduler hears of it.
            fate.ended = Some((self.now, Outcome::Refused(crate::action::Refusal::UnknownModel)));
            return;
        };
        let deadline = self.quotas.deadline(client, deadline_us.map(Duration::from_micros));
        self.open += 1;
        self.tell(Event::Submit(Submit {
            job: id,
            client: ClientId(traced.client as u32),
            model: ModelId(model as u32),
            deadline: deadline.map(|deadline| Time(self.now) + deadline),
            tokens: *tokens,
            tokens_bound: *tokens_bound,
            audio_ms: *audio_ms,
            canary: false,
            live: false,
        }));
    }

    /// Lets things happen up to a time, or until what is waited for is so.
    fn run_until(&mut self, until: u64, over: impl Fn(&Self) -> bool) -> Result<(), ReplayError> {
        loop {
            self.start_steps();
            if over(self) {
                return Ok(());
            }
            let pending = self.pending.keys().next().map(|(at, _)| *at);
            let wake = self.scheduler.next_wake().map(|time| time.0.max(self.now));
            let next = pending.into_iter().chain(wake).min().filter(|at| *at <= until && *at != u64::MAX);
            let Some(at) = next else { break };
            self.steps += 1;
            if self.steps > REPLAY_STEPS_MAX {
                return Err(ReplayError::TooLong);
            }
            self.now = at;
            match pending {
                Some(first) if first <= at => {
                    let (_, what) = self.pending.pop_first().expect("it was there");
                    self.happen(what);
                }
                Some(_) | None => self.tell(Event::Tick),
            }
        }
        if until != u64::MAX {
            self.now = until;
        }
        Ok(())
    }

    fn happen(&mut self, what: Pending) {
        match what {
            Pending::Ready(id) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.ready = true;
                    self.tell(Event::WorkerReady { worker: id, bytes_per_token: 0, used_bytes: 0 });
                }
            }
            Pending::Step(id) => self.end_step(id),
            Pending::Exit(id, exit) => {
                if self.workers.remove(&id).is_some() {
                    self.tell(Event::WorkerExited { worker: id, exit });
                }
            }
        }
    }

    fn later(&mut self, after_us: u64, what: Pending) {
        self.decided += 1;
        self.pending.insert((self.now.saturating_add(after_us), self.decided), what);
    }

    /// Every ready worker with something to do does it.
    fn start_steps(&mut self) {
        let idle = |worker: &Worker| worker.ready && worker.step.is_none() && !worker.slots.is_empty();
        while let Some(id) = self.workers.iter().find(|(_, worker)| idle(worker)).map(|(id, _)| *id) {
            let worker = self.workers.get_mut(&id).expect("found above");
            if let Some(index) = worker.slots.iter().position(|slot| slot.cancelled) {
                let job = worker.slots.remove(index).job;
                self.tell(Event::JobEnded { worker: id, job, end: JobEnd::Cancelled });
                continue;
            }
            let ns = worker.start_step(self.models[worker.model].step);
            self.later(ns.div_ceil(1_000), Pending::Step(id));
        }
    }

    fn end_step(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some((ns, taken)) = worker.step.take() else { return };
        let (over, rest) =
            std::mem::take(&mut worker.slots).into_iter().partition(|slot| slot.is_done() && !slot.cancelled);
        worker.slots = rest;
        let over: Vec<Slot> = over;
        let tokens = taken.into_iter().map(|(job, tokens)| (job, u32::try_from(tokens).unwrap_or(u32::MAX)));
        let tokens = tokens.collect();
        self.tell(Event::Used { worker: id, device_us: ns.div_ceil(1_000), tokens });
        for Slot { job, .. } in over {
            let end = self.end_of(job);
            self.tell(Event::JobEnded { worker: id, job, end });
        }
    }

    /// A job that failed by its input fails again.
    fn end_of(&self, job: JobId) -> JobEnd {
        let traced = (job.0 as usize).checked_sub(self.models.len()).map(|job| &self.trace.jobs[job]);
        match traced.and_then(|job| job.ended.as_ref()).map(|ended| ended.code.as_str()) {
            Some("in_worker") => JobEnd::Failed,
            Some("out_of_memory") => JobEnd::OutOfMemory,
            Some(_) | None => JobEnd::Done,
        }
    }

    /// What a job has to do: what it did in the recording, else what a job of its size should.
    fn work_of(&self, job: JobId, model: usize) -> Work {
        let model = &self.models[model];
        let Some(job) = (job.0 as usize).checked_sub(self.models.len()) else { return model.average };
        let traced = &self.trace.jobs[job];
        let items = traced.submitted.items;
        let did = traced.ended.as_ref();
        let did = did.filter(|ended| ["done", "in_worker", "out_of_memory"].contains(&ended.code.as_str()));
        let expected = model.expected(traced.submitted.tokens);
        let (tokens, ns) = match did {
            Some(ended) if ended.tokens > 0 => (ended.tokens, ended.device_us * 1_000),
            Some(ended) => (expected, ended.device_us * 1_000),
            None => (expected, expected.saturating_mul(model.token_ns)),
        };
        Work { items, tokens: tokens.max(u64::from(items)), ns }
    }

    fn tell(&mut self, event: Event) {
        for action in self.scheduler.step(Time(self.now), event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn { worker, model, .. } => {
                let model = model.0 as usize;
                self.workers.insert(worker, Worker::new(model));
                self.later(self.models[model].traced.load_us, Pending::Ready(worker));
            }
            Action::Run { job, worker, weight } => self.begin(job, worker, weight),
            Action::CancelJob { job, worker } => {
                let slots = self.workers.get_mut(&worker).map(|worker| &mut worker.slots);
                let slot = slots.and_then(|slots| slots.iter_mut().find(|slot| slot.job == job));
                if let Some(slot) = slot {
                    slot.cancelled = true;
                }
            }
            Action::End { job, outcome } => {
                let fate = &mut self.fates[job.0 as usize];
                fate.ended = Some((self.now, outcome));
                self.open -= 1;
            }
            Action::Stop { worker } => self.later(0, Pending::Exit(worker, Exit::Finished)),
            Action::Kill { worker, .. } => self.later(0, Pending::Exit(worker, Exit::Crashed)),
            Action::DropPackage { .. } => {}
        }
    }

    fn begin(&mut self, job: JobId, id: WorkerId, weight: u16) {
        let (now, client) = (self.now, self.client_of(job));
        let Some(model) = self.workers.get(&id).map(|worker| worker.model) else { return };
        let work = self.work_of(job, model);
        self.fates[job.0 as usize].started.get_or_insert(now);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.slots.push(Slot::new(job, client, weight, work));
        }
    }

    fn client_of(&self, job: JobId) -> ClientId {
        let traced = (job.0 as usize).checked_sub(self.models.len());
        ClientId(traced.map_or(self.trace.clients.len(), |job| self.trace.jobs[job].client) as u32)
    }

    /// Of each client of the trace.
    fn device_us(&self) -> Vec<u64> {
        let had: BTreeMap<ClientId, u64> = self
            .scheduler
            .usage(None)
            .into_iter()
            .map(|client| (client.client, client.usage.device_us))
            .collect();
        let of = |index| had.get(&ClientId(index as u32)).copied().unwrap_or(0);
        (0..self.trace.clients.len()).map(of).collect()
    }

    fn report(self, until_end: &[u64]) -> Report {
        let clients = self.trace.clients.len();
        let mut reports = vec![ClientReport::default(); clients];
        let mut waits = vec![Vec::new(); clients];
        let mut codes = Vec::with_capacity(self.trace.jobs.len());
        for (job, fate) in self.trace.jobs.iter().zip(&self.fates[self.models.len()..]) {
            let report = &mut reports[job.client];
            report.submitted += 1;
            waits[job.client].extend(fate.started.map(|started| started - fate.submitted));
            let outcome = fate.ended.as_ref().map(|(_, outcome)| outcome);
            codes.push(outcome.map(Outcome::code));
            match outcome {
                Some(Outcome::Done) => report.done += 1,
                Some(Outcome::Refused(refusal)) => *report.refused.entry(refusal.code()).or_default() += 1,
                Some(Outcome::Failed(failure)) => *report.failed.entry(failure.code()).or_default() += 1,
                None => {}
            }
        }
        let all: u64 = until_end.iter().sum();
        let wait = Waits::of(waits.iter().flatten().copied().collect());
        let device = self.device_us();
        for (index, report) in reports.iter_mut().enumerate() {
            report.wait = Waits::of(std::mem::take(&mut waits[index]));
            report.device_us = device[index];
            report.share = if all == 0 { 0.0 } else { until_end[index] as f64 / all as f64 };
        }
        Report { clients: self.trace.clients.iter().cloned().zip(reports).collect(), codes, wait }
    }
}

/// Sums over the jobs of a model that were answered.
#[derive(Clone, Copy, Default)]
struct Measured {
    jobs: u64,
    items: u64,
    bound: u128,
    tokens: u128,
    device_us: u128,
}

impl Measured {
    fn add(&mut self, submitted: &Submitted, ended: &Ended) {
        self.jobs += 1;
        self.items += u64::from(submitted.items);
        self.bound += u128::from(submitted.tokens);
        self.tokens += u128::from(ended.tokens);
        self.device_us += u128::from(ended.device_us);
    }

    fn model(&self, traced: TracedModel, step_tokens: u32, step_ms: u64) -> Model {
        let narrow = |number: u128| u64::try_from(number).unwrap_or(u64::MAX).min(TRACE_US_MAX);
        let measured = (self.device_us * 1_000).checked_div(self.tokens).map(narrow);
        let known = measured.is_some() || traced.token_ns > 0;
        let token_ns = measured.or(Some(traced.token_ns)).filter(|ns| *ns > 0).unwrap_or(TOKEN_NS_UNKNOWN);
        let part = (self.tokens * WHOLE).checked_div(self.bound).map_or(WHOLE, |part| part.min(WHOLE));
        let tokens = (step_ms * 1_000_000 / token_ns).clamp(1, u64::from(step_tokens));
        let jobs = u128::from(self.jobs.max(1));
        let average = Work {
            items: narrow(u128::from(self.items) / jobs).clamp(1, u64::from(u16::MAX)) as u32,
            tokens: narrow(self.tokens / jobs).max(1),
            ns: 0,
        };
        let tokens_of_average = average.tokens.max(u64::from(average.items));
        let average =
            Work { tokens: tokens_of_average, ns: tokens_of_average.saturating_mul(token_ns), ..average };
        Model {
            traced,
            token_ns,
            part: part.max(1),
            step: StepSize { tokens },
            average,
            average_bound: narrow(self.bound / jobs).max(average.tokens),
            known,
        }
    }
}

impl Model {
    fn expected(&self, bound: u64) -> u64 {
        u64::try_from(u128::from(bound) * self.part / WHOLE).unwrap_or(u64::MAX)
    }
}
