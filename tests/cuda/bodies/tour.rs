//! One short round through every entry and every path of the host: enough for checkers that make each access a hundred times slower,
//! such as compute-sanitizer.

use dualadam::DualAdamConfig;
use dualadam::cuda::TensorList;

use crate::common::data::Inputs;

use super::Body;
use super::buffers::{COMBINATIONS, Host};
use super::flat;
use super::gpu::Gpu;
use super::lists::{Model, step};
use super::owner::{self, Model as Parameters};

pub(crate) const TESTS: &[Body] = bodies!["tour":
    flat_entries,
    list_entries,
    the_owner,
];

fn flat_entries(gpu: &Gpu) {
    let configs = [DualAdamConfig::default(), DualAdamConfig::adamw(0.1)];
    for types in COMBINATIONS {
        for config in configs {
            let coeffs = config.coeffs(2).unwrap();
            for (size, offsets) in [(2051, [0; 5]), (2051, [1; 5]), (2051, [1, 2, 3, 2, 1]), (3, [3; 5]), (0, [0; 5])] {
                let host = Host::new(types, &Inputs::random(1, size), offsets, 0);
                flat::check(gpu, host, &coeffs, &format!("{types:?}"));
            }
        }
    }
}

/// With few sets and with more than fit in an argument; a gradient elsewhere, and one that is missing.
fn list_entries(gpu: &Gpu) {
    for count in [3, 100] {
        let sets: Vec<_> = (1..=count).map(|step| DualAdamConfig::default().coeffs(step).unwrap()).collect();
        let sizes: Vec<_> = (0..100).map(|i| [37, 0, 4099, 5][i % 4]).collect();
        let mut model = Model::new(gpu, &sizes, |i| i % sets.len());
        let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
        for left_alone in [2, 23] {
            let mut raw = model.raw();
            raw[left_alone].grad.address = 0;
            list.update(&raw).unwrap();
            step(gpu, &mut list, &sets);
            model.hosts.iter_mut().enumerate().filter(|(i, _)| *i != left_alone).for_each(|(_, host)| host.step(&sets));
        }
        model.assert_same(gpu, &format!("{count} sets"));
    }
}

fn the_owner(gpu: &Gpu) {
    let mut parameters = Parameters::new(gpu);
    let mut optimizer = owner::optimizer(gpu).unwrap();
    for round in 0..3 {
        parameters.step(gpu, &mut optimizer, round, |tensor| round == 1 && tensor == 2).unwrap();
    }
    parameters.assert_same(gpu, &optimizer);
}
