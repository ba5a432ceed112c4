//! The cap: random plans of allocations, and a driver that really has no more memory.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ringfence_gpu::{Activation, Gpu, GpuError, Matrix, RefusedBy, Stored};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::Command;
use support::{LEASE, adapter};

const MIB: usize = 1 << 20;

/// One step of a plan.
#[derive(Clone, Debug)]
enum Step {
    Take {
        bytes: usize,
    },
    /// Lets one go, if there is one.
    Give {
        index: usize,
    },
    /// Uses one, so that the device is busy with it.
    Touch {
        index: usize,
    },
    /// Sends bytes to one, and so through the ring.
    Upload {
        index: usize,
        floats: usize,
    },
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![0usize..4096, 0..MIB, 0..6 * MIB, 0..40 * MIB];
    prop_oneof![
        4 => bytes.prop_map(|bytes| Step::Take { bytes }),
        2 => any::<usize>().prop_map(|index| Step::Give { index }),
        1 => any::<usize>().prop_map(|index| Step::Touch { index }),
        1 => (any::<usize>(), 0..MIB).prop_map(|(index, floats)| Step::Upload { index, floats }),
        1 => Just(Step::Wait),
    ]
}

fn check_numbers(gpu: &Gpu, lease: u64) -> Result<(), TestCaseError> {
    let numbers = gpu.numbers();
    prop_assert!(numbers.used <= lease && numbers.peak <= lease, "{numbers:?}");
    prop_assert!(numbers.reserved <= lease, "{numbers:?}");
    prop_assert!(numbers.used >= numbers.allocated, "{numbers:?}");
    prop_assert!(numbers.peak >= numbers.used, "{numbers:?}");
    Ok(())
}

