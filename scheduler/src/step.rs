//! One step: the event, then what has become due, then what can be placed.

use crate::action::{Action, Device, Failure, KillReason, Outcome, Refusal};
use crate::config::{Class, Config, ModelConfig, ModelValues};
use crate::event::{Event, JobEnd};
use crate::explain::{Decision, Rule};
use crate::ids::{ClientId, JobId, ModelId, Time, WorkerId};
use crate::state::{Footprint, Ledger, Model, Phase, Scheduler, Slot, elapsed_us};

impl Scheduler {
    /// Takes one event at the time `now` and says what to do. A `now` before an earlier one counts as that one.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.event = event.name();
        self.handle(event);
        self.expire();
        self.place();
        std::mem::take(&mut self.actions)
    }

    /// True once [`Event::Drain`] has come, every job has ended and every worker is dead.
    pub fn drained(&self) -> bool {
        self.draining && self.jobs.is_empty() && self.workers.is_empty()
    }

    /// The last decisions, oldest first, at most [`crate::DECISIONS_MAX`].
    pub fn decisions(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.decisions.iter()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ModelAdded { model, config } | Event::ModelChanged { model, config } => {
                self.configure(model, &config);
            }
            Event::ModelRemoved { model } => self.remove(model),
            Event::Configured(config) => self.reconfigure(config),
            Event::ClientConfigured { client, config } => {
                self.configure_client(client, config.map(|config| config.values().clone()));
            }
            Event::Submit(submit) => self.submit(&submit),
            Event::Cancel { job } => self.end(job, Outcome::Failed(Failure::Cancelled), Rule::ClientLeft),
            Event::Forget { job } => self.forget(job),
            Event::SpawnFailed { worker, fault } => self.spawn_failed(worker, fault),
            Event::WorkerReady { worker, bytes_per_token, used_bytes } => {
                self.ready(worker, Footprint { used_bytes, bytes_per_token });
            }
            Event::LoadFailed { worker } => self.load_failed(worker),
            Event::Used { worker, device_us, tokens } => self.used(worker, device_us, &tokens),
            Event::Heard { job, audio_ms } => self.heard(job, audio_ms),
            Event::Listened { job, audio_ms } => self.listened(job, audio_ms),
            Event::JobEnded { worker, job, end } => self.job_ended(worker, job, end),
            Event::WorkerExited { worker, exit } => self.worker_exited(worker, exit),
            Event::Load { model } => self.load(model),
            Event::Unload { model } => self.unload(model),
            Event::Tick => {}
            Event::Drain => self.drain(),
        }
    }

    fn configure(&mut self, id: ModelId, config: &ModelConfig) {
        let values = config.values().clone();
        let model = self.models.entry(id).or_insert_with(|| Model::new(values.clone()));
        let package_differs = model.package.is_some_and(|package| package.bytes != values.package_bytes);
        model.config = values.clone();
        model.removed = false;
        model.unloaded = false;
        model.mend();
        if package_differs {
            model.make_package_stale();
        }
        self.fit_workers(id, &values, package_differs);
    }

    /// Replaces the workers of a model that are not what its configuration says, and ends what can't run any more.
    fn fit_workers(&mut self, id: ModelId, values: &ModelValues, package_differs: bool) {
        let threads = self.threads(values);
        for worker in self.models[&id].workers.clone() {
            let now = &self.workers[&worker];
            if package_differs
                || now.lease_bytes != values.lease_bytes
                || now.device_lease_bytes != values.device_lease_bytes
                || now.gpu.is_some_and(|gpu| !values.gpus.contains(&gpu))
                || now.threads != threads
            {
                self.retire(worker, Rule::Operator);
            }
        }
        if let Err(refusal) = self.fits_budgets(values) {
            self.models.get_mut(&id).expect("it was there").wanted = None;
            self.end_waiting(id, &Outcome::Refused(refusal), Rule::Operator);
        }
    }

    /// Budgets may fall below what is promised: then workers leave until they hold again.
    fn reconfigure(&mut self, config: Config) {
        let clients: Vec<(ClientId, Class)> =
            self.clients.keys().map(|id| (*id, self.client_values(*id).class)).collect();
        self.cpu.budget = config.values().devices.cpu.budget_bytes;
        let budgets = &config.values().devices.gpu_budgets_bytes;
        // One that is no longer there has nothing more to give; what is promised of it comes back as its workers leave.
        self.gpus.resize(self.gpus.len().max(budgets.len()), Ledger { budget: 0, promised: 0 });
        for (place, gpu) in self.gpus.iter_mut().enumerate() {
            gpu.budget = budgets.get(place).copied().unwrap_or(0);
        }
        self.host.budget = config.values().host_budget_bytes;
        self.config = config;
        for (id, class) in clients {
            self.moved_class(id, class);
            self.move_lines(id);
        }
        let models: Vec<(ModelId, ModelValues)> =
            self.models.iter().map(|(id, model)| (*id, model.config.clone())).collect();
        for (id, values) in models {
            self.fit_workers(id, &values, false);
        }
    }

    fn remove(&mut self, id: ModelId) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.removed = true;
        self.end_waiting(id, &Outcome::Failed(Failure::ModelRemoved), Rule::Operator);
        self.unload(id);
    }

    fn load(&mut self, id: ModelId) {
        let arrival = self.arrive();
        let now = self.now;
        let Some(model) = self.models.get(&id) else { return };
        let possible = !model.removed && !self.draining && self.fits_budgets(&model.config).is_ok();
        let loaded = self.active(model).any(|(_, worker)| worker.phase == Phase::Ready);
        let model = self.models.get_mut(&id).expect("it was there");
        model.mend();
        model.unloaded = false;
        if possible && !loaded && model.wanted.is_none() {
            model.wanted = Some((arrival, now));
        }
    }

    fn unload(&mut self, id: ModelId) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.wanted = None;
        model.unloaded = model.queue.is_empty();
        model.make_package_stale();
        for worker in model.workers.clone() {
            self.retire(worker, Rule::Operator);
        }
    }

    fn drain(&mut self) {
        self.draining = true;
        for model in self.models.values_mut() {
            model.wanted = None;
        }
    }

    fn ready(&mut self, id: WorkerId, footprint: Footprint) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.phase == Phase::Loading) else {
            return;
        };
        worker.phase = Phase::Ready;
        worker.ready = now;
        worker.heard = now;
        worker.idle_since = now;
        let load_us = elapsed_us(now, worker.spawned);
        let model = self.models.get_mut(&worker.model).expect("a worker's model is known");
        model.load_time.add(load_us);
        model.footprint = Some(footprint);
        model.wanted = None;
        if let Some(client) = model.owed.pop_front() {
            self.charge_client(client, load_us);
        }
    }

    fn used(&mut self, id: WorkerId, device_us: u64, tokens: &[(JobId, u32)]) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.heard = self.now;
        let model = worker.model;
        let mut shares: Vec<(JobId, u32)> = tokens
            .iter()
            .filter(|(job, count)| *count > 0 && worker.slots.contains_key(job))
            .copied()
            .collect();
        if shares.is_empty() {
            shares = worker.slots.keys().map(|job| (*job, 1)).collect();
        }
        let counted: u64 = tokens.iter().map(|(_, count)| u64::from(*count)).sum();
        let mut charges = Vec::with_capacity(shares.len());
        for ((job, charge), (_, count)) in split(device_us, &shares).into_iter().zip(&shares) {
            let slot = worker.slots.get_mut(&job).expect("shares are of slots");
            slot.charged_us = slot.charged_us.saturating_add(charge);
            // Something is left of a job until its end.
            slot.left = slot.left.saturating_sub(u64::from(*count)).max(1);
            let tokens = if counted == 0 { 0 } else { *count };
            charges.push((job, slot.client, charge, tokens));
        }
        for (job, client, charge, tokens) in charges {
            self.charge(job, client, charge, tokens);
        }
        if let Some(token_ns) = device_us.saturating_mul(1_000).checked_div(counted) {
            let model = self.models.get_mut(&model).expect("a worker's model is known");
            model.token_time.add(token_ns);
        }
    }

    fn job_ended(&mut self, id: WorkerId, job: JobId, end: JobEnd) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(slot) = worker.slots.get(&job) else { return };
        worker.heard = self.now;
        if slot.cancelled.is_none() && end == JobEnd::Cancelled {
            // The slot stays: its job is replayed when the worker is dead.
            return self.kill(id, KillReason::Illegal, Rule::Illegal);
        }
        let slot = worker.slots.remove(&job).expect("it was there");
        if !slot.canary {
            worker.idle_since = self.now;
        }
        let model = worker.model;
        if slot.cancelled.is_none() {
            self.answered(model, job, &slot, end);
            self.end(job, outcome(end), Rule::Answer);
        }
        self.settle(job);
    }

    /// A worker that answers ends a row of deaths.
    fn answered(&mut self, model: ModelId, job: JobId, slot: &Slot, end: JobEnd) {
        let part = self.token_part(job);
        let model = self.models.get_mut(&model).expect("a worker's model is known");
        model.forget_deaths();
        if end == JobEnd::Done && !slot.canary && !slot.live {
            model.job_time.add(slot.charged_us);
            if let Some(part) = part {
                model.token_part.add(part);
            }
        }
    }

    /// What a model needs, against budgets of which nothing is promised.
    pub(crate) fn fits_budgets(&self, values: &ModelValues) -> Result<(), Refusal> {
        let needs = [
            (Device::Cpu, values.lease_bytes, self.cpu),
            (Device::Wgpu, values.device_lease_bytes, self.largest_gpu(values)),
            (Device::Host, values.package_bytes, self.host),
        ];
        match needs.into_iter().find(|(_, wanted, ledger)| *wanted > ledger.budget) {
            None => Ok(()),
            Some((device, wanted, ledger)) => {
                Err(Refusal::LeaseTooLargeForDevice { device, wanted, budget: ledger.budget })
            }
        }
    }
}

