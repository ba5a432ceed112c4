//! Packages on a real disk: what is refused, with which refusal, and what stays true of loaded bytes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod bundles;
mod fixture;
mod interchange;
mod loading;
mod tampering;
mod trust;
mod writing;
mod wycheproof_vectors;
