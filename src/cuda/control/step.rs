//! Controlled steps: steps of a list with coefficients that the device forms.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::error::{CudaArgument, CudaError};
use crate::cuda::launch::{CoeffsArguments, launch_prepare_sets};
use crate::cuda::list::TensorList;
use crate::cuda::stream::check_capture;
use crate::tensor::RawTensor;

use super::block::send;
use super::layout::DeviceSet;
use super::{Control, RawScalars};

impl TensorList {
    /// Enqueues one DualAdam step on `stream`, with coefficients that the device forms.
    ///
    /// The `coeffs_index` of a tensor names its set in `control`. `scalars` has the addresses of
    /// the loss scale, the clip factor and the found-inf flag. `stream` is a `CUstream`, which is
    /// the same as a `cudaStream_t`; null is the default stream.
    ///
    /// A small kernel runs first, for each set that a tensor with a gradient names. It advances the
    /// set's step counter and forms the coefficients, with the bits of
    /// [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled) for the multiplier
    /// clip factor / loss scale. If the step cannot be made, the kernel skips the set: its counter
    /// and all bytes of its tensors stay as they are. [`SkipReason`](crate::SkipReason) lists the
    /// reasons, and [`Control::report`] returns the last one.
    ///
    /// The call reads nothing from the device and does not allocate. If it has changes to send, it
    /// blocks only when all four staging slots are in flight.
    ///
    /// # Captures
    ///
    /// A CUDA graph can capture the step, and its launches go on counting. The capture allocates
    /// device memory. The graph keeps the tensors, which of them have gradients, and the addresses
    /// in `scalars`. Each launch reads the learning rates, configs and counters of that moment.
    ///
    /// # Errors
    ///
    /// These launch nothing:
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor with a set
    ///   that is not in `control`.
    /// - [`CudaError::Context`] for a control or a stream of another context.
    /// - [`CudaError::Address`] for a scalar that is not aligned to 4 bytes.
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    ///
    /// This may leave part of the step made:
    ///
    /// - [`CudaError::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work
    ///   on the device failed. If the counters had advanced by then, `control` returns
    ///   [`CudaError::Interrupted`] until [`Control::set_steps`]. If it happens in a capture, do
    ///   not launch the graph: it may advance counters without stepping the tensors.
    ///
    /// # Safety
    ///
    /// - The requirements of [`step_raw`](TensorList::step_raw) hold, also for each launch of a
    ///   graph that captured this step.
    /// - The addresses in `scalars`, and those that `control` was given, are device memory of the
    ///   kernels' context until the work has run. No tensor of the list overlaps them.
    /// - The caller orders all uses of `control` against each other. Each step writes to the memory
    ///   of all of its sets.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawScalars, TensorList};
    /// use dualadam::{DualAdamConfig, SkipReason};
    /// # use dualadam::cuda::cudarc::driver::DevicePtr;
    /// # use dualadam::{RawBuffer, RawTensor};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let cudarc_stream = kernels.context().default_stream();
    /// # let memory = cudarc_stream.clone_htod(&[0.5_f32; 64])?;
    /// # let flag = cudarc_stream.clone_htod(&[1.0_f32])?;
    /// # let (start, found_inf) = (memory.device_ptr(&cudarc_stream).0, flag.device_ptr(&cudarc_stream).0);
    /// # let [param, grad, exp_avg, exp_avg_sq] = [0, 64, 128, 192].map(|at| RawBuffer::f32(start + at));
    /// # let tensor = RawTensor::new(16, param, grad, exp_avg, exp_avg_sq);
    /// # let stream = cudarc_stream.cu_stream().cast();
    /// let mut list = TensorList::new(&kernels, &[tensor])?;
    /// let group = ControlGroup::new(DualAdamConfig::default());
    /// let mut control = Control::new(&kernels, &[group], &[ControlSet::new(0)])?;
    /// // SAFETY: the addresses are live memory of their types, and all of their uses are on this stream.
    /// let report = unsafe {
    ///     list.step_controlled(&mut control, &RawScalars::default(), stream)?;
    ///     // `found_inf` is the address of a 1.
    ///     list.step_controlled(&mut control, &RawScalars::default().with_found_inf(found_inf), stream)?;
    ///     control.report(stream)?
    /// };
    /// assert_eq!((report[0].step, report[0].skipped), (1, 1));
    /// assert_eq!(report[0].last_skip, Some(SkipReason::FoundInf));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn step_controlled(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        self.check_control(control, scalars)?;
        let has_gradient = |tensor: &&RawTensor| tensor.grad.address != 0;
        control.set_active(self.tensors().iter().filter(has_gradient).map(|tensor| tensor.coeffs_index));
        // SAFETY: `step_active` has the requirements of this function, and `check_control` has
        // passed.
        unsafe { self.step_active(control, scalars, stream) }
    }

    /// Checks the arguments of [`step_active`](Self::step_active), except for the stream.
    pub(in crate::cuda) fn check_control(&self, control: &Control, scalars: &RawScalars) -> Result<(), CudaError> {
        if control.kernels.context().cu_ctx() != self.kernels().context().cu_ctx() {
            return Err(CudaError::Context { argument: CudaArgument::Control });
        }
        control.check_interrupted()?;
        scalars.check()?;
        Ok(self.checked().check_coeffs(control.len())?)
    }

    /// [`step_controlled`](Self::step_controlled) for the active sets of the control.
    ///
    /// # Safety
    ///
    /// - The requirements of [`step_controlled`](Self::step_controlled) hold.
    /// - [`check_control`](Self::check_control) has passed.
    pub(in crate::cuda) unsafe fn step_active(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let _current = self.kernels().enter()?;
        // SAFETY: `stream` is live (`step_raw`'s first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self.kernels().context(), stream) }?;
        let shares_last_use = Arc::ptr_eq(self.last_use(), &control.last_use);
        let (memory, sets) = if is_captured {
            // The graph gets its own copy of the sets, since later steps change which are active.
            // SAFETY: `stream` is live, and the context is current.
            let places = unsafe { self.memory_for_graph(bytemuck::cast_slice(&control.sets), stream) }?;
            if !shares_last_use {
                // SAFETY: `stream` is live, and the context is current.
                unsafe { control.last_use.note_in_graph(stream) };
            }
            places
        } else {
            // SAFETY: `stream` is live and not captured, the context is current, and earlier uses
            // of list and control are ordered before (`step_controlled`'s requirements).
            unsafe {
                control.send_active(stream)?;
                self.send_changes(&[], stream)?;
            }
            (self.memory(), control.block.sets())
        };
        // SAFETY: the context is current and `stream` is live. The scalars, and what `control` has
        // in the caller's memory, are live (`step_controlled`'s second requirement).
        let stepped = unsafe { control.launch(sets, scalars, stream) }.and_then(|()| {
            let block = &control.block;
            let arguments = CoeffsArguments { on_device: block.coeffs(), by_value: &[], skips: block.skips() };
            // SAFETY: the context is current and `stream` is live. The tables and the coefficients
            // lie there once the work that was enqueued before has run. The buffers are as
            // `step_raw` requires.
            let launched = unsafe { self.launch(memory, arguments, stream, |_| ()) };
            // The counters of tensors that were not stepped have advanced.
            control.is_interrupted |= launched.is_err() && !is_captured;
            launched
        });
        if !is_captured {
            // SAFETY: `stream` is live, and earlier uses of list and control are ordered before
            // this step (`step_controlled`'s requirements).
            unsafe {
                self.last_use().note(stream);
                if !shares_last_use {
                    control.last_use.note(stream);
                }
            }
        }
        stepped
    }
}

