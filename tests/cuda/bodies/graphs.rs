//! Controlled steps captured in CUDA graphs: launched again and again they equal ordinary steps.

use std::sync::Arc;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode;
use dualadam::cuda::cudarc::driver::{CudaGraph, CudaStream};
use dualadam::cuda::{CapturableDualAdam, ControlGroup, DualAdam, RawLr, RawScalars, Scalars};
use dualadam::{Dtype, DualAdamConfig, Formats, RawBuffer, SkipReason, State, SwitchSchedule, TensorSpec};
use testkit::data::Inputs;

use super::control::{SIZES, report, scalar};
use super::{Body, Gpu, Models, Run, refused, switching};

pub(crate) const TESTS: &[Body] = bodies!["graphs":
    a_graph_launched_again_and_again_equals_the_ordinary_run,
    a_graph_keeps_its_tensors_whatever_changes_later,
    a_step_is_captured_while_another_stream_works,
    two_graphs_run_on_two_streams,
    a_graph_may_outlive_what_it_captured,
    a_captured_list_without_control_may_be_dropped,
    what_the_host_must_do_is_refused_in_a_capture,
    an_optimizer_captured_once_has_the_bits_and_files_of_the_cpu,
    a_graph_may_have_several_steps,
    masters_are_set_once_each,
    foreign_moments_and_steps_reach_the_device,
    device_control_begins_where_the_host_was,
    a_graph_may_outlive_the_optimizer,
    controlled_optimizers_only_launch,
    scalars_must_be_one_element_of_the_context,
    a_refused_step_leaves_the_formats_as_they_were,
    nothing_to_update_is_nothing_to_launch,
];

// The modes of a capture.
pub(crate) use CUstreamCaptureMode::{
    CU_STREAM_CAPTURE_MODE_GLOBAL as GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED as RELAXED,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THREAD_LOCAL,
};

pub(crate) fn capture(stream: &Arc<CudaStream>, mode: CUstreamCaptureMode, work: impl FnOnce()) -> CudaGraph {
    stream.begin_capture(mode).unwrap();
    work();
    stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap()
}

/// The very first step is captured; its launches go through the switch and through skipped steps,
/// with new learning rates in the caller's memory and in the control's.
fn a_graph_launched_again_and_again_equals_the_ordinary_run(gpu: &Gpu) {
    let [first, second] = switching();
    let lr = scalar(gpu, 0.5);
    let groups = [ControlGroup::new(first).with_lr(RawLr::F32(lr.address)), ControlGroup::new(second)];
    let mut run = Run::with_groups(gpu, &SIZES, &groups);
    let (found_inf, clip_factor) = (scalar(gpu, 0.0), scalar(gpu, 1.0));
    let scalars = RawScalars::default().with_found_inf(found_inf.address).with_clip_factor(clip_factor.address);
    let graph = capture(&gpu.stream, GLOBAL, || run.try_launch(&gpu.stream, scalars).unwrap());
    run.assert_same(gpu, "captured only");
    for round in 0..10_u8 {
        let is_skipped = [3, 4, 8].contains(&round);
        let lrs = [f32::from(round) * 0.125, 0.01];
        let multiplier = 1.0 / f32::from(round + 1);
        gpu.write(&found_inf, &(if is_skipped { f32::NAN } else { 0.0 }).to_ne_bytes());
        gpu.write(&clip_factor, &multiplier.to_ne_bytes());
        gpu.write(&lr, &lrs[0].to_ne_bytes());
        let second_lr = if round < 6 { f64::from(lrs[1]) } else { 0.25 };
        run.set_lr(gpu, 1, second_lr).unwrap();
        graph.launch().unwrap();
        if !is_skipped {
            run.expect(&[f64::from(lrs[0]), second_lr], multiplier.into(), |_| true);
        }
        run.assert_same(gpu, &format!("launch {round}"));
    }
    let all_skipped = report(gpu, &run.control).iter().all(|set| set.skipped == 3 && set.step == 7);
    assert!(all_skipped, "{:?}", report(gpu, &run.control));
    // An ordinary step continues from there.
    gpu.write(&found_inf, &0_f32.to_ne_bytes());
    run.launch(&gpu.stream);
    run.expect(&[1.125, 0.25], 1.0, |_| true);
    run.assert_same(gpu, "ordinary");
}

