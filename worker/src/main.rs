//! One model on one device, in a sandbox.
fn main() {}
