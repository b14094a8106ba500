//! The host's time for a step: from the call to its return, with nothing else in the device's
//! queue.

use std::time::Instant;

use dualadam::cuda::{DualAdam, TensorList};
use dualadam::{DualAdamConfig, RawTensor, StepCoeffs};
use testkit::stats::{median, quantile};

use crate::report::HostRow;
use crate::{Case, Device, Group, Shape};

/// Times of each way to make a step of f32 tensors; none if two replicas of them do not fit in
/// memory.
pub(crate) fn times(device: &Device, shape: &Shape, rounds: usize) -> Vec<HostRow> {
    let case = Case::buffers(shape);
    let Ok(group) = Group::new(device, &case) else { return vec![] };
    // A second replica, for other addresses.
    let Ok(other) = Group::new(device, &case) else { return vec![] };
    let tensors = [group.tensors(0), other.tensors(0)];
    let other_grads = |i: usize| tensors[0][i].with_grad(tensors[1][i].grad);
    let grads_change = [tensors[0].clone(), (0..tensors[0].len()).map(other_grads).collect()];
    let same = [tensors[0].clone(), tensors[0].clone()];
    let coeffs = DualAdamConfig::default().coeffs(3).expect("the defaults are valid");

    let row = |call: &str, mut seconds: Vec<f64>| {
        // The first calls build, load kernels and fault memory in; they do not count.
        let us: Vec<_> = seconds.drain(rounds / 10..).map(|seconds| seconds * 1e6).collect();
        let (low, high) = (quantile(us.iter().copied(), 0.25), quantile(us.iter().copied(), 0.75));
        HostRow {
            shape: shape.name.clone(),
            tensors: group.lens.len(),
            call: call.to_owned(),
            us: median(us),
            us_low: low,
            us_high: high,
        }
    };
    let mut rows = vec![];
    if let [tensor] = tensors[0][..] {
        rows.push(row("Kernels::step_raw", flat(device, &tensor, &coeffs, rounds)));
    }
    for (tensors, what) in [(&same, "unchanged"), (&grads_change, "new gradients"), (&tensors, "all addresses new")] {
        rows.push(row(&format!("TensorList, {what}"), list(device, tensors, &coeffs, rounds)));
    }
    for (tensors, what) in [(&same, "unchanged"), (&grads_change, "new gradients")] {
        rows.push(row(&format!("DualAdam, {what}"), owner(device, &group.lens, tensors, rounds)));
    }
    rows
}

/// Seconds of each call of `step`, which gets the number of the round.
fn each(device: &Device, rounds: usize, mut step: impl FnMut(usize)) -> Vec<f64> {
    let mut one = |round| {
        device.synchronize();
        let start = Instant::now();
        step(round);
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..rounds).map(&mut one).collect();
    device.synchronize();
    seconds
}

fn flat(device: &Device, tensor: &RawTensor, coeffs: &StepCoeffs, rounds: usize) -> Vec<f64> {
    each(device, rounds, |_| {
        // SAFETY: the buffers are as long as the tensor, and live until the work has ended.
        let stepped = unsafe { device.kernels.step_raw(tensor, coeffs, device.stream.cu_stream().cast()) };
        stepped.expect("the step can be enqueued");
    })
}

/// Steps a list with the two sets of tensors in turns.
fn list(device: &Device, tensors: &[Vec<RawTensor>; 2], coeffs: &StepCoeffs, rounds: usize) -> Vec<f64> {
    let mut list = TensorList::new(&device.kernels, &tensors[0]).expect("the tensors are valid");
    each(device, rounds, |round| {
        list.update(&tensors[round % 2]).expect("the tensors are valid");
        // SAFETY: the buffers are as long as the tensors, and live until the work has ended.
        unsafe { list.step_raw(std::slice::from_ref(coeffs), device.stream.cu_stream().cast()) }
            .expect("the step can be enqueued");
    })
}

fn owner(device: &Device, lens: &[usize], tensors: &[Vec<RawTensor>; 2], rounds: usize) -> Vec<f64> {
    let mut optimizer = DualAdam::new(&device.kernels, &device.stream, DualAdamConfig::default(), lens)
        .expect("there is memory for the moments");
    let addresses = tensors.each_ref().map(|tensors| {
        let params: Vec<_> = tensors.iter().map(|tensor| tensor.param).collect();
        let grads: Vec<_> = tensors.iter().map(|tensor| Some(tensor.grad)).collect();
        (params, grads)
    });
    each(device, rounds, |round| {
        let (params, grads) = &addresses[round % 2];
        // SAFETY: as above.
        unsafe { optimizer.step_raw(params, grads, 1.0) }.expect("the step can be enqueued");
    })
}
