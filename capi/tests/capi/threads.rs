//! Calls from several threads, with handles of their own and with the same one.

use std::sync::Barrier;
use std::thread;

use dualadam_capi::*;

use crate::calls::*;

const THREADS: usize = 8;

/// Each thread has its own state, error and buffers; all start together.
#[test]
fn threads_do_not_see_each_others_handles_and_errors() {
    let expected = {
        let mut alone = Buffers::new(5, 1000);
        (1..=20).for_each(|step| step_one(&mut alone, step));
        alone
    };
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (barrier, expected) = (&barrier, &expected);
            scope.spawn(move || {
                barrier.wait();
                let mut buffers = Buffers::new(5, 1000);
                for step in 1..=20 {
                    step_one(&mut buffers, step);
                    let mine = state(number as u64);
                    let status = dualadam_state_set_step(mine, number + 1, 1, 0);
                    fails(status, DUALADAM_STATUS_POSITION, &format!("tensor must be below 1, got {}", number + 1));
                    assert_eq!(state_tensor(mine, 0).len, number as u64);
                    ok(dualadam_state_free(mine));
                    assert_eq!(dualadam_state_free(mine), DUALADAM_STATUS_STALE_HANDLE);
                }
                assert_eq!(&buffers, expected);
            });
        }
    });
}

fn step_one(buffers: &mut Buffers, step: u64) {
    buffers.step(&coeffs(&config(), step, 1.0));
}

/// One state, one thread for each of its tensors; a handle that two threads free is freed once.
#[test]
fn threads_share_a_state() {
    let specs = [spec(1000); THREADS];
    let mut state = 0;
    // SAFETY: the structs and the result live through the call.
    ok(unsafe { dualadam_state_new(&config(), 1, specs.as_ptr(), THREADS, &mut state) });
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                let mut buffers = Buffers::new(number, 1000);
                for step in 1..=20 {
                    let values = state_tensor(state, number);
                    assert_eq!(values.step, step - 1);
                    let (exp_avg, exp_avg_sq) = (values.exp_avg.cast(), values.exp_avg_sq.cast());
                    let tensor = dualadam_tensor { exp_avg, exp_avg_sq, ..buffers.tensor() };
                    // SAFETY: the structs and the buffers are there, and no other thread has this
                    // tensor.
                    ok(unsafe { dualadam_cpu_step(&tensor, &coeffs(&config(), step, 1.0)) });
                    ok(dualadam_state_set_step(state, number, step, 0));
                }
            });
        }
    });
    for number in 0..THREADS {
        let mut alone = Buffers::new(number, 1000);
        (1..=20).for_each(|step| step_one(&mut alone, step));
        let values = state_tensor(state, number);
        // SAFETY: the state's arrays have 1,000 elements, and nobody else is there any more.
        let moments =
            unsafe { [values.exp_avg, values.exp_avg_sq].map(|array| std::slice::from_raw_parts(array, 1000)) };
        assert_eq!(moments, [&alone.m[..], &alone.v[..]]);
    }
    let freed: usize = thread::scope(|scope| {
        let threads =
            [(); THREADS].map(|()| scope.spawn(move || usize::from(dualadam_state_free(state) == DUALADAM_STATUS_OK)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(freed, 1);
}
