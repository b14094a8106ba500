//! Every wrong argument is a typed error that names it, and nothing is launched.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, CudaError, DualAdam, Kernels, TensorList};
use dualadam::{
    ArgumentError, ConfigError, Dtype, DualAdamConfig, Error, Formats, ListError, RawBuffer, RawTensor, Role,
    StepCoeffs, TensorError, TensorProblem,
};

use super::Body;
use super::gpu::{Gpu, current, set_current};

pub(crate) const TESTS: &[Body] = bodies!["bad_input":
    addresses_that_cannot_be_right_are_refused,
    buffers_of_two_tensors_must_not_overlap,
    lists_refuse_what_does_not_fit_and_stay_as_they_are,
    streams_and_buffers_of_other_contexts_are_refused,
    buffers_that_cudarc_does_not_order_with_the_stream_are_refused,
    the_owner_refuses_what_the_cpu_refuses,
    the_current_context_is_restored,
    kernels_are_loaded_once_per_context,
];

fn at(address: u64, dtype: Dtype) -> RawBuffer {
    RawBuffer::new(address, dtype)
}

fn f32_at(address: u64) -> RawBuffer {
    at(address, Dtype::F32)
}

fn bf16_at(address: u64) -> RawBuffer {
    at(address, Dtype::Bf16)
}

/// A tensor with something else in one place.
fn with(mut tensor: RawTensor, change: impl FnOnce(&mut RawTensor)) -> RawTensor {
    change(&mut tensor);
    tensor
}

/// What is wrong with a tensor.
#[track_caller]
fn tensor_error<T: std::fmt::Debug>(result: Result<T, impl Into<Error>>) -> TensorError {
    match result.map_err(Into::into) {
        Err(Error::Tensor(error)) => error,
        result => panic!("{result:?}"),
    }
}

/// A tensor of 64 elements with masters; each buffer has 256 bytes, one after the other.
fn good() -> RawTensor {
    RawTensor::new(64, bf16_at(0x1400), bf16_at(0x1100), f32_at(0x1200), f32_at(0x1300)).with_master(f32_at(0x1000))
}

fn moved(mut tensor: RawTensor, by: u64) -> RawTensor {
    let RawTensor { param, grad, exp_avg, exp_avg_sq, master, .. } = &mut tensor;
    for buffer in [param, grad, exp_avg, exp_avg_sq].into_iter().chain(master) {
        buffer.address += by;
    }
    tensor
}

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
}

/// The message for a tensor by itself, flat and in a list, where it is the second of two.
fn messages(gpu: &Gpu, tensor: RawTensor) -> [String; 2] {
    // SAFETY: refused before anything is launched.
    let flat = unsafe { gpu.kernels.step_raw(&tensor, &coeffs(), ptr::null_mut()) }.unwrap_err();
    let list = TensorList::new(&gpu.kernels, &[moved(good(), 0x10_0000), tensor]).unwrap_err();
    [flat.to_string(), list.to_string()]
}

