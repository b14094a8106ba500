//! What never waits: dropping, whatever is still under way, and all that another thread's capture would suffer from.

use std::collections::BTreeMap;
use std::thread;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::{
    CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
};
use dualadam::cuda::{Control, DualAdam, Kernels, RawScalars, TensorList};
use dualadam::{DualAdamConfig, TensorSpec};

use crate::bodies::buffers::{COMBINATIONS, Device, Host};
use crate::bodies::control::{Run, switching};
use crate::bodies::gpu::Gpu;
use crate::bodies::graphs::{capture, step_on};
use crate::common::data::Inputs;
use crate::failures::{self, stand_in};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["waits":
    dropping_waits_for_nothing_and_frees_after_the_last_step,
    without_stream_ordered_memory_later_allocations_free,
    what_was_dropped_in_a_capture_is_freed_and_the_capture_goes_on,
    what_a_graph_uses_stays_until_the_graph_is_gone,
    a_step_that_is_captured_again_and_again_needs_no_more_memory,
    what_a_failed_capture_used_is_freed,
    a_driver_that_takes_no_note_of_graphs_keeps_their_memory,
    nothing_waits_for_the_context,
    the_last_kernels_leave_their_modules_to_the_context,
    work_that_nothing_tells_the_end_of_keeps_its_memory,
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

/// The calls of `work`, by name.
fn calls_of(gpu: &Gpu, work: impl FnOnce()) -> BTreeMap<String, u64> {
    let before = stand_in(gpu).call_list();
    work();
    let mut calls = stand_in(gpu).call_list();
    calls.iter_mut().for_each(|(name, count)| *count -= before.get(name).unwrap_or(&0));
    calls.retain(|_, count| *count > 0);
    calls
}

fn assert_no_waits(calls: &BTreeMap<String, u64>) {
    let waits: Vec<_> = WAITS.iter().filter(|name| calls.contains_key(**name)).collect();
    assert!(waits.is_empty(), "{waits:?} in {calls:?}");
}

/// A tensor and everything that the library makes for it, each with work that has not run yet.
struct World {
    list: TensorList,
    control: Control,
    optimizer: DualAdam,
    device: Device,
}

impl World {
    fn new(gpu: &Gpu) -> Self {
        let mut run = Run::new(gpu, &[300], &switching()[..1]);
        let layout = [TensorSpec::new(300)];
        let config = [DualAdamConfig::default()];
        let mut optimizer = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &config, &layout).unwrap();
        let raw = run.raw()[0];
        // SAFETY: the stream lives, and the buffers are as long as the tensor.
        unsafe {
            optimizer.step_raw(&[raw.param], &[Some(raw.grad)], 1.0).unwrap();
            run.control.set_lr(0, 0.5, gpu.raw_stream()).unwrap();
        }
        step_on(&gpu.stream, &mut run, RawScalars::default());
        let device = run.devices.remove(0);
        let world = Self { list: run.list, control: run.control, optimizer, device };
        assert!(stand_in(gpu).pending() > 0);
        world
    }

    /// Drops what is the library's; the tensor stays.
    fn drop_all(self) -> Device {
        drop(self.list);
        drop(self.control);
        drop(self.optimizer);
        self.device
    }
}

fn dropping_waits_for_nothing_and_frees_after_the_last_step() {
    let gpu = failures::gpu();
    let live = |kind: &str| stand_in(&gpu).live(kind);
    let world = World::new(&gpu);
    let before = live("memory");
    let mut device = None;
    let calls = calls_of(&gpu, || device = Some(world.drop_all()));
    assert_no_waits(&calls);
    assert!(stand_in(&gpu).pending() > 0, "the steps are still to come");
    assert!(calls["cuMemFreeAsync"] >= 4, "{calls:?}");
    gpu.assert_clean();
    // The list's tables; the control; the optimizer's moments, twice, and its tables. Its masters are no memory.
    assert_eq!(before - live("memory"), 5);
    // Pinned memory waits for the next lists, controls and optimizers, which take it over.
    assert_eq!(live("pinned"), 3);
    gpu.context.synchronize().unwrap();
    let mut second = None;
    let calls = calls_of(&gpu, || second = Some(World::new(&gpu).drop_all()));
    assert!(!calls.contains_key("cuMemHostAlloc") && !calls.contains_key("cuMemFreeHost"), "{calls:?}");
    assert_eq!(live("pinned"), 3);
    gpu.context.synchronize().unwrap();
    drop((device, second));
    gpu.assert_clean();
}

