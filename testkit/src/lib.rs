//! What several tests and benchmarks share. No test reaches behind the library's public API through
//! it.

pub mod bound;
pub mod contract;
pub mod data;
pub mod device;
pub mod golden;
pub mod laws;
pub mod model;
pub mod refused;
pub mod require;
pub mod state;
pub mod stats;
pub mod tensor;
pub mod values;
pub mod variant;

/// One generic function with the static types of each variant, in the order of the table: of
/// parameters and gradients; and where there are masters, another one.
#[macro_export]
macro_rules! for_each_variant {
    ($plain:ident, $master:ident) => {{
        use dualadam::half::{bf16, f16};
        [
            $plain::<f32, f32>,
            $plain::<f32, bf16>,
            $plain::<f32, f16>,
            $plain::<bf16, bf16>,
            $plain::<bf16, f32>,
            $plain::<f16, f16>,
            $plain::<f16, f32>,
            $master::<bf16, f32>,
            $master::<bf16, bf16>,
            $master::<f16, f32>,
            $master::<f16, f16>,
        ]
    }};
}
