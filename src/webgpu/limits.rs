//! The limits that a device needs, and the division of tensors that exceed a device's limits.

use super::error::WebGpuError;
use super::layout::{COEFFS_BYTES, WORKGROUP};

/// Elements that one invocation serves.
const QUAD: u64 = 4;
/// A window begins at a multiple of this many elements, or of more if the device's alignment is
/// larger.
const WINDOW_UNIT: u64 = 128;
/// The most elements in a window, so that every index in a shader fits in 32 bits.
const MOST_ELEMENTS: u64 = 1 << 31;

/// Limits with which a device is enough for [`Pipelines`](super::Pipelines).
///
/// They are [`wgpu::Limits::downlevel_defaults`], with four storage buffers in a shader stage. A
/// step with masters needs five. [`Pipelines::new`](super::Pipelines::new) checks only the limits
/// that the shaders need.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{required_limits, wgpu};
///
/// let required_limits = required_limits();
/// assert!(required_limits.check_limits(&wgpu::Limits::default())); // a default device is enough
/// let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
/// ```
#[must_use]
pub fn required_limits() -> wgpu::Limits {
    wgpu::Limits::downlevel_defaults()
}

/// Storage buffers in a shader stage, without and with masters.
const STORAGE_BUFFERS: [u32; 2] = [4, 5];

/// The limits of a device that the backend uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceLimits {
    storage_buffers: u32,
    workgroups: u32,
    /// The most elements in a window.
    pub(super) window: u64,
    /// The alignment of a binding's offset, in bytes.
    pub(super) storage_alignment: u64,
    pub(super) uniform_alignment: u64,
    pub(super) buffer_size: u64,
}

impl DeviceLimits {
    /// Fails if a limit of the device is too small for every step.
    pub(super) fn of(limits: &wgpu::Limits) -> Result<Self, WebGpuError> {
        let storage_alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        // 16-bit elements are the smallest. If a window of these is aligned, one of f32 is too.
        let unit = WINDOW_UNIT.max(storage_alignment / 2);
        for (limit, required, actual) in [
            ("max_bind_groups", 2, limits.max_bind_groups.into()),
            ("max_bindings_per_bind_group", STORAGE_BUFFERS[0].into(), limits.max_bindings_per_bind_group.into()),
            (
                "max_storage_buffers_per_shader_stage",
                STORAGE_BUFFERS[0].into(),
                limits.max_storage_buffers_per_shader_stage.into(),
            ),
            ("max_uniform_buffers_per_shader_stage", 1, limits.max_uniform_buffers_per_shader_stage.into()),
            (
                "max_dynamic_uniform_buffers_per_pipeline_layout",
                1,
                limits.max_dynamic_uniform_buffers_per_pipeline_layout.into(),
            ),
            ("max_uniform_buffer_binding_size", COEFFS_BYTES.into(), limits.max_uniform_buffer_binding_size),
            ("max_storage_buffer_binding_size", unit * 4, limits.max_storage_buffer_binding_size),
            (
                "max_compute_invocations_per_workgroup",
                WORKGROUP.into(),
                limits.max_compute_invocations_per_workgroup.into(),
            ),
            ("max_compute_workgroup_size_x", WORKGROUP.into(), limits.max_compute_workgroup_size_x.into()),
            ("max_compute_workgroups_per_dimension", 1, limits.max_compute_workgroups_per_dimension.into()),
        ] {
            if actual < required {
                return Err(WebGpuError::Limit { needed_by: "every step", limit, required, actual });
            }
        }
        let workgroups = limits.max_compute_workgroups_per_dimension;
        let by_binding = limits.max_storage_buffer_binding_size / 4;
        let by_dispatch = u64::from(workgroups).pow(2).saturating_mul(u64::from(WORKGROUP) * QUAD);
        let most = by_binding.min(by_dispatch).min(MOST_ELEMENTS);
        Ok(Self {
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroups,
            window: most / unit * unit,
            storage_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment.into(),
            buffer_size: limits.max_buffer_size,
        })
    }

