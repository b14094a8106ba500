//! Events: points in the work of a stream, for which the host or another stream can wait.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUevent, CUresult, CUstreamCaptureStatus, CUuserObject_flags, CUuserObjectRetain_flags,
};

use super::driver::{Current, Held, check};
use super::error::CudaError;

/// An event of a context, without timing.
#[derive(Debug)]
pub(super) struct Event {
    context: Held<CudaContext>,
    handle: CUevent,
}

// SAFETY: an event is a handle, and the driver lets any thread use it.
unsafe impl Send for Event {}
// SAFETY: the driver lets several threads use one event at a time.
unsafe impl Sync for Event {}

impl Event {
    /// A new event, not yet recorded. The context must be current.
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let mut handle = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `handle` is where the driver may write the handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, flags) })?;
        Ok(Self { context: Held::new(context.clone()), handle })
    }

    /// Records the event after the work that is enqueued on `stream` now.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the event's context.
    pub(super) unsafe fn record(&self, stream: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`; the stream is live (this function's
        // requirement).
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.cast()) })
    }

    /// Blocks the host until the work before the event has ended.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }

    /// Whether the work before the event has ended.
    fn has_ended(&self) -> bool {
        // SAFETY: the event lives as long as `self`.
        unsafe { sys::cuEventQuery(self.handle) == CUresult::CUDA_SUCCESS }
    }

    /// Makes work that is enqueued on `stream` from now on wait for the event.
    ///
    /// # Safety
    ///
    /// - `stream` is live.
    unsafe fn hold_up(&self, stream: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`; the stream is live (this function's
        // requirement).
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream.cast(), self.handle, 0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = Current::enter(&self.context) {
            // SAFETY: the event is live and not used afterwards. The driver lets pending waits for
            // it finish.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// The last use of some memory: an event after the last work, and a count of the graphs that may
/// use the memory again. Freeing the memory waits for these and for nothing else.
#[derive(Debug)]
pub(super) struct LastUse {
    end: Event,
    state: AtomicU8,
    /// Each graph that may use the memory holds a clone.
    graphs: Arc<()>,
}

/// No work was enqueued.
const UNUSED: u8 = 0;
/// The event is recorded after the last work.
const RECORDED: u8 = 1;
/// Work was enqueued, but the event could not be recorded after it.
const UNKNOWN: u8 = 2;

impl LastUse {
    /// For memory that nothing has used yet. The context must be current.
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Arc<Self>, CudaError> {
        Ok(Arc::new(Self { end: Event::new(context)?, state: AtomicU8::new(UNUSED), graphs: Arc::default() }))
    }

    /// Notes that the work enqueued on `stream` so far uses the memory. If the driver refuses to
    /// record the event, the memory is never freed.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the event's context that is not being captured.
    /// - All earlier work that uses the memory, on any stream, is ordered before work that is
    ///   enqueued on `stream` now.
    pub(super) unsafe fn note(&self, stream: *mut c_void) {
        // SAFETY: the stream is live and of the context (this function's first requirement).
        let state = if unsafe { self.end.record(stream) }.is_ok() { RECORDED } else { UNKNOWN };
        self.state.store(state, Ordering::Release);
    }

    /// Notes that the graph into which `stream` is being captured uses the memory. The note ends
    /// when the graph and everything instantiated from it are destroyed and their launches have
    /// ended. If the driver refuses to attach the note to the graph, the memory is never freed.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the event's context, which is current.
    pub(super) unsafe fn note_in_graph(&self, stream: *mut c_void) {
        let (mut status, mut graph, mut object) =
            (CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE, ptr::null_mut(), ptr::null_mut());
        // A reference that only `let_go` drops. If the driver does not accept it, it is leaked.
        let hold = Arc::into_raw(self.graphs.clone()).cast_mut().cast();
        // SAFETY: the stream is live (this function's requirement). Each pointer is a place for the
        // driver's answer, or null for an answer that is not wanted. The driver calls `let_go` once
        // with `hold`.
        unsafe {
            let (no_id, no_nodes, no_count) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
            let found =
                sys::cuStreamGetCaptureInfo_v2(stream.cast(), &mut status, no_id, &mut graph, no_nodes, no_count);
            let flags = CUuserObject_flags::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as u32;
            if found == CUresult::CUDA_SUCCESS
                && !graph.is_null()
                && sys::cuUserObjectCreate(&mut object, hold, Some(let_go), 1, flags) == CUresult::CUDA_SUCCESS
            {
                let flags = CUuserObjectRetain_flags::CU_GRAPH_USER_OBJECT_MOVE as u32;
                let _ = sys::cuGraphRetainUserObject(graph, object, 1, flags);
            }
        }
    }

    /// Whether a graph may use the memory.
    pub(super) fn is_in_graph(&self) -> bool {
        let is_in_graph = Arc::strong_count(&self.graphs) > 1;
        // Orders everything before `let_go`'s decrement before the freeing that follows.
        fence(Ordering::Acquire);
        is_in_graph
    }

    /// Whether the end of the last use cannot be known.
    pub(super) fn is_unknown(&self) -> bool {
        self.state.load(Ordering::Acquire) == UNKNOWN
    }

    /// Whether the last use has ended and no graph may use the memory again.
    pub(super) fn has_ended(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            _ if self.is_in_graph() => false,
            UNUSED => true,
            RECORDED => self.end.has_ended(),
            _ => false,
        }
    }

    /// Blocks the host until the last use has ended, if its end can be known. Does not wait for
    /// graphs. The context must be current.
    pub(super) fn wait(&self) {
        if self.state.load(Ordering::Acquire) == RECORDED {
            let _ = self.end.wait();
        }
    }

    /// Makes work that is enqueued on `stream` from now on wait for the last use.
    ///
    /// # Safety
    ///
    /// - `stream` is live.
    pub(super) unsafe fn hold_up(&self, stream: *mut c_void) -> Result<(), CudaError> {
        match self.state.load(Ordering::Acquire) {
            UNUSED => Ok(()),
            // SAFETY: the stream is live (this function's requirement).
            _ => unsafe { self.end.hold_up(stream) },
        }
    }
}

/// Drops a graph's reference to memory. The driver calls this, from any thread, when the graph is
/// destroyed.
///
/// # Safety
///
/// - `hold` comes from `note_in_graph`, and no other call has it.
unsafe extern "C" fn let_go(hold: *mut c_void) {
    // SAFETY: `note_in_graph` made the pointer with `Arc::into_raw` for this one call (this
    // function's requirement).
    drop(unsafe { Arc::from_raw(hold.cast::<()>()) });
}