/// The capture fixes which tensors have a gradient in its graph: neither later steps nor other
/// captures change it.
fn a_graph_keeps_its_tensors_whatever_changes_later(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 40, 5, 17], &switching());
    let of_all = run.capture(&gpu.stream);
    run.leave_out(|tensor| tensor >= 2).unwrap();
    let of_some = run.capture(&gpu.stream);
    run.assert_same(gpu, "captured only");
    for round in 0..3 {
        of_all.launch().unwrap();
        run.expect_all();
        run.leave_out(|tensor| tensor < 2).unwrap();
        run.launch(&gpu.stream);
        run.expect_of(|tensor| tensor >= 2);
        of_some.launch().unwrap();
        run.expect_of(|tensor| tensor < 2);
        run.assert_same(gpu, &format!("round {round}"));
    }
}

fn a_step_is_captured_while_another_stream_works(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    for mode in [GLOBAL, THREAD_LOCAL] {
        let (mut captured, mut working) =
            (Run::new(gpu, &[300, 5], &switching()), Run::new(gpu, &[17, 4097], &switching()));
        working.launch(&other);
        let graph = capture(&gpu.stream, mode, || {
            working.launch(&other);
            captured.launch(&gpu.stream);
            // SAFETY: the stream lives.
            unsafe { working.control.set_lr(0, 0.5, other.cu_stream().cast()) }.unwrap();
            working.launch(&other);
        });
        graph.launch().unwrap();
        working.launch(&other);
        graph.launch().unwrap();
        for round in 0..4 {
            working.expect(&[if round < 2 { 1e-2 } else { 0.5 }, 1e-2], 1.0, |_| true);
        }
        (0..2).for_each(|_| captured.expect_all());
        gpu.context.synchronize().unwrap();
        captured.assert_same(gpu, "captured");
        working.assert_same(gpu, "at work");
    }
}

fn two_graphs_run_on_two_streams(gpu: &Gpu) {
    let other = gpu.context.new_stream().unwrap();
    let mut runs = [Run::new(gpu, &[300, 5, 4096], &switching()), Run::new(gpu, &[17, 4097], &switching())];
    let [one, two] = &mut runs;
    let graphs = [one.capture(&gpu.stream), two.capture(&other)];
    for _ in 0..6 {
        graphs.iter().for_each(|graph| graph.launch().unwrap());
        runs.iter_mut().for_each(Run::expect_all);
    }
    gpu.context.synchronize().unwrap();
    runs.iter().for_each(|run| run.assert_same(gpu, "both"));
}

/// List and control are dropped; the graph that captured them still works.
fn a_graph_may_outlive_what_it_captured(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[300, 5, 4096], &switching());
    let graph = run.capture(&gpu.stream);
    // A list and a control that no graph uses take their place.
    let fresh = Run::new(gpu, &[1], &switching());
    (run.list, run.control) = (fresh.list, fresh.control);
    for _ in 0..6 {
        graph.launch().unwrap();
        run.expect_all();
    }
    run.assert_same_tensors(gpu, "after the end");
}

/// A list whose steps were captured without a control may be dropped, too.
fn a_captured_list_without_control_may_be_dropped(gpu: &Gpu) {
    let config = DualAdamConfig::default();
    let mut run = Run::new(gpu, &[300, 5], &[config]);
    let coeffs = config.coeffs(1).unwrap();
    let graph = capture(&gpu.stream, GLOBAL, || {
        gpu.step_list(&mut run.list, &[coeffs]).unwrap();
    });
    run.list = Run::new(gpu, &[1], &[config]).list;
    graph.launch().unwrap();
    run.expect_all();
    run.assert_same_tensors(gpu, "after the end");
}

