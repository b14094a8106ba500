//! The same inputs give the same bits, in every run and in every grouping into launches.

use dualadam::StepCoeffs;
use dualadam::cuda::TensorList;
use testkit::data::Inputs;
use testkit::laws::all_sets;
use testkit::tensor::Tensor;
use testkit::variant::Variant;

use super::Body;
use super::gpu::Gpu;
use super::twin::{self, Twin};

pub(crate) const TESTS: &[Body] = bodies!["repeats":
    runs_and_groupings_give_the_same_bits,
];

/// Tensors of all variants, ordinary and with special values, each with a set of its own.
fn tensors(sets: usize) -> Vec<Tensor> {
    let inputs = [Inputs::random(1, 9001), Inputs::special(), Inputs::random(2, 13)];
    let each = Variant::all().flat_map(|variant| inputs.iter().map(move |inputs| (variant.formats(), inputs)));
    let tensor = |(i, (formats, inputs))| Tensor::padded(formats, inputs, [1, 0, i % 3, 0, i % 4]).with_set(i % sets);
    each.enumerate().map(tensor).collect()
}

/// The bytes of all buffers after `steps` has made two steps of all tensors.
fn run(gpu: &Gpu, sets: &[StepCoeffs], steps: impl Fn(&[Twin])) -> Vec<Vec<u8>> {
    let twins = Twin::all(gpu, tensors(sets.len()));
    steps(&twins);
    let found: Vec<_> = twins.iter().map(|twin| twin.found(gpu)).collect();
    found.iter().flat_map(Tensor::contents).map(<[u8]>::to_vec).collect()
}

/// NaNs too: on one device their bits do not change either.
fn runs_and_groupings_give_the_same_bits(gpu: &Gpu) {
    let sets = all_sets();
    let one_by_one = |twins: &[Twin]| {
        for twin in twins.iter().chain(twins) {
            gpu.step(&twin.raw().with_coeffs_index(0), &sets[twin.host.set]).unwrap();
        }
    };
    // In lists of so many tensors, the last tensor first.
    let in_lists = |most: usize| {
        let sets = &sets;
        move |twins: &[Twin]| {
            let raw: Vec<_> = twin::raw(twins).into_iter().rev().collect();
            let mut lists: Vec<_> = raw.chunks(most).map(|raw| TensorList::new(&gpu.kernels, raw).unwrap()).collect();
            for _ in 0..2 {
                lists.iter_mut().for_each(|list| gpu.step_list(list, sets).unwrap());
            }
        }
    };
    let first = run(gpu, &sets, one_by_one);
    assert!(first == run(gpu, &sets, one_by_one), "one by one, again");
    for most in [usize::MAX, usize::MAX, 7, 1] {
        assert!(first == run(gpu, &sets, in_lists(most)), "in lists of {most}");
    }
}
