//! `cpu::sequential`. The only test of this process: it counts the process's threads.
#![cfg(target_os = "linux")]

use std::panic::catch_unwind;

use dualadam::{DualAdamConfig, cpu};

const LEN: usize = 100_003;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Two large steps of everything that may use other threads: a flat step and a list.
fn steps() -> [Vec<f32>; 2] {
    let coeffs = [DualAdamConfig::adam().coeffs(1).unwrap()];
    [1.0_f32, 2.0].map(|value| {
        let (mut p, g, mut m, mut v) = (vec![value; LEN], vec![value; LEN], vec![0.0; LEN], vec![0.0; LEN]);
        cpu::step(&mut p, &g, &mut m, &mut v, &coeffs[0]).unwrap();
        cpu::step_list(&mut [cpu::Tensor::new(&mut p, &g, &mut m, &mut v)], &coeffs).unwrap();
        p
    })
}

#[test]
fn steps_stay_on_the_thread_until_the_end_of_the_call() {
    let before = threads();
    let expected = cpu::sequential(steps);
    catch_unwind(|| cpu::sequential(|| panic!("ends the call early"))).unwrap_err();
    cpu::sequential(|| {
        cpu::sequential(|| ());
        assert_eq!(steps(), expected);
    });
    assert_eq!(threads(), before);
    // Now rayon's pool is started.
    assert_eq!(steps(), expected);
    assert!(threads() > before);
}
