//! The shaders' text, which the build has joined and checked.

use crate::combination::Combination;

macro_rules! texts {
    ($($types:literal),+ $(,)?) => {
        /// The types, the text with the coefficients in a uniform buffer, and the one with immediates.
        const TEXTS: [(&str, &str, &str); Combination::COUNT] = [$((
            $types,
            include_str!(concat!(env!("OUT_DIR"), "/shaders/", $types, "_uniform.wgsl")),
            include_str!(concat!(env!("OUT_DIR"), "/shaders/", $types, "_immediate.wgsl")),
        )),+];
    };
}

// In the order of the combinations.
texts![
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

pub(super) fn text(combination: Combination, immediate: bool) -> &'static str {
    let (_, uniform, immediates) = TEXTS[combination.index()];
    if immediate { immediates } else { uniform }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::webgpu::layout;
    use crate::{StepCoeffs, overlap};

    #[test]
    fn each_combination_has_its_text() {
        for combination in Combination::all() {
            assert_eq!(TEXTS[combination.index()].0, combination.name());
        }
    }

    /// The build has compared the shaders with `layout`; this compares `layout` with the host.
    #[test]
    fn the_layout_is_that_of_the_host() {
        macro_rules! offsets {
            ($($field:ident),+) => { [$((stringify!($field), offset_of!(StepCoeffs, $field))),+] };
        }
        let host = offsets![
            one_minus_beta1,
            one_minus_beta2,
            inv_sqrt_bc2,
            eps,
            inverse_eps,
            inverse_scale,
            adam_scale,
            decay,
            l2,
            grad_scale
        ];
        for (place, (field, offset)) in host.into_iter().enumerate() {
            assert_eq!((field, offset), (layout::COEFFS[place], 4 * place));
        }
        assert_eq!(size_of::<StepCoeffs>(), layout::COEFFS_BYTES as usize);
        assert_eq!(layout::BUFFERS, overlap::BUFFERS);
    }
}