fn without_stream_ordered_memory_later_allocations_free() {
    let stand_in = failures::start();
    stand_in.set_attribute(115, 0);
    // A device that takes its time.
    stand_in.set("patience", 1000);
    let gpu = Gpu::new(Some(stand_in));
    let live = |kind: &str| failures::stand_in(&gpu).live(kind);
    let world = World::new(&gpu);
    let before = live("memory");
    let mut device = None;
    assert_no_waits(&calls_of(&gpu, || device = Some(world.drop_all())));
    assert_eq!(live("memory"), before, "the steps are still to come");
    // Its two moments are memory.
    let allocate = || DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[1]).unwrap();
    let mut made = vec![];
    let calls = calls_of(&gpu, || made.push(allocate()));
    assert!(!calls.contains_key("cuMemFree_v2") && !calls.contains_key("cuMemFreeHost"), "{calls:?}");
    assert_eq!(live("memory"), before + 2, "the steps are still to come");
    gpu.context.synchronize().unwrap();
    let calls = calls_of(&gpu, || made.push(allocate()));
    // The list's tables; the control; the optimizer's moments, twice, and its tables.
    assert_eq!(calls["cuMemFree_v2"], 5);
    assert_eq!(live("memory"), before + 4 - 5);
    assert_eq!(failures::stand_in(&gpu).calls("cuMemAllocAsync"), 0);
    drop((device, made));
    gpu.assert_clean();
}

/// In all modes, by the capturing thread and by another one.
fn what_was_dropped_in_a_capture_is_freed_and_the_capture_goes_on() {
    for mode in [CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED] {
        for pools in [1, 0] {
            let stand_in = failures::start();
            stand_in.set_attribute(115, pools);
            let gpu = Gpu::new(Some(stand_in));
            let other = gpu.context.new_stream().unwrap();
            let mut run = Run::new(&gpu, &[300, 5], &switching());
            let worlds = [World::new(&gpu), World::new(&gpu)];
            let mut devices = vec![];
            let graph = capture(&other, mode, || {
                step_on(&other, &mut run, RawScalars::default());
                let [mine, theirs] = worlds;
                devices.push(mine.drop_all());
                devices.push(thread::scope(|scope| scope.spawn(|| theirs.drop_all()).join().unwrap()));
            });
            gpu.context.synchronize().unwrap();
            for _ in 0..2 {
                graph.launch().unwrap();
                run.expect(&[1e-2; 2], 1.0, |_| true);
            }
            gpu.context.synchronize().unwrap();
            run.assert_same(&gpu, &format!("{mode:?}"));
            gpu.assert_clean();
        }
    }
}

/// The descriptors of the capture, the control, the moments: a graph, or an executable made of it, may be launched at any later time.
fn what_a_graph_uses_stays_until_the_graph_is_gone() {
    for pools in [1, 0] {
        let stand_in = failures::start();
        stand_in.set_attribute(115, pools);
        a_graph_holds_what_it_uses(&Gpu::new(Some(stand_in)));
    }
}

fn a_graph_holds_what_it_uses(gpu: &Gpu) {
    let live = || stand_in(gpu).live("memory");
    let empty = live();
    let mut run = Run::new(gpu, &[300, 5], &switching());
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        step_on(&gpu.stream, &mut run, RawScalars::default());
    });
    step_on(&gpu.stream, &mut run, RawScalars::default());
    run.expect(&[1e-2; 2], 1.0, |_| true);
    let fresh = Run::new(gpu, &[1], &switching());
    let tensors = 2 * 5;
    (run.list, run.control) = (fresh.list, fresh.control);
    drop(fresh.devices);
    gpu.context.synchronize().unwrap();
    // Of the old ones: what was captured, the list's own tables, and the control. Of the fresh ones: the tables and the control.
    assert_eq!(live() - empty, tensors + 3 + 2);
    let raw = run.raw();
    let allocate = || drop(TensorList::new(&gpu.kernels, &raw).unwrap());
    for _ in 0..3 {
        graph.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |_| true);
        allocate();
    }
    // The last launch is still to come, and with it the graph's end.
    drop(graph);
    assert!(stand_in(gpu).pending() > 0);
    allocate();
    run.assert_same_tensors(gpu, "after the end");
    gpu.context.synchronize().unwrap();
    allocate();
    allocate();
    gpu.context.synchronize().unwrap();
    // Without pools the last list that was dropped waits for the next allocation.
    let is_left = u64::from(stand_in(gpu).calls("cuMemAllocAsync") == 0);
    assert_eq!(live() - empty, tensors + 2 + is_left);
    gpu.assert_clean();
}

/// As where a program captures anew for each size of a batch.
fn a_step_that_is_captured_again_and_again_needs_no_more_memory() {
    let gpu = failures::gpu();
    let live = || stand_in(&gpu).live("memory");
    let mut run = Run::new(&gpu, &[300, 5], &switching());
    let mut graph = None;
    let mut counts = vec![];
    for _ in 0..20 {
        let next = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
            step_on(&gpu.stream, &mut run, RawScalars::default());
        });
        next.launch().unwrap();
        run.expect(&[1e-2; 2], 1.0, |_| true);
        graph = Some(next);
        gpu.context.synchronize().unwrap();
        counts.push(live());
    }
    assert!(counts[2..].iter().all(|&count| count == counts[2]), "{counts:?}");
    run.assert_same(&gpu, "captured 20 times");
    drop(graph);
    gpu.assert_clean();
}

