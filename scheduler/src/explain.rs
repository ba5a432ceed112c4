//! The last decisions, so that "why" has an answer.

use crate::action::Action;
use crate::ids::Time;
use std::collections::VecDeque;

/// Decisions that are remembered.
pub const DECISIONS_MAX: usize = 1024;

/// One action with what it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// Name of the event that was being handled.
    pub event: &'static str,
    /// What was decided.
    pub action: Action,
    /// By which rule.
    pub rule: Rule,
}

/// The rule behind a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A job must be within the bounds that are stated for it.
    Admission,
    /// First come, first served for each model.
    Arrival,
    /// A job that was in a worker's death runs once more, alone if it is a suspect.
    Replay,
    /// A canary runs only in an idle worker.
    Canary,
    /// The worker said so.
    Answer,
    /// The client left or took the job back.
    ClientLeft,
    /// A job's deadline.
    Deadline,
    /// A model's timeout of device time.
    Timeout,
    /// One step may last only so long.
    StepLimit,
    /// A load may last only so long.
    LoadLimit,
    /// A cancelled slot must end within one step.
    CancelGrace,
    /// A worker that is told to stop must exit.
    StopGrace,
    /// A message must be legal in its state.
    Illegal,
    /// Jobs wait and no worker has a free slot.
    Demand,
    /// The model is to be kept loaded.
    KeepLoaded,
    /// The operator asked for it, or changed or removed the model.
    Operator,
    /// An idle worker or unused package makes room for a waiting job's model.
    Eviction,
    /// A worker that has served long enough makes room for a model that has waited long enough.
    Yield,
    /// Unused for the model's idle time.
    IdleUnload,
    /// A worker died.
    Death,
    /// The package can't be loaded.
    PackageRefused,
    /// The server is about to end.
    Draining,
}

#[derive(Debug, Default)]
pub(crate) struct Decisions(VecDeque<Decision>);

impl Decisions {
    pub(crate) fn push(&mut self, decision: Decision) {
        if self.0.len() == DECISIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(decision);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.0.iter()
    }
}
