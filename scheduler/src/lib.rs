//! The quota scheduler as a pure state machine: events come in with the time, actions go out. It does no IO and reads
//! no clock, so the same events give the same actions, always.
//!
//! | file | decides |
//! | --- | --- |
//! | `admit` | whether a job is taken |
//! | `rate` | whether a client has used up a rate |
//! | `order` | which job runs next |
//! | `currency` | what each client is charged |
//! | `place` | which worker runs it, and which are started |
//! | `cores` | which workers may be at work at the same time |
//! | `stop` | what happens when a time has passed |
//! | `room` | who makes room for a model that is waited for |
//! | `death` | what becomes of the jobs of a worker that died |
//! | `forget` | what happens to a worker that keeps what a grant gave after its end |
//!
//! `quotas` is the text that an operator writes, and what it comes to. `replay` lets what was recorded come again under
//! other quotas.

mod action;
mod admit;
mod config;
mod cores;
mod currency;
mod death;
mod event;
mod explain;
mod forget;
mod ids;
mod order;
mod place;
mod queue;
pub mod quotas;
mod rate;
pub mod replay;
mod room;
mod snapshot;
mod state;
mod step;
mod stop;

pub use action::{Action, BrokenCause, Device, Failure, KillReason, Outcome, RateLimit, Refusal, Resource};
pub use config::{
    CONCURRENCY_MAX, Class, ClientConfig, ClientValues, Config, ConfigError, ConfigValues, DeviceConfig,
    Devices, GPUS_MAX, ModelConfig, ModelValues, Order, QUEUE_MAX, RATE_MAX, Rate, STEP_TARGET_MAX, TIME_MAX,
    WEIGHT_MAX, WORKERS_MAX,
};
pub use currency::{CLIENTS_MAX, ClientUsage, Usage};
pub use event::{Event, Exit, JobEnd, SpawnFault, Submit};
pub use explain::{AHEAD_MAX, DECISIONS_MAX, Decision, Explanation, JobState, PAST_JOBS_MAX, Rule, WaitsFor};
pub use forget::{FORGET_GRACE, FORGET_KILLS_MAX, FORGET_LOADS};
pub use ids::{ClientId, GpuId, JobId, ModelId, Time, WorkerId};
pub use snapshot::{
    BudgetSnapshot, ClientSnapshot, CoresSnapshot, ModelSnapshot, Snapshot, WorkerSnapshot, WorkerState,
};
pub use state::Scheduler;
pub use stop::GRACE;
