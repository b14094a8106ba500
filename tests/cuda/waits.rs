//! Calls that never wait: drops, even while work is pending, and calls that would break another
//! thread's capture.

use std::collections::BTreeMap;
use std::thread;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags;
use dualadam::cuda::{DualAdam, Kernels, TensorList};
use dualadam::{DualAdamConfig, TensorSpec};

use crate::bodies::captures::MODES;
use crate::bodies::{Gpu, RELAXED, Run, Twin, capture, step_owner, switching};
use crate::failures::{self, CODE};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["waits":
    without_stream_ordered_memory_later_allocations_free,
    what_was_dropped_in_a_capture_is_freed_and_the_capture_goes_on,
    what_a_graph_uses_stays_until_the_graph_is_gone,
    memory_that_cannot_be_tied_to_its_graph_is_kept,
    the_last_kernels_leave_their_modules_to_the_context,
    ; on a device:
    dropping_waits_for_nothing_and_frees_after_the_last_step,
    a_step_that_is_captured_again_and_again_needs_no_more_memory,
    what_a_failed_capture_used_is_freed,
    nothing_waits_for_the_context,
    memory_of_steps_without_a_recorded_end_is_kept,
];

/// Calls that may block until the device has done something.
const WAITS: [&str; 6] = [
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuModuleUnload",
];

fn assert_no_waits(calls: &BTreeMap<String, u64>) {
    let waits: Vec<_> = WAITS.iter().filter(|name| calls.contains_key(**name)).collect();
    assert!(waits.is_empty(), "{waits:?} in {calls:?}");
}

/// A tensor and everything that the library makes for it, each with work that has not run yet.
struct World {
    run: Run,
    optimizer: DualAdam,
}

impl World {
    fn new(gpu: &Gpu) -> Self {
        let mut run = failures::run(gpu);
        let mut optimizer = gpu.optimizer(&[TensorSpec::new(300)]).unwrap();
        step_owner(&mut optimizer, &run.raw()[0]).unwrap();
        run.set_lr(gpu, 0, 0.5).unwrap();
        run.launch(&gpu.stream);
        assert!(gpu.stand_in().pending() > 0);
        Self { run, optimizer }
    }

    /// Drops the library's objects; the tensor stays.
    fn drop_all(self) -> Vec<Twin> {
        let Self { run: Run { list, control, twins, .. }, optimizer } = self;
        drop((list, control, optimizer));
        twins
    }
}

fn dropping_waits_for_nothing_and_frees_after_the_last_step(gpu: &Gpu) {
    let live = |kind: &str| gpu.stand_in().live(kind);
    let world = World::new(gpu);
    let before = live("memory");
    let mut twins = None;
    let calls = gpu.calls_of(|| twins = Some(world.drop_all()));
    assert_no_waits(&calls);
    assert!(gpu.stand_in().pending() > 0, "the steps are still pending");
    assert!(calls["cuMemFreeAsync"] >= 4, "{calls:?}");
    gpu.assert_clean();
    // The list's tables, the control, the optimizer's two moments, and its tables. It has no
    // masters.
    assert_eq!(before - live("memory"), 5);
    // Pinned memory is kept for the next lists, controls and optimizers.
    assert_eq!(live("pinned"), 3);
    gpu.context.synchronize().unwrap();
    let mut second = None;
    let calls = gpu.calls_of(|| second = Some(World::new(gpu).drop_all()));
    assert!(!calls.contains_key("cuMemHostAlloc") && !calls.contains_key("cuMemFreeHost"), "{calls:?}");
    assert_eq!(live("pinned"), 3);
    gpu.context.synchronize().unwrap();
}

fn without_stream_ordered_memory_later_allocations_free() {
    let stand_in = failures::start();
    stand_in.set_attribute(115, 0);
    // The device starts work late.
    stand_in.set("patience", 1000);
    let gpu = Gpu::new(Some(stand_in));
    let live = |kind: &str| gpu.stand_in().live(kind);
    let world = World::new(&gpu);
    let before = live("memory");
    let mut twins = None;
    assert_no_waits(&gpu.calls_of(|| twins = Some(world.drop_all())));
    assert_eq!(live("memory"), before, "the steps are still pending");
    // Each optimizer allocates its two moments.
    let allocate = || gpu.optimizer(&[TensorSpec::new(1)]).unwrap();
    let mut made = vec![];
    let calls = gpu.calls_of(|| made.push(allocate()));
    assert!(!calls.contains_key("cuMemFree_v2") && !calls.contains_key("cuMemFreeHost"), "{calls:?}");
    assert_eq!(live("memory"), before + 2, "the steps are still pending");
    gpu.context.synchronize().unwrap();
    let calls = gpu.calls_of(|| made.push(allocate()));
    // The list's tables, the control, the optimizer's two moments, and its tables.
    assert_eq!(calls["cuMemFree_v2"], 5);
    assert_eq!(live("memory"), before + 4 - 5);
    assert_eq!(gpu.stand_in().calls("cuMemAllocAsync"), 0);
    drop((twins, made));
    gpu.assert_clean();
}

