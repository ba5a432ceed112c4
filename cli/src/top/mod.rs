//! A live view of the server: what is asked, what is worked out from it, and how it is drawn.

pub mod page;
pub mod sample;
pub mod screen;
pub mod view;
