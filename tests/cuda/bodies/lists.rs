//! Lists of tensors.

use dualadam::cuda::TensorList;
use dualadam::cuda::cudarc::driver::result;
use dualadam::{DualAdamConfig, StepCoeffs};
use testkit::laws::{self, all_sets, by_cpu};
use testkit::tensor::map_addresses;
use testkit::{Inputs, Tensor, Variant, formats};

use super::{Body, GLOBAL, Gpu, Memory, Twin, capture, refused, twin, with_len};

pub(crate) const TESTS: &[Body] = bodies!["lists":
    a_list_of_everything_has_the_bits_of_the_cpu,
    lists_of_special_values_have_the_bits_of_the_cpu,
    more_sets_than_fit_in_an_argument,
    changes_travel_in_order_and_late,
    tensors_without_gradients_are_skipped,
    unchanged_lists_only_launch,
    a_capture_takes_tensors_and_sets_as_they_are,
    gradients_may_share_memory,
    lists_of_thousands_of_tensors_have_the_bits_of_the_cpu,
    runs_and_groupings_give_the_same_bits,
];

/// Steps the list on the device and the tensors on the CPU.
fn step(gpu: &Gpu, list: &mut TensorList, twins: &mut [Twin], sets: &[StepCoeffs]) {
    gpu.step_list(list, sets).unwrap();
    twins.iter_mut().for_each(|twin| twin.expect(sets));
}

/// All tensors in one list.
fn list(gpu: &Gpu) -> impl Fn(&mut [Tensor], &[StepCoeffs]) {
    |tensors, sets| {
        let twins = Twin::all(gpu, tensors.iter().cloned());
        let mut list = gpu.list(&twins);
        assert_eq!(list.len(), tensors.len());
        gpu.step_list(&mut list, sets).unwrap();
        tensors.iter_mut().zip(&twins).for_each(|(tensor, twin)| *tensor = twin.found(gpu));
    }
}

/// Sizes around every edge, several chunks, and empty tensors everywhere.
const SIZES: [usize; 40] = [
    0, 1, 3, 4, 5, 15, 16, 17, 255, 256, 257, 0, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 8193, 0, 0, 12289, 1, 2, 3,
    4, 5, 6, 7, 8, 9, 10, 0, 5000, 100, 0, 33, 64, 0,
];

fn a_list_of_everything_has_the_bits_of_the_cpu(gpu: &Gpu) {
    laws::lists(&list(gpu), &by_cpu, &SIZES);
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        let lists = stand_in.launches();
        assert_eq!(lists.len(), Variant::COUNT, "one launch for each variant: {lists:?}");
    }
}

/// Every variant alone, over sizes, with special values.
fn lists_of_special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    laws::values(&list(gpu), &by_cpu, &Inputs::special(), &all_sets());
}

fn more_sets_than_fit_in_an_argument(gpu: &Gpu) {
    for count in [95, 96, 97, 200] {
        let sizes: Vec<_> = (0..count).map(|i| i % 7).collect();
        let mut twins = Twin::all(gpu, laws::mixed(&sizes, |i| count - 1 - i));
        let mut list = gpu.list(&twins);
        for round in 1..=6 {
            let config = |i: usize| DualAdamConfig::default().with_lr(1e-3 * (i + 1) as f64);
            let sets: Vec<_> = (0..count).map(|i| config(i).coeffs(round).unwrap()).collect();
            step(gpu, &mut list, &mut twins, &sets);
        }
        twin::assert_all_same(gpu, &twins, &format!("{count} sets"));
    }
}