/// Work that the host would have to repeat for each launch, or to wait for, is refused in a
/// capture. The capture goes on.
fn what_the_host_must_do_is_refused_in_a_capture(gpu: &Gpu) {
    let context = gpu.other_context();
    let mut run = Run::new(gpu, &[300, 5, 17, 1], &switching());
    let stream = gpu.raw_stream();
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(4)]).unwrap();
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        // SAFETY: the stream lives, and the stand-in checks each access.
        unsafe {
            refused::captured(run.control.set_lr(0, 0.1, stream));
            refused::captured(run.control.set_config(0, DualAdamConfig::default(), stream));
            refused::captured(run.control.set_steps(&[1, 2], stream));
            refused::captured(run.control.steps(stream));
            refused::captured(run.control.report(stream));
        }
        refused::captured(optimizer.state());
        refused::captured(optimizer.set_moments(0, 1, &[0.0; 4], &[0.0; 4]));
        refused::captured(optimizer.into_capturable());
    });
    drop(graph);
    let mut run = Run::new(gpu, &[300, 5, 17, 1], &switching());
    // A capture begun in another context.
    let other = context.new_stream().unwrap();
    drop(capture(&other, THREAD_LOCAL, || {
        refused::context(run.try_launch(&other, RawScalars::default()), "stream");
    }));
    gpu.context.bind_to_thread().unwrap();
    // None of the refused calls had an effect.
    run.step(gpu);
    run.assert_same(gpu, "afterwards");
}

fn groups() -> [DualAdamConfig; 2] {
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(3));
    [config, config.with_schedule(SwitchSchedule::Fixed { switching_step: 2 })]
}

/// f32; bf16 and f16 with masters, in another group, the first of them longer than its masters'
/// blocks have threads; bf16 alone.
fn models(gpu: &Gpu) -> Models {
    let specs = [("f32_f32", 300, 0), ("bf16_f32_master", 4170, 1), ("f16_f32_master", 19, 1), ("bf16_f32", 5, 0)];
    Models::new(&gpu.stream, &groups(), &specs).with_multiplier(0.25)
}

/// The models with a capturable optimizer.
fn controlled(gpu: &Gpu) -> (Models, CapturableDualAdam) {
    let models = models(gpu);
    let optimizer = models.optimizer(&gpu.kernels).into_capturable().unwrap();
    (models, optimizer)
}

fn prepare(models: &mut Models, optimizer: &mut CapturableDualAdam) {
    let (params, grads, _) = models.lists(|_| false);
    optimizer.prepare(params, grads).unwrap();
}

/// The first update of tensors with masters is captured, and skipped at first; launches go through
/// the switch; the state goes to the CPU and back.
fn an_optimizer_captured_once_has_the_bits_and_files_of_the_cpu(gpu: &Gpu) {
    let folder = tempfile::tempdir().unwrap();
    let (from_cpu, from_device) = (folder.path().join("cpu"), folder.path().join("device"));
    let (mut models, mut optimizer) = controlled(gpu);
    prepare(&mut models, &mut optimizer);
    gpu.context.synchronize().unwrap();
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        models.launch(&mut optimizer, |_| false).unwrap();
    });
    models.assert_same(&optimizer, "captured only");
    for round in 0..6 {
        let is_skipped = round == 0 || round == 4;
        models.set_found_inf(f32::from(u8::from(is_skipped)));
        let lr = 1e-2 * f64::from(round + 1);
        optimizer.set_lr(0, lr).unwrap();
        models.cpu.set_lr(0, lr).unwrap();
        if round == 2 {
            let config = groups()[1].with_betas(0.8, 0.99);
            optimizer.set_config(1, config).unwrap();
            models.cpu.set_config(1, config).unwrap();
        }
        graph.launch().unwrap();
        if !is_skipped {
            models.expect(|_| false);
        }
        models.assert_same(&optimizer, &format!("launch {round}"));
        let skipped = u64::from(round >= 4) + 1;
        let report = optimizer.report().unwrap();
        assert!(report.iter().all(|set| set.skipped == skipped && set.last_skip == Some(SkipReason::FoundInf)));
    }
    optimizer.save(&from_device).unwrap();
    models.cpu.save(&from_cpu).unwrap();
    assert_eq!(std::fs::read(&from_cpu).unwrap(), std::fs::read(&from_device).unwrap());

    // The device continues from the CPU's file, without a graph and with a gradient missing. The
    // CPU continues from the device's file.
    optimizer.load(&from_cpu).unwrap();
    models.cpu.load(&from_device).unwrap();
    models.set_found_inf(0.0);
    for round in 0..3 {
        models.step(&mut optimizer, |tensor| round > 0 && tensor == round);
        models.assert_same(&optimizer, &format!("resumed, round {round}"));
    }
    // The host controls the steps again.
    let state = optimizer.state().unwrap();
    assert_eq!(state, *models.cpu.state());
    let mut plain = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap();
    models.step(&mut plain, |_| false);
    models.assert_same(&plain, "without control");
}

