//! The error type of the whole library.

use std::path::PathBuf;

use crate::Dtype;

/// What can be wrong with a call. Every variant names the argument, what is required of it and what it was.
///
/// A call that returns an error has written nothing, unless the error is the driver's ([`Error::Driver`]) or, where the call says so,
/// wgpu's ([`Error::Wgpu`]), or [`State::save`](crate::State::save) only failed to make a finished file durable.
///
/// # Example
///
/// ```
/// use dualadam::DualAdamConfig;
///
/// let error = DualAdamConfig::default().with_lr(-0.1).validate().unwrap_err();
/// assert_eq!(error.to_string(), "lr must be finite and at least 0, got -0.1");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number is outside the range that its name allows, as an f64 or after rounding to f32.
    #[error("{name} must {requirement}, got {value:?}")]
    Value {
        /// The argument or the coefficient formed from it.
        name: &'static str,
        /// The requirement that failed.
        requirement: &'static str,
        /// The value that was given or formed.
        value: f64,
    },
    /// Steps count from 1: step `t` is a tensor's `t`-th update.
    #[error("step must be at least 1, got 0")]
    StepZero,
    /// A tensor's step counter cannot grow further.
    #[error("step of tensor {tensor} must be below {max} to be updated, got {max}", max = u64::MAX)]
    StepOverflow {
        /// Position of the tensor in the list.
        tensor: usize,
    },
    /// A buffer's length differs from its tensor's.
    #[error("{buffer} of tensor {tensor} must have {expected} elements, got {actual}")]
    Length {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// Elements required.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// Two lists that belong together differ in length.
    #[error("{list} must have {expected} entries, got {actual}")]
    Count {
        /// The list.
        list: &'static str,
        /// Entries required.
        expected: usize,
        /// Entries given.
        actual: usize,
    },
    /// An index points past the end of its list.
    #[error("{index} of tensor {tensor} must be below {len}, got {value}")]
    Index {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The index: `set` or `group`.
        index: &'static str,
        /// Length of the list that it points into.
        len: usize,
        /// The index given.
        value: usize,
    },
    /// A position names no tensor or group of this optimizer.
    #[error("{list} must be below {len}, got {value}")]
    Position {
        /// What the position counts: `tensor` or `group`.
        list: &'static str,
        /// How many there are.
        len: usize,
        /// The position given.
        value: usize,
    },
    /// No kernel exists for this combination of element types.
    #[error(
        "tensor {tensor}: {params} parameters with {grads} gradients{} are not supported; \
         f32 takes any gradient, bf16 and f16 take their own type or f32, and a copy is 16-bit, beside f32 masters, \
         with f32 gradients or gradients of its own type",
        copy.map(|copy| format!(" and a {copy} copy")).unwrap_or_default()
    )]
    Types {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// Element type of the parameters that are updated (of the masters, where there are any).
        params: Dtype,
        /// Element type of the gradients.
        grads: Dtype,
        /// Element type of the copy.
        copy: Option<Dtype>,
    },
    /// A list that must have an entry has none.
    #[error("{list} must have at least one entry, got none")]
    Empty {
        /// The list.
        list: &'static str,
    },
    /// A list, or the work that it stands for, is longer than a launch can serve.
    #[error("{list} must number at most {limit}, got {actual}")]
    TooMany {
        /// What is counted.
        list: &'static str,
        /// The most that there can be.
        limit: u64,
        /// How many there are.
        actual: u64,
    },
    /// The machine lacks the memory that an optimizer's state takes.
    #[error("out of memory: tensor {tensor} needs memory for {elements} elements")]
    Memory {
        /// Position of the tensor in the list.
        tensor: usize,
        /// Elements of each of its arrays.
        elements: usize,
    },
    /// A buffer has no address, and its tensor is not empty.
    #[error("{buffer} of tensor {tensor} must not be null")]
    Null {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
    },
    /// A buffer's address is not a multiple of its element's size.
    #[error("{buffer} of tensor {tensor} must be aligned to {align} bytes, got address {address:#x}")]
    Misaligned {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// Its address.
        address: u64,
        /// Bytes of its element.
        align: usize,
    },
    /// A buffer would end beyond the last address.
    #[error(
        "{buffer} of tensor {tensor} must end within 2^64 bytes, got {len} elements of {size} bytes at {address:#x}"
    )]
    Extent {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// Its address.
        address: u64,
        /// Its elements.
        len: u64,
        /// Bytes of an element.
        size: usize,
    },
    /// Two buffers share memory, and at least one of them is written.
    #[error(
        "{buffer} of tensor {tensor} must not overlap {other_buffer} of tensor {other_tensor}, both have address {address:#x}"
    )]
    Overlap {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// Position of the other buffer's tensor.
        other_tensor: usize,
        /// The other buffer.
        other_buffer: &'static str,
        /// The first address that both have.
        address: u64,
    },
    /// A list's tensors keep the types and lengths that it was built with; only addresses and sets may change.
    #[error("{what} of tensor {tensor} must stay {expected}, got {actual}")]
    Fixed {
        /// Position of the tensor in the list.
        tensor: usize,
        /// What is fixed.
        what: &'static str,
        /// What it is.
        expected: String,
        /// What was given.
        actual: String,
    },
    /// There is no CUDA driver on this machine.
    #[error("no CUDA driver: libcuda cannot be opened; it comes with the NVIDIA driver")]
    NoDriver,
    /// The dynamic linker finds a CUDA toolkit's stub of libcuda, which is only there to link programs with, before the driver's.
    #[error("libcuda is the stub of a CUDA toolkit: take its folder out of the library search path (LD_LIBRARY_PATH)")]
    StubDriver,
    /// The CUDA driver is older than any that is supported.
    #[error(
        "the CUDA driver must support CUDA {}.{}, it supports {}.{}",
        required / 1000, required % 1000 / 10, found / 1000, found % 1000 / 10
    )]
    OldDriver {
        /// The oldest version, as 11040 for 11.4.
        required: i32,
        /// The driver's.
        found: i32,
    },
    /// The CUDA driver refused the kernels.
    #[error("the CUDA driver refused the kernels ({origin}) with {name} ({code}): {log}")]
    Ptx {
        /// The driver's code.
        code: i32,
        /// The code's name.
        name: String,
        /// Where the kernels' PTX is from: the version of its compiler.
        origin: &'static str,
        /// What the driver's compiler said.
        log: String,
    },
    /// A call of the CUDA driver failed. If it is not about this call, an earlier launch on the device failed.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The driver's function, or cudarc's around several.
        call: &'static str,
        /// The driver's code.
        code: i32,
        /// The code's name.
        name: String,
    },
    /// A stream or a buffer belongs to another CUDA context than the kernels.
    #[error("{argument} must belong to the kernels' CUDA context, it belongs to another")]
    Context {
        /// The argument.
        argument: &'static str,
    },
    /// A buffer belongs to another of cudarc's `CudaContext` values than the stream. Both stand for one CUDA context, but cudarc orders
    /// no work across them.
    #[error(
        "{argument} must belong to the same CudaContext value as the stream: cudarc orders no work across two of them"
    )]
    Unordered {
        /// The argument.
        argument: &'static str,
    },
    /// The per-thread default stream is another stream in each thread, so that nothing orders an optimizer's steps on it.
    #[error("an optimizer's stream must be the same in every thread, got the per-thread default stream")]
    PerThreadStream,
    /// The host would have to do something again for each launch of the graph, or would have to wait for a stream that is captured.
    #[error("{what} cannot be captured in a CUDA graph: do it before the capture begins")]
    Captured {
        /// What the call would have to do.
        what: &'static str,
    },
    /// An address that device control was given is null, misaligned, or overlaps another.
    #[error("{argument} must {requirement}, got address {address:#x}")]
    Address {
        /// What should be there, such as `step of set 3`.
        argument: String,
        /// The requirement that failed.
        requirement: String,
        /// The address.
        address: u64,
    },
    /// A learning rate lies in the caller's memory, which the library only reads.
    #[error("the lr of group {group} must not be set here: it is read from the caller's memory, write it there")]
    CallersLr {
        /// Position of the group.
        group: usize,
    },
    /// The call is for optimizers whose steps are controlled on the device.
    #[error("{call} must be called on an optimizer with device control, see enable_device_control")]
    NoDeviceControl {
        /// The method.
        call: &'static str,
    },
    /// The driver failed after the step counters on the device had advanced and before all tensors were stepped.
    #[error(
        "device control must be set anew before its next use: the driver failed in the middle of a step, and its step \
         counters no longer fit the tensors"
    )]
    Interrupted,
    /// A wgpu device cannot do what is asked of it.
    #[error("{needed_by} needs a device with {limit} of at least {required}, it has {actual}")]
    Limit {
        /// What needs it.
        needed_by: &'static str,
        /// The field of `wgpu::Limits`.
        limit: &'static str,
        /// The least value.
        required: u64,
        /// The device's value.
        actual: u64,
    },
    /// A wgpu buffer was made without the usage that a step needs.
    #[error("{buffer} of tensor {tensor} must be in a buffer with the usage STORAGE, it has {actual}")]
    Usage {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// The usages that it has.
        actual: String,
    },
    /// A view of a wgpu buffer does not begin where one can be bound.
    #[error(
        "{buffer} of tensor {tensor} must begin at a multiple of {align} bytes \
         (the device's min_storage_buffer_offset_alignment), got offset {offset}"
    )]
    Offset {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// The device's alignment.
        align: u64,
        /// The offset, in bytes.
        offset: u64,
    },
    /// A wgpu buffer ends before its tensor does.
    #[error(
        "{buffer} of tensor {tensor} must be in a buffer of at least {required} bytes \
         ({len} elements of {dtype} from byte {offset} on, up to a multiple of 4 bytes), it has {actual}"
    )]
    BufferSize {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// The tensor's elements.
        len: u64,
        /// Their type.
        dtype: Dtype,
        /// Where they begin, in bytes.
        offset: u64,
        /// Bytes required of the whole buffer.
        required: u128,
        /// Bytes of the whole buffer.
        actual: u64,
    },
    /// An optimizer's array for a tensor is larger than a buffer of the device may be.
    #[error(
        "{array} of tensor {tensor} must fit in a buffer of {limit} bytes (max_buffer_size), got {len} elements of f32"
    )]
    ArraySize {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The array: `exp_avg` or `master`.
        array: &'static str,
        /// The device's limit, in bytes.
        limit: u64,
        /// The tensor's elements.
        len: usize,
    },
    /// A call of wgpu failed.
    #[error("{call} of wgpu failed{}: {problem}", tensor.map(|tensor| format!(" for tensor {tensor}")).unwrap_or_default())]
    Wgpu {
        /// wgpu's function.
        call: &'static str,
        /// Position of the tensor that it was about, if it was about one.
        tensor: Option<usize>,
        /// What wgpu reported.
        problem: WgpuProblem,
    },
    /// A state file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A state file was read, and is not what it should be.
    #[error("state file {path}: {problem}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: StateProblem,
    },
}

