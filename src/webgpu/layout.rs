//! The layout that the shaders and the host share. The build script includes this file and fails if
//! a shader differs.

/// Invocations in a workgroup. Each serves four elements.
pub(crate) const WORKGROUP: u32 = 256;

/// The bind group of a tensor's buffers.
pub(crate) const TENSOR_GROUP: u32 = 0;
/// The roles of a tensor's buffers, in the order of their bindings.
pub(crate) const ROLES: [&str; 5] = ["param", "grad", "exp_avg", "exp_avg_sq", "master"];

/// The bind group of the coefficients, if they are in a uniform buffer.
pub(crate) const COEFFS_GROUP: u32 = 1;
/// The fields of `StepCoeffs`, each an f32.
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
/// The size of `StepCoeffs`, in bytes.
pub(crate) const COEFFS_BYTES: u32 = 4 * COEFFS.len() as u32;

/// The entry points for whole quads of elements.
pub(crate) const QUADS: [&str; 2] = ["dual_adam", "adam"];
/// The entry points for the last one to three elements, in the same order.
pub(crate) const TAILS: [&str; 2] = ["dual_adam_tail", "adam_tail"];
/// The entry points that set masters from parameters, for variants with masters: whole quads, and
/// the last one to three elements.
pub(crate) const SET_MASTERS: [&str; 2] = ["set_masters", "set_masters_tail"];
/// The entry points that bring masters up to date with changed parameters, likewise.
pub(crate) const SYNC_MASTERS: [&str; 2] = ["sync_masters", "sync_masters_tail"];
