//! Which worker runs a job, which workers are started, and which packages stay in memory.

use crate::action::{Action, Outcome};
use crate::admit::fits_lease;
use crate::config::{ModelValues, Order};
use crate::cores::Cores;
use crate::currency::step_budget;
use crate::explain::Rule;
use crate::ids::{ClientId, GpuId, JobId, ModelId, Time, WorkerId};
use crate::state::{Job, Model, Package, Phase, Scheduler, Slot, Worker};
use std::collections::{BTreeMap, BTreeSet};

/// Why a model needs a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// It has none.
    First,
    /// Those that it has are full.
    Another,
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// A worker with room for it.
    Room,
    /// There is such a worker, whose threads need cores that others hold.
    Cores,
}

impl Scheduler {
    /// Does everything that is possible now.
    pub(crate) fn place(&mut self) {
        self.run_waiting();
        self.stop_retired();
        self.drop_packages();
        self.forget_removed();
        self.room_wake = None;
        self.shrink();
        if self.spawn_waited_for() {
            self.spawn_kept_loaded();
        }
    }

    /// Starts the first jobs of all queues, the best first. One that waits for cores is overtaken by nobody, or those that
    /// hold them would never end.
    fn run_waiting(&mut self) {
        self.cores_wake = None;
        let mut cores = Cores::Shared;
        let mut waiting: BTreeSet<ModelId> =
            self.models.iter().filter(|(_, model)| !model.queue.is_empty()).map(|(id, _)| *id).collect();
        loop {
            let next = |id: &ModelId| self.next_job(&self.models[id]).map(|(rank, job)| (rank, *id, job));
            let Some((_, model, job)) = waiting.iter().filter_map(next).min() else { return };
            match self.run_next(model, job, cores) {
                Ok(()) => {}
                Err(Lack::Room) => {
                    waiting.remove(&model);
                    if self.active(&self.models[&model]).any(|(_, worker)| worker.at_work()) {
                        cores = Cores::Free;
                    }
                }
                Err(Lack::Cores) => {
                    self.cores_wake = self.cores_shared_from().filter(|_| cores == Cores::Shared);
                    return;
                }
            }
        }
    }

    /// Handles the first job of a queue, unless it has to wait.
    fn run_next(&mut self, id: ModelId, next: JobId, cores: Cores) -> Result<(), Lack> {
        let model = &self.models[&id];
        let job = &self.jobs[&next];
        if let Err(refusal) = fits_lease(model, job.tokens_bound) {
            self.end(next, Outcome::Refused(refusal), Rule::Admission);
            return Ok(());
        }
        let worker = self.free_worker(model, job, cores)?;
        self.run(next, worker);
        Ok(())
    }

    fn run(&mut self, id: JobId, worker: WorkerId) {
        let job = self.jobs.remove(&id).expect("a waiting job is known");
        let rule = match self.config.values().order {
            _ if job.replays > 0 => Rule::Replay,
            Order::Arrival => Rule::Arrival,
            Order::Fair => Rule::Fair,
        };
        self.advance_time(job.model, job.client);
        self.dequeue(&job, id);
        self.jobs.insert(id, job);
        self.start(id, worker, rule);
    }

    /// The ready worker with the most free slots, of those that can work now.
    fn free_worker(&self, model: &Model, job: &Job, cores: Cores) -> Result<WorkerId, Lack> {
        let free = || self.active(model).filter(|(_, worker)| self.has_room(worker, model, job));
        let working = free().filter(|(id, worker)| self.has_cores(*id, worker, cores));
        let best = working.min_by_key(|(id, worker)| (worker.slots.len(), *id));
        let lack = || if free().next().is_some() { Lack::Cores } else { Lack::Room };
        best.map(|(id, _)| id).ok_or_else(lack)
    }

    /// Whether a job could run at once if its model had the cores.
    pub(crate) fn has_free_worker(&self, model: &Model, job: &Job) -> bool {
        self.active(model).any(|(_, worker)| self.has_room(worker, model, job))
    }

