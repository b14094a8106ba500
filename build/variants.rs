//! The names of the combinations of types that have kernels and shaders: of parameters, gradients and, if there is one, the copy.

pub(crate) const VARIANTS: [&str; 11] = [
    "f32_f32",
    "f32_bf16",
    "f32_f16",
    "bf16_bf16",
    "bf16_f32",
    "f16_f16",
    "f16_f32",
    "f32_f32_bf16",
    "f32_bf16_bf16",
    "f32_f32_f16",
    "f32_f16_f16",
];