/// A capture that somebody spoils has no graph.
fn what_a_failed_capture_used_is_freed() {
    let gpu = failures::gpu();
    let live = || stand_in(&gpu).live("memory");
    let mut run = Run::new(&gpu, &[300], &switching()[..1]);
    step_on(&gpu.stream, &mut run, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    let before = live();
    gpu.stream.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    step_on(&gpu.stream, &mut run, RawScalars::default());
    assert_eq!(live(), before + 1);
    assert!(gpu.context.synchronize().is_err());
    assert!(gpu.stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
    step_on(&gpu.stream, &mut run, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    let allocate = || drop(TensorList::new(&gpu.kernels, &run.raw()).unwrap());
    allocate();
    gpu.context.synchronize().unwrap();
    assert_eq!(live(), before);
    run.assert_same(&gpu, "after a spoilt capture");
    gpu.assert_clean();
}

/// Whatever it refuses, the step is captured; what the graph uses is then never freed.
fn a_driver_that_takes_no_note_of_graphs_keeps_their_memory() {
    for call in ["cuStreamGetCaptureInfo_v2", "cuUserObjectCreate", "cuGraphRetainUserObject"] {
        let gpu = failures::gpu();
        let live = || stand_in(&gpu).live("memory");
        let mut run = Run::new(&gpu, &[300], &switching()[..1]);
        let before = live();
        // For the captured tables, the list and the control.
        (1..=3).for_each(|nth| stand_in(&gpu).fail(call, nth, failures::CODE));
        let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
            step_on(&gpu.stream, &mut run, RawScalars::default());
        });
        let Run { list, control, .. } = run;
        drop((list, control));
        graph.launch().unwrap();
        drop(graph);
        gpu.context.synchronize().unwrap();
        drop(DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[1]).unwrap());
        gpu.context.synchronize().unwrap();
        assert_eq!(live(), before + 1, "{call}");
        drop(run.devices);
        gpu.assert_clean();
    }
}

/// In a whole life, with state and files, of all that there is.
fn nothing_waits_for_the_context() {
    let gpu = failures::gpu();
    let host = Host::new(COMBINATIONS[8], &Inputs::random(1, 300), [0; 5], 0);
    let device = host.upload(&gpu);
    let raw = device.raw(&host);
    let calls = calls_of(&gpu, || {
        let kernels = Kernels::new(0).unwrap();
        let layout = [TensorSpec::new(300).with_master()];
        let config = [DualAdamConfig::default()];
        let mut optimizer = DualAdam::with_groups(&kernels, &gpu.stream, &config, &layout).unwrap();
        let param = raw.param;
        // SAFETY: the stream lives, and the buffers are as long as the tensor.
        unsafe {
            optimizer.step_raw(&[param], &[Some(raw.grad)], 1.0).unwrap();
        }
        let mut optimizer = optimizer.into_capturable().unwrap();
        // SAFETY: as above.
        unsafe { optimizer.step_raw(&[param], &[Some(raw.grad)], &RawScalars::default()) }.unwrap();
        let state = optimizer.state().unwrap();
        drop(optimizer);
        let mut optimizer = DualAdam::from_state(&kernels, &gpu.stream, &state).unwrap();
        optimizer.set_moments(0, 3, &[0.5; 300], &[0.5; 300]).unwrap();
        // SAFETY: as above.
        unsafe { optimizer.step_raw(&[param], &[Some(raw.grad)], 1.0) }.unwrap();
    });
    assert!(!calls.contains_key("cuCtxSynchronize"), "{calls:?}");
    gpu.assert_clean();
}

/// To unload a module may wait. Nor is code gone that a graph runs, or that runs now.
fn the_last_kernels_leave_their_modules_to_the_context() {
    let gpu = failures::gpu();
    let mut run = Run::new(&gpu, &[300], &switching()[..1]);
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        step_on(&gpu.stream, &mut run, RawScalars::default());
    });
    step_on(&gpu.stream, &mut run, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    let Run { list, control, devices, hosts, .. } = run;
    drop((list, control));
    // Dropped in the opposite order: the stand-in last.
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
    // The kernels are loaded anew.
    let kernels = Kernels::in_context(&context).unwrap();
    let gpu = Gpu { stand_in, context, stream, kernels };
    drop((devices, hosts));
    gpu.assert_clean();
}

/// The driver refuses to record the end of a step: its memory then stays.
fn work_that_nothing_tells_the_end_of_keeps_its_memory() {
    let gpu = failures::gpu();
    let mut run = Run::new(&gpu, &[300], &switching()[..1]);
    stand_in(&gpu).fail("cuEventRecord", 1, failures::CODE);
    stand_in(&gpu).fail("cuEventRecord", 2, failures::CODE);
    step_on(&gpu.stream, &mut run, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    let before = stand_in(&gpu).live("memory");
    let fresh = Run::new(&gpu, &[1], &switching()[..1]);
    let added = stand_in(&gpu).live("memory") - before;
    (run.list, run.control) = (fresh.list, fresh.control);
    drop(fresh.devices);
    gpu.context.synchronize().unwrap();
    assert_eq!(stand_in(&gpu).live("memory"), before + added - 5);
    run.assert_same_tensors(&gpu, "dropped");
    gpu.assert_clean();
}
