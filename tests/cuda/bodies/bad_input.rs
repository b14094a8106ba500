//! Every wrong argument is a typed error that names it, and nothing is launched.

use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, DualAdam, Kernels, RawBuffer, RawTensor, TensorList};
use dualadam::{Dtype, DualAdamConfig, Error, StepCoeffs};

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
    let moved = |buffer: RawBuffer| at(buffer.address + by, buffer.dtype);
    RawTensor {
        params: moved(tensor.params),
        grads: moved(tensor.grads),
        exp_avg: tensor.exp_avg + by,
        exp_avg_sq: tensor.exp_avg_sq + by,
        copy: tensor.copy.map(moved),
        ..tensor
    }
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
    let f32_at = |address| at(address, Dtype::F32);
    let bf16_at = |address| at(address, Dtype::Bf16);
    let cases: [(RawTensor, &str); 18] = [
        (RawTensor { params: f32_at(0), ..good() }, "params of tensor N must not be null"),
        (RawTensor { exp_avg: 0, ..good() }, "exp_avg of tensor N must not be null"),
        (RawTensor { exp_avg_sq: 0, ..good() }, "exp_avg_sq of tensor N must not be null"),
        (RawTensor { copy: Some(bf16_at(0)), ..good() }, "copy of tensor N must not be null"),
        (
            RawTensor { params: f32_at(0x1002), ..good() },
            "params of tensor N must be aligned to 4 bytes, got address 0x1002",
        ),
        (
            RawTensor { grads: bf16_at(0x1101), ..good() },
            "grads of tensor N must be aligned to 2 bytes, got address 0x1101",
        ),
        (RawTensor { exp_avg: 0x1201, ..good() }, "exp_avg of tensor N must be aligned to 4 bytes, got address 0x1201"),
        (
            RawTensor { exp_avg_sq: 0x1302, ..good() },
            "exp_avg_sq of tensor N must be aligned to 4 bytes, got address 0x1302",
        ),
        (
            RawTensor { copy: Some(bf16_at(0x1403)), ..good() },
            "copy of tensor N must be aligned to 2 bytes, got address 0x1403",
        ),
        (
            RawTensor { exp_avg: u64::MAX - 127, ..good() },
            "exp_avg of tensor N must end within 2^64 bytes, got 64 elements of 4 bytes at 0xffffffffffffff80",
        ),
        (
            RawTensor { grads: f32_at(0x1100), copy: None, len: 1 << 62, ..good() },
            "params of tensor N must end within 2^64 bytes, got 4611686018427387904 elements of 4 bytes at 0x1000",
        ),
        (
            RawTensor { grads: bf16_at(0x10fe), ..good() },
            "grads of tensor N must not overlap params of tensor N, both have address 0x10fe",
        ),
        (
            RawTensor { exp_avg: 0x10fc, ..good() },
            "exp_avg of tensor N must not overlap params of tensor N, both have address 0x10fc",
        ),
        (
            RawTensor { exp_avg_sq: 0x1200, ..good() },
            "exp_avg_sq of tensor N must not overlap exp_avg of tensor N, both have address 0x1200",
        ),
        (
            RawTensor { copy: Some(bf16_at(0x137e)), ..good() },
            "copy of tensor N must not overlap exp_avg_sq of tensor N, both have address 0x137e",
        ),
        (
            RawTensor { copy: Some(bf16_at(0x1100)), ..good() },
            "copy of tensor N must not overlap grads of tensor N, both have address 0x1100",
        ),
        (
            RawTensor { params: bf16_at(0x1000), ..good() },
            "tensor N: bf16 parameters with bf16 gradients and a bf16 copy",
        ),
        (
            RawTensor { params: bf16_at(0x1000), grads: at(0x1100, Dtype::F16), copy: None, ..good() },
            "tensor N: bf16 parameters with f16 gradients are not supported",
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
    let null = unsafe { gpu.kernels.step_raw(&RawTensor { grads: bf16_at(0), ..good() }, &coeffs(), ptr::null_mut()) };
    assert_eq!(null.unwrap_err().to_string(), "grads of tensor 0 must not be null");
    // SAFETY: as above.
    let set = unsafe { gpu.kernels.step_raw(&RawTensor { set: 1, ..good() }, &coeffs(), ptr::null_mut()) };
    assert!(matches!(set, Err(Error::Index { index: "set", len: 1, value: 1, .. })));
    let (p, grads, m, v) = (f32_at(1 << 62), bf16_at(1 << 61), 1 << 60, 1 << 63);
    let huge = RawTensor { params: p, grads, exp_avg: m, exp_avg_sq: v, copy: None, len: 1 << 42, set: 0 };
    // SAFETY: as above.
    let huge = unsafe { gpu.kernels.step_raw(&huge, &coeffs(), ptr::null_mut()) };
    assert!(matches!(huge, Err(Error::TooMany { .. })), "{huge:?}");
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
    assert!(matches!(TensorList::new(&gpu.kernels, &[]), Err(Error::Empty { list: "tensors" })));
    let tensors = [good(), moved(good(), 0x10_0000)];
    let mut list = TensorList::new(&gpu.kernels, &tensors).unwrap();
    assert!(matches!(list.update(&tensors[..1]), Err(Error::Count { expected: 2, actual: 1, .. })));
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
    let mut step = |sets: usize| {
        // SAFETY: refused before anything is launched.
        unsafe { list.step_raw(&vec![coeffs(); sets], gpu.raw_stream()) }.unwrap_err()
    };
    assert!(matches!(step(3), Error::Index { tensor: 1, index: "set", len: 3, value: 3 }));
    assert!(matches!(step(97), Error::TooMany { list: "sets", limit: 96, actual: 97 }));
    gpu.assert_nothing_launched();
}

fn streams_and_buffers_of_other_contexts_are_refused(gpu: &Gpu) {
    let other = gpu.other_context();
    let stream = other.new_stream().unwrap();
    let raw = stream.cu_stream().cast();
    // SAFETY: refused before anything is launched.
    let flat = unsafe { gpu.kernels.step_raw(&good(), &coeffs(), raw) };
    assert!(matches!(flat, Err(Error::Context { argument: "stream" })), "{flat:?}");
    let mut list = TensorList::new(&gpu.kernels, &[good()]).unwrap();
    // SAFETY: as above.
    let list = unsafe { list.step_raw(&[coeffs()], raw) };
    assert!(matches!(list, Err(Error::Context { argument: "stream" })), "{list:?}");
    let owner = DualAdam::new(&gpu.kernels, &stream, DualAdamConfig::default(), &[1]);
    assert!(matches!(owner, Err(Error::Context { argument: "stream" })), "{owner:?}");
    let per_thread = gpu.context.per_thread_stream();
    let owner = DualAdam::new(&gpu.kernels, &per_thread, DualAdamConfig::default(), &[1]);
    assert!(matches!(owner, Err(Error::PerThreadStream)), "{owner:?}");

    let mut foreign = stream.alloc_zeros::<f32>(4).unwrap();
    let mut own = [(); 3].map(|()| gpu.stream.alloc_zeros::<f32>(4).unwrap());
    let [g, m, v] = &mut own;
    let (m, v) = (&mut m.as_view_mut(), &mut v.as_view_mut());
    let step = cuda::step(&gpu.kernels, &gpu.stream, &mut foreign.as_view_mut(), &g.as_view(), m, v, &coeffs());
    assert!(matches!(step, Err(Error::Context { argument: "params" })), "{step:?}");
    let short = &foreign.as_view();
    let step = cuda::step(&gpu.kernels, &gpu.stream, m, &short.slice(1..), &mut g.as_view_mut(), v, &coeffs());
    assert!(matches!(step, Err(Error::Length { buffer: "grads", expected: 4, actual: 3, .. })), "{step:?}");
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
    assert!(matches!(step, Err(Error::Unordered { argument: "params" })), "{step:?}");
    let step = cuda::step(&gpu.kernels, stream, &mut own.as_view_mut(), &g.as_view(), m, v, coeffs);
    assert!(matches!(step, Err(Error::Unordered { argument: "grads" })), "{step:?}");

    let mut owner = DualAdam::new(&gpu.kernels, stream, DualAdamConfig::default(), &[4]).unwrap();
    let step = owner.step(&mut [(&mut *p).into()], &[None]);
    assert!(matches!(step, Err(Error::Unordered { argument: "params" })), "{step:?}");
    let step = owner.step(&mut [(&mut own).into()], &[Some((&*g).into())]);
    assert!(matches!(step, Err(Error::Unordered { argument: "grads" })), "{step:?}");
    gpu.assert_nothing_launched();

    // The kernels themselves may be of another value than stream and buffers.
    let stream = p.stream().clone();
    cuda::step(&gpu.kernels, &stream, &mut p.as_view_mut(), &g.as_view(), m, v, coeffs).unwrap();
}

fn the_owner_refuses_what_the_cpu_refuses(gpu: &Gpu) {
    let new = |config, lens: &[usize]| DualAdam::new(&gpu.kernels, &gpu.stream, config, lens);
    assert!(matches!(new(DualAdamConfig::default().with_lr(-1.0), &[1]), Err(Error::Value { name: "lr", .. })));
    assert!(matches!(new(DualAdamConfig::default(), &[usize::MAX]), Err(Error::TooMany { .. })));
    assert!(matches!(
        new(DualAdamConfig::default(), &[usize::MAX / 4 - 63]),
        Err(Error::Driver { call: "cuMemAllocAsync", .. })
    ));
    let layout = [dualadam::TensorLayout::new(4).with_master(), dualadam::TensorLayout::new(4).in_group(1)];
    let grouped = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout);
    assert!(matches!(grouped, Err(Error::Index { tensor: 1, index: "group", .. })));

    let mut owner =
        DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout[..1]).unwrap();
    let mut floats = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    let grads = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    assert!(matches!(owner.step(&mut [], &[]), Err(Error::Count { list: "params", expected: 1, actual: 0 })));
    let step = owner.step(&mut [(&mut floats).into()], &[Some((&grads).into())]);
    assert!(matches!(step, Err(Error::Types { tensor: 0, copy: Some(Dtype::F32), .. })), "{step:?}");
    let step = owner.step(&mut [floats.slice_mut(..3).into()], &[None]);
    assert!(matches!(step, Err(Error::Length { buffer: "params", expected: 4, actual: 3, .. })), "{step:?}");
    let mut half = gpu.stream.alloc_zeros::<dualadam::half::bf16>(4).unwrap();
    let step = owner.step_scaled(&mut [(&mut half).into()], &[Some((&grads).into())], -1.0);
    assert!(matches!(step, Err(Error::Value { name: "grad_multiplier", .. })), "{step:?}");
    let null = [Some(at(0, Dtype::F32))];
    // SAFETY: refused before anything is launched.
    let step = unsafe { owner.step_raw(&[at(0x1000, Dtype::Bf16)], &null, 1.0) };
    assert!(matches!(step, Err(Error::Null { tensor: 0, buffer: "grads" })), "{step:?}");
    assert!(matches!(owner.set_moments(0, 1, &[0.0; 3], &[0.0; 4]), Err(Error::Length { buffer: "exp_avg", .. })));
    assert!(matches!(owner.set_moments(0, 1, &[0.0; 4], &[-1.0; 4]), Err(Error::Value { name: "exp_avg_sq", .. })));
    assert!(matches!(owner.set_moments(1, 1, &[], &[]), Err(Error::Position { list: "tensor", .. })));
    assert!(matches!(owner.set_lr(1, 0.0), Err(Error::Position { list: "group", .. })));
    owner.set_moments(0, u64::MAX, &[0.0; 4], &[0.0; 4]).unwrap();
    let step = owner.step(&mut [(&mut half).into()], &[Some((&grads).into())]);
    assert!(matches!(step, Err(Error::StepOverflow { tensor: 0 })), "{step:?}");
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
        kernels.prepare(Dtype::F32, Dtype::F32, None).unwrap();
        kernels.prepare(Dtype::Bf16, Dtype::F32, None).unwrap();
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