fn run_plan(gpu: &Gpu, lease: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut held: Vec<Matrix> = Vec::new();
    gpu.restart_peak();
    for step in steps {
        match step {
            Step::Take { bytes } => match gpu.matrix(1, bytes / 4) {
                Ok(matrix) => held.push(matrix),
                Err(GpuError::OutOfMemory { wanted, used, limit, .. }) => {
                    prop_assert_eq!((wanted, limit), ((bytes / 4 * 4) as u64, lease));
                    prop_assert!(used <= lease);
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            },
            Step::Give { index } if !held.is_empty() => drop(held.swap_remove(index % held.len())),
            Step::Touch { index } if !held.is_empty() => {
                let index = index % held.len();
                gpu.clear(&mut held[index], 1);
            }
            Step::Upload { index, floats } if !held.is_empty() => {
                let to = &held[index % held.len()];
                // The only row there is, or nothing.
                let floats = if to.columns() <= *floats { to.columns() } else { 0 };
                gpu.upload(to, &vec![1.0; floats]);
            }
            Step::Wait => gpu.finish().unwrap(),
            Step::Give { .. } | Step::Touch { .. } | Step::Upload { .. } => {}
        }
        check_numbers(gpu, lease)?;
    }
    held.clear();
    gpu.finish().unwrap();
    let numbers = gpu.numbers();
    prop_assert_eq!(numbers.used, numbers.headroom, "all is given back");
    Ok(())
}

#[test]
fn no_plan_of_allocations_passes_the_lease() {
    let adapter = adapter();
    let headroom = Gpu::open(&adapter, LEASE).unwrap().numbers().headroom;
    let leases = [headroom, headroom + (1 << 20), headroom + (12 << 20), 64 << 20];
    let gpus = leases.map(|lease| Gpu::open(&adapter, lease).unwrap());
    let cases = std::env::var("RINGFENCE_HISTORIES").map_or(200, |count| count.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let plan = (0..leases.len(), prop::collection::vec(step(), 1..30));
    TestRunner::new(config)
        .run(&plan, |(which, steps)| run_plan(&gpus[which], leases[which], &steps))
        .unwrap();
    println!("{cases} plans under leases of {leases:?} bytes");
}

#[test]
fn a_refusal_says_what_was_wanted_and_changes_nothing() {
    let gpu = Gpu::open(&adapter(), 32 << 20).unwrap();
    let before = gpu.numbers();
    let error = gpu.matrix(MIB, 9).unwrap_err();
    let GpuError::OutOfMemory { wanted, used, limit, by } = error else { panic!("{error}") };
    assert_eq!((wanted, used, limit, by), (36 << 20, before.used, 32 << 20, RefusedBy::Gate));
    assert_eq!(gpu.check(36 << 20).unwrap_err(), error);
    assert_eq!(gpu.numbers(), before);
    gpu.check(1 << 20).unwrap();
    let kept = gpu.matrix(MIB, 1).unwrap();
    let after = gpu.numbers();
    assert_eq!((after.used - before.used, after.peak), (4 << 20, after.used));
    drop(kept);
    assert_eq!((gpu.numbers().used, gpu.numbers().peak), (before.used, after.peak));
    gpu.restart_peak();
    assert_eq!(gpu.numbers().peak, before.used);
}

#[test]
fn memory_that_is_reserved_but_too_scattered_counts_too() {
    let adapter = adapter();
    let lease = Gpu::open(&adapter, LEASE).unwrap().numbers().headroom + (24 << 20);
    let gpu = Gpu::open(&adapter, lease).unwrap();
    // Each of these leaves a quarter of one of the allocator's blocks unused.
    let mut held = Vec::new();
    let error = loop {
        match gpu.matrix(3, MIB / 4) {
            Ok(matrix) => held.push(matrix),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GpuError::OutOfMemory { by: RefusedBy::Reserved, .. }), "{error:?}");
    let numbers = gpu.numbers();
    assert!(numbers.used + 3 * MIB as u64 <= lease, "by the count it would have fitted: {numbers:?}");
    assert!(numbers.reserved <= lease, "it was undone: {numbers:?}");
    gpu.matrix(1, 100).unwrap();
}

#[test]
fn what_waits_for_the_device_makes_room_when_it_is_needed() {
    let gpu = Gpu::open(&adapter(), 64 << 20).unwrap();
    for _ in 1..20 {
        // Recorded and let go: without a wait two of these don't fit.
        let mut matrix = gpu.matrix(MIB, 8).unwrap();
        gpu.clear(&mut matrix, 1);
    }
}

/// Set in the child process of the next test.
const CHILD: &str = "RINGFENCE_GPU_OOM_CHILD";

#[test]
fn a_driver_without_memory_is_an_error_and_the_device_goes_on() {
    if std::env::var_os(CHILD).is_some() {
        return exhaust();
    }
    let name = "a_driver_without_memory_is_an_error_and_the_device_goes_on";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("100 refusals by the driver"), "{text}");
}

/// In a process of its own, whose address space is limited to little more than it has.
fn exhaust() {
    const LARGE: usize = 120 * MIB;
    let gpu = Gpu::open(&adapter(), 1 << 40).unwrap();
    gpu.warm_up().unwrap();
    let pages: u64 =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
    let now = pages * rustix::param::page_size() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(now + 100 * MIB as u64), maximum }).unwrap();
    let before = gpu.numbers();
    for round in 0..100 {
        let error = gpu.matrix(1, LARGE / 4).unwrap_err();
        assert!(matches!(error, GpuError::OutOfMemory { by: RefusedBy::Driver, .. }), "{round}: {error}");
        assert_eq!(gpu.numbers(), before);
    }
    // The next piece of work is done as if nothing had been.
    let small = support::matrix(&gpu, 10, 10, &[2.5; 100]);
    let weights = gpu.linear_weights(10, &[(&[1.0; 30], &[0.5; 3])], Stored::F32).unwrap();
    let mut to = gpu.matrix(10, 3).unwrap();
    gpu.linear(&small, 10, &weights, Activation::None, &mut to);
    assert_eq!(support::read(&gpu, &to), [25.5; 30]);
    println!("100 refusals by the driver");
}

#[test]
fn the_lease_of_one_device_is_not_that_of_another() {
    let (a, b) = (Gpu::open(&adapter(), LEASE).unwrap(), Gpu::open(&adapter(), LEASE).unwrap());
    let before = b.numbers();
    let _kept = a.matrix(MIB, 8).unwrap();
    assert_eq!(b.numbers(), before);
}
