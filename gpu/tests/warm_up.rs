//! After the warm-up the driver makes no memory executable any more, as a filter of system calls demands. The only test of
//! its program, since it looks at the whole process.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_gpu::{ATTENTION_WORDS_PER_ROW, Activation, Convolution, Gpu, Stored};
use support::{LEASE, adapter, matrix, read};

/// Bytes of memory that can be executed and belongs to no file: what was compiled at run time.
fn compiled_bytes() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bytes = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let compiled = fields[1].contains('x') && fields.len() == 5;
        let (start, end) = fields[0].split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        if compiled { at(end) - at(start) } else { 0 }
    };
    maps.lines().map(bytes).sum()
}

/// Every operation, products in each of their sizes.
fn run_everything(gpu: &Gpu) {
    const ROWS: usize = 70;
    let mut x = matrix(gpu, ROWS, 6, &[0.5; ROWS * 6]);
    let (mut y, mut wide) = (gpu.matrix(ROWS, 6).unwrap(), gpu.matrix(ROWS, 18).unwrap());
    let mut words = gpu.words(ATTENTION_WORDS_PER_ROW * ROWS).unwrap();
    for stored in [Stored::F32, Stored::F16] {
        let weights = gpu.linear_weights(6, &[(&[0.1; 108], &[0.2; 18])], stored).unwrap();
        for rows in [1, 20, ROWS] {
            gpu.linear(&x, rows, &weights, Activation::Gelu, &mut wide);
        }
        let table = gpu.table(6, &vec![0; 60 * stored.bytes()], stored).unwrap();
        gpu.lookup(&table, &[3, 9], &mut words, &mut y);
    }
    gpu.attention(&wide, &[0, 5, ROWS], 3, &mut words, &mut y);
    let norm = gpu.norm_weights(&[1.0; 6], Some(&[0.0; 6]), 1e-5).unwrap();
    gpu.add_layer_norm(&mut x, &y, ROWS, &norm);
    gpu.rms_norm(&x, ROWS, &norm, &mut y);
    gpu.softmax(&mut y, ROWS, 1.0);
    gpu.normalize(&mut y, ROWS);
    gpu.add(&mut y, &x, ROWS);
    gpu.activate(&mut y, ROWS, Activation::Silu);
    let turns = gpu.rope_turns(10, 2, 10_000.0).unwrap();
    gpu.rope(&mut y, 0..6, &[1, 2], &turns, &mut words);
    gpu.argmax(&y, ROWS, &mut words);
    let taps = gpu.conv_weights(6, 1, &[0.3; 36], &[0.0; 6]).unwrap();
    gpu.conv1d(&x, ROWS, &taps, Convolution { stride: 1, padding: 0 }, Activation::None, &mut y);
    gpu.pool_first(&x, &[0, 4, ROWS], &mut words, &mut y);
    gpu.pool_mean(&x, &[0, 4, ROWS], &mut words, &mut y);
    gpu.clear(&mut y, 1);
    read(gpu, &y);
}

#[test]
fn nothing_is_compiled_after_the_warm_up() {
    let gpu = Gpu::open(&adapter(), LEASE).unwrap();
    let before = compiled_bytes();
    gpu.warm_up().unwrap();
    let warm = compiled_bytes();
    assert!(warm > before, "the driver compiles at the first dispatch, or this test sees nothing");
    run_everything(&gpu);
    assert_eq!(compiled_bytes(), warm);
}
