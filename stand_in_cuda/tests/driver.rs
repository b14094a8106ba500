//! The stand-in driver through cudarc, as a host layer uses it.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaStream, DriverError, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;
use stand_in_cuda::client::{StandIn, library_folder};

type Outcome<T> = Result<T, DriverError>;

/// `twice(x, n)`: doubles each float. `add(to, from, n)`: to += from. `far(x)`: writes past a
/// megabyte.
const PTX: &str = "
.version 6.3
.target sm_75
.address_size 64
.visible .entry twice(.param .u64 x, .param .u32 n)
{
    .reg .pred %p<2>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %d<8>;
    ld.param.u64 %d0, [x]; ld.param.u32 %r0, [n];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p0, %r4, %r0; @%p0 bra $end;
    mul.wide.u32 %d1, %r4, 4; add.s64 %d2, %d0, %d1;
    ld.global.f32 %f0, [%d2]; add.rn.f32 %f1, %f0, %f0; st.global.f32 [%d2], %f1;
$end:
    ret;
}
.visible .entry add(.param .u64 to, .param .u64 from, .param .u32 n)
{
    .reg .pred %p<2>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %d<8>;
    ld.param.u64 %d0, [to]; ld.param.u64 %d3, [from]; ld.param.u32 %r0, [n];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p0, %r4, %r0; @%p0 bra $end;
    mul.wide.u32 %d1, %r4, 4; add.s64 %d2, %d0, %d1; add.s64 %d4, %d3, %d1;
    ld.global.f32 %f0, [%d2]; ld.global.f32 %f1, [%d4]; add.rn.f32 %f2, %f0, %f1; st.global.f32 [%d2], %f2;
$end:
    ret;
}
.visible .entry far(.param .u64 x)
.maxntid 32
{
    .reg .b64 %d<2>;
    ld.param.u64 %d0, [x]; st.global.u32 [%d0+1048576], 1; ret;
}
";

struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    twice: CudaFunction,
    add: CudaFunction,
    far: CudaFunction,
}

fn device_of(context: Arc<CudaContext>) -> Outcome<Device> {
    // The tests say themselves what waits for what.
    // SAFETY: no test relies on cudarc's own events.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let module = context.load_module(Ptx::from_src(PTX))?;
    let [twice, add, far] = ["twice", "add", "far"].map(|name| module.load_function(name));
    Ok(Device { context, stream, twice: twice?, add: add?, far: far? })
}

fn start() -> StandIn {
    StandIn::start().unwrap_or_else(|error| panic!("{error}"))
}

fn device() -> Device {
    device_of(CudaContext::new(0).expect("a context")).expect("a device")
}

/// The stand-in, its first device and a second stream. They are dropped in the opposite order.
fn setup() -> (StandIn, Device, Arc<CudaStream>) {
    let (stand_in, device) = (start(), device());
    let other = device.context.new_stream().expect("a stream");
    (stand_in, device, other)
}

fn grid(n: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (n.div_ceil(64).max(1), 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 }
}

impl Device {
    /// A graph of what `work` enqueues on the stream.
    fn capture(&self, mode: CUstreamCaptureMode, work: impl FnOnce()) -> Outcome<Option<CudaGraph>> {
        self.stream.begin_capture(mode).expect("a capture");
        work();
        self.stream.end_capture(sys::CUgraphInstantiate_flags(0))
    }

    fn synchronize(&self) {
        self.stream.synchronize().expect("a wait");
    }

    fn twice(&self, stream: &CudaStream, x: u64, n: u32) -> Outcome<()> {
        // SAFETY: the interpreter checks every access.
        unsafe { stream.launch_builder(&self.twice).arg(&x).arg(&n).launch(grid(n)) }.map(|_| ())
    }

    fn add(&self, stream: &CudaStream, to: u64, from: u64, n: u32) -> Outcome<()> {
        // SAFETY: the interpreter checks every access.
        unsafe { stream.launch_builder(&self.add).arg(&to).arg(&from).arg(&n).launch(grid(n)) }.map(|_| ())
    }

    fn far(&self, stream: &CudaStream, x: u64) -> Outcome<()> {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the interpreter checks every access.
        unsafe { stream.launch_builder(&self.far).arg(&x).launch(config) }.map(|_| ())
    }
}

/// Device memory without an owner: freed with its context.
fn allocate(floats: usize) -> u64 {
    // SAFETY: the stand-in checks each use.
    unsafe { result::malloc_sync(4 * floats) }.expect("memory")
}

/// Allocates memory, copies values there and waits until they have arrived.
fn filled(values: &[f32]) -> u64 {
    let address = allocate(values.len());
    // SAFETY: as long as the values.
    unsafe { result::memcpy_htod_sync(address, values) }.expect("a copy");
    result::ctx::synchronize().expect("a wait");
    address
}

fn read(address: u64, floats: usize) -> Vec<f32> {
    let mut values = vec![0.0; floats];
    // SAFETY: as long as the values.
    unsafe { result::memcpy_dtoh_sync(&mut values, address) }.expect("a copy");
    values
}

/// Pinned floats that the test may change while copies are pending.
struct Pinned {
    pointer: *mut f32,
    floats: usize,
}

impl Pinned {
    fn new(values: &[f32]) -> Self {
        // SAFETY: written below before it is read.
        let pointer = unsafe { result::malloc_host(4 * values.len(), 0) }.expect("pinned memory").cast::<f32>();
        let mut pinned = Self { pointer, floats: values.len() };
        pinned.slice().copy_from_slice(values);
        pinned
    }

    fn slice(&mut self) -> &mut [f32] {
        // SAFETY: `floats` floats were allocated; the stand-in copies only inside of driver calls,
        // none of which runs now.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.floats) }
    }

    fn upload(&mut self, address: u64, stream: &CudaStream) -> Outcome<()> {
        // SAFETY: the stand-in checks the range.
        unsafe { result::memcpy_htod_async(address, self.slice(), stream.cu_stream()) }
    }

