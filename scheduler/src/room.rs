//! Who makes room for a model that is waited for: unused packages, then idle workers, then workers that have served
//! for long enough, after their jobs. Memory counts as free only once it is back.

use crate::explain::Rule;
use crate::ids::{GpuId, ModelId, Time, WorkerId};
use crate::state::{Model, Phase, Scheduler, Worker, elapsed_us};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a model waits for room before busy workers are asked to yield.
const YIELD_AFTER: Duration = Duration::from_secs(1);

/// How long a worker serves before it is asked to yield, at least; else this many times as long as its load took, so
/// that models which take turns spend most of their time at work.
const SERVE_MIN: Duration = Duration::from_secs(1);
const SERVE_LOADS: u32 = 4;

type WorkerSet = BTreeSet<WorkerId>;

/// Bytes of every budget, of the GPUs only of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    cpu: u64,
    gpu: u64,
    host: u64,
}

/// A GPU; none where something computes on the CPU.
type Place = Option<GpuId>;

impl Bytes {
    pub(crate) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// Of leases, of GPU leases, and of packages.
    pub(crate) fn parts(self) -> (u64, u64, u64) {
        (self.cpu, self.gpu, self.host)
    }

    fn less(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            gpu: self.gpu.saturating_sub(other.gpu),
            host: self.host.saturating_sub(other.host),
        }
    }
}

impl Scheduler {
    /// Whether a first worker of this model can start now. If not, sees to it that it can later.
    pub(crate) fn make_room(&mut self, id: ModelId) -> bool {
        self.drop_idle_packages(id);
        let model = &self.models[&id];
        let places = self.gpus_for(model);
        if places.iter().any(|place| self.missing_at(model, *place).is_nothing()) {
            return true;
        }
        let lacks = |place: &Place| self.missing_at(model, *place).less(self.coming(Some(id), *place));
        let missing: Vec<(Place, Bytes)> = places.iter().map(|place| (*place, lacks(place))).collect();
        if missing.iter().any(|(_, bytes)| bytes.is_nothing()) {
            return false;
        }
        if let Some(victims) = self.victims_anywhere(id, &missing, Worker::is_idle) {
            self.retire_all(&victims, Rule::Eviction);
        } else {
            self.ask_to_yield(id, &missing);
        }
        false
    }

    /// Those who would make room for a model, at the first place where there are some.
    fn victims_anywhere(
        &self,
        id: ModelId,
        missing: &[(Place, Bytes)],
        may: impl Fn(&Worker) -> bool,
    ) -> Option<WorkerSet> {
        missing.iter().find_map(|missing| self.victims(Some(id), *missing, &may))
    }

    /// After a budget was lowered below what is promised: the cheapest workers leave after their jobs.
    pub(crate) fn shrink(&mut self) {
        let gpus = (0..self.gpus.len()).map(|place| Some(GpuId(place as u16)));
        [None].into_iter().chain(gpus).for_each(|place| self.shrink_at(place));
    }

    fn shrink_at(&mut self, place: Place) {
        let over = self.over(place);
        if over.is_nothing() {
            return;
        }
        let unused =
            self.models.iter().filter(|(_, model)| model.workers.is_empty() && model.package.is_some());
        let unused: Vec<ModelId> = unused.map(|(id, _)| *id).collect();
        for model in unused.into_iter().take_while(|_| over.host > 0) {
            self.drop_package(model, Rule::Operator);
        }
        let over = self.over(place).less(self.coming(None, place));
        if over.is_nothing() {
            return;
        }
        let victims = self.victims(None, (place, over), Worker::is_idle);
        if let Some(victims) = victims.or_else(|| self.victims(None, (place, over), Worker::is_active)) {
            self.retire_all(&victims, Rule::Operator);
        }
    }

    /// What is promised beyond the budgets.
    fn over(&self, place: Place) -> Bytes {
        let gpu = place.map_or(0, |gpu| self.gpu(gpu).missing(0));
        Bytes { cpu: self.cpu.missing(0), gpu, host: self.host.missing(0) }
    }

    fn ask_to_yield(&mut self, id: ModelId, missing: &[(Place, Bytes)]) {
        let now = self.now;
        let from = self.waiting_since(id) + YIELD_AFTER;
        let victims = self.victims_anywhere(id, missing, |worker| {
            worker.phase == Phase::Ready && self.may_yield(worker) <= now
        });
        match victims {
            Some(victims) if from <= now => self.retire_all(&victims, Rule::Yield),
            Some(_) | None => self.room_wake = self.next_yield(id, from),
        }
    }

    /// The next time at which asking others to yield can have another result.
    fn next_yield(&self, id: ModelId, from: Time) -> Option<Time> {
        let others =
            self.workers.values().filter(|worker| worker.model != id && worker.phase == Phase::Ready);
        let times = others.map(|worker| self.may_yield(worker)).chain([from]);
        times.filter(|time| *time > self.now).min()
    }

    fn may_yield(&self, worker: &Worker) -> Time {
        let load = Duration::from_micros(self.models[&worker.model].load_time.micros());
        worker.ready + SERVE_MIN.max(load.saturating_mul(SERVE_LOADS))
    }

    fn waiting_since(&self, id: ModelId) -> Time {
        let model = &self.models[&id];
        let job = model.queue.by_arrival().next().map(|(_, job)| self.jobs[&job].submitted);
        let operator = model.wanted.map(|(_, since)| since);
        job.into_iter().chain(operator).min().unwrap_or(self.now)
    }

