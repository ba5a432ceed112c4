//! What happens when a time has passed: deadlines and timeouts of jobs, limits of workers, idle time.

use crate::action::{Action, Failure, KillReason, Outcome};
use crate::config::ModelValues;
use crate::explain::Rule;
use crate::forget::FORGET_GRACE;
use crate::ids::{JobId, Time, WorkerId, micros};
use crate::state::{Blame, Model, Phase, Scheduler, Slot, Worker};
use std::time::Duration;

/// What a worker gets beyond its model's step limit before it is killed: the way of a message to it and back.
pub const GRACE: Duration = Duration::from_millis(100);

/// What becomes due for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Load,
    Forget(JobId),
    Step,
    CancelledSlot,
    Exit,
    Timeout(JobId),
    Idle,
}

/// A model's limits, computed once for all slots of a worker.
struct Limits {
    step: Duration,
    timeout: Duration,
    concurrency: u32,
}

impl Limits {
    fn new(values: &ModelValues) -> Self {
        Self {
            step: values.step_limit + GRACE,
            timeout: values.timeout,
            concurrency: u32::from(values.concurrency),
        }
    }

    /// A job's device time: the model's timeout, and of audio as much again as it lasts.
    fn device_time(&self, slot: &Slot) -> Duration {
        self.timeout.saturating_add(slot.audio)
    }

    /// A job's time in its worker: each of its neighbours may have had the device for as long as it.
    fn wall(&self, slot: &Slot) -> Duration {
        self.device_time(slot).saturating_mul(self.concurrency)
    }

    fn of_slot(&self, job: JobId, slot: &Slot, now: Time) -> (Time, Due) {
        match slot.cancelled {
            Some(since) => {
                let forget = slot.forgotten.map(|since| (since + FORGET_GRACE, Due::Forget(job)));
                forget.into_iter().fold((since + self.step, Due::CancelledSlot), Ord::min)
            }
            None if slot.live => (Time(u64::MAX), Due::Timeout(job)),
            None if slot.charged_us >= micros(self.device_time(slot)) => (now, Due::Timeout(job)),
            None => (slot.started + self.wall(slot), Due::Timeout(job)),
        }
    }
}

