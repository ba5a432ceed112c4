//! The command as people and scripts meet it, against a stand-in for the server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod audit;
mod command_line;
mod connection;
mod doctor;
mod generate;
mod load;
mod quota;
mod server;
mod trace;
