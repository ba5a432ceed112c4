//! What happens when a time has passed: deadlines and timeouts of jobs, limits of workers, idle time.

use crate::action::{Action, Failure, KillReason, Outcome};
use crate::explain::Rule;
use crate::ids::{JobId, Time, WorkerId};
use crate::state::{Blame, Model, Phase, Scheduler, Slot, Worker};
use std::time::Duration;

/// What a worker gets beyond its model's step limit before it is killed: the way of a message to it and back.
pub const GRACE: Duration = Duration::from_millis(100);

/// What becomes due for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Load,
    Step,
    CancelledSlot,
    Exit,
    Timeout(JobId),
    Idle,
}

impl Scheduler {
    /// When to send [`crate::Event::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Time> {
        let deadline = self.deadlines.first().map(|(time, _)| *time);
        let workers = self.workers.values().filter_map(|worker| self.due(worker)).map(|(time, _)| time);
        let models = self.models.values().filter_map(|model| self.model_wake(model));
        deadline.into_iter().chain(workers).chain(models).chain(self.room_wake).min()
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
            Due::CancelledSlot => self.kill(id, KillReason::CancelIgnored, Rule::CancelGrace),
            Due::Exit => self.kill(id, KillReason::StopIgnored, Rule::StopGrace),
            Due::Timeout(job) => {
                let limit = self.models[&worker.model].config.timeout;
                self.end(job, Outcome::Failed(Failure::TimeoutPassed { limit }), Rule::Timeout);
            }
            Due::Idle => self.retire(id, Rule::IdleUnload),
        }
        true
    }

    /// The first thing that becomes due for a worker.
    fn due(&self, worker: &Worker) -> Option<(Time, Due)> {
        let model = &self.models[&worker.model];
        let step = model.config.step_limit + GRACE;
        match worker.phase {
            Phase::Loading => Some((worker.spawned + model.config.load_limit, Due::Load)),
            Phase::Ready | Phase::Retiring { .. } if !worker.slots.is_empty() => {
                let slots = worker.slots.iter().map(|(job, slot)| self.slot_due(model, *job, slot));
                slots.chain([(worker.heard + step, Due::Step)]).min()
            }
            Phase::Ready => self.idle_due(worker, model),
            Phase::Retiring { .. } => None,
            Phase::Stopping { since } => Some((since + step, Due::Exit)),
            Phase::Killed { .. } => None,
        }
    }

    fn slot_due(&self, model: &Model, job: JobId, slot: &Slot) -> (Time, Due) {
        let values = &model.config;
        match slot.cancelled {
            Some(since) => (since + values.step_limit + GRACE, Due::CancelledSlot),
            None if u128::from(slot.charged_us) >= values.timeout.as_micros() => {
                (self.now, Due::Timeout(job))
            }
            // Each of its neighbours may have had the device for as long.
            None => (
                slot.started + values.timeout.saturating_mul(u32::from(values.concurrency)),
                Due::Timeout(job),
            ),
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
            KillReason::StopIgnored => {}
        }
    }
}
