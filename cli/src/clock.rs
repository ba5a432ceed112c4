//! The one place of this program that reads the clock.

use std::time::Instant;

/// Now.
#[expect(clippy::disallowed_methods, reason = "commands stamp what they do; nothing here is simulated")]
pub fn now() -> Instant {
    Instant::now()
}
