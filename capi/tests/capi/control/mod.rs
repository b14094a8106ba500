//! The CUDA functions whose steps the device controls, on the stand-in driver.

mod refused;
mod steps;
mod threads;

use std::ffi::c_void;
use std::sync::Arc;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaGraph, CudaStream};
use dualadam_capi::*;
use stand_in_cuda::client::StandIn;

use crate::calls::*;
use crate::cuda::{Memory, OnDevice, kernels, start};

fn group(config: &dualadam_config) -> dualadam_cuda_control_group {
    // SAFETY: the struct has that size.
    let group = filled(|group, size| unsafe { dualadam_cuda_control_group_init(group, size) });
    dualadam_cuda_control_group { config, ..group }
}

fn set(group: usize) -> dualadam_cuda_control_set {
    // SAFETY: the struct has that size.
    let set = filled(|set, size| unsafe { dualadam_cuda_control_set_init(set, size) });
    dualadam_cuda_control_set { group, ..set }
}

fn scalars() -> dualadam_cuda_scalars {
    // SAFETY: the struct has that size.
    filled(|scalars, size| unsafe { dualadam_cuda_scalars_init(scalars, size) })
}

fn control(
    kernels: dualadam_cuda_kernels,
    groups: &[dualadam_cuda_control_group],
    sets: &[dualadam_cuda_control_set],
) -> dualadam_cuda_control {
    let mut control = 0;
    // SAFETY: the structs and the result live through the call.
    ok(unsafe {
        dualadam_cuda_control_new(kernels, groups.as_ptr(), groups.len(), sets.as_ptr(), sets.len(), &mut control)
    });
    control
}

fn list(kernels: dualadam_cuda_kernels, tensors: &[dualadam_tensor]) -> dualadam_cuda_list {
    let mut list = 0;
    // SAFETY: the structs and the result live through the call.
    ok(unsafe { dualadam_cuda_list_new(kernels, tensors.as_ptr(), tensors.len(), &mut list) });
    list
}

/// A report that no call has written.
const NO_REPORT: dualadam_cuda_set_report =
    dualadam_cuda_set_report { size: 0, step: 9, skipped: 9, last_skip: 9, reserved: 9 };

/// Updates, skipped steps and the last reason of each set.
fn report(control: dualadam_cuda_control, count: usize, stream: *mut c_void) -> Vec<(u64, u64, u32)> {
    let mut reports = vec![NO_REPORT; count];
    let size = size_of::<dualadam_cuda_set_report>();
    // SAFETY: the array has an entry for each set.
    ok(unsafe { dualadam_cuda_control_report(control, reports.as_mut_ptr(), size, count, stream) });
    assert!(reports.iter().all(|report| report.size == size && report.reserved == 0));
    reports.iter().map(|report| (report.step, report.skipped, report.last_skip)).collect()
}

/// The coefficients of each set, without their sizes, as bits.
fn read_coeffs(control: dualadam_cuda_control, count: usize, stream: *mut c_void) -> Vec<[u32; 10]> {
    let mut found = vec![coeffs(&config(), 1, 1.0); count];
    // SAFETY: the array has an entry for each set.
    ok(unsafe { dualadam_cuda_control_coeffs(control, found.as_mut_ptr(), 48, count, stream) });
    assert!(found.iter().all(|found| found.size == 48));
    found.iter().map(bits).collect()
}

fn bits(coeffs: &dualadam_coeffs) -> [u32; 10] {
    fields(coeffs).map(f32::to_bits)
}

pub(crate) fn assert_clean(stand_in: &StandIn) {
    assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
}

/// What tests use: a device, a stream, kernels, and two tensors of two sets on the device and on
/// the host.
pub(crate) struct World {
    pub(crate) host: [Buffers; 2],
    pub(crate) device: [OnDevice; 2],
    pub(crate) tensors: [dualadam_tensor; 2],
    configs: [dualadam_config; 2],
    pub(crate) kernels: dualadam_cuda_kernels,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stand_in: StandIn,
}

impl World {
    pub(crate) fn new() -> Self {
        let stand_in = start();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let host = [Buffers::new(0, 1000), Buffers::new(1, 37)];
        let device = host.each_ref().map(OnDevice::new);
        let mut tensors = device.each_ref().map(OnDevice::tensor);
        tensors[1].coeffs_index = 1;
        let first = dualadam_config { switching_rate: 0.25, ..config() };
        let (weight_decay_kind, weight_decay) = (DUALADAM_DECAY_DECOUPLED, 0.1);
        let configs = [first, dualadam_config { weight_decay_kind, weight_decay, lr: 0.5, ..first }];
        Self { host, device, tensors, configs, kernels: kernels(), stream, context, stand_in }
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    fn groups(&self) -> [dualadam_cuda_control_group; 2] {
        self.configs.each_ref().map(group)
    }

    /// A control, and a list of the tensors.
    fn control_and_list(
        &self,
        groups: &[dualadam_cuda_control_group],
        sets: &[dualadam_cuda_control_set],
    ) -> (dualadam_cuda_control, dualadam_cuda_list) {
        (control(self.kernels, groups, sets), list(self.kernels, &self.tensors))
    }

    /// Frees these and the kernels.
    #[track_caller]
    fn free(&self, control: dualadam_cuda_control, list: dualadam_cuda_list) {
        ok(dualadam_cuda_control_free(control));
        ok(dualadam_cuda_list_free(list));
        ok(dualadam_cuda_kernels_free(self.kernels));
    }

    /// The step on the CPU.
    fn expect(&mut self, sets: [dualadam_coeffs; 2]) {
        let mut tensors = self.host.each_mut().map(Buffers::tensor);
        tensors[1].coeffs_index = 1;
        // SAFETY: the structs and the buffers live through the call.
        ok(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, sets.as_ptr(), 2) });
    }

    #[track_caller]
    pub(crate) fn assert_same(&self) {
        assert!(self.device.each_ref().map(OnDevice::read) == self.host);
    }

    fn capture(&self, work: impl FnOnce()) -> CudaGraph {
        self.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        work();
        self.stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap()
    }
}
