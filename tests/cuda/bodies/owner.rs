//! The owning optimizer against the CPU's.

use dualadam::cuda::{CudaError, DualAdam, Kernels, TensorList, cudarc};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, Element, State, SwitchSchedule, TensorSpec, WeightDecay, cpu};

use cudarc::driver::sys::CUgraphInstantiate_flags;
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};

use crate::common::data::{Inputs, narrow};

use super::Body;
use super::flat::{copied, read, upload};
use super::gpu::Gpu;

pub(crate) const TESTS: &[Body] = bodies!["owner":
    a_run_has_the_bits_of_the_cpu_across_backends,
    schedulers_and_foreign_moments_work_as_on_the_cpu,
    steps_over_the_same_buffers_only_launch,
    steps_after_the_first_can_be_captured,
    masters_are_widened_exactly,
    steps_are_ordered_with_the_buffers_streams,
    what_is_owned_can_move_to_another_thread,
    an_optimizer_of_nothing_works,
];

const LENS: [usize; 5] = [5000, 0, 33, 1030, 7];

fn groups() -> [DualAdamConfig; 2] {
    let schedule = SwitchSchedule::linear_until(4);
    let decayed = DualAdamConfig::default().with_lr(1e-2).with_weight_decay(WeightDecay::Decoupled(0.1));
    [decayed.with_schedule(schedule), DualAdamConfig::adam().with_lr(1e-3)]
}

/// f32 alone, empty, bf16 alone, bf16 with masters, f16 with masters.
fn layout() -> [TensorSpec; 5] {
    let [a, b, c, d, e] = LENS.map(TensorSpec::new);
    [a, b, c.in_group(1), d.with_master(), e.in_group(1).with_master()]
}

/// A buffer on the device with these values. Where there is none, the buffer has an element nevertheless, since CUDA has no empty ones.
fn device<T: Copy + DeviceRepr + ValidAsZeroBits>(gpu: &Gpu, values: &[T]) -> CudaSlice<T> {
    if values.is_empty() { gpu.stream.alloc_zeros(1).unwrap() } else { gpu.stream.clone_htod(values).unwrap() }
}

/// The parameters of the model, on the CPU and on the device, and the CPU's optimizer.
pub(crate) struct Model {
    f32s: [Vec<f32>; 2],
    bf16s: [Vec<bf16>; 2],
    f16s: Vec<f16>,
    device_f32s: [CudaSlice<f32>; 2],
    device_bf16s: [CudaSlice<bf16>; 2],
    device_f16s: CudaSlice<f16>,
    pub(crate) cpu: cpu::DualAdam,
}

impl Model {
    pub(crate) fn new(gpu: &Gpu) -> Self {
        let values = LENS.map(|len| Inputs::random(len as u64, len).p);
        let f32s = [values[0].clone(), values[1].clone()];
        let bf16s = [narrow::<bf16>(&values[2]), narrow::<bf16>(&values[3])];
        let f16s = narrow::<f16>(&values[4]);
        Self {
            device_f32s: f32s.each_ref().map(|values| device(gpu, values)),
            device_bf16s: bf16s.each_ref().map(|values| device(gpu, values)),
            device_f16s: device(gpu, &f16s),
            f32s,
            bf16s,
            f16s,
            cpu: cpu::DualAdam::with_groups(&groups(), &layout()).unwrap(),
        }
    }

    /// One step of both optimizers. Tensor i has no gradient in the rounds that `missing` says.
    pub(crate) fn step(
        &mut self,
        gpu: &Gpu,
        optimizer: &mut DualAdam,
        round: u64,
        missing: impl Fn(usize) -> bool,
    ) -> Result<(), CudaError> {
        let grads = LENS.map(|len| Inputs::random(1000 + 7 * round + len as u64, len).grad);
        let half = narrow::<bf16>(&grads[2]);
        let (device_half, device) = (device(gpu, &half), grads.each_ref().map(|grads| device(gpu, grads)));
        let on_cpu: [cpu::Buffer<'_>; 5] =
            [(&grads[0]).into(), (&grads[1]).into(), (&half).into(), (&grads[3]).into(), (&grads[4]).into()];
        let on_device: [dualadam::cuda::Buffer<'_>; 5] = [
            (&device[0]).into(),
            device[1].slice(..0).into(),
            (&device_half).into(),
            (&device[3]).into(),
            (&device[4]).into(),
        ];
        let mut tensors = 0..;
        let on_cpu = on_cpu.map(|grads| (!missing(tensors.next().unwrap())).then_some(grads));
        let mut tensors = 0..;
        let on_device = on_device.map(|grads| (!missing(tensors.next().unwrap())).then_some(grads));

        let [a, b] = &mut self.device_f32s;
        let [c, d] = &mut self.device_bf16s;
        let empty = b.slice_mut(..0).into();
        let params = [a.into(), empty, c.into(), d.into(), (&mut self.device_f16s).into()];
        optimizer.step_scaled(params, on_device, 0.5)?;

        let [a, b] = &mut self.f32s;
        let [c, d] = &mut self.bf16s;
        let params = [a.into(), b.into(), c.into(), d.into(), (&mut self.f16s).into()];
        self.cpu.step_scaled(params, on_cpu, 0.5).unwrap();
        Ok(())
    }

    pub(crate) fn assert_same(&self, gpu: &Gpu, optimizer: &DualAdam) {
        let (found, expected) = (optimizer.state().unwrap(), self.cpu.state());
        assert_eq!(found.ledger, expected.ledger);
        for (i, (found, expected)) in found.arrays.iter().zip(&expected.arrays).enumerate() {
            assert_same(&format!("exp_avg of {i}"), &found.exp_avg, &expected.exp_avg);
            assert_same(&format!("exp_avg_sq of {i}"), &found.exp_avg_sq, &expected.exp_avg_sq);
            let [found_master, expected_master] =
                [found, expected].map(|tensor| tensor.master.as_deref().unwrap_or(&[]));
            assert_same(&format!("masters of {i}"), found_master, expected_master);
        }
        for (device, host) in self.device_f32s.iter().zip(&self.f32s) {
            assert_eq!(gpu.stream.clone_dtoh(device).unwrap()[..host.len()], *host);
        }
        for (device, host) in self.device_bf16s.iter().zip(&self.bf16s) {
            assert_eq!(gpu.stream.clone_dtoh(device).unwrap(), *host);
        }
        assert_eq!(gpu.stream.clone_dtoh(&self.device_f16s).unwrap(), self.f16s);
    }
}

/// Without printing thousands of numbers.
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = |(_, (a, b)): &(usize, (&f32, &f32))| a.to_bits() != b.to_bits();
    let first = found.iter().zip(expected).enumerate().find(differs);
    assert!(first.is_none(), "{what}: {first:?}");
}

