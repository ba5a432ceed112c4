//! One model on one device: loads a package strictly, batches the jobs that wait, and answers over the link.
//!
//! ```text
//! serve     the state machine of the link: start, load, jobs            (shell.rs: what the sandbox gives it)
//! jobs      slots, their items, what comes next; batch.rs chooses
//! generation  jobs of text, beside each other: prompts, steps, answers
//! text      texts and token arrays to token ids within the model's length
//! sound     a client's sound to the floats that a speech model hears
//! speech    jobs of speech, beside each other; live.rs has those whose sound comes while it is heard
//! models    model code, written once over `device`'s operations
//! devices   what a sandbox shows of GPUs, for the operator's command
//! package   every byte that a stranger wrote: strict, bounded parsers
//! ```

pub mod convert;
pub mod device;
#[cfg(feature = "wgpu")]
pub mod devices;
mod files;
pub mod generation;
pub mod jobs;
pub mod lanes;
mod live;
pub mod memory;
pub mod models;
mod pace;
pub mod package;
mod random;
pub mod serve;
pub mod shell;
pub mod sound;
mod speech;
mod stopwatch;
pub mod text;