    /// Fails if the device cannot bind the five buffers of a tensor with masters.
    pub(super) fn check_masters(&self) -> Result<(), WebGpuError> {
        let [_, required] = STORAGE_BUFFERS;
        if self.storage_buffers >= required {
            return Ok(());
        }
        Err(WebGpuError::Limit {
            needed_by: "a step with masters",
            limit: "max_storage_buffers_per_shader_stage",
            required: required.into(),
            actual: self.storage_buffers.into(),
        })
    }

    /// The windows of a tensor of `len` elements: the first element and the length of each.
    pub(super) fn windows(&self, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let window = self.window;
        (0..len.div_ceil(window)).map(move |index| (index * window, window.min(len - index * window)))
    }

    /// The grid for the whole quads of a window: the fewest rows, of equal length. `None` if there
    /// is no whole quad.
    pub(super) fn grid(&self, elements: u64) -> Option<[u32; 2]> {
        let workgroups = (elements / QUAD).div_ceil(u64::from(WORKGROUP));
        let rows = workgroups.div_ceil(u64::from(self.workgroups));
        // Fits in a u32, since a window has at most 2^21 workgroups.
        (rows > 0).then(|| [workgroups.div_ceil(rows) as u32, rows as u32])
    }

    /// Whether there are elements after the last whole quad.
    pub(super) fn has_tail(elements: u64) -> bool {
        !elements.is_multiple_of(QUAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut wgpu::Limits)) -> Result<DeviceLimits, WebGpuError> {
        let mut limits = required_limits();
        change(&mut limits);
        DeviceLimits::of(&limits)
    }

    #[test]
    fn windows_fit_in_bindings_and_grids() {
        let of = |binding, workgroups| {
            limits(|limits| {
                limits.max_storage_buffer_binding_size = binding;
                limits.max_compute_workgroups_per_dimension = workgroups;
            })
            .unwrap()
        };
        assert_eq!(of(128 << 20, 65535).window, 1 << 25);
        assert_eq!(of((128 << 20) - 1, 65535).window, (1 << 25) - 128);
        assert_eq!(of(u64::MAX, 65535).window, 1 << 31);
        assert_eq!(of(u64::MAX, 3).window, 9 * 1024);
        assert_eq!(of(512, 3).window, 128);
        let small = of(1024, 65535);
        assert_eq!(small.windows(0).count(), 0);
        assert_eq!(small.windows(256).collect::<Vec<_>>(), [(0, 256)]);
        assert_eq!(small.windows(513).collect::<Vec<_>>(), [(0, 256), (256, 256), (512, 1)]);
    }

    #[test]
    fn grids_cover_their_window_within_the_limit() {
        let of = |workgroups| limits(|limits| limits.max_compute_workgroups_per_dimension = workgroups).unwrap();
        assert_eq!(of(10).grid(3), None);
        assert_eq!(of(10).grid(4), Some([1, 1]));
        assert_eq!(of(10).grid(10 * 1024 + 3), Some([10, 1]));
        assert_eq!(of(10).grid(10 * 1024 + 4), Some([6, 2]));
        assert_eq!(of(10).grid(100 * 1024), Some([10, 10]));
        assert_eq!(of(65535).grid(1 << 31), Some([65536 * 32 / 33 + 1, 33]));
    }

    #[test]
    fn what_is_too_small_is_named() {
        let error = limits(|limits| limits.max_storage_buffers_per_shader_stage = 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "every step needs a device with max_storage_buffers_per_shader_stage of at least 4, it has 3"
        );
        let error = limits(|limits| limits.max_storage_buffer_binding_size = 511).unwrap_err();
        assert!(matches!(error, WebGpuError::Limit { required: 512, actual: 511, .. }), "{error:?}");
        let four = limits(|_| ()).unwrap();
        let error = four.check_masters().unwrap_err();
        assert!(matches!(error, WebGpuError::Limit { required: 5, actual: 4, .. }), "{error:?}");
        DeviceLimits::of(&wgpu::Limits::default()).unwrap().check_masters().unwrap();
    }
}