    /// Whether a worker may take a job now. In fair order it holds one step's worth of work at a time, so that whoever
    /// comes next waits for at most a step; a client that has had less than all others in the worker joins them. One that
    /// shares its steps itself takes what comes, and keeps its last place for a client that has none.
    fn has_room(&self, worker: &Worker, model: &Model, job: &Job) -> bool {
        if worker.phase != Phase::Ready || worker.slots.is_empty() {
            return worker.phase == Phase::Ready;
        }
        let suspects = job.deaths > 0 || worker.slots.values().any(|slot| slot.alone);
        if suspects || worker.slots.len() >= usize::from(model.config.concurrency) {
            return false;
        }
        match self.config.values().order {
            Order::Arrival => true,
            // Its steps come when somebody speaks: how many streams it hears, a worker says itself.
            Order::Fair if job.live => true,
            Order::Fair if model.config.shares_steps => {
                let is_last = worker.slots.len() + 1 == usize::from(model.config.concurrency);
                !is_last || worker.slots.values().all(|slot| slot.client != job.client)
            }
            Order::Fair => self.fits_step(worker, model, job) || self.may_join(worker, model, job),
        }
    }

    fn fits_step(&self, worker: &Worker, model: &Model, job: &Job) -> bool {
        let budget = step_budget(model);
        held(worker.slots.values(), budget).saturating_add(self.load_of(job)) <= budget
    }

    fn may_join(&self, worker: &Worker, model: &Model, job: &Job) -> bool {
        let (own, others): (Vec<&Slot>, Vec<&Slot>) =
            worker.slots.values().filter(|slot| !slot.canary).partition(|slot| slot.client == job.client);
        let counter = |client: &ClientId| self.clients[client].counter();
        let least = others.iter().map(|slot| counter(&slot.client)).min();
        let budget = step_budget(model);
        let fits =
            own.is_empty() || held(own.iter().copied(), budget).saturating_add(self.load_of(job)) <= budget;
        fits && least.is_some_and(|least| counter(&job.client) < least)
    }

    fn stop_retired(&mut self) {
        let leaving: Vec<(WorkerId, Rule)> =
            self.workers.iter().filter_map(|(id, worker)| Some((*id, self.leaves_by(worker)?))).collect();
        for (worker, rule) in leaving {
            self.stop(worker, rule);
        }
    }

    /// The rule by which a worker is stopped now.
    fn leaves_by(&self, worker: &Worker) -> Option<Rule> {
        if !worker.slots.is_empty() {
            return None;
        }
        match worker.phase {
            Phase::Retiring { rule } => Some(rule),
            Phase::Loading | Phase::Ready => {
                let unused = self.draining && self.models[&worker.model].queue.is_empty();
                unused.then_some(Rule::Draining)
            }
            Phase::Stopping { .. } | Phase::Killed { .. } => None,
        }
    }

    /// Gives back the memory of packages that nobody has and nobody will need soon.
    fn drop_packages(&mut self) {
        let unused: Vec<ModelId> =
            self.models.iter().filter(|(_, model)| self.package_unused(model)).map(|(id, _)| *id).collect();
        for model in unused {
            self.drop_package(model, Rule::IdleUnload);
        }
    }

    fn package_unused(&self, model: &Model) -> bool {
        let Some(package) = model.package else { return false };
        let kept = !self.draining && model.keep_package_until(package).is_some_and(|until| self.now < until);
        model.workers.is_empty() && (package.stale || !(kept || self.needed(model)))
    }

    /// A worker of this model will be wanted without another event.
    fn needed(&self, model: &Model) -> bool {
        model.waited_for().is_some() || self.to_keep_loaded(model)
    }

    fn to_keep_loaded(&self, model: &Model) -> bool {
        model.config.keep_loaded && !model.unloaded && !model.removed && !self.draining
    }

    pub(crate) fn drop_package(&mut self, id: ModelId, rule: Rule) {
        let model = self.models.get_mut(&id).expect("packages belong to known models");
        assert!(model.workers.is_empty(), "a package stays while a worker may have it");
        let package = model.package.take().expect("there is a package to drop");
        // A worker that had lived on would have been stopped by now.
        model.owed.clear();
        self.host.release(package.bytes);
        self.emit(Action::DropPackage { model: id }, rule);
    }

    fn forget_removed(&mut self) {
        self.models.retain(|_, model| !model.removed || !model.workers.is_empty() || model.package.is_some());
    }