    fn download(&mut self, address: u64, stream: &CudaStream) -> Outcome<()> {
        // SAFETY: the stand-in checks the range.
        unsafe { result::memcpy_dtoh_async(self.slice(), address, stream.cu_stream()) }
    }

    fn free(&self) -> Outcome<()> {
        // SAFETY: allocated by `malloc_host`; each test frees once.
        unsafe { result::free_host(self.pointer.cast()) }
    }
}

fn code<T>(outcome: Outcome<T>) -> CUresult {
    match outcome {
        Ok(_) => CUresult::CUDA_SUCCESS,
        Err(DriverError(code)) => code,
    }
}

// ---- The plain path ----

#[test]
fn cudarc_finds_the_stand_in_and_runs_a_kernel() {
    let stand_in = start();
    // SAFETY: asks the dynamic linker only.
    assert!(unsafe { sys::is_culib_present() });
    for has_pools in [1, 0] {
        stand_in.set_attribute(115, has_pools);
        let context = CudaContext::new(0).expect("a context");
        assert_eq!(context.name().expect("a name"), "Stand-in device 0");
        assert_eq!(context.compute_capability().expect("a capability"), (9, 0));
        let device = device_of(context).expect("a device");
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let mut on_device = device.stream.clone_htod(&values).expect("a copy");
        let n = 1000u32;
        // SAFETY: the interpreter checks every access.
        unsafe { device.stream.launch_builder(&device.twice).arg(&mut on_device).arg(&n).launch(grid(n)) }
            .expect("a launch");
        let back = device.stream.clone_dtoh(&on_device).expect("a copy");
        assert!(back.iter().zip(&values).all(|(after, before)| *after == 2.0 * before));
        assert_eq!(stand_in.calls("cuMemAllocAsync") > 0, has_pools == 1 || stand_in.calls("cuMemAlloc_v2") > 0);
    }
    assert_eq!(stand_in.launches(), [("twice".to_owned(), 16, 64), ("twice".to_owned(), 16, 64)]);
    assert_eq!(stand_in.stats().loads, [0, 0, 2000, 0, 0]);
    assert!(stand_in.stats().instructions > 2 * 16 * 64 * 10);
    assert_eq!(stand_in.violations(), [""; 0]);
    stand_in.run_pending();
    assert_eq!((stand_in.live("context"), stand_in.live("memory"), stand_in.live("stream")), (0, 0, 0));
    assert_eq!((stand_in.live("event"), stand_in.live("module"), stand_in.pending()), (0, 0, 0));
}

#[test]
fn a_child_process_finds_it_by_its_search_path() {
    let _stand_in = start();
    let folder = library_folder().expect("a folder");
    let child = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "in_a_child_process", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .expect("a child");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
}

#[test]
#[ignore = "runs as the child of another test"]
fn in_a_child_process() {
    let context = CudaContext::new(1).expect("a context");
    assert_eq!(context.name().expect("a name"), "Stand-in device 1");
}

// ---- As late as the order permits ----

#[test]
fn nothing_runs_before_somebody_waits() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 64]);
    let done = stand_in.launches().len();
    device.twice(&device.stream, x, 64).expect("a launch");
    assert_eq!((stand_in.pending(), stand_in.launches().len()), (1, done));
    device.synchronize();
    assert_eq!((stand_in.pending(), stand_in.launches().len()), (0, done + 1));
    assert_eq!(read(x, 64), [2.0; 64]);
}

#[test]
fn a_pinned_buffer_that_is_reused_too_early_shows() {
    let (stand_in, device) = (start(), device());
    let (x, y) = (allocate(4), allocate(4));
    let mut pinned = Pinned::new(&[1.0; 4]);
    pinned.upload(x, &device.stream).expect("a copy");
    pinned.slice().fill(2.0);
    pinned.upload(y, &device.stream).expect("a copy");
    device.synchronize();
    assert_eq!(read(x, 4), [2.0; 4], "the copy reads when it runs");
    // With an event between, it is right.
    pinned.slice().fill(3.0);
    pinned.upload(x, &device.stream).expect("a copy");
    device.stream.record_event(None).expect("an event").synchronize().expect("a wait");
    pinned.slice().fill(4.0);
    pinned.upload(y, &device.stream).expect("a copy");
    device.synchronize();
    assert_eq!((read(x, 4), read(y, 4)), (vec![3.0; 4], vec![4.0; 4]));
    pinned.free().expect("a free");
    assert_eq!(stand_in.violations(), [""; 0]);
}

#[test]
fn pageable_memory_is_taken_at_the_call_and_filled_before_it_returns() {
    let (_stand_in, device) = (start(), device());
    let x = allocate(4);
    let mut values = vec![1.0f32; 4];
    // SAFETY: as long as the allocation.
    unsafe { result::memcpy_htod_async(x, &values, device.stream.cu_stream()) }.expect("a copy");
    values.fill(9.0);
    // SAFETY: as long as the allocation.
    unsafe { result::memcpy_dtoh_async(&mut values, x, device.stream.cu_stream()) }.expect("a copy");
    assert_eq!(values, [1.0; 4]);
}

#[test]
fn a_pinned_result_is_not_there_before_the_wait() {
    let (_stand_in, device) = (start(), device());
    let x = filled(&[5.0; 4]);
    let mut pinned = Pinned::new(&[0.0; 4]);
    pinned.download(x, &device.stream).expect("a copy");
    assert_eq!(pinned.slice(), [0.0; 4]);
    device.synchronize();
    assert_eq!(pinned.slice(), [5.0; 4]);
    pinned.free().expect("a free");
}

#[test]
fn pinned_memory_freed_under_a_copy_is_reported() {
    let (stand_in, device) = (start(), device());
    let x = allocate(4);
    let mut pinned = Pinned::new(&[0.0; 4]);
    pinned.upload(x, &device.stream).expect("a copy");
    pinned.free().expect("a free");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].contains("pinned memory that was freed"));
}

// ---- Order between streams ----

