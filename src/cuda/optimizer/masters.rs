//! Bringing the masters of both optimizers up to date with parameters that other code has written.

use crate::cuda::buffer::Buffer;
use crate::cuda::driver;
use crate::cuda::error::{CudaArgument, CudaError};
use crate::cuda::launch::{flat_blocks, launch_sync_master};
use crate::cuda::stream::{check_buffer, check_capture};
use crate::tensor::{MasterPair, RawBuffer, Role, check_count};

use super::shared::Shared;
use super::{CapturableDualAdam, DualAdam};

impl DualAdam {
    /// Enqueues that the masters take over what other code wrote into their parameters since the
    /// last step.
    ///
    /// Without this call, the next step overwrites such changes: a clamp, a pruning mask, loaded
    /// weights. [`cpu::sync_master`](crate::cpu::sync_master) states what happens to each element.
    ///
    /// `params` has an entry for each tensor, in the optimizer's order; they are only read. Tensors
    /// without masters are passed over. So are tensors before their first update, which sets the
    /// masters from the parameters.
    ///
    /// The call does not wait for the device. A CUDA graph can capture it after the optimizer's
    /// first step with masters; the graph keeps the addresses.
    ///
    /// # Errors
    ///
    /// These launch nothing:
    ///
    /// - [`ListError::Count`](crate::ListError::Count) if `params` does not have an entry for each
    ///   tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) for a buffer of another length
    ///   than its tensor.
    /// - [`TensorProblem::MasterFormats`](crate::TensorProblem::MasterFormats) for parameters that
    ///   have masters and are not bf16 or f16.
    /// - [`CudaError::Context`] for a buffer of another context.
    /// - [`CudaError::Unordered`] for a buffer of another `CudaContext` value than the stream's.
    /// - [`CudaError::Captured`] in a capture, if no kernels for the formats are loaded.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    ///
    /// This may leave some masters as they were; the call can be repeated:
    ///
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{DualAdam, Kernels};
    /// use dualadam::{DualAdamConfig, TensorSpec, half::bf16};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let specs = [TensorSpec::new(1).with_master()];
    /// let mut optimizer = DualAdam::with_groups(&kernels, &stream, &[DualAdamConfig::adam()], &specs)?;
    /// let (mut w, grad) = (stream.clone_htod(&[bf16::ONE])?, stream.clone_htod(&[bf16::ONE])?);
    /// optimizer.step([(&mut w).into()], [Some((&grad).into())])?;
    /// stream.memcpy_htod(&[bf16::from_f32(0.5)], &mut w)?; // other code writes the parameter
    /// optimizer.sync_masters([(&w).into()])?;
    /// assert_eq!(optimizer.state()?.arrays[0].master, Some(vec![0.5]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sync_masters<'a>(&mut self, params: impl IntoIterator<Item = Buffer<'a>>) -> Result<(), CudaError> {
        let Self { shared, .. } = self;
        // SAFETY: `with_params` passes addresses that are as `sync_masters_raw` requires.
        shared.with_params(params, |params| unsafe { shared.sync_masters(params, |tensor| shared.word_if_set(tensor)) })
    }

    /// [`sync_masters`](Self::sync_masters) with addresses, on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - The errors of [`sync_masters`](Self::sync_masters).
    /// - The errors of [`Kernels::sync_master_raw`](crate::cuda::Kernels::sync_master_raw) for
    ///   addresses, of tensors that are not passed over.
    ///
    /// # Safety
    ///
    /// - From now until the work has run, the parameters of each tensor that is not passed over are
    ///   device memory of the kernels' context, of the tensor's length and of their format.
    /// - The caller orders this work against writes to that memory, on any stream.
    /// - A graph that captured the call is launched only while the requirements above hold.
    pub unsafe fn sync_masters_raw(&mut self, params: &[RawBuffer]) -> Result<(), CudaError> {
        let Self { shared, .. } = self;
        // SAFETY: the parameters are as required (this function's requirements).
        unsafe { shared.sync_masters(params, |tensor| shared.word_if_set(tensor)) }
    }
}

