//! A load generator: closed and open loop, latency and throughput, and what the server says it spent where.

pub mod chat;
pub mod load;
pub mod report;
pub mod tally;
pub mod words;
