//! The state machine's entry points.

use crate::action::{Action, Outcome, Refusal};
use crate::config::Config;
use crate::event::Event;
use crate::explain::{Decision, Decisions};
use crate::ids::Time;
use crate::snapshot::{BudgetSnapshot, Snapshot};

/// The quota scheduler.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    decisions: Decisions,
    draining: bool,
}

impl Scheduler {
    /// Without models, workers and jobs.
    pub fn new(config: Config) -> Self {
        Self { config, decisions: Decisions::default(), draining: false }
    }

    /// Takes one event at the time `now` and says what to do. A `now` before an earlier one counts as that one.
    pub fn step(&mut self, _now: Time, event: Event) -> Vec<Action> {
        match event {
            Event::Submit(submit) => {
                vec![Action::End { job: submit.job, outcome: Outcome::Refused(Refusal::UnknownModel) }]
            }
            Event::Drain => {
                self.draining = true;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// When to send [`Event::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Time> {
        None
    }

    /// The state as plain data.
    pub fn snapshot(&self) -> Snapshot {
        let values = self.config.values();
        Snapshot {
            models: Vec::new(),
            workers: Vec::new(),
            clients: Vec::new(),
            cpu: BudgetSnapshot { budget_bytes: values.devices.cpu.budget_bytes, promised_bytes: 0 },
            host: BudgetSnapshot { budget_bytes: values.host_budget_bytes, promised_bytes: 0 },
            waiting: 0,
            draining: self.draining,
        }
    }

    /// True once [`Event::Drain`] has come, every job has ended and every worker is dead.
    pub fn drained(&self) -> bool {
        self.draining
    }

    /// The last decisions, oldest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }
}