pub(crate) fn optimizer(gpu: &Gpu) -> Result<DualAdam, CudaError> {
    DualAdam::with_groups(&gpu.kernels, &gpu.stream, &groups(), &layout())
}

/// Ten steps through the switch, with gradients missing here and there, saved and resumed on the other backend in between.
fn a_run_has_the_bits_of_the_cpu_across_backends(gpu: &Gpu) {
    let folder = tempfile::tempdir().unwrap();
    let (from_cpu, from_device) = (folder.path().join("cpu"), folder.path().join("device"));
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu).unwrap();
    for round in 0..10 {
        model
            .step(gpu, &mut optimizer, round, |tensor| round != 3 && (tensor as u64 + round).is_multiple_of(4))
            .unwrap();
        model.assert_same(gpu, &optimizer);
        if round == 5 {
            model.cpu.save(&from_cpu).unwrap();
            optimizer.save(&from_device).unwrap();
            assert_eq!(std::fs::read(&from_cpu).unwrap(), std::fs::read(&from_device).unwrap());
            let mut resumed = self::optimizer(gpu).unwrap();
            resumed.load(&from_cpu).unwrap();
            optimizer = resumed;
            model.cpu.load(&from_device).unwrap();
        }
        if round == 7 {
            let state = State::load(&from_cpu).unwrap();
            let resumed = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap();
            assert_eq!(resumed.state().unwrap(), state);
        }
    }
    assert!(optimizer.step_of(0).unwrap() > 5 && optimizer.step_of(0).unwrap() < 10);
}

fn schedulers_and_foreign_moments_work_as_on_the_cpu(gpu: &Gpu) {
    let mut model = Model::new(gpu);
    let mut optimizer = optimizer(gpu).unwrap();
    let moments = Inputs::random(5, LENS[3]);
    optimizer.set_moments(3, 41, &moments.m, &moments.v).unwrap();
    model.cpu.set_moments(3, 41, &moments.m, &moments.v).unwrap();
    for round in 0..4 {
        for group in 0..2 {
            let config = optimizer.config(group).unwrap().with_lr(0.01 * round as f64).with_betas(0.8, 0.99);
            optimizer.set_config(group, config).unwrap();
            model.cpu.set_config(group, config).unwrap();
        }
        optimizer.set_lr(1, 0.5).unwrap();
        model.cpu.set_lr(1, 0.5).unwrap();
        model.step(gpu, &mut optimizer, round, |tensor| tensor == 4 && round < 2).unwrap();
    }
    model.assert_same(gpu, &optimizer);
}

/// After the first step, a step with the same buffers allocates nothing, waits for nothing and launches only.
fn steps_over_the_same_buffers_only_launch(gpu: &Gpu) {
    let mut optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[3000, 1, 100]).unwrap();
    let values = |len| vec![0.5_f32; len];
    let mut params = [3000, 1, 100].map(|len| gpu.stream.clone_htod(&values(len)).unwrap());
    let grads = [3000, 1, 100].map(|len| gpu.stream.clone_htod(&values(len)).unwrap());
    let mut step = || {
        let params = params.each_mut().map(|params| params.into());
        optimizer.step(params, grads.each_ref().map(|grads| Some(grads.into()))).unwrap();
    };
    (0..3).for_each(|_| step());
    // The entries' context is current already, and is only asked for.
    let expected = [
        ("cuCtxGetCurrent", 2),
        ("cuEventRecord", 1),
        ("cuLaunchKernel", 1),
        ("cuStreamGetCtx", 1),
        ("cuStreamIsCapturing", 1),
        ("cuThreadExchangeStreamCaptureMode", 4),
    ];
    gpu.calling_only(&expected, step);
    assert_eq!(optimizer.step_of(2).unwrap(), 4);
}

