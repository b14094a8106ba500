//! Every wrong argument is a typed error that names it, and nothing is launched.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, CudaError, DualAdam, Kernels, TensorList};
use dualadam::{
    Dtype, DualAdamConfig, Error, Formats, ListError, RawBuffer, RawTensor, Role, StepCoeffs, TensorProblem,
    TensorSpec, Variant,
};
use testkit::tensor::map_addresses;
use testkit::variant::formats;

use super::Body;
use super::gpu::{Gpu, current, set_current};
use super::refused::{self, refused};
use super::twin::with_len;

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

fn f32_at(address: u64) -> RawBuffer {
    RawBuffer::f32(address)
}

fn bf16_at(address: u64) -> RawBuffer {
    RawBuffer::new(address, Dtype::Bf16)
}

/// A tensor of 64 elements with masters; each buffer has 256 bytes, one after the other.
fn good() -> RawTensor {
    RawTensor::new(64, bf16_at(0x1400), bf16_at(0x1100), f32_at(0x1200), f32_at(0x1300)).with_master(f32_at(0x1000))
}

/// The tensor with something else in one place.
fn with(mut tensor: RawTensor, change: impl FnOnce(&mut RawTensor)) -> RawTensor {
    change(&mut tensor);
    tensor
}

fn moved(tensor: RawTensor, by: u64) -> RawTensor {
    map_addresses(tensor, |address, _| address + by)
}

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
}

/// The message for a tensor by itself, flat and in a list, where it is the second of two.
fn messages(gpu: &Gpu, tensor: RawTensor) -> [String; 2] {
    let list = TensorList::new(&gpu.kernels, &[moved(good(), 0x10_0000), tensor]);
    [refused(gpu.step(&tensor, &coeffs())).to_string(), refused(list).to_string()]
}

