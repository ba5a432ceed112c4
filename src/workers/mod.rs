//! Workers from the server's side: started, spoken to, watched and ended.

mod connection;
mod drill;
mod life;
mod log;
mod probes;
mod readiness;
mod reconcile;
mod slots;
mod spawner;
mod writing;

pub(crate) use connection::Connection;
pub(crate) use drill::leave_memory;
pub(crate) use life::{Audience, Ending, Plan, Ready, end, is_sealed, live, micros_since};
pub(crate) use log::{Line, Log, Logs};
pub(crate) use probes::{ProbeError, prove_audio, prove_cpu, prove_fileguard, prove_gpu};
pub(crate) use readiness::{receive, receive_carried, watch};
pub(crate) use slots::{Effect, End, Expected, Illegal, Items, Made, Said, Slots, Speech, Usage};
pub(crate) use spawner::{Spawner, Start};
pub(crate) use writing::Answer;