/// Two steps in one graph: the second one sees what the first wrote on the device, masters
/// included.
fn a_graph_may_have_several_steps(gpu: &Gpu) {
    let (mut models, mut optimizer) = controlled(gpu);
    prepare(&mut models, &mut optimizer);
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        (0..2).for_each(|_| models.launch(&mut optimizer, |_| false).unwrap());
    });
    for round in 0..3 {
        models.set_found_inf(f32::from(u8::from(round == 0)));
        graph.launch().unwrap();
        if round > 0 {
            (0..2).for_each(|_| models.expect(|_| false));
        }
        models.assert_same(&optimizer, &format!("launch {round}"));
    }
    assert!(optimizer.report().unwrap().iter().all(|set| (set.step, set.skipped) == (4, 2)));
}

/// Masters are set before a tensor's own first update, whenever that is, and never again.
fn masters_are_set_once_each(gpu: &Gpu) {
    let (mut models, mut optimizer) = controlled(gpu);
    for (round, missing) in [Some(1), Some(2), None, Some(1), None].into_iter().enumerate() {
        models.set_found_inf(f32::from(u8::from(round == 1)));
        let is_missing = |tensor| Some(tensor) == missing;
        models.launch(&mut optimizer, is_missing).unwrap();
        if round != 1 {
            models.expect(is_missing);
        }
        // The host reads the state only after some steps.
        if round % 2 == 1 {
            models.assert_same(&optimizer, &format!("round {round}"));
        }
    }
    models.assert_same(&optimizer, "at the end");
    if let Some(stand_in) = &gpu.stand_in {
        // Each step is one launch that prepares the sets, and one for each variant.
        let launches = stand_in.launches();
        assert_eq!(launches.len(), 5 * (1 + 4));
        assert!(
            launches.iter().all(|launch| launch.0 == "prepare_sets" || launch.0.starts_with("list_")),
            "{launches:?}"
        );
    }
}

/// Moments and counters from elsewhere, and masters that are not set yet.
fn foreign_moments_and_steps_reach_the_device(gpu: &Gpu) {
    let (mut models, mut optimizer) = controlled(gpu);
    let moments = Inputs::random(5, 4170);
    optimizer.set_moments(1, 41, &moments.m, &moments.v).unwrap();
    models.cpu.set_moments(1, 41, &moments.m, &moments.v).unwrap();
    for round in 0..2 {
        models.step(&mut optimizer, |_| false);
        models.assert_same(&optimizer, &format!("round {round}"));
    }
}

/// An optimizer that has made steps moves its counters to the device. Its last step may have set
/// masters; the device does not set them again.
fn device_control_begins_where_the_host_was(gpu: &Gpu) {
    for missing_before in [&[4, 2][..], &[4], &[2]] {
        let mut models = models(gpu);
        let mut optimizer = models.optimizer(&gpu.kernels);
        for &missing in missing_before {
            models.step(&mut optimizer, |tensor| tensor == missing);
        }
        let mut optimizer = optimizer.into_capturable().unwrap();
        models.assert_same(&optimizer, "before");
        [4, 3].into_iter().for_each(|missing| models.step(&mut optimizer, |tensor| tensor == missing));
        models.assert_same(&optimizer, "after");
    }
}

