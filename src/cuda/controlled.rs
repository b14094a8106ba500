//! The owning optimizer with its steps controlled on the device.

use std::ffi::c_void;

use cudarc::driver::{CudaView, DevicePtr};

use crate::owner;
use crate::{DualAdamConfig, Error, RawBuffer};

use super::checks::refuse_capture;
use super::control::{Control, ControlGroup, ControlSet, RawScalars, SetReport, SetStart};
use super::optimizer::{DualAdam, raw};
use super::slices::check_view;
use super::tensor::{Grads, ParamsMut};

/// Scalars in device memory that steer one step, each a view of one f32, or `None`; see [`RawScalars`].
#[derive(Debug, Default)]
pub struct Scalars<'a> {
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0.
    pub loss_scale: Option<CudaView<'a, f32>>,
    /// What the gradients are multiplied by after that: finite, at least 0.
    pub clip_factor: Option<CudaView<'a, f32>>,
    /// Anything but 0, NaN too, skips the step.
    pub found_inf: Option<CudaView<'a, f32>>,
}

/// The control of an optimizer: a set for each tensor.
#[derive(Debug)]
pub(super) struct DeviceControl {
    control: Control,
}

impl DeviceControl {
    /// # Safety
    ///
    /// As for [`Control::set_config`].
    pub(super) unsafe fn set_config(
        &mut self,
        group: usize,
        config: DualAdamConfig,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        // SAFETY: as this function requires.
        unsafe {
            if self.control.config(group)?.with_lr(config.lr) == config {
                self.control.set_lr(group, config.lr, stream)
            } else {
                self.control.set_config(group, config, stream)
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Control::steps`].
    pub(super) unsafe fn steps(&self, stream: *mut c_void) -> Result<Vec<u64>, Error> {
        // SAFETY: as this function requires.
        unsafe { self.control.steps(stream) }
    }

    /// # Safety
    ///
    /// As for [`Control::steps`], and the context must be current.
    pub(super) unsafe fn set_step(&mut self, tensor: usize, step: u64, stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: as this function requires.
        unsafe { self.control.set_step(tensor, step, stream) }
    }

    /// Each tensor's step, and whether it has no masters to set.
    ///
    /// # Safety
    ///
    /// As for [`Control::steps`].
    pub(super) unsafe fn steps_and_masters(&self, stream: *mut c_void) -> Result<Vec<(u64, bool)>, Error> {
        // SAFETY: as this function requires.
        unsafe { self.control.steps_and_masters(stream) }
    }
}

impl DualAdam {
    /// Moves step counters and learning rates to the device, where each step's coefficients are then formed and advanced, with the
    /// same bits. So steps can be captured in a CUDA graph that goes on counting, and be skipped by the device.
    ///
    /// [`set_lr`](Self::set_lr) and [`set_config`](Self::set_config) write device memory in the order of the optimizer's stream:
    /// launches of a graph there after them see them. [`step_of`](Self::step_of), [`state`](Self::state) and [`save`](Self::save)
    /// wait for the steps before and read the counters; the file is the same. [`step_scaled`](Self::step_scaled) takes no
    /// multiplier but 1.
    ///
    /// A CUDA graph that captured a step keeps the addresses of parameters and gradients, and works on the optimizer's moments, masters
    /// and counters. These stay until the graph is destroyed, even if the optimizer is dropped. [`load`](Self::load) gives the
    /// optimizer new memory: capture anew after it. The first step cannot be captured, unless [`prepare`](Self::prepare) came before.
    ///
    /// # Errors
    ///
    /// [`Error::Captured`] if the optimizer's stream is being captured, [`Error::Ptx`] if the driver refuses the kernel that prepares
    /// coefficients, [`Error::Driver`] for what the driver reports.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::DualAdamConfig;
    /// use dualadam::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    /// use dualadam::cuda::{DualAdam, Kernels, Scalars};
    ///
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().new_stream()?;
    /// // SAFETY: all work is on one stream, and cudarc's own events must not get into the graph.
    /// unsafe { kernels.context().disable_event_tracking() };
    /// let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// optimizer.enable_device_control()?;
    /// let (mut w, grads) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32, 1.0])?);
    /// let found_inf = stream.alloc_zeros::<f32>(1)?; // set by the caller's own check
    /// optimizer.prepare(&mut [(&mut w).into()], &[Some((&grads).into())])?;
    ///
    /// stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    /// let scalars = Scalars { found_inf: Some(found_inf.as_view()), ..Scalars::default() };
    /// optimizer.step_controlled(&mut [(&mut w).into()], &[Some((&grads).into())], &scalars)?;
    /// let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
    /// for graph in graph.iter().cycle().take(100) {
    ///     graph.launch()?;
    /// }
    /// assert_eq!(optimizer.step_of(0)?, 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn enable_device_control(&mut self) -> Result<(), Error> {
        if self.control.is_some() {
            return Ok(());
        }
        let _current = self.kernels.enter()?;
        // SAFETY: the stream lives as long as the optimizer.
        unsafe { refuse_capture(raw(&self.stream), "enabling device control") }?;
        let group = |&config: &DualAdamConfig| ControlGroup { config, lr: None };
        let groups: Vec<_> = self.groups.iter().map(group).collect();
        let sets: Vec<_> = self.tensors.iter().map(|tensor| ControlSet { group: tensor.group, step: None }).collect();
        let tensors = &self.tensors;
        let masters_unset = |index: usize| tensors[index].master_at.is_some() && !tensors[index].master_is_set;
        let start = |index: usize| SetStart { step: tensors[index].step, masters_unset: masters_unset(index) };
        let control = Control::with_states(&self.kernels, &groups, &sets, &self.last_use, start)?;
        self.control = Some(DeviceControl { control });
        // Only the device knows from now on.
        self.tensors.iter_mut().for_each(|tensor| tensor.step = 0);
        Ok(())
    }

    /// [`step`](Self::step), steered by scalars in device memory. The optimizer must have device control.
    ///
    /// Tensors whose step cannot be made are skipped, as [`SkipReason`](super::SkipReason) lists: their parameters, moments,
    /// masters and steps stay as they were. [`report`](Self::report) tells. Nothing waits for the device; a tensor's first
    /// update also takes its masters from the parameters there.
    ///
    /// A step can be captured in a CUDA graph, with gradients at new addresses too, once the optimizer has made a step or
    /// [`prepare`](Self::prepare). Later steps and captures change nothing in the graph. Its launches must be ordered with the
    /// optimizer's other work: best on its stream.
    ///
    /// # Errors
    ///
    /// [`Error::NoDeviceControl`]; as [`step`](Self::step), and for the scalars [`Error::Length`] if there is not exactly one
    /// element, [`Error::Context`] and [`Error::Unordered`]. [`Error::Captured`] for what cannot be captured. Nothing is launched then.
    /// [`Error::Driver`] for what the driver reports: if steps were counted of tensors that were not updated, the optimizer refuses
    /// to go on with [`Error::Interrupted`], and must [`load`](Self::load) a state.
    pub fn step_controlled(
        &mut self,
        params: &mut [ParamsMut<'_>],
        grads: &[Option<Grads<'_>>],
        scalars: &Scalars<'_>,
    ) -> Result<(), Error> {
        let stream = self.stream.clone();
        let views = [
            ("loss_scale", &scalars.loss_scale),
            ("clip_factor", &scalars.clip_factor),
            ("found_inf", &scalars.found_inf),
        ];
        for (name, view) in views {
            if let Some(view) = view {
                check_view(&self.kernels, &self.stream, name, view, 1)?;
            }
        }
        let _current = self.kernels.enter()?;
        // Until these are dropped, after the launch, cudarc knows that the work is to come.
        let used = views.map(|(_, view)| view.as_ref().map(|view| view.device_ptr(&stream)));
        let [loss_scale, clip_factor, found_inf] = used.each_ref().map(|used| used.as_ref().map_or(0, |used| used.0));
        let scalars = RawScalars { loss_scale, clip_factor, found_inf };
        // SAFETY: the addresses are made for that, and the scalars are views of the kernels' context; cudarc orders their later uses.
        self.with_addresses(params, grads, |optimizer, params, grads| unsafe {
            optimizer.step_controlled_raw(params, grads, &scalars)
        })
    }

    /// [`step_controlled`](Self::step_controlled) over addresses, on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// As [`step_controlled`](Self::step_controlled), what [`TensorList`](super::TensorList) refuses of addresses, and
    /// [`Error::Address`] for a scalar that is not aligned to 4 bytes.
    ///
    /// # Safety
    ///
    /// As for [`step_raw`](Self::step_raw), also for each time that a graph with this step is launched; and the addresses in `scalars`
    /// are device memory of the kernels' context until the work has run.
    pub unsafe fn step_controlled_raw(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        scalars: &RawScalars,
    ) -> Result<(), Error> {
        if !self.describe_controlled("step_controlled", params, grads)? {
            return Ok(());
        }
        let stream = raw(&self.stream);
        let (Some(list), Some(DeviceControl { control })) = (&mut self.list, &mut self.control) else {
            return Ok(());
        };
        list.check_control(control, scalars)?;
        // SAFETY: parameters, gradients and scalars are as this function requires; the rest is this optimizer's, whose work is all on
        // one stream.
        unsafe { list.step_active(control, scalars, stream) }
    }

    /// Makes what the first controlled step with these buffers needs, but steps nothing: that step can then be captured. The optimizer
    /// must have device control. Later steps need no such call, whatever their gradients' addresses are.
    ///
    /// A tensor without a gradient is taken to get gradients of its parameters' type. If its first one is of another type, that step
    /// cannot be captured.
    ///
    /// # Errors
    ///
    /// As [`step_controlled`](Self::step_controlled).
    pub fn prepare(&mut self, params: &mut [ParamsMut<'_>], grads: &[Option<Grads<'_>>]) -> Result<(), Error> {
        self.with_addresses(params, grads, Self::prepare_raw)
    }

    /// [`prepare`](Self::prepare) over addresses. They are only compared; nothing is read or written there.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare), and what [`TensorList`](super::TensorList) refuses of addresses.
    pub fn prepare_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), Error> {
        if !self.describe_controlled("prepare", params, grads)? && self.list.is_none() {
            self.update_list()?;
        }
        Ok(())
    }

    /// Brings list and control up to date on the host. Returns whether any tensor has a gradient.
    fn describe_controlled(
        &mut self,
        call: &'static str,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
    ) -> Result<bool, Error> {
        let Some(DeviceControl { control }) = &self.control else {
            return Err(Error::NoDeviceControl { call });
        };
        control.check_interrupted()?;
        owner::check_counts(self.tensors.len(), params.len(), grads.len())?;
        self.describe(params, grads)?;
        if grads.iter().all(Option::is_none) {
            return Ok(false);
        }
        self.next.iter_mut().enumerate().for_each(|(index, next)| next.set = index);
        self.update_list()?;
        self.mark_masters(grads);
        if let Some(DeviceControl { control }) = &mut self.control {
            control.set_active((0..grads.len()).filter(|&index| grads[index].is_some()));
        }
        Ok(true)
    }

    /// What became of each tensor's steps. Waits for the steps so far and reads it from the device. The optimizer must have device
    /// control.
    ///
    /// # Errors
    ///
    /// [`Error::NoDeviceControl`], [`Error::Captured`], [`Error::Interrupted`], and [`Error::Driver`] for what the driver reports.
    pub fn report(&self) -> Result<Vec<SetReport>, Error> {
        let Some(DeviceControl { control }) = &self.control else {
            return Err(Error::NoDeviceControl { call: "report" });
        };
        // SAFETY: the stream lives as long as the optimizer, whose work is all there.
        unsafe { control.report(raw(&self.stream)) }
    }
}
