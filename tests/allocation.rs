//! A step allocates nothing. An allocator that stands in for the system's counts the allocations.
//!
//! A step that is large enough for several threads, and is called outside of a rayon worker, goes
//! through the pool's queue of injected jobs. rayon allocates a block of that queue for every 63
//! jobs; `a_large_step_outside_of_a_pool_allocates_only_rayons_queue` bounds this. A program that
//! must not allocate at all steps inside `ThreadPool::install`.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dualadam::cpu::{self, Buffer, BufferMut, DualAdam, Tensor};
use dualadam::half::bf16;
use dualadam::{DualAdamConfig, StepCoeffs, TensorSpec};
use rayon::{ThreadPool, ThreadPoolBuilder};
use testkit::allocation::{self, Counting, count_this_thread};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Steps before counting starts: threads allocate when they first work together.
const WARM_UP: usize = 50;
const STEPS: usize = 200;

/// Enough elements for several threads, even in the first tensor of a list alone.
const LARGE: usize = 150_000;

/// Each test holds this lock to its end, since all tests share the count.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Allocations that this thread and the pools' threads make in `STEPS` calls.
fn allocations_of(mut step: impl FnMut()) -> usize {
    (0..WARM_UP).for_each(|_| step());
    allocation::allocations_of(|| (0..STEPS).for_each(|_| step()))
}

/// Pools of one, two and three threads. They are never dropped, since threads that end allocate.
fn pools() -> &'static [ThreadPool; 3] {
    static POOLS: OnceLock<[ThreadPool; 3]> = OnceLock::new();
    POOLS.get_or_init(|| [1, 2, 3].map(|threads| counted(threads).build().unwrap()).map(started))
}

fn counted(threads: usize) -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().num_threads(threads).start_handler(|_| count_this_thread())
}

/// The pool, after each of its threads has run: a thread allocates data of its own when it first
/// takes work.
fn started(pool: ThreadPool) -> ThreadPool {
    pool.broadcast(|_| ());
    pool
}

/// The buffers of a flat f32 tensor.
struct Flat {
    params: Vec<f32>,
    grads: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

impl Flat {
    fn new(len: usize) -> Self {
        Self { params: vec![1.0; len], grads: vec![0.5; len], exp_avg: vec![0.0; len], exp_avg_sq: vec![0.0; len] }
    }

    fn step(&mut self, coeffs: &StepCoeffs) {
        cpu::step(&mut self.params, &self.grads, &mut self.exp_avg, &mut self.exp_avg_sq, coeffs).unwrap();
    }

    fn tensor(&mut self, coeffs_index: usize) -> Tensor<'_> {
        let Self { params, grads, exp_avg, exp_avg_sq } = self;
        Tensor::new(params, &*grads, exp_avg, exp_avg_sq).with_coeffs_index(coeffs_index)
    }
}

fn sets() -> [StepCoeffs; 2] {
    [1, 20_000].map(|step| DualAdamConfig::default().coeffs(step).unwrap())
}