/// New gradients, new parameters and new sets in each step, while all steps before are pending.
fn changes_travel_in_order_and_late(gpu: &Gpu) {
    let sets = all_sets();
    let mut twins = Twin::all(gpu, laws::mixed(&SIZES, |_| 0));
    let mut list = gpu.list(&twins);
    let mut retired = vec![];
    for round in 0..12_usize {
        // Every third tensor gets a gradient elsewhere, every fifth a set.
        for (i, twin) in twins.iter_mut().enumerate() {
            if (i + round) % 3 == 0 {
                twin.host.set_grads(&Inputs::random((1000 * round + i) as u64, twin.host.len()).grad);
                let moved = Memory { address: late_memory(gpu, twin.host.grad.bytes()) };
                retired.push(std::mem::replace(&mut twin.memory[1], moved));
            }
            if (i + round) % 5 == 0 {
                twin.host.set = round % sets.len();
            }
        }
        list.update(&twin::raw(&twins)).unwrap();
        step(gpu, &mut list, &mut twins, &sets);
    }
    if let Some(stand_in) = &gpu.stand_in {
        assert!(stand_in.pending() > 3 * Variant::COUNT as u64, "steps were enqueued, and have not run");
    }
    twin::assert_all_same(gpu, &twins, "changing");
}

/// Memory filled in the order of the stream, without a wait that would let earlier steps run.
fn late_memory(gpu: &Gpu, content: &[u8]) -> u64 {
    // SAFETY: a context is current, and the memory is as long as the content.
    unsafe {
        let address = result::malloc_sync(content.len().max(1)).unwrap();
        if !content.is_empty() {
            result::memcpy_htod_async(address, content, gpu.stream.cu_stream()).unwrap();
        }
        address
    }
}

fn tensors_without_gradients_are_skipped(gpu: &Gpu) {
    let sets = all_sets();
    let mut twins = Twin::all(gpu, laws::mixed(&SIZES, |i| i % 3));
    let mut list = gpu.list(&twins);
    for round in 0..5 {
        let mut raw = twin::raw(&twins);
        for (i, tensor) in raw.iter_mut().enumerate() {
            if (i + round) % 2 == 0 {
                tensor.grad.address = 0;
            } else {
                twins[i].expect(&sets);
            }
        }
        list.update(&raw).unwrap();
        gpu.step_list(&mut list, &sets).unwrap();
    }
    twin::assert_all_same(gpu, &twins, "partly");
}

fn unchanged_lists_only_launch(gpu: &Gpu) {
    let sets = all_sets();
    let mut twins = Twin::all(gpu, laws::mixed(&[5000, 0, 17], |i| i));
    let mut list = gpu.list(&twins);
    // A change is sent once.
    twins[2].host.set = 5;
    let raw = twin::raw(&twins);
    list.update(&raw).unwrap();
    step(gpu, &mut list, &mut twins, &sets);
    gpu.context.synchronize().unwrap();
    // Of three variants one has an empty tensor only.
    gpu.launching_only([3, 3, 6, 3, 3, 6], || {
        for _ in 0..3 {
            list.update(&raw).unwrap();
            step(gpu, &mut list, &mut twins, &sets);
        }
    });
    if let Some(stand_in) = &gpu.stand_in {
        // Two launches of each step, and the event after them.
        assert_eq!(stand_in.pending(), 9);
    }
    twin::assert_all_same(gpu, &twins, "unchanged");
}

fn gradients_may_share_memory(gpu: &Gpu) {
    let sets = all_sets();
    let twins =
        [0, 1].map(|set| Twin::new(gpu, Tensor::new(formats("f32_f32"), &Inputs::random(1, 300)).with_set(set)));
    let mut raw = twins.each_ref().map(Twin::raw);
    raw[1].grad = raw[0].grad;
    gpu.step_list(&mut TensorList::new(&gpu.kernels, &raw).unwrap(), &sets).unwrap();
    for mut twin in twins {
        twin.expect(&sets);
        twin.assert_same(gpu, "shared");
    }
}