fn addresses_that_cannot_be_right_are_refused(gpu: &Gpu) {
    let cases: [(RawTensor, &str); 18] = [
        (with(good(), |t| t.master = Some(f32_at(0))), "master of tensor N must not be null"),
        (with(good(), |t| t.exp_avg = f32_at(0)), "exp_avg of tensor N must not be null"),
        (with(good(), |t| t.exp_avg_sq = f32_at(0)), "exp_avg_sq of tensor N must not be null"),
        (with(good(), |t| t.param = bf16_at(0)), "param of tensor N must not be null"),
        (
            with(good(), |t| t.master = Some(f32_at(0x1002))),
            "master of tensor N must be aligned to 4 bytes, got address 0x1002",
        ),
        (with(good(), |t| t.grad = bf16_at(0x1101)), "grad of tensor N must be aligned to 2 bytes, got address 0x1101"),
        (
            with(good(), |t| t.exp_avg = f32_at(0x1201)),
            "exp_avg of tensor N must be aligned to 4 bytes, got address 0x1201",
        ),
        (
            with(good(), |t| t.exp_avg_sq = f32_at(0x1302)),
            "exp_avg_sq of tensor N must be aligned to 4 bytes, got address 0x1302",
        ),
        (
            with(good(), |t| t.param = bf16_at(0x1403)),
            "param of tensor N must be aligned to 2 bytes, got address 0x1403",
        ),
        (
            with(good(), |t| t.exp_avg = f32_at(u64::MAX - 127)),
            "exp_avg of tensor N must end within 2^64 bytes, got 64 elements of 4 bytes at 0xffffffffffffff80",
        ),
        (
            with(good(), |t| (t.param, t.grad, t.master, t.len) = (f32_at(0x1000), f32_at(0x1100), None, 1 << 62)),
            "param of tensor N must end within 2^64 bytes, got 4611686018427387904 elements of 4 bytes at 0x1000",
        ),
        (
            with(good(), |t| t.grad = bf16_at(0x10fe)),
            "grad of tensor N must not overlap master of tensor N, both have address 0x10fe",
        ),
        (
            with(good(), |t| t.exp_avg = f32_at(0xf04)),
            "exp_avg of tensor N must not overlap master of tensor N, both have address 0x1000",
        ),
        (
            with(good(), |t| t.exp_avg_sq = f32_at(0x1200)),
            "exp_avg_sq of tensor N must not overlap exp_avg of tensor N, both have address 0x1200",
        ),
        (
            with(good(), |t| t.param = bf16_at(0x137e)),
            "param of tensor N must not overlap exp_avg_sq of tensor N, both have address 0x137e",
        ),
        (
            with(good(), |t| t.param = bf16_at(0x1100)),
            "param of tensor N must not overlap grad of tensor N, both have address 0x1100",
        ),
        (with(good(), |t| t.master = Some(bf16_at(0x1000))), "tensor N must have the formats of a variant (f32_f32, "),
        (
            with(good(), |t| (t.grad, t.master) = (at(0x1100, Dtype::F16), None)),
            "tensor N must have the formats of a variant (f32_f32, ",
        ),
    ];
    for (tensor, expected) in cases {
        for (message, number) in messages(gpu, tensor).into_iter().zip(["0", "1"]) {
            // Two that start together are named in either order.
            let expected = expected.replace('N', number);
            let words = |text: &str| {
                let mut words: Vec<_> = text.split([' ', ',']).map(str::to_owned).collect();
                words.sort_unstable();
                words
            };
            assert!(message.starts_with(&expected) || words(&message) == words(&expected), "{message}\n{expected}");
        }
    }
    // SAFETY: refused before anything is launched.
    let null = unsafe { gpu.kernels.step_raw(&good().with_grad(bf16_at(0)), &coeffs(), ptr::null_mut()) };
    assert_eq!(null.unwrap_err().to_string(), "grad of tensor 0 must not be null");
    // SAFETY: as above.
    let set = unsafe { gpu.kernels.step_raw(&good().with_coeffs_index(1), &coeffs(), ptr::null_mut()) };
    assert_eq!(tensor_error(set).problem, TensorProblem::CoeffsIndex { len: 1, value: 1 });
    let (p, grad, m, v) = (f32_at(1 << 62), bf16_at(1 << 61), f32_at(1 << 60), f32_at(1 << 63));
    let huge = RawTensor::new(1 << 42, p, grad, m, v);
    // SAFETY: as above.
    let huge = unsafe { gpu.kernels.step_raw(&huge, &coeffs(), ptr::null_mut()) };
    assert!(matches!(huge, Err(CudaError::Argument(ArgumentError::List(ListError::TooMany { .. })))), "{huge:?}");
    gpu.assert_nothing_launched();
}

fn buffers_of_two_tensors_must_not_overlap(gpu: &Gpu) {
    let other = moved(good(), 0x10_0000);
    let refused = |tensor: RawTensor| {
        let error = tensor_error(TensorList::new(&gpu.kernels, &[good(), other, tensor]));
        let TensorProblem::Overlap { other_tensor, other_buffer, .. } = error.problem else { panic!("{error:?}") };
        let mut found = [(error.tensor, error.buffer.unwrap().name()), (other_tensor, other_buffer.name())];
        found.sort_unstable();
        found
    };
    let third = moved(good(), 0x20_0000);
    assert_eq!(refused(with(third, |t| t.exp_avg = f32_at(0x1000))), [(0, "master"), (2, "exp_avg")]);
    assert_eq!(refused(third.with_grad(bf16_at(0x10_12fe))), [(1, "exp_avg"), (2, "grad")]);
    assert_eq!(refused(with(third, |t| t.master = Some(f32_at(0x117c)))), [(0, "grad"), (2, "master")]);
    assert_eq!(refused(with(third, |t| t.exp_avg_sq = f32_at(0x1380))), [(0, "exp_avg_sq"), (2, "exp_avg_sq")]);
    // Side by side is fine, so is memory of what is empty or left alone, and gradients may share.
    let beside = with(third, |t| (t.exp_avg, t.grad) = (f32_at(0x1500), good().grad));
    TensorList::new(&gpu.kernels, &[good(), other, beside]).unwrap();
    TensorList::new(&gpu.kernels, &[good(), other, with(good(), |t| t.len = 0)]).unwrap();
    let alone = good().with_grad(bf16_at(0));
    TensorList::new(&gpu.kernels, &[good(), other, alone]).unwrap();
}

