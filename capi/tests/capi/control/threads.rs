//! Kernels, lists and controls that threads share.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam_capi::*;

use super::{assert_clean, control, group, list, report, set};
use crate::calls::*;
use crate::cuda::{OnDevice, kernels, start, tensor_at};

/// Each thread has a list, a control and a flat tensor of its own. All threads use the same
/// kernels, step the same two lists, one of them with a shared control, and read that control's
/// report. Of the calls that free the shared control, one succeeds.
#[test]
fn threads_share_kernels_lists_and_a_control() {
    const THREADS: usize = 4;
    const STEPS: u64 = 8;
    // The tensors: one for each thread and a shared one for controlled steps, then as many for
    // steps with the host's coefficients. These are the two shared ones.
    const SHARED: [usize; 2] = [THREADS, 2 * THREADS + 1];
    let stand_in = start();
    let context = CudaContext::new(0).unwrap();
    let kernels = kernels();
    let mut host: [Buffers; 2 * THREADS + 2] = std::array::from_fn(|i| Buffers::new(i, 40 + i));
    let device = host.each_ref().map(OnDevice::new);
    let config = config();
    let shared_control = control(kernels, &[group(&config)], &[set(0)]);
    let [shared_list, host_list] = SHARED.map(|shared| list(kernels, &[device[shared].tensor()]));
    let places = device.each_ref().map(|device| (device.addresses(), device.len));
    let freed: usize = std::thread::scope(|scope| {
        let work = |thread: usize| {
            move || {
                let [controlled, flat] =
                    [thread, THREADS + 1 + thread].map(|place| tensor_at(places[place].0, places[place].1));
                let own = control(kernels, &[group(&config)], &[set(0)]);
                let list = list(kernels, &[controlled]);
                let stream = ptr::null_mut();
                for t in 1..=STEPS {
                    // SAFETY: the buffers are live; the default stream orders all work.
                    unsafe {
                        ok(dualadam_cuda_list_step_controlled(list, own, ptr::null(), stream));
                        ok(dualadam_cuda_list_step_controlled(shared_list, shared_control, ptr::null(), stream));
                        ok(dualadam_cuda_control_set_lr(shared_control, 0, 1e-3, stream));
                        ok(dualadam_cuda_step(kernels, &flat, &coeffs(&config, t, 1.0), stream));
                        ok(dualadam_cuda_list_step(host_list, &coeffs(&config, 1, 1.0), 1, stream));
                    }
                    // A report waits for the device, so most rounds read none.
                    if t == STEPS {
                        assert_eq!(report(own, 1, stream), [(t, 0, 0)]);
                        assert!(report(shared_control, 1, stream)[0].0 >= t);
                    }
                }
                ok(dualadam_cuda_control_free(own));
                assert_eq!(dualadam_cuda_control_free(own), DUALADAM_STATUS_STALE_HANDLE);
                ok(dualadam_cuda_list_free(list));
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(report(shared_control, 1, ptr::null_mut()), [(THREADS as u64 * STEPS, 0, 0)]);
        let free = || usize::from(dualadam_cuda_control_free(shared_control) == DUALADAM_STATUS_OK);
        [(); THREADS].map(|()| scope.spawn(free)).into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(freed, 1);
    for (index, host) in host.iter_mut().enumerate() {
        let steps = if SHARED.contains(&index) { THREADS as u64 * STEPS } else { STEPS };
        let step = |t| if index == SHARED[1] { 1 } else { t };
        (1..=steps).for_each(|t| host.step(&coeffs(&config, step(t), 1.0)));
    }
    context.bind_to_thread().unwrap();
    assert!(device.each_ref().map(OnDevice::read) == host);
    [shared_list, host_list].into_iter().for_each(|list| ok(dualadam_cuda_list_free(list)));
    ok(dualadam_cuda_kernels_free(kernels));
    drop(device);
    assert_clean(&stand_in);
}