/// A list's step and a flat step in one graph, with changes in between, and with more sets than fit
/// in an argument. A copy from memory that is used again must not become part of the graph.
fn a_capture_takes_tensors_and_sets_as_they_are(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "f32_f32", 100);
    let mut raw = twin.raw();
    let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
    let coeffs = |step| DualAdamConfig::default().coeffs(step).unwrap();
    let flat_coeffs = DualAdamConfig::adam().coeffs(2).unwrap();
    // Loads what the flat step needs.
    gpu.step(&raw, &flat_coeffs).unwrap();
    twin.expect(&[flat_coeffs]);
    let graph = capture(&gpu.stream, GLOBAL, || {
        gpu.step_list(&mut list, &[coeffs(1)]).unwrap();
        gpu.step(&raw, &flat_coeffs).unwrap();
        raw.coeffs_index = 1;
        list.update(&[raw]).unwrap();
        gpu.step_list(&mut list, &[coeffs(1), coeffs(7)]).unwrap();
    });
    for _ in 0..2 {
        graph.launch().unwrap();
        [coeffs(1), flat_coeffs, coeffs(7)].into_iter().for_each(|coeffs| twin.expect(&[coeffs]));
    }
    twin.assert_same(gpu, "replayed");
    let many: Vec<_> = (1..=97).map(coeffs).collect();
    refused::too_many(gpu.step_list(&mut list, &many), "coeffs", 96, 97);
}

/// More tensors, and more chunks, than a block looks ahead.
fn lists_of_thousands_of_tensors_have_the_bits_of_the_cpu(gpu: &Gpu) {
    const LEN: usize = 3;
    let count = 4200;
    let coeffs = [DualAdamConfig::default().coeffs(1).unwrap()];
    for name in ["f32_f32", "bf16_bf16_master"] {
        let mut twin = Twin::of(gpu, name, LEN * count);
        let whole = twin.raw();
        let part = |i: usize| {
            with_len(map_addresses(whole, |address: u64, size: usize| address + (LEN * i * size) as u64), LEN as u64)
        };
        let mut list = TensorList::new(&gpu.kernels, &(0..count).map(part).collect::<Vec<_>>()).unwrap();
        gpu.step_list(&mut list, &coeffs).unwrap();
        twin.expect(&coeffs);
        twin.assert_same(gpu, name);
    }
}

/// Tensors of all variants, ordinary and with special values, each with a set of its own.
fn ordinary_and_special(sets: usize) -> Vec<Tensor> {
    let inputs = [Inputs::random(1, 9001), Inputs::special(), Inputs::random(2, 13)];
    let each = Variant::all().flat_map(|variant| inputs.iter().map(move |inputs| (variant.formats(), inputs)));
    let tensor = |(i, (formats, inputs))| Tensor::padded(formats, inputs, [1, 0, i % 3, 0, i % 4]).with_set(i % sets);
    each.enumerate().map(tensor).collect()
}

/// The bytes of all buffers after `steps` has made two steps of all tensors.
fn bytes_after(gpu: &Gpu, sets: &[StepCoeffs], steps: impl Fn(&[Twin])) -> Vec<Vec<u8>> {
    let twins = Twin::all(gpu, ordinary_and_special(sets.len()));
    steps(&twins);
    let found: Vec<_> = twins.iter().map(|twin| twin.found(gpu)).collect();
    found.iter().flat_map(Tensor::contents).map(<[u8]>::to_vec).collect()
}

/// The same inputs give the same bits, in every run and in every grouping into launches.
/// NaNs too: on one device their bits do not change either.
fn runs_and_groupings_give_the_same_bits(gpu: &Gpu) {
    let sets = all_sets();
    let one_by_one = |twins: &[Twin]| {
        for twin in twins.iter().chain(twins) {
            gpu.step(&twin.raw().with_coeffs_index(0), &sets[twin.host.set]).unwrap();
        }
    };
    // In lists of at most `most` tensors, the last tensor first.
    let in_lists = |most: usize| {
        let sets = &sets;
        move |twins: &[Twin]| {
            let raw: Vec<_> = twin::raw(twins).into_iter().rev().collect();
            let mut lists: Vec<_> = raw.chunks(most).map(|raw| TensorList::new(&gpu.kernels, raw).unwrap()).collect();
            (0..2).for_each(|_| lists.iter_mut().for_each(|list| gpu.step_list(list, sets).unwrap()));
        }
    };
    let first = bytes_after(gpu, &sets, one_by_one);
    assert!(first == bytes_after(gpu, &sets, one_by_one), "one by one, again");
    for most in [usize::MAX, usize::MAX, 7, 1] {
        assert!(first == bytes_after(gpu, &sets, in_lists(most)), "in lists of {most}");
    }
}