fn lists_refuse_what_does_not_fit_and_stay_as_they_are(gpu: &Gpu) {
    assert!(matches!(
        TensorList::new(&gpu.kernels, &[]),
        Err(CudaError::Argument(ArgumentError::List(ListError::Empty { list: "tensors" })))
    ));
    let tensors = [good(), moved(good(), 0x10_0000)];
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    assert!(matches!(
        list.update(&tensors[..1]),
        Err(ArgumentError::List(ListError::Count { expected: 2, actual: 1, .. }))
    ));
    let second = tensors[1];
    let wrong = [
        with(second, |t| t.len = 63),
        second.with_grad(f32_at(second.grad.address)),
        second.with_grad(bf16_at(0x1010)),
        second.with_grad(bf16_at(0x10_1010)),
        second.with_grad(bf16_at(0x1101)),
        with(second, |t| t.exp_avg = f32_at(0x1300)),
        with(second, |t| t.exp_avg = f32_at(0)),
    ];
    let messages = wrong.map(|tensor| list.update(&[good(), tensor]).unwrap_err().to_string());
    assert_eq!(messages[0], "tensor 1 must keep its length of 64 elements, got 63");
    assert_eq!(
        messages[1],
        "tensor 1 must keep its formats (bf16 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq, f32 master), \
         got bf16 param, f32 grad, f32 exp_avg, f32 exp_avg_sq, f32 master"
    );
    assert_eq!(messages[2], "grad of tensor 1 must not overlap master of tensor 0, both have address 0x1010");
    assert_eq!(messages[3], "grad of tensor 1 must not overlap master of tensor 1, both have address 0x101010");
    assert!(messages[4].contains("aligned"), "{}", messages[4]);
    assert!(messages[5].contains("overlap"), "{}", messages[5]);
    assert!(messages[6].contains("null"), "{}", messages[6]);

    list.update(&[good(), second.with_coeffs_index(3)]).unwrap();
    let mut step = |sets: usize| {
        // SAFETY: refused before anything is launched.
        unsafe { list.step_raw(&vec![coeffs(); sets], gpu.raw_stream()) }.unwrap_err()
    };
    assert_eq!(step(3).to_string(), "tensor 1 must have a coeffs_index below 3, got 3");
    assert_eq!(step(97).to_string(), "coeffs must number at most 96, got 97");
    gpu.assert_nothing_launched();
}