#[test]
fn a_missing_wait_between_streams_is_reported_whichever_runs_first() {
    for first_runs_first in [true, false] {
        let (stand_in, device, other) = setup();
        let x = filled(&[1.0; 64]);
        device.twice(&device.stream, x, 64).expect("a launch");
        device.twice(&other, x, 64).expect("a launch");
        let order = if first_runs_first { [&device.stream, &other] } else { [&other, &device.stream] };
        assert_eq!(code(order[0].synchronize()), CUresult::CUDA_SUCCESS);
        assert_eq!(code(order[1].synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let text = &stand_in.violations()[0];
        assert!(text.contains("missing order: cuLaunchKernel of twice on stream"), "{text}");
    }
}

#[test]
fn an_event_or_a_wait_of_the_host_orders_streams() {
    let (stand_in, device, other) = setup();
    let x = filled(&[1.0; 64]);
    device.twice(&device.stream, x, 64).expect("a launch");
    other.wait(&device.stream.record_event(None).expect("an event")).expect("a wait");
    device.twice(&other, x, 64).expect("a launch");
    other.synchronize().expect("a wait");
    // The host knows that all of it is done.
    device.twice(&device.stream, x, 64).expect("a launch");
    device.synchronize();
    assert_eq!(read(x, 64), [8.0; 64]);
    // Reading together needs no order.
    let (a, b) = (filled(&[0.0; 64]), filled(&[0.0; 64]));
    device.add(&device.stream, a, x, 64).expect("a launch");
    device.add(&other, b, x, 64).expect("a launch");
    device.context.synchronize().expect("a wait");
    assert_eq!((read(a, 64), read(b, 64)), (vec![8.0; 64], vec![8.0; 64]));
    assert_eq!(stand_in.violations(), [""; 0]);
}

#[test]
fn an_event_waits_for_what_was_recorded_and_no_more() {
    let (stand_in, device, other) = setup();
    let x = filled(&[1.0; 64]);
    let event = device.stream.record_event(None).expect("an event");
    device.twice(&device.stream, x, 64).expect("a launch");
    other.wait(&event).expect("a wait");
    device.twice(&other, x, 64).expect("a launch");
    device.synchronize();
    assert_eq!(code(other.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(stand_in.violations().len(), 1);
}

#[test]
fn a_read_too_early_names_the_copy_that_would_have_come() {
    let (stand_in, device, other) = setup();
    let x = allocate(64);
    let mut pinned = Pinned::new(&[1.0; 64]);
    pinned.upload(x, &device.stream).expect("a copy");
    device.twice(&other, x, 64).expect("a launch");
    assert_eq!(code(other.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let text = &stand_in.violations()[0];
    assert!(
        text.contains("never written") && text.contains("in twice") && text.contains("cuMemcpyHtoDAsync_v2"),
        "{text}"
    );
}

#[test]
fn the_null_stream_waits_for_blocking_streams_and_they_for_it() {
    let (stand_in, device) = (start(), device());
    let null = device.context.default_stream();
    let blocking = result::stream::create(result::stream::StreamKind::Default).expect("a stream");
    // SAFETY: destroyed at the end of the test only.
    let blocking = unsafe { device.context.wrap_borrowed_stream(blocking) };
    let x = filled(&[1.0; 64]);
    for stream in [&blocking, &null, &blocking] {
        device.twice(stream, x, 64).expect("a launch");
    }
    assert_eq!(stand_in.pending(), 3);
    assert_eq!(read(x, 64), [8.0; 64], "a copy on the null stream comes last");
    // A stream that is non-blocking has no part in this.
    device.twice(&null, x, 64).expect("a launch");
    device.twice(&device.stream, x, 64).expect("a launch");
    null.synchronize().expect("a wait");
    assert_eq!(stand_in.pending(), 1);
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].contains("missing order"));
}

#[test]
fn cudarc_s_own_events_are_enough_order() {
    let (stand_in, context) = (start(), CudaContext::new(0).expect("a context"));
    let module = context.load_module(Ptx::from_src(PTX)).expect("a module");
    let [twice, add] = ["twice", "add"].map(|name| module.load_function(name).expect("a function"));
    let [one, two] = [context.new_stream().expect("a stream"), context.new_stream().expect("a stream")];
    let n = 64u32;
    let mut x = one.clone_htod(&[1.0f32; 64]).expect("a copy");
    let mut y = two.clone_htod(&[1.0f32; 64]).expect("a copy");
    for stream in [&one, &two] {
        // SAFETY: the interpreter checks every access.
        unsafe {
            stream.launch_builder(&twice).arg(&mut x).arg(&n).launch(grid(n)).expect("a launch");
            stream.launch_builder(&add).arg(&mut y).arg(&x).arg(&n).launch(grid(n)).expect("a launch");
        }
    }
    assert_eq!(one.clone_dtoh(&y).expect("a copy"), [7.0; 64]);
    drop((x, y));
    context.synchronize().expect("a wait");
    assert_eq!((stand_in.violations(), stand_in.live("memory")), (vec![], 0));
}

#[test]
fn the_order_check_can_be_left_out() {
    let stand_in = start();
    assert!(stand_in.set("check_order", 0));
    assert!(!stand_in.set("no such thing", 0));
    let device = device();
    let other = device.context.new_stream().expect("a stream");
    let x = filled(&[1.0; 64]);
    device.twice(&device.stream, x, 64).expect("a launch");
    device.twice(&other, x, 64).expect("a launch");
    device.context.synchronize().expect("a wait");
    assert_eq!(read(x, 64), [4.0; 64]);
}

#[test]
fn queries_try_the_host_s_patience_and_then_come_true() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    device.twice(&device.stream, x, 4).expect("a launch");
    let event = device.stream.record_event(None).expect("an event");
    let answers: Vec<bool> = (0..5).map(|_| event.try_is_complete().expect("an answer")).collect();
    assert_eq!(answers, [false, false, false, true, true]);
    stand_in.set("patience", 0);
    device.twice(&device.stream, x, 4).expect("a launch");
    assert!(device.stream.record_event(None).expect("an event").is_complete());
    assert_eq!(read(x, 4), [4.0; 4]);
}

#[test]
fn host_functions_take_their_turn_and_may_not_call_the_driver() {
    extern "C" fn note(data: *mut c_void) {
        let mut count = 0;
        // SAFETY: a place for a number; the call is refused before it is used.
        let answer = unsafe { sys::cuDeviceGetCount(&mut count) };
        // SAFETY: the test passes an i32 that outlives the wait.
        unsafe { *data.cast::<i32>() = answer as i32 };
    }
    let (_stand_in, device) = (start(), device());
    let mut answer = -1;
    let data = (&raw mut answer).cast();
    // SAFETY: `answer` outlives the wait below.
    unsafe { result::stream::launch_host_function(device.stream.cu_stream(), note, data) }.expect("a host function");
    assert_eq!(answer, -1);
    device.synchronize();
    assert_eq!(answer, CUresult::CUDA_ERROR_NOT_PERMITTED as i32);
}

#[test]
fn events_measure_only_when_they_were_made_for_it() {
    let (_stand_in, device) = (start(), device());
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let from = device.stream.record_event(timed).expect("an event");
    let x = filled(&[1.0; 4]);
    device.twice(&device.stream, x, 4).expect("a launch");
    let to = device.stream.record_event(timed).expect("an event");
    assert!(from.elapsed_ms(&to).expect("a time") > 0.0);
    let untimed = device.stream.record_event(None).expect("an event");
    assert_eq!(code(from.elapsed_ms(&untimed)), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

// ---- Memory ----

#[test]
fn memory_has_the_promised_alignment_and_no_host_pointer_s_address() {
    let (stand_in, device) = (start(), device());
    let (a, b) = (allocate(3), allocate(3));
    assert_eq!((a % 512, b % 512), (256, 256));
    assert!(a >> 48 != 0 && b > a + (1 << 33));
    let (free, total) = device.context.mem_get_info().expect("numbers");
    assert_eq!(total - free, 24);
    assert_eq!(stand_in.live("memory"), 2);
    stand_in.set("total_memory", 100);
    // SAFETY: refused.
    let too_much = unsafe { result::malloc_sync(77) };
    assert_eq!(code(too_much), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // SAFETY: refused.
    assert_eq!(code(unsafe { result::malloc_sync(0) }), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn bad_ranges_are_refused_at_the_call() {
    let (_stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    let mut values = [0.0f32; 5];
    let stream = device.stream.cu_stream();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: the stand-in checks every range before it touches anything.
    unsafe {
        assert_eq!(code(result::memcpy_htod_async(x, &values, stream)), invalid);
        assert_eq!(code(result::memcpy_dtoh_async(&mut values, x, stream)), invalid);
        assert_eq!(code(result::memcpy_dtod_async(x + 4, x, 16, stream)), invalid);
        assert_eq!(code(result::memset_d8_async(x, 0, 17, stream)), invalid);
        assert_eq!(code(result::memcpy_htod_sync(0, &values)), invalid);
        assert_eq!(code(result::memcpy_dtod_sync(x, x, 0)), CUresult::CUDA_SUCCESS);
    }
}

#[test]
fn uninitialised_bytes_are_carried_by_copies_and_refused_to_readers() {
    let (stand_in, device) = (start(), device());
    let (x, y) = (allocate(4), allocate(4));
    let stream = device.stream.cu_stream();
    // SAFETY: all of 16 bytes.
    unsafe {
        result::memset_d8_async(x, 0, 8, stream).expect("a fill");
        result::memcpy_dtod_async(y, x, 16, stream).expect("a copy");
    }
    device.synchronize();
    assert_eq!(read(y, 2), [0.0; 2]);
    let mut values = [0.0f32; 3];
    // SAFETY: 12 of 16 bytes.
    let refused = unsafe { result::memcpy_dtoh_sync(&mut values, y) };
    assert_eq!(code(refused), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].contains("never written: 4 bytes"), "{:?}", stand_in.violations());
}

#[test]
fn read_only_marks_and_forgetting() {
    let (stand_in, device) = (start(), device());
    let (x, y) = (filled(&[1.0; 4]), filled(&[1.0; 4]));
    assert!(stand_in.set_read_only(x, 16, true));
    assert!(!stand_in.set_read_only(x, 17, true));
    device.add(&device.stream, y, x, 4).expect("a launch");
    device.stream.synchronize().expect("reading is allowed");
    device.add(&device.stream, x, y, 4).expect("a launch");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].starts_with("read-only bytes: 4 bytes at"), "{:?}", stand_in.violations());
    assert!(stand_in.violations()[0].contains("st.global.f32"));
    assert!(stand_in.forget(y, 16));
}

#[test]
fn frees_that_are_wrong_are_reported() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 64]);
    let stream = device.stream.cu_stream();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: the stand-in checks each free.
    unsafe {
        assert_eq!(code(result::free_sync(x + 4)), invalid);
        result::free_async(x, stream).expect("a free");
        assert_eq!(code(result::free_async(x, stream)), invalid);
        assert_eq!(code(result::free_sync(x)), invalid);
    }
    assert_eq!(stand_in.violations().len(), 3);
    device.synchronize();
    // SAFETY: the stand-in checks each free.
    assert_eq!(code(unsafe { result::free_sync(x) }), invalid);
    // A launch that was queued before the free, and runs after it.
    let y = filled(&[1.0; 64]);
    device.twice(&device.stream, y, 64).expect("a launch");
    // SAFETY: the stand-in checks each free.
    unsafe { result::free_sync(y) }.expect("a free");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[4].contains("memory that was freed"));
}

#[test]
fn memory_of_a_stream_is_there_for_work_that_comes_after() {
    let (stand_in, device, other) = setup();
    // SAFETY: filled before it is read.
    let x = unsafe { result::malloc_async(device.stream.cu_stream(), 256) }.expect("memory");
    // SAFETY: all of it.
    unsafe { result::memset_d8_async(x, 0, 256, other.cu_stream()) }.expect("a fill");
    other.synchronize().expect("not checked yet");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].contains("cuMemAllocAsync"), "{:?}", stand_in.violations());
}

