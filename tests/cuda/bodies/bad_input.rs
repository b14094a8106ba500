//! Every wrong argument is a typed error that names it, and nothing is launched.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, CudaError, DualAdam, Kernels, TensorList};
use dualadam::{
    Dtype, DualAdamConfig, Error, Formats, ListError, RawTensor, Role, StepCoeffs, TensorProblem, TensorSpec,
};
use testkit::raw::{self, bf16_at, f32_at, good, moved};
use testkit::variant::formats;

use super::gpu::{current, set_current};
use super::refused::refused;
use super::{Body, Gpu, refused, with_len};

pub(crate) const TESTS: &[Body] = bodies!["bad_input":
    bad_addresses_are_refused,
    lists_refuse_what_does_not_fit_and_stay_as_they_are,
    streams_and_buffers_of_other_contexts_are_refused,
    buffers_that_cudarc_does_not_order_with_the_stream_are_refused,
    the_owner_refuses_what_the_cpu_refuses,
    the_current_context_is_restored,
    kernels_are_loaded_once_per_context,
];

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
}

fn bad_addresses_are_refused(gpu: &Gpu) {
    let (alone, list) =
        (|tensor: &_| gpu.step(tensor, &coeffs()), |tensors: &[_]| TensorList::new(&gpu.kernels, tensors));
    raw::wrong_tensors(alone, list);
    let long = RawTensor::new(1 << 62, f32_at(0x1000), f32_at(0x1100), f32_at(0x1200), f32_at(0x1300));
    let extent = TensorProblem::Extent { address: 0x1000, len: 1 << 62, size: 4 };
    refused::problem(alone(&long), 0, Role::Param, extent);
    refused::problem(list(&[moved(good(), 0x10_0000), long]), 1, Role::Param, extent);
    let (p, grad, m, v) = (f32_at(1 << 62), bf16_at(1 << 61), f32_at(1 << 60), f32_at(1 << 63));
    let huge = refused(alone(&RawTensor::new(1 << 42, p, grad, m, v)));
    assert!(matches!(huge, Error::List(ListError::TooMany { .. })), "{huge:?}");
    gpu.assert_nothing_launched();
}

fn lists_refuse_what_does_not_fit_and_stay_as_they_are(gpu: &Gpu) {
    refused::empty(TensorList::new(&gpu.kernels, &[]), "tensors");
    raw::wrong_lists(|tensors| TensorList::new(&gpu.kernels, tensors), TensorList::update, TensorList::tensors);
    let mut list = TensorList::new(&gpu.kernels, &[good(), moved(good(), 0x10_0000).with_coeffs_index(3)]).unwrap();
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

/// cudarc orders work only among the streams of one `CudaContext` value, so a step over buffers of
/// another value for the same context would race.
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

    // The kernels may be of another `CudaContext` value than stream and buffers.
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
    // Kernels are loaded into a context of the test's own, as those of the primary context are
    // still in use.
    let own = gpu.other_context();
    check_current_context(&gpu.other_context(), || Kernels::in_context(&own).unwrap());
    set_current(ptr::null_mut());
    let _again = Kernels::new(0).unwrap();
    assert_eq!(current(), ptr::null_mut());
}

/// Whatever is done with kernels, the current context is the same before and after, or none if
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