fn streams_and_buffers_of_other_contexts_are_refused(gpu: &Gpu) {
    let other = gpu.other_context();
    let stream = other.new_stream().unwrap();
    let raw = stream.cu_stream().cast();
    // SAFETY: refused before anything is launched.
    let flat = unsafe { gpu.kernels.step_raw(&good(), &coeffs(), raw) };
    assert!(matches!(flat, Err(CudaError::Context { argument: "stream" })), "{flat:?}");
    let mut list = TensorList::new(&gpu.kernels, &[good()]).unwrap();
    // SAFETY: as above.
    let list = unsafe { list.step_raw(&[coeffs()], raw) };
    assert!(matches!(list, Err(CudaError::Context { argument: "stream" })), "{list:?}");
    let owner = DualAdam::new(&gpu.kernels, &stream, DualAdamConfig::default(), &[1]);
    assert!(matches!(owner, Err(CudaError::Context { argument: "stream" })), "{owner:?}");
    let per_thread = gpu.context.per_thread_stream();
    let owner = DualAdam::new(&gpu.kernels, &per_thread, DualAdamConfig::default(), &[1]);
    assert!(matches!(owner, Err(CudaError::PerThreadStream)), "{owner:?}");

    let mut foreign = stream.alloc_zeros::<f32>(4).unwrap();
    let mut own = [(); 3].map(|()| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    let [g, m, v] = &mut own;
    let mut tensor = cuda::Tensor::new(&mut foreign, &*g, &mut *m, &mut *v);
    let step = cuda::step(&gpu.kernels, &gpu.stream, &mut tensor, &coeffs());
    assert!(matches!(step, Err(CudaError::Context { argument: "param" })), "{step:?}");
    let mut tensor = cuda::Tensor::new(m, foreign.slice(1..), g, v);
    let step = tensor_error(cuda::step(&gpu.kernels, &gpu.stream, &mut tensor, &coeffs()));
    let expected = TensorProblem::Length { expected: 4, actual: 3 };
    assert_eq!((step.buffer, step.problem), (Some(Role::Grad), expected));
    gpu.assert_nothing_launched();
}

/// cudarc orders work only among the streams of one of its values for a context, so that a step over buffers of another would race.
fn buffers_that_cudarc_does_not_order_with_the_stream_are_refused(gpu: &Gpu) {
    let other = CudaContext::new(0).unwrap();
    assert_eq!(other.cu_ctx(), gpu.context.cu_ctx());
    let mut buffers = [(); 4].map(|()| other.new_stream().unwrap().alloc_zeros::<f32>(4).unwrap());
    let mut own = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    let [p, g, m, v] = &mut buffers;
    let (stream, coeffs) = (&gpu.stream, &coeffs());
    let step = cuda::step(&gpu.kernels, stream, &mut cuda::Tensor::new(&mut *p, &*g, &mut *m, &mut *v), coeffs);
    assert!(matches!(step, Err(CudaError::Unordered { argument: "param" })), "{step:?}");
    let step = cuda::step(&gpu.kernels, stream, &mut cuda::Tensor::new(&mut own, &*g, &mut *m, &mut *v), coeffs);
    assert!(matches!(step, Err(CudaError::Unordered { argument: "grad" })), "{step:?}");

    let mut owner = DualAdam::new(&gpu.kernels, stream, DualAdamConfig::default(), &[4]).unwrap();
    let step = owner.step([(&mut *p).into()], [None]);
    assert!(matches!(step, Err(CudaError::Unordered { argument: "param" })), "{step:?}");
    let step = owner.step([(&mut own).into()], [Some((&*g).into())]);
    assert!(matches!(step, Err(CudaError::Unordered { argument: "grad" })), "{step:?}");
    gpu.assert_nothing_launched();

    // The kernels themselves may be of another value than stream and buffers.
    let stream = p.stream().clone();
    cuda::step(&gpu.kernels, &stream, &mut cuda::Tensor::new(p, &*g, m, v), coeffs).unwrap();
}

fn the_owner_refuses_what_the_cpu_refuses(gpu: &Gpu) {
    let new = |config, lens: &[usize]| DualAdam::new(&gpu.kernels, &gpu.stream, config, lens);
    assert!(matches!(
        new(DualAdamConfig::default().with_lr(-1.0), &[1]),
        Err(CudaError::Argument(ArgumentError::Config(ConfigError::Value { name: "lr", .. })))
    ));
    assert!(matches!(
        new(DualAdamConfig::default(), &[usize::MAX]),
        Err(CudaError::Argument(ArgumentError::List(ListError::TooMany { .. })))
    ));
    assert!(matches!(
        new(DualAdamConfig::default(), &[usize::MAX / 4 - 63]),
        Err(CudaError::Driver { call: "cuMemAllocAsync", .. })
    ));
    let layout = [dualadam::TensorSpec::new(4).with_master(), dualadam::TensorSpec::new(4).in_group(1)];
    let grouped = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout);
    assert_eq!(tensor_error(grouped).to_string(), "tensor 1 must have a group below 1, got 1");

    let mut owner =
        DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout[..1]).unwrap();
    let mut floats = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    let grads = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    assert!(matches!(
        owner.step([], []),
        Err(CudaError::Argument(ArgumentError::List(ListError::Count { list: "params", expected: 1, actual: 0 })))
    ));
    let step = owner.step([(&mut floats).into()], [Some((&grads).into())]);
    assert!(matches!(tensor_error(step).problem, TensorProblem::Formats { .. }));
    let step = owner.step([floats.slice_mut(..3).into()], [None]);
    assert_eq!(tensor_error(step).to_string(), "param of tensor 0 must have 4 elements, got 3");
    let mut half = gpu.stream.alloc_zeros::<dualadam::half::bf16>(4).unwrap();
    let step = owner.step_scaled([(&mut half).into()], [Some((&grads).into())], -1.0);
    assert_eq!(step.unwrap_err().to_string(), "grad_multiplier must be finite and at least 0, got -1.0");
    let null = [Some(at(0, Dtype::F32))];
    // SAFETY: refused before anything is launched.
    let step = unsafe { owner.step_raw(&[at(0x1000, Dtype::Bf16)], &null, 1.0) };
    assert_eq!(tensor_error(step).to_string(), "grad of tensor 0 must not be null");
    let short = tensor_error(owner.set_moments(0, 1, &[0.0; 3], &[0.0; 4]));
    assert_eq!(short.to_string(), "exp_avg of tensor 0 must have 4 elements, got 3");
    let negative = tensor_error(owner.set_moments(0, 1, &[0.0; 4], &[-1.0; 4]));
    assert_eq!((negative.buffer, negative.problem), (Some(Role::ExpAvgSq), TensorProblem::Negative { value: -1.0 }));
    let missing = owner.set_moments(1, 1, &[], &[]);
    assert!(matches!(
        missing,
        Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "tensor", .. })))
    ));
    assert!(matches!(owner.set_lr(1, 0.0), Err(ArgumentError::List(ListError::Position { list: "group", .. }))));
    owner.set_moments(0, u64::MAX, &[0.0; 4], &[0.0; 4]).unwrap();
    let step = owner.step([(&mut half).into()], [Some((&grads).into())]);
    assert_eq!(tensor_error(step).problem, TensorProblem::StepOverflow);
    assert_eq!(owner.step_of(0).unwrap(), u64::MAX);
    gpu.assert_nothing_launched();
}

