//! One short round through every entry and every path of the host: enough for checkers that make
//! each access a hundred times slower, such as compute-sanitizer.

use dualadam::DualAdamConfig;
use testkit::laws::{self, by_cpu};
use testkit::{Inputs, Tensor, Variant};

use super::flat::flat;
use super::owner::models;
use super::{Body, Gpu, Twin, twin};

pub(crate) const TESTS: &[Body] = bodies!["tour":
    flat_entries,
    list_entries,
    the_owner,
];

fn flat_entries(gpu: &Gpu) {
    let sets = [DualAdamConfig::default(), DualAdamConfig::adamw(0.1)].map(|config| config.coeffs(2).unwrap());
    let shapes = [(2051, [0; 5]), (2051, [1; 5]), (2051, [1, 2, 3, 2, 1]), (3, [3; 5]), (0, [0; 5])];
    for variant in Variant::all() {
        let tensor = |(len, offsets)| Tensor::padded(variant.formats(), &Inputs::random(1, len), offsets);
        let tensors = [0, 1].iter().flat_map(|&set| shapes.map(|shape| tensor(shape).with_set(set)));
        laws::check(&flat(gpu), &by_cpu, tensors.collect(), &sets, "flat");
    }
}

/// With few sets and with more than fit in an argument; a gradient elsewhere, and one that is
/// missing.
fn list_entries(gpu: &Gpu) {
    for count in [3, 100] {
        let sets: Vec<_> = (1..=count).map(|step| DualAdamConfig::default().coeffs(step).unwrap()).collect();
        let sizes: Vec<_> = (0..100).map(|i| [37, 0, 4099, 5][i % 4]).collect();
        let mut twins = Twin::all(gpu, laws::mixed(&sizes, |i| i % sets.len()));
        let mut list = gpu.list(&twins);
        for skipped in [2, 23] {
            let mut raw = twin::raw(&twins);
            raw[skipped].grad.address = 0;
            list.update(&raw).unwrap();
            gpu.step_list(&mut list, &sets).unwrap();
            twins.iter_mut().enumerate().filter(|(i, _)| *i != skipped).for_each(|(_, twin)| twin.expect(&sets));
        }
        twin::assert_all_same(gpu, &twins, &format!("{count} sets"));
    }
}

fn the_owner(gpu: &Gpu) {
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    for round in 0..3 {
        models.set_grads(round);
        models.step(&mut optimizer, |tensor| round == 1 && tensor == 2);
    }
    models.assert_same(&optimizer, "after three steps");
}