/// Lists, controls and optimizers are dropped in all capture modes, by the capturing thread and by
/// another one.
fn what_was_dropped_in_a_capture_is_freed_and_the_capture_goes_on() {
    for mode in MODES {
        for pools in [1, 0] {
            let gpu = failures::gpu_with_pools(pools);
            let other = gpu.context.new_stream().unwrap();
            let mut run = Run::new(&gpu, &[300, 5], &switching());
            let worlds = [World::new(&gpu), World::new(&gpu)];
            let mut twins = vec![];
            let graph = capture(&other, mode, || {
                run.launch(&other);
                let [mine, theirs] = worlds;
                twins.push(mine.drop_all());
                twins.push(thread::scope(|scope| scope.spawn(|| theirs.drop_all()).join().unwrap()));
            });
            gpu.context.synchronize().unwrap();
            for _ in 0..2 {
                graph.launch().unwrap();
                run.expect_all();
            }
            gpu.context.synchronize().unwrap();
            run.assert_same(&gpu, &format!("{mode:?}"));
            gpu.assert_clean();
        }
    }
}

/// A graph, or an executable made of it, may be launched at any later time. It uses the descriptors
/// of the capture, the control and the moments.
fn what_a_graph_uses_stays_until_the_graph_is_gone() {
    [1, 0].into_iter().for_each(|pools| a_graph_holds_what_it_uses(&failures::gpu_with_pools(pools)));
}

fn a_graph_holds_what_it_uses(gpu: &Gpu) {
    let live = || gpu.stand_in().live("memory");
    let empty = live();
    let mut run = Run::new(gpu, &[300, 5], &switching());
    let graph = run.capture(&gpu.stream);
    run.step(gpu);
    let fresh = Run::new(gpu, &[1], &switching());
    let tensors = 2 * 4;
    (run.list, run.control) = (fresh.list, fresh.control);
    drop(fresh.twins);
    gpu.context.synchronize().unwrap();
    // Of the old list and control: the captured tables, the list's own tables, and the control. Of
    // the fresh ones: the tables and the control.
    assert_eq!(live() - empty, tensors + 3 + 2);
    let raw = run.raw();
    let allocate = || drop(TensorList::new(&gpu.kernels, &raw).unwrap());
    for _ in 0..3 {
        graph.launch().unwrap();
        run.expect_all();
        allocate();
    }
    // The last launch is pending, and the graph ends only after it.
    drop(graph);
    assert!(gpu.stand_in().pending() > 0);
    allocate();
    run.assert_same_tensors(gpu, "after the end");
    gpu.context.synchronize().unwrap();
    allocate();
    allocate();
    gpu.context.synchronize().unwrap();
    // Without pools, the next allocation frees the memory of the last list that was dropped.
    assert_eq!(live() - empty, tensors + 2 + u64::from(gpu.stand_in().calls("cuMemAllocAsync") == 0));
    gpu.assert_clean();
}

/// As in a program that captures a graph for each batch size.
fn a_step_that_is_captured_again_and_again_needs_no_more_memory(gpu: &Gpu) {
    let live = || gpu.stand_in().live("memory");
    let mut run = Run::new(gpu, &[300, 5], &switching());
    let mut graph = None;
    let mut counts = vec![];
    for _ in 0..20 {
        let next = run.capture(&gpu.stream);
        next.launch().unwrap();
        run.expect_all();
        graph = Some(next);
        gpu.context.synchronize().unwrap();
        counts.push(live());
    }
    assert!(counts[2..].iter().all(|&count| count == counts[2]), "{counts:?}");
    run.assert_same(gpu, "captured 20 times");
    drop(graph);
}

