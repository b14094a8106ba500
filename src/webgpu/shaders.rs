//! The text of the shaders, which the build script joined and checked.

use crate::tensor::Variant;

// `TEXTS`, in the order of the variants.
include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// The text of a variant, with the coefficients as immediates or in a uniform buffer.
pub(super) fn text(variant: Variant, immediate: bool) -> &'static str {
    let (uniform, immediates) = TEXTS[variant.index()];
    if immediate { immediates } else { uniform }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::rule::StepCoeffs;
    use crate::tensor::Role;
    use crate::webgpu::layout;

    /// The build script compares the shaders with `layout`; this compares `layout` with the host.
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
        assert_eq!(layout::ROLES, Role::ARRAY.map(Role::name));
        assert_eq!(TEXTS.len(), Variant::COUNT);
    }
}