fn the_current_context_is_restored(gpu: &Gpu) {
    // Loaded and unloaded here, as the other kernels of the primary context are still in use.
    let own = gpu.other_context();
    check_current_context(&gpu.other_context(), || Kernels::in_context(&own).unwrap());
    set_current(ptr::null_mut());
    let _again = Kernels::new(0).unwrap();
    assert_eq!(current(), ptr::null_mut());
}

/// Whatever is done with kernels, the context that was current before is current after, and none if there was none.
pub(crate) fn check_current_context(other: &CudaContext, make: impl Fn() -> Kernels) {
    for before in [other.cu_ctx().cast(), ptr::null_mut()] {
        set_current(before);
        let unchanged = |what: &str| assert_eq!(current(), before, "{what}");
        let kernels = make();
        unchanged("making kernels");
        let again = Kernels::in_context(kernels.context()).unwrap();
        unchanged("Kernels::in_context");
        let stream = ptr::null_mut();
        // SAFETY: nothing is launched for an empty tensor.
        unsafe { kernels.step_raw(&with(good(), |t| t.len = 0), &coeffs(), stream) }.unwrap();
        unchanged("step_raw");
        let mut list = TensorList::new(&kernels, &[with(good(), |t| t.len = 0)]).unwrap();
        unchanged("TensorList::new");
        // SAFETY: as above.
        unsafe { list.step_raw(&[coeffs()], stream) }.unwrap();
        unchanged("TensorList::step_raw");
        drop(list);
        unchanged("drop(TensorList)");
        let stream = kernels.context().default_stream();
        let mut owner = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[4]).unwrap();
        unchanged("DualAdam::new");
        owner.set_moments(0, 3, &[1.0; 4], &[2.0; 4]).unwrap();
        unchanged("set_moments");
        owner.state().unwrap();
        unchanged("state");
        drop(stream);
        drop(kernels);
        drop(again);
        unchanged("drop(Kernels)");
        drop(owner);
        unchanged("drop(DualAdam)");
    }
}

fn kernels_are_loaded_once_per_context(gpu: &Gpu) {
    let loads = || gpu.stand_in.as_ref().map_or(0, |stand_in| stand_in.calls("cuModuleLoadDataEx"));
    let prepare = |kernels: &Kernels| {
        kernels.prepare(Formats::new(Dtype::F32, Dtype::F32)).unwrap();
        kernels.prepare(Formats::new(Dtype::Bf16, Dtype::F32)).unwrap();
    };
    prepare(&gpu.kernels);
    let first = loads();
    let again = [Kernels::new(0).unwrap(), Kernels::in_context(&gpu.context).unwrap(), gpu.kernels.clone()];
    again.iter().for_each(prepare);
    assert_eq!(loads(), first);
    let context = gpu.other_context();
    let other = Kernels::in_context(&context).unwrap();
    assert_eq!(loads(), first);
    prepare(&other);
    assert!(gpu.stand_in.is_none() || loads() == first + 2);
    assert_eq!(again[0].context().cu_ctx(), gpu.context.cu_ctx());
    assert_ne!(other.context().cu_ctx(), gpu.context.cu_ctx());
}
