//! Macros for the hidden lines of documentation examples: a device to run on. They expand in the
//! example, which has the crates that they name, so that this crate needs none of them.

/// Starts the stand-in CUDA driver for a documentation example, and gives what keeps it: bind it
/// before anything else, so that it is dropped last. The example, which returns a `Result`, ends
/// here with success on systems that the stand-in does not support.
#[macro_export]
macro_rules! stand_in_or_return {
    () => {
        if cfg!(target_os = "linux") {
            stand_in_cuda::client::StandIn::start().expect("the stand-in driver")
        } else {
            return Ok(());
        }
    };
}

/// A WebGPU device with the default limits and its queue, for a documentation example. The example,
/// which returns a `Result`, ends here with success where there is no such device, unless
/// `DUALADAM_REQUIRE` names `webgpu`.
#[macro_export]
macro_rules! webgpu_or_return {
    () => {{
        use dualadam::webgpu::wgpu::{Instance, InstanceDescriptor};
        let found = async {
            // Making an instance would panic.
            if Instance::enabled_backend_features().is_empty() {
                return None;
            }
            let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
            let adapter = instance.request_adapter(&Default::default()).await.ok()?;
            adapter.request_device(&Default::default()).await.ok()
        };
        match pollster::block_on(found) {
            Some(found) => found,
            None if $crate::require::is_required("webgpu") => panic!("there is no WebGPU device"),
            None => return Ok(()),
        }
    }};
}

/// A storage buffer on a wgpu device with the bytes of an array.
#[macro_export]
macro_rules! webgpu_buffer {
    ($device:expr, $values:expr) => {{
        use dualadam::webgpu::wgpu::{BufferUsages, util::BufferInitDescriptor, util::DeviceExt};
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let values = $values;
        let contents = bytemuck::cast_slice(&values);
        $device.create_buffer_init(&BufferInitDescriptor { label: None, contents, usage })
    }};
}