/// What an optimizer does but once cannot become part of a graph; its other steps can.
fn steps_after_the_first_can_be_captured(gpu: &Gpu) {
    let layout = [TensorSpec::new(40).with_master()];
    let mut optimizer =
        DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout).unwrap();
    let mut params = device(gpu, &[bf16::ONE; 40]);
    let grads = device(gpu, &[1.0_f32; 40]);
    let mut step = || optimizer.step([(&mut params).into()], [Some((&grads).into())]);
    gpu.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert!(matches!(step(), Err(CudaError::Captured { .. })));
    let _ = gpu.stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap();
    step().unwrap();
    gpu.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    step().unwrap();
    let graph = gpu
        .stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .unwrap()
        .unwrap();
    graph.launch().unwrap();
    drop(graph);
    let mut on_cpu = cpu::DualAdam::with_groups(&[DualAdamConfig::default()], &layout).unwrap();
    let mut expected = [bf16::ONE; 40];
    for _ in 0..2 {
        on_cpu.step([(&mut expected).into()], [Some((&[1.0_f32; 40]).into())]).unwrap();
    }
    assert_eq!(optimizer.state().unwrap(), *on_cpu.state());
}

/// Masters are the exact values of their parameters, the rarest ones too.
fn masters_are_widened_exactly(gpu: &Gpu) {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let lr_0 = DualAdamConfig::default().with_lr(0.0);
    let layout = [0; 2].map(|_| TensorSpec::new(all.len()).with_master());
    let mut optimizer = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[lr_0], &layout).unwrap();
    let b: Vec<_> = all.iter().map(|&bits| bf16::from_bits(bits)).collect();
    let h: Vec<_> = all.iter().map(|&bits| f16::from_bits(bits)).collect();
    let (mut device_b, mut device_h) = (gpu.stream.clone_htod(&b).unwrap(), gpu.stream.clone_htod(&h).unwrap());
    let grads = gpu.stream.alloc_zeros::<f32>(all.len()).unwrap();
    let grads = [Some((&grads).into()), Some((&grads).into())];
    optimizer.step([(&mut device_b).into(), (&mut device_h).into()], grads).unwrap();
    let state = optimizer.state().unwrap();
    let check = |masters: &[f32], expected: Vec<f32>| {
        for (a, b) in masters.iter().zip(expected) {
            // lr 0 still takes 0·inf from infinity, and that is NaN on both.
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && !b.is_finite()), "{a:e} {b:e}");
        }
    };
    check(state.arrays[0].master.as_ref().unwrap(), b.iter().map(|x| x.widen()).collect());
    check(state.arrays[1].master.as_ref().unwrap(), h.iter().map(|x| x.widen()).collect());
}

/// Buffers of other streams, one each, which only cudarc's events order with the optimizer's.
fn steps_are_ordered_with_the_buffers_streams(gpu: &Gpu) {
    // SAFETY: nothing was allocated while it was off.
    unsafe { gpu.context.enable_event_tracking() };
    let layout = [TensorSpec::new(300), TensorSpec::new(40).with_master()];
    let mut optimizer =
        DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout).unwrap();
    let mut on_cpu = cpu::DualAdam::with_groups(&[DualAdamConfig::default()], &layout).unwrap();
    let (mut p, mut q) = (Inputs::random(1, 300).p, narrow::<bf16>(&Inputs::random(2, 40).p));
    let (mut device_p, mut device_q) = (upload(&gpu.context, &p), upload(&gpu.context, &q));
    for round in 0..3 {
        let grads = [300, 40].map(|len| Inputs::random(10 + round, len).grad);
        let mut device_grads = grads.each_ref().map(|grads| upload(&gpu.context, grads));
        let given = device_grads.each_ref().map(|grads| Some(grads.into()));
        optimizer.step([(&mut device_p).into(), (&mut device_q).into()], given).unwrap();
        for grads in &mut device_grads {
            grads.stream().clone().memset_zeros(grads).unwrap();
        }
        let found = (copied(&device_p), copied(&device_q));
        let given = grads.each_ref().map(|grads| Some(grads.into()));
        on_cpu.step([(&mut p).into(), (&mut q).into()], given).unwrap();
        assert_eq!((read(&found.0), read(&found.1)), (p.clone(), q.clone()), "round {round}");
    }
}

fn what_is_owned_can_move_to_another_thread(_: &Gpu) {
    fn check<T: Send + Sync>() {}
    check::<Kernels>();
    check::<TensorList>();
    check::<DualAdam>();
}

fn an_optimizer_of_nothing_works(gpu: &Gpu) {
    let mut optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[]).unwrap();
    optimizer.step([], []).unwrap();
    assert!(optimizer.state().unwrap().arrays.is_empty());
}