    /// Starts workers in order of arrival. False if one has to wait for room: then nobody overtakes it to what is
    /// free already, or a large model would wait for ever.
    fn spawn_waited_for(&mut self) -> bool {
        for model in self.waited_for() {
            match self.demand(&self.models[&model]) {
                None => {}
                Some(Demand::First) => {
                    if !self.make_room(model) {
                        return false;
                    }
                    self.spawn(model, Rule::Demand);
                }
                Some(Demand::Another) => self.spawn_into_free_room(model, Rule::Demand),
            }
        }
        true
    }

    fn spawn_kept_loaded(&mut self) {
        let ids: Vec<ModelId> = self.models.keys().copied().collect();
        for id in ids {
            let model = &self.models[&id];
            if self.to_keep_loaded(model) && self.demand(model) == Some(Demand::First) {
                self.spawn_into_free_room(id, Rule::KeepLoaded);
            }
        }
    }

    fn spawn_into_free_room(&mut self, model: ModelId, rule: Rule) {
        if self.missing(&self.models[&model]).is_nothing() {
            self.spawn(model, rule);
        }
    }

    fn demand(&self, model: &Model) -> Option<Demand> {
        let cannot =
            model.removed || model.package_refused || self.now < model.not_before || model.package_stale();
        if cannot || self.fits_budgets(&model.config).is_err() {
            return None;
        }
        let active = self.active(model).count();
        let loading = self.active(model).any(|(_, worker)| worker.phase == Phase::Loading);
        match active {
            0 => Some(Demand::First),
            _ if loading || model.queue.is_empty() => None,
            _ => self.another_would_help(model, active).then_some(Demand::Another),
        }
    }

    /// Whether one more worker could work beside those that the model has, which have no room.
    fn another_would_help(&self, model: &Model, active: usize) -> bool {
        let cores = usize::from(self.config.values().devices.cpu.cores);
        let below_bounds = active < usize::from(model.config.workers_max)
            && (active + 1) * usize::from(self.threads(&model.config)) <= cores;
        let next = self.next_job(model).map(|(_, job)| &self.jobs[&job]);
        below_bounds && next.is_some_and(|job| !self.has_free_worker(model, job))
    }

    pub(crate) fn threads(&self, values: &ModelValues) -> u16 {
        values.threads.min(self.config.values().devices.cpu.cores)
    }

    fn spawn(&mut self, id: ModelId, rule: Rule) {
        self.workers_spawned += 1;
        let worker = WorkerId(self.workers_spawned);
        let threads = self.threads(&self.models[&id].config);
        let gpu = self.gpus_for(&self.models[&id]).first().copied().flatten();
        let model = self.models.get_mut(&id).expect("only known models get workers");
        let ModelValues { lease_bytes, device_lease_bytes, .. } = model.config;
        self.cpu.promise(lease_bytes);
        if let Some(gpu) = gpu {
            self.gpus[usize::from(gpu.0)].promise(device_lease_bytes);
        }
        match &mut model.package {
            Some(package) => package.kept = None,
            None => {
                let bytes = model.config.package_bytes;
                self.host.promise(bytes);
                model.package = Some(Package { bytes, stale: false, kept: None });
            }
        }
        model.workers.insert(worker);
        let leases = (lease_bytes, device_lease_bytes, gpu);
        self.workers.insert(worker, new_worker(id, leases, threads, self.now));
        self.emit(Action::Spawn { worker, model: id, lease_bytes, device_lease_bytes, gpu, threads }, rule);
    }
}

impl Model {
    /// Until when the package of a model whose last worker died is kept for the next one.
    pub(crate) fn keep_package_until(&self, package: Package) -> Option<Time> {
        let never = Time(u64::MAX);
        package.kept.map(|since| self.config.idle_unload.map_or(never, |idle| since + idle))
    }
}

/// How much of a step the jobs in these slots take, in tokens. Nobody waits for a live one's end.
fn held<'a>(slots: impl Iterator<Item = &'a Slot>, budget: u64) -> u64 {
    slots.filter(|slot| !slot.live).map(|slot| slot.left.min(budget)).fold(0, u64::saturating_add)
}

fn new_worker(
    model: ModelId,
    (lease_bytes, device_lease_bytes, gpu): (u64, u64, Option<GpuId>),
    threads: u16,
    now: Time,
) -> Worker {
    Worker {
        model,
        lease_bytes,
        device_lease_bytes,
        gpu,
        threads,
        phase: Phase::Loading,
        slots: BTreeMap::new(),
        spawned: now,
        ready: now,
        heard: now,
        idle_since: now,
        given: now,
    }
}
