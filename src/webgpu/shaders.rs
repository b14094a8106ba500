//! The shaders' text, which the build has joined and checked.

use crate::combination::Variant;

// `TEXTS`.
include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

pub(super) fn text(variant: Variant, immediate: bool) -> &'static str {
    let (uniform, immediates) = TEXTS[variant.index()];
    if immediate { immediates } else { uniform }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use crate::StepCoeffs;
    use crate::webgpu::layout;

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
    }
}