impl Control {
    /// Sets which sets the next step updates. The others keep their counters.
    pub(in crate::cuda) fn set_active(&mut self, sets: impl Iterator<Item = usize>) {
        self.active.fill(false);
        sets.for_each(|set| self.active[set] = true);
        for (index, (set, &active)) in self.sets.iter_mut().zip(&self.active).enumerate() {
            if set.active != u32::from(active) {
                set.active = active.into();
                let Range { start, end } = self.changed;
                self.changed = if start == end { index..index + 1 } else { start.min(index)..end.max(index + 1) };
            }
        }
    }

    /// Sends which sets are active, if that has changed.
    ///
    /// # Safety
    ///
    /// - `stream` is live and not captured, and the kernels' context is current.
    /// - Earlier uses of the control are ordered before work that is enqueued on `stream` now.
    unsafe fn send_active(&mut self, stream: *mut c_void) -> Result<(), CudaError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let changed = bytemuck::cast_slice(&self.sets[self.changed.clone()]);
        let to = self.block.sets() + (size_of::<DeviceSet>() * self.changed.start) as u64;
        // SAFETY: the context is current, and `stream` is live, not captured and ordered after
        // earlier uses (this function's requirements). `to` is the address of these sets.
        unsafe { send(&mut self.staging, &self.last_use, changed, to, stream) }?;
        self.changed = 0..0;
        Ok(())
    }

    /// Launches the kernel that prepares the coefficients of the sets, which lie at `sets`.
    ///
    /// # Safety
    ///
    /// - The kernels' context is current, and `stream` is null or a live stream of it.
    /// - The scalars, and the counters and learning rates in the caller's memory, are live until
    ///   the kernel has run.
    unsafe fn launch(&self, sets: u64, scalars: &RawScalars, stream: *mut c_void) -> Result<(), CudaError> {
        let Self { block, prepare_sets, .. } = self;
        let memory = [block.groups(), sets, block.states(), block.coeffs(), block.skips()];
        let scalars = [scalars.loss_scale, scalars.clip_factor, scalars.found_inf];
        // SAFETY: the context is current, and the stream and the caller's memory are live (this
        // function's requirements). The control's own memory is as the kernel expects it.
        unsafe { launch_prepare_sets(*prepare_sets, memory, self.sets.len() as u32, scalars, stream) }
    }
}
