//! Grants as a pure table: what clients ask for, who said yes, until when, and the capabilities that follow. It does no IO,
//! reads no clock and makes no random numbers; time and random bytes come in as values.
//!
//! | file | holds |
//! | --- | --- |
//! | `ask` | what a client asks for, and what an approver is shown |
//! | `approval` | what the operator's key signs |
//! | `table` | the states of every grant, and every decision about one |
//! | `capability` | the types that prove a decision, which only the table makes |
//! | `string` | the text that a client presents |
//! | `rules` | what is decided without asking anybody |
//! | `path` | a path below a granted root |
//! | `source` | a source of sound, and what is done to sound |
//! | `visible` | texts of strangers as they are shown |
//!
//! Whoever touches a file takes a [`FileRead`] or a [`FileWrite`] by value, and whoever captures sound an [`AudioCapture`].
//! Nobody else can make one:
//!
//! ```compile_fail,E0451
//! let forged = ringfence_grants::FileRead { grant: ringfence_grants::GrantId(1), ..unreachable!() };
//! ```
//!
//! nor have two of one:
//!
//! ```compile_fail,E0599
//! fn twice(read: ringfence_grants::FileRead) -> [ringfence_grants::FileRead; 2] {
//!     [read.clone(), read]
//! }
//! ```
//!
//! nor use one again that was given back:
//!
//! ```compile_fail,E0382
//! fn again(table: &mut ringfence_grants::Grants, read: ringfence_grants::FileRead) -> u64 {
//!     table.spent(read, 10);
//!     read.bytes_max()
//! }
//! ```
//!
//! nor write where reading was granted:
//!
//! ```compile_fail,E0308
//! fn write(_: ringfence_grants::FileWrite) {}
//! fn wrong(read: ringfence_grants::FileRead) {
//!     write(read);
//! }
//! ```
//!
//! nor make one from a text:
//!
//! ```compile_fail,E0277
//! let forged: ringfence_grants::FileRead = "rfg_".into();
//! ```
//!
//! nor capture sound with what was granted for a file, or a second time with one yes:
//!
//! ```compile_fail,E0308
//! fn capture(_: ringfence_grants::AudioCapture) {}
//! fn wrong(read: ringfence_grants::FileRead) {
//!     capture(read);
//! }
//! ```
//!
//! ```compile_fail,E0599
//! fn twice(capture: ringfence_grants::AudioCapture) -> [ringfence_grants::AudioCapture; 2] {
//!     [capture.clone(), capture]
//! }
//! ```
//!
//! ```compile_fail,E0451
//! let forged = ringfence_grants::AudioCapture { until_boot_ms: u64::MAX, ..unreachable!() };
//! ```

mod approval;
mod ask;
mod capability;
mod path;
mod rules;
mod source;
mod string;
mod table;
mod visible;

pub use approval::Approval;
pub use ask::{Ask, AskRefusal, Audience, Kind, Narrower, Shown, ShownKind};
pub use capability::{AudioCapture, FileRead, FileWrite};
pub use path::{PathRefusal, RelativePath};
pub use rules::{Rules, RulesError, Verdict};
pub use source::{Source, SourceRefusal, Transform};
pub use string::{CapabilityString, SECRET_BYTES, StringRefusal};
pub use table::{
    Approver, Change, DecideRefusal, Decision, Grant, GrantId, Grants, NarrowRefusal, Presented, Refusal,
    State,
};
pub use visible::visible;

/// A point in time by both clocks. The boot clock also counts while the machine sleeps, and nobody can turn it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Milliseconds since the machine was started.
    pub boot_ms: u64,
    /// Milliseconds since 1970 by the wall clock.
    pub wall_ms: u64,
}

impl Moment {
    /// So much later.
    pub fn after(self, ms: u64) -> Self {
        Self { boot_ms: self.boot_ms.saturating_add(ms), wall_ms: self.wall_ms.saturating_add(ms) }
    }
}

/// Grants that are pending or live at one time.
pub const GRANTS_MAX: usize = 4_096;
/// Of those, one client's.
pub const GRANTS_PER_CLIENT_MAX: usize = 2_048;
/// Grants that have ended and are still known, the latest ones.
pub const ENDED_MAX: usize = 1_024;
/// Questions of one client that wait for an answer.
pub const PENDING_PER_CLIENT_MAX: usize = 4;
/// Questions that a client may put at once, and how often it may put one after that.
pub const QUESTIONS_BURST: u32 = 10;
/// See [`QUESTIONS_BURST`], in milliseconds.
pub const QUESTION_EVERY_MS: u64 = 6_000;
/// How long a question waits for an answer before it is denied, in milliseconds.
pub const ANSWER_WAIT_MS: u64 = 60_000;
/// The longest that a grant can live, in milliseconds.
pub const LIFETIME_MS_MAX: u64 = 24 * 3_600 * 1_000;
/// The longest that a grant of sound can live, in milliseconds; a fresh one renews it.
pub const AUDIO_LIFETIME_MS_MAX: u64 = 15 * 60 * 1_000;
/// Bytes of a text that a client writes for the approver.
pub const TEXT_BYTES_MAX: usize = 300;
/// Bytes of a path.
pub const PATH_BYTES_MAX: usize = 4_095;
/// Bytes of a source of sound.
pub const SOURCE_BYTES_MAX: usize = 200;
/// Transforms of one rule.
pub const RULE_TRANSFORMS_MAX: usize = 4;
/// How often a grant can be narrowed, one from the other.
pub const DEPTH_MAX: u8 = 8;
/// How far the wall clock may be before the moment of approval, in milliseconds: it is set by the network now and then.
pub const WALL_STEP_MS_MAX: u64 = 2_000;
