//! What the shaders and the host must agree on. The build script reads this too, and fails where a
//! shader differs.

/// Invocations of a workgroup. Each serves four elements.
pub(crate) const WORKGROUP: u32 = 256;

/// The bind group of a tensor's buffers.
pub(crate) const TENSOR_GROUP: u32 = 0;
/// A tensor's buffers, by role, in the order of their bindings.
pub(crate) const ROLES: [&str; 5] = ["param", "grad", "exp_avg", "exp_avg_sq", "master"];

/// The bind group of the coefficients, where they are in a uniform buffer.
pub(crate) const COEFFS_GROUP: u32 = 1;
/// The fields of `StepCoeffs`, an f32 each.
pub(crate) const COEFFS: [&str; 10] = [
    "one_minus_beta1",
    "one_minus_beta2",
    "inv_sqrt_bc2",
    "eps",
    "inverse_eps",
    "inverse_scale",
    "adam_scale",
    "decay",
    "l2",
    "grad_scale",
];
/// The bytes of `StepCoeffs`.
pub(crate) const COEFFS_BYTES: u32 = 4 * COEFFS.len() as u32;

/// The entry points for whole quads of elements.
pub(crate) const QUADS: [&str; 2] = ["dual_adam", "adam"];
/// The entry points for what is left of a tensor, in the same order.
pub(crate) const TAILS: [&str; 2] = ["dual_adam_tail", "adam_tail"];
/// The entry points that set masters from their parameters: whole quads, and what is left. Only
/// where there are masters.
pub(crate) const SET_MASTERS: [&str; 2] = ["set_masters", "set_masters_tail"];