// ---- Contexts ----

#[test]
fn contexts_are_a_stack_of_each_thread() {
    let (stand_in, context) = (start(), CudaContext::new(0).expect("a context"));
    let current = || result::ctx::get_current().expect("an answer").map_or(0, |context| context as u64);
    let primary = current();
    assert_eq!(primary, context.cu_ctx() as u64);
    // SAFETY: each is destroyed below.
    let made = unsafe { result::ctx::create_v3(0, 1) }.expect("a context");
    assert_eq!((current(), stand_in.live("context")), (made as u64, 2));
    let mut popped = std::ptr::null_mut();
    // SAFETY: places for what the calls return.
    unsafe {
        sys::cuCtxPopCurrent_v2(&mut popped).result().expect("a context");
        assert_eq!((popped, current()), (made, primary));
        sys::cuCtxPushCurrent_v2(made).result().expect("a context");
        assert_eq!(
            std::thread::spawn(|| result::ctx::get_current().expect("an answer").is_none()).join().ok(),
            Some(true)
        );
        sys::cuCtxDestroy_v2(made).result().expect("destroyed");
        assert_eq!(code(sys::cuCtxSetCurrent(made).result()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        sys::cuCtxSetCurrent(std::ptr::null_mut()).result().expect("none");
        assert_eq!((current(), code(result::malloc_sync(4))), (0, CUresult::CUDA_ERROR_INVALID_CONTEXT));
    }
    // A primary context lives as long as somebody holds it.
    let again = CudaContext::new(0).expect("a context");
    drop(context);
    again.synchronize().expect("still there");
    let raw = again.cu_ctx();
    drop(again);
    assert_eq!(stand_in.live("context"), 0);
    // SAFETY: the handle is never followed.
    unsafe { sys::cuCtxSetCurrent(raw).result() }.expect("a known handle");
    assert_eq!(code(result::ctx::synchronize()), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
}

#[test]
fn streams_and_memory_belong_to_their_context() {
    let (stand_in, device) = (start(), device());
    let elsewhere = CudaContext::new_non_primary(0, 0).expect("a context");
    let foreign = elsewhere.new_stream().expect("a stream");
    let theirs = filled(&[1.0; 4]);
    device.context.bind_to_thread().expect("current");
    assert_eq!(code(device.twice(&foreign, theirs, 4)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    let event = device.context.new_event(None).expect("an event");
    // SAFETY: both handles are live.
    let recorded = unsafe { result::event::record(event.cu_event(), foreign.cu_stream()) };
    assert_eq!(code(recorded), CUresult::CUDA_ERROR_INVALID_HANDLE);
    let mut owner = std::ptr::null_mut();
    // SAFETY: a live stream and a place for its context.
    unsafe { sys::cuStreamGetCtx(foreign.cu_stream(), &mut owner) }.result().expect("a context");
    assert_eq!(owner, elsewhere.cu_ctx());
    let attribute = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_CONTEXT;
    // SAFETY: a place for a context.
    unsafe { sys::cuPointerGetAttribute((&raw mut owner).cast(), attribute, theirs) }.result().expect("a context");
    assert_eq!(owner, elsewhere.cu_ctx());
    device.twice(&device.stream, theirs, 4).expect("a launch");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in.violations()[0].contains("another context"));
    // The other context is unharmed.
    elsewhere.synchronize().expect("sound");
}

// ---- Errors ----

#[test]
fn a_fault_stays_until_the_context_is_gone() {
    let stand_in = start();
    let failed = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    {
        let device = device();
        let x = filled(&[1.0; 4]);
        device.far(&device.stream, x).expect("a launch");
        device.twice(&device.stream, x, 4).expect("a launch");
        assert_eq!(code(device.stream.synchronize()), failed);
        assert_eq!(code(device.stream.synchronize()), failed);
        assert_eq!(code(device.twice(&device.stream, x, 4)), failed);
        // SAFETY: refused.
        assert_eq!(code(unsafe { result::malloc_sync(4) }), failed);
        assert_eq!(stand_in.launches().len(), 1, "work behind the fault is dropped");
        let text = &stand_in.violations()[0];
        assert!(
            text.contains("out of bounds: 4 bytes at") && text.contains("byte 1048576 of the allocation of 16"),
            "{text}"
        );
        assert!(text.contains("in far, block [0, 0, 0], thread [0, 0, 0]"), "{text}");
        let text = format!("{:?}", device.stream.synchronize().expect_err("still"));
        assert!(text.contains("an illegal memory access was encountered"), "{text}");
    }
    let device = device();
    let x = filled(&[1.0; 4]);
    device.twice(&device.stream, x, 4).expect("a launch");
    device.synchronize();
    assert_eq!(read(x, 4), [2.0; 4]);
}

#[test]
fn misaligned_addresses_and_too_large_blocks() {
    let (_stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    let far = |threads: u32| {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: refused.
        unsafe { device.stream.launch_builder(&device.far).arg(&x).launch(config) }
    };
    assert_eq!(code(far(33)), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(code(far(1025)), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(far(0)), CUresult::CUDA_ERROR_INVALID_VALUE);
    device.twice(&device.stream, x + 2, 1).expect("a launch");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
}

/// Everything that a host layer does, once.
fn scenario() -> Outcome<Vec<f32>> {
    let device = device_of(CudaContext::new(0)?)?;
    let x = device.stream.clone_htod(&[1.0f32, 2.0, 3.0])?;
    let mut y = device.stream.alloc_zeros::<f32>(3)?;
    let n = 3u32;
    // SAFETY: the interpreter checks every access.
    unsafe { device.stream.launch_builder(&device.add).arg(&mut y).arg(&x).arg(&n).launch(grid(n))? };
    device.stream.record_event(None)?.synchronize()?;
    let values = device.stream.clone_dtoh(&y)?;
    device.context.check_err()?;
    Ok(values)
}

#[test]
fn every_call_can_be_made_to_fail() {
    let stand_in = start();
    assert_eq!(scenario().expect("no error"), [1.0, 2.0, 3.0]);
    let calls = stand_in.calls("*");
    assert!(calls > 20, "{:?}", stand_in.call_list());
    drop(stand_in);
    let mut failed = 0;
    for nth in 1..=calls {
        let stand_in = start();
        stand_in.fail("*", nth, CUresult::CUDA_ERROR_SYSTEM_NOT_READY as i32);
        match scenario() {
            Err(DriverError(code)) => {
                assert_eq!(code, CUresult::CUDA_ERROR_SYSTEM_NOT_READY, "call {nth}");
                failed += 1;
            }
            // Destructors cannot return their errors.
            Ok(values) => assert_eq!(values, [1.0, 2.0, 3.0]),
        }
    }
    assert!(failed > 20, "{failed} of {calls}");
}

#[test]
fn the_nth_call_of_a_function_fails_and_a_device_can_be_lost() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    stand_in.fail("cuLaunchKernel", 2, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES as i32);
    device.twice(&device.stream, x, 4).expect("the first");
    assert_eq!(code(device.twice(&device.stream, x, 4)), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    device.twice(&device.stream, x, 4).expect("the third");
    device.synchronize();
    assert_eq!(stand_in.calls("cuLaunchKernel"), 3);
    assert_eq!(stand_in.launches().len(), 2);
    stand_in.fail("execute", 1, CUresult::CUDA_ERROR_ECC_UNCORRECTABLE as i32);
    device.twice(&device.stream, x, 4).expect("it fails later");
    for _ in 0..2 {
        assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
    }
    assert_eq!(stand_in.violations(), [""; 0]);
}

#[test]
fn destroyed_handles_are_known_as_such() {
    let (stand_in, device) = (start(), device());
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
    // SAFETY: the handle is never followed.
    unsafe {
        result::stream::destroy(stream).expect("destroyed");
        assert_eq!(code(result::stream::synchronize(stream)), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(stand_in.violations().len(), 1);
        assert!(stand_in.violations()[0].contains("destroyed Stream"));
        assert_eq!(code(result::stream::synchronize(0x1234 as _)), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(stand_in.violations().len(), 1, "that was never a stream");
    }
    drop(device);
}

#[test]
fn nothing_works_before_init_and_without_a_device() {
    let stand_in = start();
    assert_eq!(code(result::device::get_count()), CUresult::CUDA_ERROR_NOT_INITIALIZED);
    stand_in.set("devices", 0);
    assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE);
    stand_in.set("devices", 1);
    assert_eq!(code(CudaContext::new(1)), CUresult::CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(CudaContext::device_count().expect("a number"), 1);
}

// ---- Modules ----

/// Loads PTX with a buffer for the compiler's messages.
fn load_with_log(text: &str) -> (CUresult, String) {
    let image = CString::new(text).expect("no zero byte");
    let mut log = vec![0u8; 512];
    let mut options =
        [sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), 512 as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: a place for the module, a zero-terminated text, and two options with their values.
    let code = unsafe {
        sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    log.truncate(values[1] as usize);
    (code, String::from_utf8(log).expect("text"))
}

#[test]
fn ptx_is_refused_as_a_driver_refuses_it() {
    let (stand_in, _context) = (start(), CudaContext::new(0).expect("a context"));
    assert_eq!(load_with_log(PTX), (CUresult::CUDA_SUCCESS, String::new()));
    let (code, log) = load_with_log(&PTX.replace("add.rn.f32", "add.rm.f32"));
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("line 12: `add` of F32 without `.rn`"), "{log}");
    assert_eq!(load_with_log("garbage").0, CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load_with_log("\u{7f}ELF").0, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    for (driver, ptx, loads) in [
        (12_080, "8.7", true),
        (12_080, "8.8", false),
        (11_080, "7.8", true),
        (10_000, "6.3", true),
        (9_010, "6.3", false),
    ] {
        stand_in.set_driver_version(driver);
        let (code, log) = load_with_log(&PTX.replace(".version 6.3", &format!(".version {ptx}")));
        let wanted = if loads { CUresult::CUDA_SUCCESS } else { CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION };
        assert_eq!(code, wanted, "{driver} {ptx}: {log}");
    }
    stand_in.set_attribute(75, 7);
    stand_in.set_driver_version(12_080);
    assert_eq!(load_with_log(PTX).0, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    stand_in.set_attribute(76, 5);
    assert_eq!(load_with_log(PTX).0, CUresult::CUDA_SUCCESS);
}

#[test]
fn functions_are_found_by_name_and_go_with_their_module() {
    let (stand_in, context) = (start(), CudaContext::new(0).expect("a context"));
    let module = context.load_module(Ptx::from_src(PTX)).expect("a module");
    assert_eq!(code(module.load_function("nothing")), CUresult::CUDA_ERROR_NOT_FOUND);
    let far = module.load_function("far").expect("a function");
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    assert_eq!(far.get_attribute(attribute).expect("a number"), 32);
    assert_eq!(stand_in.live("module"), 1);
    drop((module, far));
    assert_eq!(stand_in.live("module"), 0);
}

// ---- Graphs ----

const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const GLOBAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

#[test]
fn a_captured_graph_replays_with_the_arguments_of_the_capture() {
    let (stand_in, device) = (start(), device());
    let (x, y) = (filled(&[1.0; 4]), filled(&[0.0; 4]));
    let mut pinned = Pinned::new(&[1.0; 4]);
    let before = stand_in.pending();
    let work = || {
        pinned.upload(x, &device.stream).expect("a copy");
        device.twice(&device.stream, x, 4).expect("a launch");
        device.add(&device.stream, y, x, 4).expect("a launch");
    };
    let graph = device.capture(THREAD_LOCAL, work).expect("a graph").expect("not empty");
    assert_eq!(stand_in.pending(), before, "a capture queues nothing");
    graph.launch().expect("a launch");
    device.synchronize();
    assert_eq!(read(y, 4), [2.0; 4]);
    pinned.slice().fill(10.0);
    graph.launch().expect("a launch");
    graph.launch().expect("a launch");
    device.synchronize();
    assert_eq!(read(y, 4), [42.0; 4]);
    drop(graph);
    pinned.free().expect("a free");
    assert_eq!((stand_in.live("graph"), stand_in.live("graph_exec")), (0, 0));
    assert_eq!(stand_in.violations(), [""; 0]);
}

#[test]
fn a_capture_follows_events_to_other_streams_and_back() {
    let (stand_in, device, other) = setup();
    let (x, y) = (filled(&[1.0; 4]), filled(&[1.0; 4]));
    let fork = device.context.new_event(None).expect("an event");
    let join = device.context.new_event(None).expect("an event");
    let capture = |joins: bool| {
        device.stream.begin_capture(THREAD_LOCAL)?;
        device.twice(&device.stream, x, 4)?;
        fork.record(&device.stream)?;
        other.wait(&fork)?;
        device.add(&other, y, x, 4)?;
        join.record(&other)?;
        if joins {
            device.stream.wait(&join)?;
        }
        device.stream.end_capture(sys::CUgraphInstantiate_flags(0))
    };
    let graph = capture(true).expect("a capture").expect("a graph");
    assert_eq!(code(capture(false)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    graph.launch().expect("a launch");
    device.synchronize();
    assert_eq!((read(x, 4), read(y, 4)), (vec![2.0; 4], vec![3.0; 4]));
    assert_eq!(stand_in.violations(), [""; 0]);
}

#[test]
fn what_a_capture_forbids_spoils_it() {
    let (_stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    let twice = || device.twice(&device.stream, x, 4).expect("a launch");
    let spoilt = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let event = device.context.new_event(None).expect("an event");
    event.record(&device.stream).expect("a record");
    let outside = device.stream.record_event(None).expect("an event");

    let forbidden: [(&dyn Fn() -> Outcome<()>, CUresult); 6] = [
        (&|| device.stream.synchronize(), unsupported),
        (&|| device.context.synchronize(), unsupported),
        // SAFETY: refused.
        (&|| unsafe { result::malloc_sync(4) }.map(|_| ()), unsupported),
        (&|| device.context.load_module(Ptx::from_src(PTX)).map(|_| ()), unsupported),
        (&|| device.stream.wait(&outside), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
        (
            &|| {
                event.record(&device.stream)?;
                event.synchronize()
            },
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
        ),
    ];
    for (index, (call, expected)) in forbidden.iter().enumerate() {
        let ended = device.capture(THREAD_LOCAL, || {
            twice();
            assert_eq!(code(call()), *expected, "call {index}");
        });
        assert_eq!(code(ended), spoilt, "call {index}");
    }
    // After the failures a capture works as before.
    assert_eq!(code(device.capture(THREAD_LOCAL, twice)), CUresult::CUDA_SUCCESS);
    let nothing = device.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    assert_eq!(code(nothing), CUresult::CUDA_ERROR_INVALID_VALUE, "no capture to end");
    assert_eq!(read(x, 4), [1.0; 4]);
}

/// Sets the thread's mode, and returns the one before.
fn exchange(mut mode: CUstreamCaptureMode) -> CUstreamCaptureMode {
    // SAFETY: a mode, where the driver may write another.
    assert_eq!(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }, CUresult::CUDA_SUCCESS);
    mode
}

/// What a call returns in another thread.
fn elsewhere(call: impl FnOnce() -> CUresult + Send) -> CUresult {
    std::thread::scope(|scope| scope.spawn(call).join().expect("no panic"))
}

/// Who may make unsafe calls is decided by the capture's mode, the thread's mode, and whose capture
/// it is.
#[test]
fn capture_modes_forbid_unsafe_calls_to_whom_they_should() {
    let (_stand_in, device) = (start(), device());
    let event = device.context.new_event(None).expect("an event");
    event.record(&device.stream).expect("a record");
    let other = device.context.new_stream().expect("a stream");
    let x = filled(&[1.0; 4]);
    let calls: [&(dyn Fn() -> Outcome<()> + Sync); 6] = [
        // SAFETY: the memory is this call's own.
        &|| unsafe { result::malloc_sync(4).and_then(|address| result::free_sync(address)) },
        // SAFETY: as above.
        &|| unsafe { result::malloc_host(4, 0).and_then(|pointer| result::free_host(pointer)) },
        &|| event.synchronize(),
        &|| other.synchronize(),
        &|| device.context.load_module(Ptx::from_src(PTX)).map(|_| ()),
        // SAFETY: as long as the values.
        &|| unsafe { result::memcpy_htod_sync(x, &[1.0_f32; 4]) },
    ];
    for capture in [GLOBAL, THREAD_LOCAL, RELAXED] {
        for thread in [GLOBAL, THREAD_LOCAL, RELAXED] {
            for is_own in [true, false] {
                let is_forbidden = thread != RELAXED
                    && if is_own { capture != RELAXED } else { capture == GLOBAL && thread == GLOBAL };
                for (index, call) in calls.iter().enumerate() {
                    let what = format!("call {index}, {capture:?}, {thread:?}, own: {is_own}");
                    let call = || {
                        device.context.bind_to_thread().expect("a context");
                        let before = exchange(thread);
                        let answer = code(call());
                        assert_eq!(exchange(before), thread, "{what}");
                        answer
                    };
                    let mut answer = CUresult::CUDA_SUCCESS;
                    let ended =
                        code(device.capture(capture, || answer = if is_own { call() } else { elsewhere(call) }));
                    let expected = if is_forbidden {
                        let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
                        (unsupported, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
                    } else {
                        (CUresult::CUDA_SUCCESS, CUresult::CUDA_SUCCESS)
                    };
                    assert_eq!((answer, ended), expected, "{what}");
                }
            }
        }
    }
    // SAFETY: no mode; the driver refuses it.
    let refused = unsafe { sys::cuThreadExchangeStreamCaptureMode(std::ptr::null_mut()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
}

/// No thread, in whatever mode, may wait for a context in which a stream is being captured.
#[test]
fn a_wait_for_the_context_spoils_every_capture() {
    let (_stand_in, device) = (start(), device());
    for mode in [GLOBAL, THREAD_LOCAL, RELAXED] {
        let wait = || {
            device.context.bind_to_thread().expect("a context");
            exchange(RELAXED);
            code(result::ctx::synchronize())
        };
        let ended = device.capture(mode, || {
            assert_eq!(elsewhere(wait), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        });
        assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{mode:?}");
    }
}

/// An object lives as long as the graph that holds it, the graph's executables, and the launches
/// under way.
#[test]
fn a_user_object_ends_with_the_last_that_holds_it() {
    extern "C" fn count(ended: *mut c_void) {
        // SAFETY: the test gives a counter, which outlives the object.
        unsafe { &*ended.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
    }
    let (stand_in, device) = (start(), device());
    let ended = AtomicU32::new(0);
    let mut object = std::ptr::null_mut();
    let create = |object: *mut sys::CUuserObject, flags| {
        let data = std::ptr::from_ref(&ended).cast_mut().cast();
        // SAFETY: `count` takes a pointer to a counter, which `ended` is.
        unsafe { sys::cuUserObjectCreate(object, data, Some(count), 1, flags) }
    };
    assert_eq!(create(&mut object, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
    // The caller releases the only reference.
    assert_eq!(create(&mut object, 1), CUresult::CUDA_SUCCESS);
    // SAFETY: the object was made above.
    assert_eq!(unsafe { sys::cuUserObjectRelease(object, 1) }, CUresult::CUDA_SUCCESS);
    assert_eq!(ended.load(Ordering::Relaxed), 1);

    let hold = |device: &Device| {
        let (mut status, mut graph, mut object) =
            (sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE, std::ptr::null_mut(), std::ptr::null_mut());
        let (no_id, no_nodes, no_count) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: places for the answers, or none.
        let found = unsafe {
            let stream = device.stream.cu_stream();
            sys::cuStreamGetCaptureInfo_v2(stream, &mut status, no_id, &mut graph, no_nodes, no_count)
        };
        assert_eq!(found, CUresult::CUDA_SUCCESS);
        assert_eq!(create(&mut object, 1), CUresult::CUDA_SUCCESS);
        // SAFETY: both were made above; 1 gives the reference to the graph.
        assert_eq!(unsafe { sys::cuGraphRetainUserObject(graph, object, 1, 1) }, CUresult::CUDA_SUCCESS);
    };
    let x = filled(&[1.0; 4]);
    let work = || {
        hold(&device);
        device.twice(&device.stream, x, 4).expect("a launch");
    };
    let graph = device.capture(THREAD_LOCAL, work).expect("a graph").expect("not empty");
    graph.launch().expect("a launch");
    drop(graph);
    assert_eq!(ended.load(Ordering::Relaxed), 1, "its launch is under way");
    device.context.synchronize().expect("a wait");
    assert_eq!(ended.load(Ordering::Relaxed), 2);

    let failed = device.capture(THREAD_LOCAL, || {
        hold(&device);
        assert!(device.context.synchronize().is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 2);
    });
    assert!(failed.is_err());
    assert_eq!(ended.load(Ordering::Relaxed), 3, "a capture that failed has no graph");
    assert_eq!(stand_in.violations(), [""; 0]);
}

/// Stream-ordered memory comes and goes while another stream is captured, in all modes.
#[test]
fn stream_ordered_memory_is_no_unsafe_call() {
    let (stand_in, device, other) = setup();
    let live = stand_in.live("memory");
    // SAFETY: the memory is only used here.
    let ended = device.capture(GLOBAL, || unsafe {
        let address = result::malloc_async(other.cu_stream(), 4).expect("memory");
        result::memset_d8_async(address, 1, 4, other.cu_stream()).expect("a fill");
        result::free_async(address, other.cu_stream()).expect("a free");
    });
    assert_eq!(code(ended), CUresult::CUDA_SUCCESS);
    device.context.synchronize().expect("a wait");
    assert_eq!(stand_in.live("memory"), live);
    stand_in.set_attribute(115, 0);
    // SAFETY: refused.
    let refused = code(unsafe { result::malloc_async(other.cu_stream(), 4) });
    assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(stand_in.violations(), [""; 0]);
}

/// Memory of a graph's private pool is the graph's alone.
#[test]
fn private_memory_is_touched_by_graphs_only() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    device.stream.begin_capture(GLOBAL).expect("a capture");
    let before = exchange(RELAXED);
    let private = allocate(4);
    exchange(before);
    assert!(stand_in.set_private(private) && !stand_in.set_private(1));
    // SAFETY: both are as long.
    unsafe { result::memcpy_dtod_async(private, x, 16, device.stream.cu_stream()) }.expect("a copy");
    device.add(&device.stream, x, private, 4).expect("a launch");
    let graph = device.stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("a graph").expect("not empty");
    (0..2).for_each(|_| graph.launch().expect("a launch"));
    device.synchronize();
    assert_eq!(read(x, 4), [4.0; 4]);
    assert_eq!(stand_in.violations(), [""; 0]);
    device.add(&device.stream, x, private, 4).expect("a launch");
    assert_eq!(code(device.stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let [violation] = &stand_in.violations()[..] else { panic!("{:?}", stand_in.violations()) };
    assert!(violation.contains("of a graph's private pool"), "{violation}");
}

#[test]
fn a_module_is_not_unloaded_under_its_launches() {
    let (stand_in, device) = (start(), device());
    let x = filled(&[1.0; 4]);
    let module = device.context.load_module(Ptx::from_src(PTX)).expect("a module");
    let twice = module.load_function("twice").expect("a function");
    drop(module);
    let (n, config) = (4_u32, grid(4));
    // SAFETY: the interpreter checks every access.
    unsafe { device.stream.launch_builder(&twice).arg(&x).arg(&n).launch(config) }.expect("a launch");
    assert_eq!(stand_in.violations(), [""; 0]);
    drop(twice);
    assert_eq!(stand_in.violations(), ["a module is unloaded before its launches have run"]);
}
