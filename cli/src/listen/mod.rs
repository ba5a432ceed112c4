//! What `ringfence listen` shows and sends: events as they come, a file's samples at the pace of a clock.

pub mod events;
pub mod push;
pub mod screen;
pub mod wav;