fn addresses_that_cannot_be_right_are_refused(gpu: &Gpu) {
    let null = |role: Role| format!("{role} of tensor N must not be null");
    let misaligned = |role: Role, align: u64, address: u64| {
        format!("{role} of tensor N must be aligned to {align} bytes, got address {address:#x}")
    };
    let overlap = |role: Role, other: Role, address: u64| {
        format!("{role} of tensor N must not overlap {other} of tensor N, both have address {address:#x}")
    };
    let extent = |role: Role, len: u64, address: u64| {
        format!("{role} of tensor N must end within 2^64 bytes, got {len} elements of 4 bytes at {address:#x}")
    };
    let variants: Vec<_> = Variant::all().map(Variant::name).collect();
    let formats = |tensor: &RawTensor| {
        let (names, formats) = (variants.join(", "), tensor.formats());
        format!("tensor N must have the formats of a variant ({names}), got {formats}")
    };
    use Role::{ExpAvg, ExpAvgSq, Grad, Master, Param};
    let beyond = u64::MAX - 127;
    let bf16_master = with(good(), |t| t.master = Some(bf16_at(0x1000)));
    let f16_grad = with(good(), |t| (t.grad, t.master) = (RawBuffer::new(0x1100, Dtype::F16), None));
    let cases: [(RawTensor, String); 18] = [
        (with(good(), |t| t.master = Some(f32_at(0))), null(Master)),
        (with(good(), |t| t.exp_avg = f32_at(0)), null(ExpAvg)),
        (with(good(), |t| t.exp_avg_sq = f32_at(0)), null(ExpAvgSq)),
        (with(good(), |t| t.param = bf16_at(0)), null(Param)),
        (with(good(), |t| t.master = Some(f32_at(0x1002))), misaligned(Master, 4, 0x1002)),
        (with(good(), |t| t.grad = bf16_at(0x1101)), misaligned(Grad, 2, 0x1101)),
        (with(good(), |t| t.exp_avg = f32_at(0x1201)), misaligned(ExpAvg, 4, 0x1201)),
        (with(good(), |t| t.exp_avg_sq = f32_at(0x1302)), misaligned(ExpAvgSq, 4, 0x1302)),
        (with(good(), |t| t.param = bf16_at(0x1403)), misaligned(Param, 2, 0x1403)),
        (with(good(), |t| t.exp_avg = f32_at(beyond)), extent(ExpAvg, 64, beyond)),
        (
            with(good(), |t| (t.param, t.grad, t.master, t.len) = (f32_at(0x1000), f32_at(0x1100), None, 1 << 62)),
            extent(Param, 1 << 62, 0x1000),
        ),
        (with(good(), |t| t.grad = bf16_at(0x10fe)), overlap(Grad, Master, 0x10fe)),
        (with(good(), |t| t.exp_avg = f32_at(0xf04)), overlap(ExpAvg, Master, 0x1000)),
        (with(good(), |t| t.exp_avg_sq = f32_at(0x1200)), overlap(ExpAvgSq, ExpAvg, 0x1200)),
        (with(good(), |t| t.param = bf16_at(0x137e)), overlap(Param, ExpAvgSq, 0x137e)),
        (with(good(), |t| t.param = bf16_at(0x1100)), overlap(Param, Grad, 0x1100)),
        (bf16_master, formats(&bf16_master)),
        (f16_grad, formats(&f16_grad)),
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
    let null = refused(gpu.step(&good().with_grad(bf16_at(0)), &coeffs()));
    assert_eq!(null.to_string(), "grad of tensor 0 must not be null");
    refused::coeffs_index(gpu.step(&good().with_coeffs_index(1), &coeffs()), 0, 1, 1);
    let (p, grad, m, v) = (f32_at(1 << 62), bf16_at(1 << 61), f32_at(1 << 60), f32_at(1 << 63));
    let huge = refused(gpu.step(&RawTensor::new(1 << 42, p, grad, m, v), &coeffs()));
    assert!(matches!(huge, Error::List(ListError::TooMany { .. })), "{huge:?}");
    gpu.assert_nothing_launched();
}

fn buffers_of_two_tensors_must_not_overlap(gpu: &Gpu) {
    let other = moved(good(), 0x10_0000);
    let refused = |tensor: RawTensor| {
        let error = refused::tensor_error(TensorList::new(&gpu.kernels, &[good(), other, tensor]));
        let TensorProblem::Overlap { other_tensor, other_buffer, .. } = error.problem else { panic!("{error}") };
        let mut found = [(error.tensor, error.buffer.unwrap()), (other_tensor, other_buffer)];
        found.sort_unstable();
        found
    };
    let third = moved(good(), 0x20_0000);
    use Role::{ExpAvg, ExpAvgSq, Grad, Master};
    assert_eq!(refused(with(third, |t| t.exp_avg = f32_at(0x1000))), [(0, Master), (2, ExpAvg)]);
    assert_eq!(refused(third.with_grad(bf16_at(0x10_12fe))), [(1, ExpAvg), (2, Grad)]);
    assert_eq!(refused(third.with_master(f32_at(0x117c))), [(0, Grad), (2, Master)]);
    assert_eq!(refused(with(third, |t| t.exp_avg_sq = f32_at(0x1380))), [(0, ExpAvgSq), (2, ExpAvgSq)]);
    // Side by side is fine, so is memory of what is empty or skipped, and gradients may share.
    let beside = with(third, |t| (t.exp_avg, t.grad) = (f32_at(0x1500), good().grad));
    TensorList::new(&gpu.kernels, &[good(), other, beside]).unwrap();
    TensorList::new(&gpu.kernels, &[good(), other, with_len(good(), 0)]).unwrap();
    TensorList::new(&gpu.kernels, &[good(), other, good().with_grad(bf16_at(0))]).unwrap();
}

fn lists_refuse_what_does_not_fit_and_stay_as_they_are(gpu: &Gpu) {
    refused::empty(TensorList::new(&gpu.kernels, &[]), "tensors");
    let tensors = [good(), moved(good(), 0x10_0000)];
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    refused::count(list.update(&tensors[..1]), "tensors", 2, 1);
    let second = tensors[1];
    let wrong = [
        with_len(second, 63),
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
    let mut step = |sets: usize| gpu.step_list(&mut list, &vec![coeffs(); sets]);
    refused::coeffs_index(step(3), 1, 3, 3);
    refused::too_many(step(97), "coeffs", 96, 97);
    gpu.assert_nothing_launched();
}

fn streams_and_buffers_of_other_contexts_are_refused(gpu: &Gpu) {
    let other = gpu.other_context();
    let stream = other.new_stream().unwrap();
    let raw = stream.cu_stream().cast();
    // SAFETY: refused before anything is launched.
    refused::context(unsafe { gpu.kernels.step_raw(&good(), &coeffs(), raw) }, "stream");
    let mut list = TensorList::new(&gpu.kernels, &[good()]).unwrap();
    // SAFETY: as above.
    refused::context(unsafe { list.step_raw(&[coeffs()], raw) }, "stream");
    let owner = |stream| DualAdam::new(&gpu.kernels, stream, DualAdamConfig::default(), &[1]);
    refused::context(owner(&stream), "stream");
    let per_thread = owner(&gpu.context.per_thread_stream());
    assert!(matches!(per_thread, Err(CudaError::PerThreadStream)), "{per_thread:?}");

    let mut foreign = stream.alloc_zeros::<f32>(4).unwrap();
    let mut own = [(); 3].map(|()| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    let [g, m, v] = &mut own;
    let step = |tensor: &mut cuda::Tensor<'_>| cuda::step(&gpu.kernels, &gpu.stream, tensor, &coeffs());
    refused::context(step(&mut cuda::Tensor::new(&mut foreign, &*g, &mut *m, &mut *v)), "param of tensor 0");
    refused::length(step(&mut cuda::Tensor::new(m, foreign.slice(1..), g, v)), 0, Role::Grad, 4, 3);
    gpu.assert_nothing_launched();
}

/// cudarc orders work only among the streams of one of its values for a context, so that a step
/// over buffers of another would race.
fn buffers_that_cudarc_does_not_order_with_the_stream_are_refused(gpu: &Gpu) {
    let other = CudaContext::new(0).unwrap();
    assert_eq!(other.cu_ctx(), gpu.context.cu_ctx());
    let mut buffers = [(); 4].map(|()| other.new_stream().unwrap().alloc_zeros::<f32>(4).unwrap());
    let mut own = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    let [p, g, m, v] = &mut buffers;
    let (stream, coeffs) = (&gpu.stream, &coeffs());
    let step = |tensor: &mut cuda::Tensor<'_>| cuda::step(&gpu.kernels, stream, tensor, coeffs);
    refused::unordered(step(&mut cuda::Tensor::new(&mut *p, &*g, &mut *m, &mut *v)), "param of tensor 0");
    refused::unordered(step(&mut cuda::Tensor::new(&mut own, &*g, &mut *m, &mut *v)), "grad of tensor 0");

    let mut owner = gpu.optimizer(&[TensorSpec::new(4).with_name("bias")]).unwrap();
    refused::unordered(owner.step([(&mut *p).into()], [None]), "param of tensor 0 (bias)");
    refused::unordered(owner.step([(&mut own).into()], [Some((&*g).into())]), "grad of tensor 0 (bias)");
    gpu.assert_nothing_launched();

    // The kernels themselves may be of another value than stream and buffers.
    let stream = p.stream().clone();
    cuda::step(&gpu.kernels, &stream, &mut cuda::Tensor::new(p, &*g, m, v), coeffs).unwrap();
}

fn the_owner_refuses_what_the_cpu_refuses(gpu: &Gpu) {
    let new = |config, lens: &[usize]| DualAdam::new(&gpu.kernels, &gpu.stream, config, lens);
    let config = DualAdamConfig::default();
    refused::group_value(new(config.with_lr(-1.0), &[1]), 0, "lr");
    let too_long = refused::tensor_error(new(config, &[1, usize::MAX]));
    assert_eq!((too_long.tensor, too_long.problem), (1, TensorProblem::Memory { bytes: u64::MAX }));
    let unobtainable = new(config, &[usize::MAX / 4 - 63]);
    assert!(matches!(unobtainable, Err(CudaError::Driver { call: "cuMemAllocAsync", .. })), "{unobtainable:?}");
    let specs = [TensorSpec::new(4).with_master(), TensorSpec::new(4).in_group(1)];
    refused::group(gpu.optimizer(&specs), 1, 1, 1);

    let mut owner = gpu.optimizer(&specs[..1]).unwrap();
    let [mut floats, grads] = [0; 2].map(|_| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    refused::count(owner.step([], []), "params", 1, 0);
    let step = owner.step([(&mut floats).into()], [Some((&grads).into())]);
    refused::formats(step, 0, Formats::new(Dtype::F32, Dtype::F32).with_master(Dtype::F32));
    refused::length(owner.step([floats.slice_mut(..3).into()], [None]), 0, Role::Param, 4, 3);
    let mut half = gpu.stream.alloc_zeros::<dualadam::half::bf16>(4).unwrap();
    let step = owner.step_scaled([(&mut half).into()], [Some((&grads).into())], -1.0);
    refused::value(step, "grad_multiplier");
    // SAFETY: refused before anything is launched.
    let step = unsafe { owner.step_raw(&[bf16_at(0x1000)], &[Some(f32_at(0))], 1.0) };
    refused::problem(step, 0, Role::Grad, TensorProblem::Null);
    refused::length(owner.set_moments(0, 1, &[0.0; 3], &[0.0; 4]), 0, Role::ExpAvg, 4, 3);
    let negative = owner.set_moments(0, 1, &[0.0; 4], &[-1.0; 4]);
    refused::problem(negative, 0, Role::ExpAvgSq, TensorProblem::Negative { value: -1.0 });
    refused::position(owner.set_moments(1, 1, &[], &[]), "tensor", 1, 1);
    refused::position(owner.set_lr(1, 0.0), "group", 1, 1);
    owner.set_moments(0, u64::MAX, &[0.0; 4], &[0.0; 4]).unwrap();
    refused::step_overflow(owner.step([(&mut half).into()], [Some((&grads).into())]), 0);
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

/// Whatever is done with kernels, the context that was current before is current after, and none if
/// there was none.
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
        unsafe { kernels.step_raw(&with_len(good(), 0), &coeffs(), stream) }.unwrap();
        unchanged("step_raw");
        let mut list = TensorList::new(&kernels, &[with_len(good(), 0)]).unwrap();
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
        ["f32_f32", "bf16_f32"].iter().for_each(|name| kernels.prepare(formats(name)).unwrap());
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
