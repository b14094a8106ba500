//! A step of one tensor, and the coefficients for it, allocate nothing: counted by an allocator
//! that stands in for the system's.

use bytemuck::Zeroable;
use dualadam_capi::*;
use testkit::allocation::{Counting, allocations_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let (mut p, g, mut m, mut v) = (vec![1.0_f32; 1000], vec![0.5_f32; 1000], vec![0.0; 1000], vec![0.0; 1000]);
    let (mut config, mut tensor, mut coeffs) = (Zeroable::zeroed(), dualadam_tensor::zeroed(), Zeroable::zeroed());
    // SAFETY: the structs have these sizes.
    unsafe {
        assert_eq!(dualadam_config_init(&mut config, size_of::<dualadam_config>()), DUALADAM_STATUS_OK);
        assert_eq!(dualadam_tensor_init(&mut tensor, size_of::<dualadam_tensor>()), DUALADAM_STATUS_OK);
    }
    (tensor.param, tensor.grad) = (p.as_mut_ptr().cast(), g.as_ptr().cast());
    (tensor.exp_avg, tensor.exp_avg_sq) = (m.as_mut_ptr().cast(), v.as_mut_ptr().cast());
    tensor.len = 1000;
    let mut step = |step| {
        // SAFETY: the structs and the buffers live through the call.
        unsafe {
            let size = size_of::<dualadam_coeffs>();
            assert_eq!(dualadam_config_coeffs(&config, step, 1.0, &mut coeffs, size), DUALADAM_STATUS_OK);
            assert_eq!(dualadam_cpu_step(&tensor, &coeffs), DUALADAM_STATUS_OK);
        }
    };
    // The counter counts.
    assert_eq!(allocations_of(|| drop(std::hint::black_box(Box::new(1)))), 1);
    // The processor's features are looked up in the first step.
    step(1);
    assert_eq!(allocations_of(|| (2..=200).for_each(&mut step)), 0);
}
