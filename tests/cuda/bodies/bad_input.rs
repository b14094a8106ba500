//! Every wrong argument is a typed error that names it, and nothing is launched.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, DualAdam, Kernels, RawBuffer, RawTensor, TensorList};
use dualadam::{Dtype, DualAdamConfig, Error, StepCoeffs, TensorLayout};
use testkit::refused::{self, refused};
use testkit::tensor::map_addresses;
use testkit::variant::formats;

use super::Body;
use super::gpu::{self, Gpu, current, set_current};

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
    RawBuffer { address, dtype }
}

/// A tensor of 64 elements with masters and a copy; each buffer has 256 bytes, one after the other.
fn good() -> RawTensor {
    RawTensor {
        params: at(0x1000, Dtype::F32),
        grads: at(0x1100, Dtype::Bf16),
        exp_avg: 0x1200,
        exp_avg_sq: 0x1300,
        copy: Some(at(0x1400, Dtype::Bf16)),
        len: 64,
        set: 0,
    }
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
    let f32_at = |address| at(address, Dtype::F32);
    let bf16_at = |address| at(address, Dtype::Bf16);
    let null = |buffer: &str| format!("{buffer} of tensor N must not be null");
    let misaligned = |buffer: &str, align: u64, address: u64| {
        format!("{buffer} of tensor N must be aligned to {align} bytes, got address {address:#x}")
    };
    let overlap = |buffer: &str, other: &str, address: u64| {
        format!("{buffer} of tensor N must not overlap {other} of tensor N, both have address {address:#x}")
    };
    let extent = |buffer: &str, len: u64, address: u64| {
        format!("{buffer} of tensor N must end within 2^64 bytes, got {len} elements of 4 bytes at {address:#x}")
    };
    let cases: [(RawTensor, String); 18] = [
        (RawTensor { params: f32_at(0), ..good() }, null("params")),
        (RawTensor { exp_avg: 0, ..good() }, null("exp_avg")),
        (RawTensor { exp_avg_sq: 0, ..good() }, null("exp_avg_sq")),
        (RawTensor { copy: Some(bf16_at(0)), ..good() }, null("copy")),
        (RawTensor { params: f32_at(0x1002), ..good() }, misaligned("params", 4, 0x1002)),
        (RawTensor { grads: bf16_at(0x1101), ..good() }, misaligned("grads", 2, 0x1101)),
        (RawTensor { exp_avg: 0x1201, ..good() }, misaligned("exp_avg", 4, 0x1201)),
        (RawTensor { exp_avg_sq: 0x1302, ..good() }, misaligned("exp_avg_sq", 4, 0x1302)),
        (RawTensor { copy: Some(bf16_at(0x1403)), ..good() }, misaligned("copy", 2, 0x1403)),
        (RawTensor { exp_avg: u64::MAX - 127, ..good() }, extent("exp_avg", 64, u64::MAX - 127)),
        (RawTensor { grads: f32_at(0x1100), copy: None, len: 1 << 62, ..good() }, extent("params", 1 << 62, 0x1000)),
        (RawTensor { grads: bf16_at(0x10fe), ..good() }, overlap("grads", "params", 0x10fe)),
        (RawTensor { exp_avg: 0x10fc, ..good() }, overlap("exp_avg", "params", 0x10fc)),
        (RawTensor { exp_avg_sq: 0x1200, ..good() }, overlap("exp_avg_sq", "exp_avg", 0x1200)),
        (RawTensor { copy: Some(bf16_at(0x137e)), ..good() }, overlap("copy", "exp_avg_sq", 0x137e)),
        (RawTensor { copy: Some(bf16_at(0x1100)), ..good() }, overlap("copy", "grads", 0x1100)),
        (
            RawTensor { params: bf16_at(0x1000), ..good() },
            "tensor N: bf16 parameters with bf16 gradients and a bf16 copy".to_owned(),
        ),
        (
            RawTensor { params: bf16_at(0x1000), grads: at(0x1100, Dtype::F16), copy: None, ..good() },
            "tensor N: bf16 parameters with f16 gradients are not supported".to_owned(),
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
    let null = refused(gpu.step(&RawTensor { grads: bf16_at(0), ..good() }, &coeffs()));
    assert_eq!(null.to_string(), "grads of tensor 0 must not be null");
    refused::index(gpu.step(&RawTensor { set: 1, ..good() }, &coeffs()), 0, "set", 1, 1);
    let (p, grads, m, v) = (f32_at(1 << 62), bf16_at(1 << 61), 1 << 60, 1 << 63);
    let huge = RawTensor { params: p, grads, exp_avg: m, exp_avg_sq: v, copy: None, len: 1 << 42, set: 0 };
    let huge = refused(gpu.step(&huge, &coeffs()));
    assert!(matches!(huge, Error::TooMany { .. }), "{huge:?}");
    gpu.assert_nothing_launched();
}

fn buffers_of_two_tensors_must_not_overlap(gpu: &Gpu) {
    let other = moved(good(), 0x10_0000);
    let refused = |tensor: RawTensor| match TensorList::new(&gpu.kernels, &[good(), other, tensor]) {
        Err(Error::Overlap { tensor, buffer, other_tensor, other_buffer, .. }) => {
            let mut found = [(tensor, buffer), (other_tensor, other_buffer)];
            found.sort_unstable();
            found
        }
        result => panic!("{result:?}"),
    };
    let third = moved(good(), 0x20_0000);
    assert_eq!(refused(RawTensor { exp_avg: 0x1000, ..third }), [(0, "params"), (2, "exp_avg")]);
    assert_eq!(refused(RawTensor { grads: at(0x10_12fe, Dtype::Bf16), ..third }), [(1, "exp_avg"), (2, "grads")]);
    assert_eq!(refused(RawTensor { params: at(0x117c, Dtype::F32), ..third }), [(0, "grads"), (2, "params")]);
    assert_eq!(refused(RawTensor { exp_avg_sq: 0x1380, ..third }), [(0, "exp_avg_sq"), (2, "exp_avg_sq")]);
    // Side by side is fine, so is memory of what is empty or left alone, and gradients may share.
    let beside = RawTensor { exp_avg: 0x1500, grads: good().grads, ..third };
    TensorList::new(&gpu.kernels, &[good(), other, beside]).unwrap();
    TensorList::new(&gpu.kernels, &[good(), other, RawTensor { len: 0, ..good() }]).unwrap();
    let alone = RawTensor { grads: at(0, Dtype::Bf16), ..good() };
    TensorList::new(&gpu.kernels, &[good(), other, alone]).unwrap();
}

fn lists_refuse_what_does_not_fit_and_stay_as_they_are(gpu: &Gpu) {
    refused::empty(TensorList::new(&gpu.kernels, &[]), "tensors");
    let tensors = [good(), moved(good(), 0x10_0000)];
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    refused::count(list.update(&tensors[..1]), "tensors", 2, 1);
    let with = |tensor: RawTensor| [good(), tensor];
    let second = tensors[1];
    let wrong = [
        with(RawTensor { len: 63, ..second }),
        with(RawTensor { grads: at(second.grads.address, Dtype::F32), ..second }),
        with(RawTensor { grads: at(0x1010, Dtype::Bf16), ..second }),
        with(RawTensor { grads: at(0x10_1010, Dtype::Bf16), ..second }),
        with(RawTensor { grads: at(0x1101, Dtype::Bf16), ..second }),
        with(RawTensor { exp_avg: 0x1300, ..second }),
        with(RawTensor { exp_avg: 0, ..second }),
    ];
    let messages = wrong.map(|tensors| list.update(&tensors).unwrap_err().to_string());
    assert_eq!(messages[0], "the length of tensor 1 must stay 64, got 63");
    assert_eq!(
        messages[1],
        "the types of tensor 1 must stay f32 parameters with bf16 gradients and a bf16 copy, \
         got f32 parameters with f32 gradients and a bf16 copy"
    );
    assert_eq!(messages[2], "grads of tensor 1 must not overlap params of tensor 0, both have address 0x1010");
    assert_eq!(messages[3], "grads of tensor 1 must not overlap params of tensor 1, both have address 0x101010");
    assert!(messages[4].contains("aligned"), "{}", messages[4]);
    assert!(messages[5].contains("overlap"), "{}", messages[5]);
    assert!(messages[6].contains("null"), "{}", messages[6]);

    list.update(&with(RawTensor { set: 3, ..second })).unwrap();
    let mut step = |sets: usize| gpu.step_list(&mut list, &vec![coeffs(); sets]);
    refused::index(step(3), 1, "set", 3, 3);
    refused::too_many(step(97), "sets", 96, 97);
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
    assert!(matches!(per_thread, Err(Error::PerThreadStream)), "{per_thread:?}");

    let mut foreign = stream.alloc_zeros::<f32>(4).unwrap();
    let mut own = [(); 3].map(|()| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    let [g, m, v] = &mut own;
    let (m, v) = (&mut m.as_view_mut(), &mut v.as_view_mut());
    let step = cuda::step(&gpu.kernels, &gpu.stream, &mut foreign.as_view_mut(), &g.as_view(), m, v, &coeffs());
    refused::context(step, "params");
    let short = &foreign.as_view();
    let step = cuda::step(&gpu.kernels, &gpu.stream, m, &short.slice(1..), &mut g.as_view_mut(), v, &coeffs());
    refused::length(step, 0, "grads", 4, 3);
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
    let (m, v) = (&mut m.as_view_mut(), &mut v.as_view_mut());
    let step = cuda::step(&gpu.kernels, stream, &mut p.as_view_mut(), &g.as_view(), m, v, coeffs);
    refused::unordered(step, "params");
    let step = cuda::step(&gpu.kernels, stream, &mut own.as_view_mut(), &g.as_view(), m, v, coeffs);
    refused::unordered(step, "grads");

    let mut owner = gpu.optimizer(&[TensorLayout::new(4)]).unwrap();
    let step = owner.step(&mut [(&mut *p).into()], &[None]);
    refused::unordered(step, "params");
    let step = owner.step(&mut [(&mut own).into()], &[Some((&*g).into())]);
    refused::unordered(step, "grads");
    gpu.assert_nothing_launched();

    // The kernels themselves may be of another value than stream and buffers.
    let stream = p.stream().clone();
    cuda::step(&gpu.kernels, &stream, &mut p.as_view_mut(), &g.as_view(), m, v, coeffs).unwrap();
}

fn the_owner_refuses_what_the_cpu_refuses(gpu: &Gpu) {
    let new = |config, lens: &[usize]| DualAdam::new(&gpu.kernels, &gpu.stream, config, lens);
    let config = DualAdamConfig::default();
    refused::value(new(config.with_lr(-1.0), &[1]), "lr");
    assert!(matches!(new(config, &[usize::MAX]), Err(Error::TooMany { .. })));
    let unobtainable = new(config, &[usize::MAX / 4 - 63]);
    assert!(matches!(unobtainable, Err(Error::Driver { call: "cuMemAllocAsync", .. })), "{unobtainable:?}");
    let layout = [TensorLayout::new(4).with_master(), TensorLayout::new(4).in_group(1)];
    refused::index(gpu.optimizer(&layout), 1, "group", 1, 1);

    let mut owner = gpu.optimizer(&layout[..1]).unwrap();
    let [mut floats, grads] = [0; 2].map(|_| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    refused::count(owner.step(&mut [], &[]), "params", 1, 0);
    let step = owner.step(&mut [(&mut floats).into()], &[Some((&grads).into())]);
    refused::types(step, 0, Dtype::F32, Dtype::F32, Some(Dtype::F32));
    refused::length(owner.step(&mut [floats.slice_mut(..3).into()], &[None]), 0, "params", 4, 3);
    let mut half = gpu.stream.alloc_zeros::<dualadam::half::bf16>(4).unwrap();
    let step = owner.step_scaled(&mut [(&mut half).into()], &[Some((&grads).into())], -1.0);
    refused::value(step, "grad_multiplier");
    // SAFETY: refused before anything is launched.
    let step = unsafe { owner.step_raw(&[at(0x1000, Dtype::Bf16)], &[Some(at(0, Dtype::F32))], 1.0) };
    assert!(matches!(step, Err(Error::Null { tensor: 0, buffer: "grads" })), "{step:?}");
    refused::length(owner.set_moments(0, 1, &[0.0; 3], &[0.0; 4]), 0, "exp_avg", 4, 3);
    refused::value(owner.set_moments(0, 1, &[0.0; 4], &[-1.0; 4]), "exp_avg_sq");
    refused::position(owner.set_moments(1, 1, &[], &[]), "tensor", 1, 1);
    refused::position(owner.set_lr(1, 0.0), "group", 1, 1);
    owner.set_moments(0, u64::MAX, &[0.0; 4], &[0.0; 4]).unwrap();
    refused::step_overflow(owner.step(&mut [(&mut half).into()], &[Some((&grads).into())]), 0);
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
        unsafe { kernels.step_raw(&RawTensor { len: 0, ..good() }, &coeffs(), stream) }.unwrap();
        unchanged("step_raw");
        let mut list = TensorList::new(&kernels, &[RawTensor { len: 0, ..good() }]).unwrap();
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
        ["f32_f32", "bf16_f32"].iter().for_each(|name| gpu::prepare(kernels, formats(name)).unwrap());
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