    fn retire_all(&mut self, victims: &WorkerSet, rule: Rule) {
        for worker in victims {
            self.retire(*worker, rule);
        }
    }

    /// Where a new worker of this model may be, the best place first: of the GPUs that could ever hold it the one that
    /// lacks least, then the one with most to give.
    pub(crate) fn gpus_for(&self, model: &Model) -> Vec<Place> {
        let lease = model.config.device_lease_bytes;
        if lease == 0 {
            return vec![None];
        }
        let mut gpus: Vec<GpuId> =
            model.config.gpus.iter().copied().filter(|gpu| lease <= self.gpu(*gpu).budget).collect();
        gpus.sort_by_key(|gpu| {
            let ledger = self.gpu(*gpu);
            let free = ledger.budget.saturating_sub(ledger.promised);
            (ledger.missing(lease), std::cmp::Reverse(free), *gpu)
        });
        gpus.into_iter().map(Some).collect()
    }

    /// What a new worker of this model needs beyond what is free, where it lacks least.
    pub(crate) fn missing(&self, model: &Model) -> Bytes {
        self.missing_at(model, self.gpus_for(model).first().copied().flatten())
    }

    fn missing_at(&self, model: &Model, place: Place) -> Bytes {
        let gpu = place.map_or(0, |gpu| self.gpu(gpu).missing(model.config.device_lease_bytes));
        let package = if model.package.is_some() { 0 } else { model.config.package_bytes };
        Bytes { cpu: self.cpu.missing(model.config.lease_bytes), gpu, host: self.host.missing(package) }
    }

    /// What comes back without another decision.
    fn coming(&self, id: Option<ModelId>, place: Place) -> Bytes {
        let leaving =
            self.workers.iter().filter(|(_, worker)| !worker.is_active()).map(|(id, _)| *id).collect();
        self.freed_by(&leaving, id, place)
    }

    /// What comes back when all of these workers are dead.
    fn freed_by(&self, workers: &WorkerSet, except: Option<ModelId>, place: Place) -> Bytes {
        let cpu = workers.iter().map(|worker| self.workers[worker].lease_bytes).sum();
        let here = workers.iter().map(|worker| &self.workers[worker]).filter(|worker| worker.gpu == place);
        let gpu = here.map(|worker| worker.device_lease_bytes).sum();
        let unused = |model: &Model| {
            !model.workers.is_empty()
                && model
                    .workers
                    .iter()
                    .all(|worker| workers.contains(worker) || !self.workers[worker].is_active())
                && model.workers.iter().any(|worker| workers.contains(worker))
        };
        let packages = self.models.iter().filter(|(id, model)| Some(**id) != except && unused(model));
        let host = packages.filter_map(|(_, model)| model.package).map(|package| package.bytes).sum();
        Bytes { cpu, gpu, host }
    }

    /// The cheapest workers that would free as much as is missing, or none if all together would not.
    fn victims(
        &self,
        id: Option<ModelId>,
        (place, missing): (Place, Bytes),
        may: impl Fn(&Worker) -> bool,
    ) -> Option<WorkerSet> {
        let mut candidates: Vec<(WorkerId, &Worker)> = self
            .workers
            .iter()
            .filter(|(_, worker)| Some(worker.model) != id && may(worker))
            .map(|(id, worker)| (*id, worker))
            .collect();
        candidates.sort_by(|a, b| self.compare_victims(a.1, b.1).then(a.0.cmp(&b.0)));
        let enough = |victims: &WorkerSet| missing.less(self.freed_by(victims, id, place)).is_nothing();
        let mut victims = WorkerSet::new();
        for (worker, _) in &candidates {
            if enough(&victims) {
                break;
            }
            victims.insert(*worker);
        }
        if !enough(&victims) {
            return None;
        }
        // A large one that came last may have made smaller ones before it needless.
        for (worker, _) in candidates.iter().rev() {
            if victims.remove(worker) && !enough(&victims) {
                victims.insert(*worker);
            }
        }
        Some(victims)
    }

    /// First those that need not stay loaded, then the idle; among these the longer idle and the cheaper to reload, by
    /// the ratio of the two.
    fn compare_victims(&self, a: &Worker, b: &Worker) -> Ordering {
        let keep = |worker: &Worker| self.models[&worker.model].config.keep_loaded;
        let idle = |worker: &Worker| {
            if worker.slots.is_empty() { elapsed_us(self.now, worker.idle_since) } else { 0 }
        };
        let cost = |worker: &Worker| u128::from(self.models[&worker.model].load_time.micros().max(1));
        let (worth_a, worth_b) = (u128::from(idle(a)) * cost(b), u128::from(idle(b)) * cost(a));
        let busy = |worker: &Worker| !worker.slots.is_empty();
        keep(a)
            .cmp(&keep(b))
            .then(busy(a).cmp(&busy(b)))
            .then(worth_b.cmp(&worth_a))
            .then(a.ready.cmp(&b.ready))
    }

    /// Packages without a worker go as soon as another model lacks host memory.
    fn drop_idle_packages(&mut self, id: ModelId) {
        let unused = |(other, model): (&ModelId, &Model)| {
            (*other != id && model.workers.is_empty() && model.package.is_some()).then_some(*other)
        };
        let packages: Vec<ModelId> = self.models.iter().filter_map(unused).collect();
        for other in packages {
            if self.missing(&self.models[&id]).host == 0 {
                return;
            }
            self.drop_package(other, Rule::Eviction);
        }
    }
}