/// A capture that another call invalidates makes no graph.
fn what_a_failed_capture_used_is_freed(gpu: &Gpu) {
    let live = || gpu.stand_in().live("memory");
    let mut run = failures::run(gpu);
    run.step(gpu);
    let before = live();
    gpu.stream.begin_capture(RELAXED).unwrap();
    run.launch(&gpu.stream);
    assert_eq!(live(), before + 1);
    assert!(gpu.context.synchronize().is_err());
    assert!(gpu.stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
    run.step(gpu);
    let allocate = || drop(TensorList::new(&gpu.kernels, &run.raw()).unwrap());
    allocate();
    gpu.context.synchronize().unwrap();
    assert_eq!(live(), before);
    run.assert_same(gpu, "after a spoilt capture");
}

/// If the driver refuses a call that ties memory to the graph, the step is still captured, and that
/// memory is never freed.
fn memory_that_cannot_be_tied_to_its_graph_is_kept() {
    for call in ["cuStreamGetCaptureInfo_v2", "cuUserObjectCreate", "cuGraphRetainUserObject"] {
        let gpu = failures::gpu();
        let live = || gpu.stand_in().live("memory");
        let mut run = failures::run(&gpu);
        let before = live();
        // For the captured tables, the list and the control.
        (1..=3).for_each(|nth| gpu.stand_in().fail(call, nth, CODE));
        let graph = run.capture(&gpu.stream);
        let Run { list, control, .. } = run;
        drop((list, control));
        graph.launch().unwrap();
        drop(graph);
        gpu.context.synchronize().unwrap();
        drop(gpu.optimizer(&[TensorSpec::new(1)]).unwrap());
        gpu.context.synchronize().unwrap();
        assert_eq!(live(), before + 1, "{call}");
        drop(run.twins);
        gpu.assert_clean();
    }
}

/// In the whole life of kernels and optimizers, states included.
fn nothing_waits_for_the_context(gpu: &Gpu) {
    let twin = Twin::of(gpu, "bf16_bf16_master", 300);
    let raw = twin.raw();
    let calls = gpu.calls_of(|| {
        let kernels = Kernels::new(0).unwrap();
        let specs = [TensorSpec::new(300).with_master()];
        let config = [DualAdamConfig::default()];
        let mut optimizer = DualAdam::with_groups(&kernels, &gpu.stream, &config, &specs).unwrap();
        step_owner(&mut optimizer, &raw).unwrap();
        let mut optimizer = optimizer.into_capturable().unwrap();
        step_owner(&mut optimizer, &raw).unwrap();
        let state = optimizer.state().unwrap();
        drop(optimizer);
        let mut optimizer = DualAdam::from_state(&kernels, &gpu.stream, &state).unwrap();
        optimizer.set_moments(0, 3, &[0.5; 300], &[0.5; 300]).unwrap();
        step_owner(&mut optimizer, &raw).unwrap();
    });
    assert!(!calls.contains_key("cuCtxSynchronize"), "{calls:?}");
    gpu.context.synchronize().unwrap();
}

/// To unload a module may wait, and a graph or a pending launch may still run its code.
fn the_last_kernels_leave_their_modules_to_the_context() {
    let gpu = failures::gpu();
    let mut run = failures::run(&gpu);
    let graph = run.capture(&gpu.stream);
    run.step(&gpu);
    let Run { list, control, twins, .. } = run;
    drop((list, control));
    // Locals are dropped in reverse order: the stand-in last.
    let Gpu { stand_in, context, stream, kernels } = gpu;
    let modules = stand_in.as_ref().unwrap().live("module");
    let before = stand_in.as_ref().unwrap().call_list();
    drop(kernels);
    let after = stand_in.as_ref().unwrap().call_list();
    WAITS.iter().for_each(|name| assert_eq!(before.get(*name), after.get(*name), "{name}"));
    assert_eq!(stand_in.as_ref().unwrap().live("module"), modules);
    graph.launch().unwrap();
    context.synchronize().unwrap();
    drop(graph);
    // The kernels are loaded again.
    let kernels = Kernels::in_context(&context).unwrap();
    let gpu = Gpu { stand_in, context, stream, kernels };
    drop(twins);
    gpu.assert_clean();
}

/// If the driver refuses to record the end of a step, the memory that the step uses is never freed.
fn memory_of_steps_without_a_recorded_end_is_kept(gpu: &Gpu) {
    let mut run = failures::run(gpu);
    gpu.stand_in().fail("cuEventRecord", 1, CODE);
    gpu.stand_in().fail("cuEventRecord", 2, CODE);
    run.step(gpu);
    let before = gpu.stand_in().live("memory");
    let fresh = Run::new(gpu, &[1], &switching()[..1]);
    let added = gpu.stand_in().live("memory") - before;
    (run.list, run.control) = (fresh.list, fresh.control);
    drop(fresh.twins);
    gpu.context.synchronize().unwrap();
    assert_eq!(gpu.stand_in().live("memory"), before + added - 4);
    run.assert_same_tensors(gpu, "dropped");
}