impl Scheduler {
    /// When to send [`crate::Event::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Time> {
        let deadline = self.deadlines.first().map(|(time, _)| *time);
        let workers = self.workers.values().filter_map(|worker| self.due(worker)).map(|(time, _)| time);
        let models = self.models.values().filter_map(|model| self.model_wake(model));
        let places = self.room_wake.into_iter().chain(self.cores_wake);
        deadline.into_iter().chain(workers).chain(models).chain(places).min()
    }

    /// Handles everything whose time has come.
    pub(crate) fn expire(&mut self) {
        while let Some((_, job)) = self.deadlines.first().copied().filter(|(time, _)| *time <= self.now) {
            self.end(job, Outcome::Failed(Failure::DeadlinePassed), Rule::Deadline);
        }
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in workers {
            while self.expire_worker(worker) {}
        }
    }

    fn expire_worker(&mut self, id: WorkerId) -> bool {
        let worker = &self.workers[&id];
        let Some((_, due)) = self.due(worker).filter(|(time, _)| *time <= self.now) else { return false };
        match due {
            Due::Load => self.kill(id, KillReason::LoadLimit, Rule::LoadLimit),
            Due::Step => self.kill(id, KillReason::StepLimit, Rule::StepLimit),
            Due::Forget(job) => self.not_forgotten(id, job),
            Due::CancelledSlot => self.kill(id, KillReason::CancelIgnored, Rule::CancelGrace),
            Due::Exit => self.kill(id, KillReason::StopIgnored, Rule::StopGrace),
            Due::Timeout(job) => {
                let slot = &worker.slots[&job];
                let limit = Limits::new(&self.models[&worker.model].config).device_time(slot);
                self.end(job, Outcome::Failed(Failure::TimeoutPassed { limit }), Rule::Timeout);
            }
            Due::Idle => self.retire(id, Rule::IdleUnload),
        }
        true
    }

    /// The first thing that becomes due for a worker.
    fn due(&self, worker: &Worker) -> Option<(Time, Due)> {
        let model = &self.models[&worker.model];
        let limits = Limits::new(&model.config);
        match worker.phase {
            Phase::Loading => Some((worker.spawned + model.config.load_limit, Due::Load)),
            Phase::Ready | Phase::Retiring { .. } if !worker.slots.is_empty() => {
                let slots = worker.slots.iter().map(|(job, slot)| limits.of_slot(*job, slot, self.now));
                // Between two phrases of a live job there is no step.
                let steps = worker.slots.values().any(|slot| !slot.live);
                let step = steps.then_some((worker.heard + limits.step, Due::Step));
                slots.chain(step).min().filter(|(time, _)| *time < Time(u64::MAX))
            }
            Phase::Ready => self.idle_due(worker, model),
            Phase::Retiring { .. } => None,
            Phase::Stopping { since } => Some((since + limits.step, Due::Exit)),
            Phase::Killed { .. } => None,
        }
    }

    fn idle_due(&self, worker: &Worker, model: &Model) -> Option<(Time, Due)> {
        let last = self.active(model).count() == 1;
        let kept = model.config.keep_loaded && !model.unloaded && last;
        let waited_for = model.waited_for().is_some();
        let idle = model.config.idle_unload.filter(|_| !kept && !waited_for)?;
        Some((worker.idle_since + idle, Due::Idle))
    }

    fn model_wake(&self, model: &Model) -> Option<Time> {
        let respawn = Some(model.not_before).filter(|time| *time > self.now);
        let package = model.package.filter(|_| model.workers.is_empty());
        let drop =
            package.and_then(|package| model.keep_package_until(package)).filter(|time| *time > self.now);
        respawn.into_iter().chain(drop).min()
    }

    /// Gives a worker no more jobs, and stops it once it has none.
    pub(crate) fn retire(&mut self, id: WorkerId, rule: Rule) {
        let worker = self.workers.get_mut(&id).expect("only known workers retire");
        match worker.phase {
            Phase::Loading => self.stop(id, rule),
            Phase::Ready if worker.slots.is_empty() => self.stop(id, rule),
            Phase::Ready => worker.phase = Phase::Retiring { rule },
            Phase::Retiring { .. } | Phase::Stopping { .. } | Phase::Killed { .. } => {}
        }
    }

    pub(crate) fn stop(&mut self, id: WorkerId, rule: Rule) {
        let worker = self.workers.get_mut(&id).expect("only known workers are stopped");
        assert!(worker.slots.is_empty(), "a worker with jobs is not stopped");
        worker.phase = Phase::Stopping { since: self.now };
        self.emit(Action::Stop { worker: id }, rule);
    }

    /// Kills a worker. Its memory stays promised, and its jobs stay with it, until it is confirmed dead.
    pub(crate) fn kill(&mut self, id: WorkerId, why: KillReason, rule: Rule) {
        let worker = self.workers.get_mut(&id).expect("only known workers are killed");
        if worker.is_killed() {
            return;
        }
        let blame = match why {
            KillReason::StepLimit | KillReason::Illegal => Blame::Running,
            KillReason::LoadLimit | KillReason::CancelIgnored | KillReason::StopIgnored => Blame::Others,
            KillReason::ForgetIgnored { .. } => Blame::Grant,
        };
        worker.phase = Phase::Killed { blame };
        let model = worker.model;
        self.emit(Action::Kill { worker: id, why }, rule);
        match why {
            KillReason::StepLimit
            | KillReason::LoadLimit
            | KillReason::CancelIgnored
            | KillReason::Illegal => {
                self.count_death(model);
            }
            KillReason::StopIgnored | KillReason::ForgetIgnored { .. } => {}
        }
    }
}
