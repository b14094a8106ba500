//! The WebGPU backend on a device: its shaders run through wgpu and are compared with the CPU
//! backend.

mod accuracy;
mod bad_input;
mod bound;
mod gpu;
mod host;
mod lists;
mod masters;
mod owner;
mod refused;
mod storage;

use gpu::{Device, Gpu, STORAGE};
use host::Uploaded;
use testkit::device::{self, DeviceTest};

const TESTS: &[DeviceTest<Gpu>] = &[
    ("uniform_coefficients", accuracy::uniform_coefficients),
    ("immediate_coefficients", accuracy::immediate_coefficients),
    ("every_configuration", |gpu| accuracy::every_configuration(&gpu.device)),
    ("special_values_stay_among_themselves", |gpu| accuracy::special_values_stay_among_themselves(&gpu.device)),
    ("untouched_parameters_stay", |gpu| accuracy::untouched_parameters_stay(&gpu.device)),
    ("absent_terms_are_absent", accuracy::absent_terms_are_absent),
    ("second_moments_saturate", accuracy::second_moments_saturate),
    ("two_hundred_steps_in_one_submit", accuracy::two_hundred_steps_in_one_submit),
    ("all_16_bit_patterns_load", storage::all_16_bit_patterns_load),
    ("all_16_bit_patterns_stay", storage::all_16_bit_patterns_stay),
    ("ties_and_extremes_store", storage::ties_and_extremes_store),
    ("mixed_types_and_a_set_for_each_tensor", lists::mixed_types_and_a_set_for_each_tensor),
    ("nothing_to_do", |gpu| lists::nothing_to_do(&gpu.device)),
    ("updates", |gpu| lists::updates(&gpu.device)),
    ("updates_bind_what_changed", |gpu| lists::updates_bind_what_changed(&gpu.device)),
    ("one_buffer_may_hold_everything", |gpu| lists::one_buffer_may_hold_everything(&gpu.device)),
    ("buffers_that_cannot_be_bound", |gpu| bad_input::buffers_that_cannot_be_bound(&gpu.device)),
    ("formats_without_a_shader", |gpu| bad_input::formats_without_a_shader(&gpu.device)),
    ("slices_end_where_they_end", |gpu| bad_input::slices_end_where_they_end(&gpu.device)),
    ("every_buffer_is_checked", |gpu| bad_input::every_buffer_is_checked(&gpu.device)),
    ("overlaps_are_refused", |gpu| bad_input::overlaps_are_refused(&gpu.device)),
    ("sets_out_of_range", bad_input::sets_out_of_range),
    ("sets_beyond_a_buffer", bad_input::sets_beyond_a_buffer),
    ("what_wgpu_refuses", bad_input::what_wgpu_refuses),
    ("a_lost_device", bad_input::a_lost_device),
    ("out_of_memory", bad_input::out_of_memory),
    ("small_devices", bad_input::small_devices),
    ("windows_and_rows", bad_input::windows_and_rows),
];

fn main() {
    device::run("webgpu", Gpu::new(), &[TESTS, masters::TESTS, owner::TESTS].concat()).exit();
}