/// The first step needs memory, so it cannot be captured unprepared; what was captured outlives the
/// optimizer.
fn a_graph_may_outlive_the_optimizer(gpu: &Gpu) {
    let (mut models, mut optimizer) = controlled(gpu);
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        refused::captured(models.launch(&mut optimizer, |_| false));
    });
    drop(graph);
    prepare(&mut models, &mut optimizer);
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        models.launch(&mut optimizer, |_| false).unwrap();
        refused::captured(optimizer.step_of(0));
        refused::captured(optimizer.report());
        refused::captured(optimizer.set_lr(0, 0.1));
    });
    assert_eq!(optimizer.config(0).unwrap(), groups()[0]);
    drop(optimizer);
    for _ in 0..4 {
        graph.launch().unwrap();
        models.expect(|_| false);
    }
    gpu.context.synchronize().unwrap();
    models.assert_same_params("after the end");
}

/// After the first step with the same buffers, steps only launch; they do not even wait.
fn controlled_optimizers_only_launch(gpu: &Gpu) {
    let (mut models, mut optimizer) = controlled(gpu);
    let mut step = |models: &mut Models| {
        models.step(&mut optimizer, |_| false);
    };
    step(&mut models);
    gpu.launching_only([2, 1, 5, 1, 1, 4], || step(&mut models));
    models.assert_same(&optimizer, "late");
}

fn scalars_must_be_one_element_of_the_context(gpu: &Gpu) {
    let context = gpu.other_context();
    let (mut models, mut optimizer) = controlled(gpu);
    let pair = gpu.stream.alloc_zeros::<f32>(2).unwrap();
    let other = context.new_stream().unwrap();
    let foreign = other.alloc_zeros::<f32>(1).unwrap();
    let mut step = |scalars: Scalars<'_>| {
        let (params, grads, _) = models.lists(|_| false);
        optimizer.step(params, grads, &scalars)
    };
    refused::count(step(Scalars::default().with_loss_scale(pair.as_view())), "loss_scale", 1, 2);
    refused::context(step(Scalars::default().with_found_inf(foreign.as_view())), "found_inf");
    gpu.context.bind_to_thread().unwrap();
    models.assert_same(&optimizer, "nothing happened");
}

/// A refused call does not change which formats can be captured.
fn a_refused_step_leaves_the_formats_as_they_were(gpu: &Gpu) {
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(4), TensorSpec::new(4)]).unwrap().into_capturable().unwrap();
    let params = [RawBuffer::f32(0x1000), RawBuffer::new(0x2000, Dtype::Bf16)];
    let [bf16, f16] = [Dtype::Bf16, Dtype::F16].map(|dtype| RawBuffer::new(0x4000, dtype));
    optimizer.prepare_raw(&params, &[Some(RawBuffer::f32(0x3000)), Some(bf16)]).unwrap();
    let other = [Some(RawBuffer::new(0x3000, Dtype::Bf16)), Some(f16)];
    refused::formats(optimizer.prepare_raw(&params, &other), 1, Formats::new(Dtype::Bf16, Dtype::F16));
    capture(&gpu.stream, GLOBAL, || optimizer.prepare_raw(&params, &[None, Some(bf16)]).unwrap());
    gpu.assert_nothing_launched();
}

fn nothing_to_update_is_nothing_to_launch(gpu: &Gpu) {
    let mut optimizer = gpu.optimizer(&[]).unwrap();
    optimizer.step([], []).unwrap();
    assert!(optimizer.state().unwrap().arrays.is_empty());
    let mut optimizer = optimizer.into_capturable().unwrap();
    optimizer.prepare([], []).unwrap();
    optimizer.step([], [], &Scalars::default()).unwrap();
    assert_eq!(optimizer.state().unwrap(), State::new(&[DualAdamConfig::default()], &[]).unwrap());
    assert!(optimizer.report().unwrap().is_empty());
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(4)]).unwrap().into_capturable().unwrap();
    // SAFETY: nothing is launched.
    unsafe { optimizer.step_raw(&[RawBuffer::f32(0x1000)], &[None], &RawScalars::default()) }.unwrap();
    assert_eq!(optimizer.step_of(0).unwrap(), 0);
    gpu.assert_nothing_launched();
}
