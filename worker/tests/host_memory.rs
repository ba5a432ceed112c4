//! What a GPU takes of the host's memory, by the allocator that leases are counted with.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::Architecture;
use ringfence_sandbox::{CountingAllocator, Denial};
use ringfence_worker::device::{DeviceError, HOST_BYTES, Wgpu};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::warm_up;
use support::FixedLease;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn opening_a_device_and_warming_it_up_takes_no_more_than_is_asked_for_before() {
    let before = CountingAllocator::used();
    CountingAllocator::restart_peak();
    let wgpu = Wgpu::first(64 << 20, &Lease).unwrap();
    let wgpu = warm_up(Architecture::Bert, wgpu, &Lease).unwrap();
    let taken = CountingAllocator::peak() - before;
    assert!(taken <= HOST_BYTES, "{taken} bytes");
    drop(wgpu);
}

#[test]
fn a_lease_below_that_is_refused_before_the_device_is_opened() {
    let error = Wgpu::first(64 << 20, &FixedLease::of(HOST_BYTES - 1)).err();
    let denial = Denial { wanted: HOST_BYTES, used: 0, limit: HOST_BYTES - 1 };
    assert_eq!(error, Some(DeviceError::Full(denial)));
}