impl CapturableDualAdam {
    /// [`DualAdam::sync_masters`](super::DualAdam::sync_masters). The device knows which tensors
    /// have had their first update.
    ///
    /// # Errors
    ///
    /// - The errors of [`DualAdam::sync_masters`](super::DualAdam::sync_masters).
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    pub fn sync_masters<'a>(&mut self, params: impl IntoIterator<Item = Buffer<'a>>) -> Result<(), CudaError> {
        let Self { shared, control } = self;
        control.check_interrupted()?;
        // SAFETY: `with_params` passes addresses that are as `sync_masters_raw` requires.
        shared.with_params(params, |params| unsafe { shared.sync_masters(params, |set| Some(control.masters(set))) })
    }

    /// [`sync_masters`](Self::sync_masters) with addresses, on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - The errors of [`sync_masters`](Self::sync_masters).
    /// - The errors of [`Kernels::sync_master_raw`](crate::cuda::Kernels::sync_master_raw) for
    ///   addresses, of tensors with masters.
    ///
    /// # Safety
    ///
    /// - The requirements of
    ///   [`DualAdam::sync_masters_raw`](super::DualAdam::sync_masters_raw) hold for each tensor
    ///   with masters.
    pub unsafe fn sync_masters_raw(&mut self, params: &[RawBuffer]) -> Result<(), CudaError> {
        let Self { shared, control } = self;
        control.check_interrupted()?;
        // SAFETY: the parameters are as required (this function's requirement).
        unsafe { shared.sync_masters(params, |set| Some(control.masters(set))) }
    }
}

impl Shared {
    /// Where the device finds whether a tensor's masters are set: 0 for "they are". `None` if they
    /// are not, as the ledger says.
    fn word_if_set(&self, tensor: usize) -> Option<u64> {
        (!self.ledger.sets_master(tensor)).then_some(0)
    }

    /// Checks the parameters that a call was given and passes their addresses to `enqueue`. cudarc
    /// orders that work with other uses of the buffers.
    fn with_params<'a>(
        &self,
        params: impl IntoIterator<Item = Buffer<'a>>,
        enqueue: impl FnOnce(&[RawBuffer]) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Self { ledger, kernels, stream, .. } = self;
        let mut buffers = vec![];
        ledger.collect("params", params, &mut buffers)?;
        for (tensor, param) in buffers.iter().enumerate() {
            ledger.check_len(tensor, Role::Param, param.len())?;
            let argument = CudaArgument::of_buffer(tensor, Role::Param);
            let checked = check_buffer(kernels.context(), stream, param.own_stream(), argument);
            checked.map_err(|error| error.named(ledger))?;
        }
        let _current = kernels.enter()?;
        // The guards are dropped after the work is enqueued: cudarc then records what later uses of
        // the buffers must wait for.
        let (addresses, _guards): (Vec<_>, Vec<_>) = buffers.iter().map(|param| param.raw(stream)).unzip();
        // cudarc returns no error from the calls above if it cannot order the work; it keeps the
        // error.
        stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
        enqueue(&addresses)
    }

    /// Enqueues that masters take over what was written into their parameters. `word` returns the
    /// address of a tensor's word for the kernel, 0 if the masters are set, or `None` to pass the
    /// tensor over.
    ///
    /// # Safety
    ///
    /// - Until the work has run, the parameters of each tensor with masters that is not passed over
    ///   are device memory of the kernels' context, of the tensor's length and of their format.
    /// - The caller orders this work against writes to that memory.
    /// - A word is memory that only work on the optimizer's stream writes.
    unsafe fn sync_masters(&self, params: &[RawBuffer], word: impl Fn(usize) -> Option<u64>) -> Result<(), CudaError> {
        let (kernels, stream) = (&self.kernels, self.raw_stream());
        check_count("params", self.ledger.len(), params.len())?;
        let mut pairs = vec![];
        for (tensor, &param) in params.iter().enumerate() {
            if let (Some((len, master)), Some(word)) = (self.moments.master(tensor), word(tensor)) {
                let pair = MasterPair { len, param, master };
                pair.check(tensor).map_err(|error| self.ledger.named(error))?;
                pairs.push((pair, flat_blocks(len)?, word));
            }
        }
        pairs.retain(|(pair, ..)| pair.len > 0);
        if pairs.is_empty() {
            return Ok(());
        }
        let _current = kernels.enter()?;
        // SAFETY: the stream is live as long as the optimizer, and its context is current.
        let is_captured = unsafe { check_capture(kernels.context(), stream) }?;
        let functions = pairs.iter().map(|(pair, ..)| kernels.sync_master_function(pair, is_captured));
        let functions = functions.collect::<Result<Vec<_>, _>>()?;
        let mut launches = pairs.iter().zip(functions);
        let launched = launches.try_for_each(|((pair, blocks, word), function)| {
            // SAFETY: the context is current, the stream live, and the kernel that of the formats.
            // The parameters and the word are as the kernel expects them (this function's
            // requirements). The masters are the optimizer's own, and all of their uses are on this
            // stream.
            unsafe { launch_sync_master(function, *blocks, pair, *word, stream) }
        });
        // SAFETY: the stream is live as long as the optimizer, and has all work that uses the
        // optimizer's memory. Its context is current.
        unsafe { if is_captured { self.last_use.note_in_graph(stream) } else { self.last_use.note(stream) } }
        launched
    }
}
