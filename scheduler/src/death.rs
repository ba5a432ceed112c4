//! What becomes of a worker's jobs and model when it dies or can't start. Suspects run once more, alone; a job in two
//! deaths fails.

use crate::action::{Failure, Outcome};
use crate::event::{Exit, SpawnFault};
use crate::explain::Rule;
use crate::ids::{JobId, ModelId, WorkerId};
use crate::state::{Blame, DEATHS_MAX, Model, Phase, Scheduler, Worker};
use std::time::Duration;

/// Deaths of which a job may be suspected before it fails.
const SUSPICIONS_MAX: u32 = 2;

/// How often a job is put back after deaths that were not its fault.
const REPLAYS_MAX: u32 = 4;

/// The wait before the third worker in a row that dies; it doubles with each.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

impl Scheduler {
    pub(crate) fn worker_exited(&mut self, id: WorkerId, exit: Exit) {
        let Some(worker) = self.workers.get(&id) else { return };
        let model = worker.model;
        let (blame, counts) = match worker.phase {
            Phase::Loading | Phase::Ready | Phase::Retiring { .. } => (blame(exit), true),
            Phase::Stopping { .. } => (Blame::Others, false),
            Phase::Killed { blame } => (blame, false),
        };
        if counts {
            self.count_death(model);
        }
        let worker = self.bury(id);
        let alone = worker.slots.len() == 1;
        for job in worker.live() {
            self.survive(job, blame, alone);
        }
        for job in worker.slots.keys().filter(|job| !self.jobs.contains_key(job)).copied().collect::<Vec<_>>()
        {
            self.settle(job);
        }
    }

    pub(crate) fn spawn_failed(&mut self, id: WorkerId, fault: SpawnFault) {
        let Some(worker) = self.workers.get(&id) else { return };
        assert!(worker.slots.is_empty(), "a worker that was not started has no jobs");
        let (model, awaited) = (worker.model, worker.phase == Phase::Loading);
        self.bury(id);
        if !awaited {
            return;
        }
        match fault {
            SpawnFault::Host => self.count_death(model),
            SpawnFault::Package => self.refuse_package(model),
        }
    }

    pub(crate) fn load_failed(&mut self, id: WorkerId) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.phase == Phase::Loading) else {
            return;
        };
        worker.phase = Phase::Stopping { since: now };
        let model = worker.model;
        self.refuse_package(model);
    }

    /// The package can't be run. If another worker runs it, that was bad luck and is tried again later.
    fn refuse_package(&mut self, id: ModelId) {
        let runs = self.active(&self.models[&id]).any(|(_, worker)| worker.phase == Phase::Ready);
        if runs {
            return self.count_death(id);
        }
        let model = self.models.get_mut(&id).expect("a worker's model is known");
        model.package_refused = true;
        model.wanted = None;
        model.make_package_stale();
        self.end_waiting(id, &Outcome::Failed(Failure::LoadFailed), Rule::PackageRefused);
    }

    /// Takes a dead worker's memory back.
    fn bury(&mut self, id: WorkerId) -> Worker {
        let worker = self.workers.remove(&id).expect("only known workers die");
        let stopped = matches!(worker.phase, Phase::Stopping { .. });
        self.cpu.release(worker.lease_bytes);
        if let Some(gpu) = worker.gpu {
            self.gpus[usize::from(gpu.0)].release(worker.device_lease_bytes);
        }
        let model = self.models.get_mut(&worker.model).expect("a worker's model is known");
        model.workers.remove(&id);
        if let Some(package) = &mut model.package {
            package.kept = (!stopped).then_some(self.now);
        }
        worker
    }

    /// Counts a death that nobody asked for, and delays the next worker.
    pub(crate) fn count_death(&mut self, id: ModelId) {
        let now = self.now;
        let model = self.models.get_mut(&id).expect("a worker's model is known");
        model.deaths = model.deaths.saturating_add(1);
        let (deaths, retry_after) = (model.deaths, backoff(model.deaths));
        model.not_before = now + retry_after;
        if deaths >= DEATHS_MAX {
            model.wanted = None;
            let failure = Failure::ModelBroken { deaths, retry_after };
            self.end_waiting(id, &Outcome::Failed(failure), Rule::Death);
        }
    }

    /// Decides about a job whose worker is dead.
    fn survive(&mut self, id: JobId, blame: Blame, alone: bool) {
        let job = self.jobs.get_mut(&id).expect("live slots belong to known jobs");
        job.replays += 1;
        match blame {
            Blame::Running | Blame::Memory | Blame::Limit => job.deaths += 1,
            Blame::Others => {}
            Blame::Grant => job.excused += 1,
        }
        match self.verdict(id, blame, alone) {
            Some(outcome) => self.end(id, outcome, Rule::Death),
            None => {
                self.detach(id);
                self.enqueue(id);
            }
        }
    }

    /// How it ends, or `None` if it waits again.
    fn verdict(&self, id: JobId, blame: Blame, alone: bool) -> Option<Outcome> {
        let model = &self.models[&self.jobs[&id].model];
        if let Some(failure) = self.failure(id, model, blame, alone) {
            return Some(Outcome::Failed(failure));
        }
        self.fits_budgets(&model.config).err().map(Outcome::Refused)
    }

    fn failure(&self, id: JobId, model: &Model, blame: Blame, alone: bool) -> Option<Failure> {
        let job = &self.jobs[&id];
        if blame == Blame::Memory && alone {
            return Some(Failure::OutOfMemory);
        }
        if job.live {
            // What was said is gone.
            return Some(Failure::WorkerDied { suspect: false });
        }
        if job.deaths >= SUSPICIONS_MAX && blame == Blame::Limit {
            return Some(Failure::OutOfMemory);
        }
        if job.deaths >= SUSPICIONS_MAX {
            return Some(Failure::WorkerDied { suspect: true });
        }
        if job.canary && blame == Blame::Grant {
            // It says nothing of the model's health.
            return Some(Failure::Cancelled);
        }
        if job.canary || job.replays - job.excused > REPLAYS_MAX {
            return Some(Failure::WorkerDied { suspect: false });
        }
        if model.removed {
            return Some(Failure::ModelRemoved);
        }
        if model.package_refused {
            return Some(Failure::LoadFailed);
        }
        let (_, retry_after) = self.broken(model)?;
        Some(Failure::ModelBroken { deaths: model.deaths, retry_after: retry_after.unwrap_or_default() })
    }
}

fn blame(exit: Exit) -> Blame {
    match exit {
        Exit::Finished | Exit::Crashed | Exit::Illegal => Blame::Running,
        Exit::OutOfMemory => Blame::Memory,
        Exit::OverLimit => Blame::Limit,
    }
}

/// The wait after so many deaths in a row. The first costs nothing: it may have been anything.
fn backoff(deaths: u32) -> Duration {
    match deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => BACKOFF_FIRST.saturating_mul(1 << doublings.min(20)).min(BACKOFF_MAX),
    }
}
