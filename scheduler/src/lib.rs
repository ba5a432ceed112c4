//! The quota scheduler as a pure state machine: events come in with the time, actions go out. It does no IO and reads
//! no clock, so the same events give the same actions, always.
//!
//! | file | decides |
//! | --- | --- |
//! | `admit` | whether a job is taken |
//! | `order` | which job runs next |
//! | `place` | which worker runs it, which are started, and which make room |
//! | `stop` | what happens when a time has passed |
//! | `death` | what becomes of the jobs of a worker that died |

mod action;
mod config;
mod event;
mod explain;
mod ids;
mod scheduler;
mod snapshot;

pub use action::{Action, BrokenCause, Device, Failure, KillReason, Outcome, Refusal};
pub use config::{
    CONCURRENCY_MAX, Config, ConfigError, ConfigValues, DeviceConfig, Devices, MODELS_MAX, ModelConfig,
    ModelValues, QUEUE_MAX, TIME_MAX, WORKERS_MAX,
};
pub use event::{Event, Exit, JobEnd, SpawnFault, Submit};
pub use explain::{DECISIONS_MAX, Decision, Rule};
pub use ids::{ClientId, JobId, ModelId, Time, WorkerId};
pub use scheduler::Scheduler;
pub use snapshot::{BudgetSnapshot, ClientSnapshot, ModelSnapshot, Snapshot, WorkerSnapshot, WorkerState};