/// Calls `measure` with one of each kind of step, over this many elements in all.
///
/// The caller's own lists are made beforehand, so that only the call is counted.
fn each_kind_of_step(elements: usize, measure: &mut dyn FnMut(&str, &mut (dyn FnMut() + Send))) {
    let sets = sets();
    let mut flat = Flat::new(elements);
    measure("step", &mut || flat.step(&sets[0]));
    measure("step after the switch", &mut || flat.step(&sets[1]));

    let mut model = vec![bf16::ONE; elements];
    measure("step_with_master", &mut || {
        let Flat { params, grads, exp_avg, exp_avg_sq } = &mut flat;
        cpu::step_with_master(&mut model, grads, exp_avg, exp_avg_sq, params, &sets[0]).unwrap();
    });

    flat.params.iter_mut().step_by(3).for_each(|master| *master = -*master);
    measure("sync_master", &mut || cpu::sync_master(&model, &mut flat.params).unwrap());

    // One large tensor, small ones and an empty one.
    let lens = [elements / 2, elements / 4, 0, elements / 8, 1, elements / 8 - 1];
    let mut buffers = lens.map(Flat::new);
    let mut index = 0;
    let mut tensors = buffers.each_mut().map(|buffers| {
        index += 1;
        buffers.tensor(index % 2)
    });
    measure("step_list", &mut || cpu::step_list(&mut tensors, &sets).unwrap());

    let specs: Vec<_> = lens.map(TensorSpec::new).into_iter().chain([TensorSpec::new(9).with_master()]).collect();
    let mut optimizer = DualAdam::with_groups(&[DualAdamConfig::default()], &specs).unwrap();
    let (mut params, grads) = (lens.map(|len| vec![1.0_f32; len]), lens.map(|len| vec![0.5_f32; len]));
    let (mut half, half_grad) = ([bf16::ONE; 9], [1.0_f32; 9]);
    let mut step = |optimizer: &mut DualAdam, multiplier: f64, without: Option<usize>| {
        let params = params.iter_mut().map(BufferMut::from).chain([(&mut half).into()]);
        let grads = grads.iter().map(Buffer::from).chain([(&half_grad).into()]).enumerate();
        let grads = grads.map(|(tensor, grad)| (Some(tensor) != without).then_some(grad));
        if multiplier == 1.0 {
            optimizer.step(params, grads)
        } else {
            optimizer.step_scaled(params, grads, multiplier)
        }
        .unwrap();
    };
    measure("DualAdam::step", &mut || step(&mut optimizer, 1.0, None));
    measure("DualAdam::step_scaled", &mut || step(&mut optimizer, 0.5, None));
    // Each tensor is at a step of its own, so that each needs its own coefficients. One tensor has
    // no gradient.
    for (tensor, &len) in lens.iter().enumerate() {
        optimizer.set_moments(tensor, 40 * tensor as u64, &vec![0.0; len], &vec![0.0; len]).unwrap();
    }
    measure("DualAdam::step of uneven tensors", &mut || {
        optimizer.set_lr(0, 1e-4).unwrap();
        step(&mut optimizer, 1.0, Some(1));
    });
}

#[test]
fn a_step_inside_a_pool_allocates_nothing() {
    let _guard = one_at_a_time();
    for pool in pools() {
        for elements in [1_000, LARGE] {
            each_kind_of_step(elements, &mut |name, step| {
                let allocations = pool.install(|| allocations_of(step));
                assert_eq!(allocations, 0, "{name} of {elements} elements on {} threads", pool.current_num_threads());
            });
        }
    }
}

/// Small work stays on the calling thread, whichever that is.
#[test]
fn a_small_step_outside_of_a_pool_allocates_nothing() {
    let _guard = one_at_a_time();
    for elements in [1_000, 32_000] {
        each_kind_of_step(elements, &mut |name, step| {
            assert_eq!(allocations_of(step), 0, "{name} of {elements} elements");
        });
    }
}

/// A large step from a thread outside the pool is one injected job, so only every 63rd may allocate
/// a block.
#[test]
fn a_large_step_outside_of_a_pool_allocates_only_rayons_queue() {
    let _guard = one_at_a_time();
    counted(2).build_global().unwrap();
    rayon::broadcast(|_| ());
    each_kind_of_step(LARGE, &mut |name, step| {
        let allocations = allocations_of(step);
        assert!(allocations <= STEPS.div_ceil(63), "{name}: {allocations} allocations in {STEPS} steps");
    });
}

/// Without this, the tests above could pass because nothing is counted.
#[test]
fn the_counter_sees_this_thread_and_the_pools() {
    let _guard = one_at_a_time();
    let allocate = || drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations_of(allocate), STEPS);
    for pool in pools() {
        let on_every_thread = || drop(pool.broadcast(|_| allocate()));
        assert!(allocations_of(on_every_thread) >= STEPS * pool.current_num_threads());
    }
}