/// What wgpu reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuProblem {
    /// The device has no memory left for it.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// The device is lost, or was destroyed.
    #[error("the device is lost")]
    DeviceLost,
    /// The arguments do not fit, such as a buffer that was destroyed or is another device's.
    #[error("{0}")]
    Validation(String),
    /// The driver failed, such as by refusing a shader.
    #[error("{0}")]
    Internal(String),
}

/// What is wrong with the content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateProblem {
    /// The file is shorter than any state file.
    #[error("it must have at least {min} bytes, it has {actual}")]
    TooShort {
        /// Bytes of the smallest state file.
        min: usize,
        /// Bytes of this one.
        actual: usize,
    },
    /// The content does not match the checksum at its end: a bit changed, or the file was cut.
    #[error("its CRC-32 must be {stored:08x} as stored at its end, it is {computed:08x}: the file is damaged or cut")]
    Checksum {
        /// The checksum stored in the file.
        stored: u32,
        /// The checksum of the bytes that were read.
        computed: u32,
    },
    /// The file was written by another version of the format.
    #[error("its format version must be {supported}, it is {found}")]
    Version {
        /// The version that this library reads and writes.
        supported: u32,
        /// The version of the file.
        found: u32,
    },
    /// The checksum is right, but the content is not that of a state file.
    #[error("its content is not that of a dualadam state: {0}")]
    Malformed(String),
    /// The state belongs to a model with other tensors.
    #[error("it holds another model's state: {what} must be {expected}, it is {found}")]
    Layout {
        /// What differs.
        what: String,
        /// What this optimizer has.
        expected: String,
        /// What the file has.
        found: String,
    },
}