impl Scheduler {
    /// Of the GPUs that a model may be on, the one that has most to give.
    fn largest_gpu(&self, values: &ModelValues) -> Ledger {
        let gpus = values.gpus.iter().map(|gpu| self.gpu(*gpu));
        gpus.max_by_key(|gpu| gpu.budget).unwrap_or(Ledger { budget: 0, promised: 0 })
    }
}

fn outcome(end: JobEnd) -> Outcome {
    match end {
        JobEnd::Done => Outcome::Done,
        JobEnd::Failed => Outcome::Failed(Failure::InWorker),
        JobEnd::OutOfMemory => Outcome::Failed(Failure::OutOfMemory),
        JobEnd::Cancelled => Outcome::Failed(Failure::Cancelled),
    }
}

/// Splits a sum by weights so that the parts add up to it.
fn split(sum: u64, weights: &[(JobId, u32)]) -> Vec<(JobId, u64)> {
    let total: u128 = weights.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut before = 0;
    let mut reached = 0u128;
    let mut parts = Vec::with_capacity(weights.len());
    for (job, weight) in weights {
        reached += u128::from(*weight);
        let upto = (u128::from(sum) * reached / total) as u64;
        parts.push((*job, upto - before));
        before = upto;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_step_add_up_to_it() {
        let check = |sum, weights: &[u32], expected: &[u64]| {
            let weights: Vec<_> = weights.iter().enumerate().map(|(i, w)| (JobId(i as u64), *w)).collect();
            let parts: Vec<u64> = split(sum, &weights).into_iter().map(|(_, part)| part).collect();
            assert_eq!(parts, expected);
            assert_eq!(parts.iter().sum::<u64>(), if weights.is_empty() { 0 } else { sum });
        };
        check(100, &[1, 1, 1], &[33, 33, 34]);
        check(10, &[3, 1], &[7, 3]);
        check(1, &[5, 5, 5], &[0, 0, 1]);
        check(u64::MAX, &[u32::MAX, u32::MAX], &[u64::MAX / 2, u64::MAX / 2 + 1]);
        check(7, &[], &[]);
    }
}
