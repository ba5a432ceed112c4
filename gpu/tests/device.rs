//! What a device does beside its kernels: facts, copies, changing hands, loss.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_gpu::{Adapters, Gpu, GpuError, OpenError, READ_BYTES_MAX, SLOT_BYTES, UPLOAD_SLOTS};
use std::process::Command;
use support::{LEASE, Numbers, adapter, matrix, on_each, read};

#[test]
fn adapters_are_described() {
    for adapter in Adapters::list().unwrap().all() {
        assert!(!adapter.name.is_empty() && !adapter.driver.is_empty(), "{adapter:?}");
        assert!(
            adapter.binding_bytes_max >= 128 << 20 && adapter.buffer_bytes_max >= 256 << 20,
            "{adapter:?}"
        );
        let (least, most) = adapter.subgroup_size;
        assert!(!adapter.subgroups || (1..=most).contains(&least), "{adapter:?}");
    }
}

/// Set in the child process of the next test.
const CHILD: &str = "RINGFENCE_GPU_NO_DRIVER_CHILD";

#[test]
fn without_a_driver_there_is_an_error_that_says_what_to_install() {
    if std::env::var_os(CHILD).is_some() {
        println!("found: {}", Adapters::list().unwrap_err());
        return;
    }
    let name = "without_a_driver_there_is_an_error_that_says_what_to_install";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
    // The loader reads one of these, by its age.
    let output =
        child.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("found: no Vulkan device") && text.contains("mesa-vulkan-drivers"), "{text}");
}

#[test]
fn a_lease_below_the_headroom_is_refused_and_the_headroom_itself_is_enough() {
    let adapter = adapter();
    for lease in [0, 1 << 20] {
        let error = Gpu::open(&adapter, lease).unwrap_err();
        assert!(matches!(error, OpenError::LeaseTooSmall { lease: said, .. } if said == lease), "{error}");
    }
    let headroom = Gpu::open(&adapter, LEASE).unwrap().numbers().headroom;
    assert!(headroom >= SLOT_BYTES * UPLOAD_SLOTS as u64 + READ_BYTES_MAX, "the ring is part of it");
    let gpu = Gpu::open(&adapter, headroom).unwrap();
    assert!(matches!(gpu.matrix(1, 1).unwrap_err(), GpuError::OutOfMemory { .. }));
}

#[test]
fn the_warm_up_leaves_nothing_behind() {
    on_each(|gpu| {
        let before = gpu.numbers();
        gpu.warm_up().unwrap();
        assert_eq!(gpu.numbers().used, before.used);
    });
}

#[test]
fn what_is_uploaded_is_read_back_through_many_slots() {
    on_each(|gpu| {
        // More than the ring holds, and no multiple of a slot.
        let columns = 1001;
        let rows = (UPLOAD_SLOTS + 2) * SLOT_BYTES as usize / 4 / columns + 1;
        let floats = Numbers(3).vector(rows * columns);
        let to = matrix(gpu, rows, columns, &floats);
        assert!(read(gpu, &to) == floats);
    });
}

#[test]
fn many_small_uploads_arrive_in_order() {
    on_each(|gpu| {
        let to = gpu.words(3).unwrap();
        for round in 0..200_000u32 {
            gpu.upload_numbers(&to, &[round, round + 1, round + 2]);
        }
        let mut found = Vec::new();
        gpu.read_numbers(&to, 3, &mut found).unwrap();
        assert_eq!(found, [199_999, 200_000, 200_001]);
    });
}

#[test]
fn memory_of_a_freed_buffer_reads_as_zeros() {
    on_each(|gpu| {
        let secret = vec![1234.5; 300_000];
        for rows in [1, 30, 300] {
            let size = rows * 1000;
            for _ in 0..4 {
                drop(matrix(gpu, rows, 1000, &secret[..size]));
                gpu.finish().unwrap();
                let next = gpu.matrix(rows, 1000).unwrap();
                assert!(read(gpu, &next).iter().all(|x| *x == 0.0), "{rows} rows");
            }
        }
    });
}

#[test]
fn what_is_cleared_reads_as_zeros_and_the_rest_stays() {
    on_each(|gpu| {
        let mut floats = matrix(gpu, 3, 3, &[7.0; 9]);
        gpu.clear(&mut floats, 0);
        assert_eq!(read(gpu, &floats), [7.0; 9]);
        gpu.clear(&mut floats, 2);
        gpu.clear_staging();
        assert_eq!(read(gpu, &floats), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 7.0, 7.0]);
        let mut numbers = gpu.words(4).unwrap();
        gpu.upload_numbers(&numbers, &[1, 2, 3, 4]);
        gpu.clear_numbers(&mut numbers, 3);
        let mut found = Vec::new();
        gpu.read_numbers(&numbers, 4, &mut found).unwrap();
        assert_eq!(found, [0, 0, 0, 4]);
    });
}

#[test]
fn a_lost_device_is_an_error_everywhere_and_nowhere_a_panic() {
    let gpu = Gpu::open(&adapter(), LEASE).unwrap();
    let mut x = matrix(&gpu, 2, 2, &[1.0; 4]);
    gpu.normalize(&mut x, 2);
    gpu.destroy();
    let lost = |error: GpuError| matches!(error, GpuError::Lost { .. });
    gpu.upload(&x, &[2.0; 4]);
    gpu.normalize(&mut x, 2);
    gpu.softmax(&mut x, 2, 1.0);
    gpu.clear(&mut x, 2);
    gpu.clear_staging();
    assert!(lost(gpu.read(&x, 2, &mut Vec::new()).unwrap_err()));
    assert!(lost(gpu.matrix(1, 1).unwrap_err()));
    assert!(lost(gpu.finish().unwrap_err()));
    assert!(lost(gpu.check(1).unwrap_err()));
    assert!(lost(gpu.warm_up().unwrap_err()));
    drop(x);
    gpu.numbers();
}
