//! Stream capture, which records work in a graph instead of queueing it, and launches of graphs.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::thread::ThreadId;

use super::abi::{HostAddress, List, Out, api};
use super::codes::*;
use super::queue::{TaskId, Work};
use super::state::{Driver, GraphExec, Handle, Kind};
use super::user_object::UserObjects;

/// `CU_STREAM_CAPTURE_MODE_*`: which unsafe calls a capture forbids, and which of these bans a
/// thread obeys.
const MODE_GLOBAL: i32 = 0;
// 1 is the thread-local one.
const MODE_RELAXED: i32 = 2;

thread_local! {
    /// The mode that `cuThreadExchangeStreamCaptureMode` has set.
    static THREAD_MODE: Cell<i32> = const { Cell::new(MODE_GLOBAL) };
}

/// Gives the calling thread the mode that threads begin with.
pub(crate) fn clear_thread_mode() {
    THREAD_MODE.set(MODE_GLOBAL);
}

#[derive(Debug, Clone)]
struct Node {
    work: Work,
    label: String,
    /// Nodes before it, by their index.
    after: Vec<usize>,
}

/// A graph: nodes in an order in which they may run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    /// The user objects that it and the executables made of it hold.
    pub(crate) objects: UserObjects,
}

/// A capture under way.
#[derive(Debug)]
pub(crate) struct Capture {
    origin: Handle,
    mode: i32,
    thread: ThreadId,
    graph: Graph,
    /// For each stream of the capture, the nodes that its next node comes after.
    heads: BTreeMap<Handle, Vec<usize>>,
    is_invalid: bool,
}

impl Driver {
    fn live_capture(&mut self, stream: Handle) -> Result<(u64, &mut Capture), Code> {
        let id = self.stream(stream)?.capture.ok_or(ERROR_ILLEGAL_STREAM)?;
        match self.captures.get_mut(&id) {
            Some(capture) if !capture.is_invalid => Ok((id, capture)),
            _ => Err(ERROR_STREAM_CAPTURE_INVALIDATED),
        }
    }

    /// Records work on a stream that is being captured.
    pub(crate) fn capture_work(&mut self, stream: Handle, work: Work, label: &str) -> Result<(), Code> {
        let (_, capture) = self.live_capture(stream)?;
        if matches!(work, Work::Allocate { .. } | Work::Free { .. }) {
            capture.is_invalid = true;
            return Err(ERROR_NOT_SUPPORTED);
        }
        let after = capture.heads.remove(&stream).unwrap_or_default();
        let node = capture.graph.nodes.len();
        capture.graph.nodes.push(Node { work, label: label.to_owned(), after });
        capture.heads.insert(stream, vec![node]);
        Ok(())
    }

    /// The nodes before an event's record on a stream, if the stream is being captured.
    pub(crate) fn capture_position(&mut self, stream: Handle) -> Result<Option<(u64, Vec<usize>)>, Code> {
        if self.stream(stream)?.capture.is_none() {
            return Ok(None);
        }
        let (id, capture) = self.live_capture(stream)?;
        Ok(Some((id, capture.heads.get(&stream).cloned().unwrap_or_default())))
    }

    /// Records a stream's wait for an event if one of the two belongs to a capture. Returns whether
    /// one does.
    pub(crate) fn capture_wait(
        &mut self,
        stream: Handle,
        captured: Option<(u64, Vec<usize>)>,
        was_recorded: bool,
    ) -> Result<bool, Code> {
        let own = self.stream(stream)?.capture;
        let (id, nodes) = match (own, captured) {
            (None, None) => return Ok(false),
            (Some(_), None) if !was_recorded => return Ok(true),
            (Some(_), None) => {
                self.invalidate(own);
                return Err(ERROR_STREAM_CAPTURE_ISOLATION);
            }
            (Some(own), Some((id, _))) if own != id => {
                self.invalidate(Some(own));
                return Err(ERROR_STREAM_CAPTURE_MERGE);
            }
            (_, Some(captured)) => captured,
        };
        // The capture that the event belongs to may have ended; then its record means nothing to a
        // free stream.
        let Some(capture) = self.captures.get_mut(&id) else {
            return Ok(false);
        };
        if capture.is_invalid {
            return Err(ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        let heads = capture.heads.entry(stream).or_default();
        heads.extend(nodes);
        heads.sort_unstable();
        heads.dedup();
        self.stream(stream)?.capture = Some(id);
        Ok(true)
    }

    fn invalidate(&mut self, capture: Option<u64>) {
        if let Some(capture) = capture.and_then(|id| self.captures.get_mut(&id)) {
            capture.is_invalid = true;
        }
    }

    /// Refuses a call that waits for a stream if the stream is being captured.
    pub(crate) fn refuse_capture_of(&mut self, stream: Handle) -> Result<(), Code> {
        let capture = self.stream(stream)?.capture;
        self.invalidate(capture);
        if capture.is_some() { Err(ERROR_STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses a query of an event, or a wait for it, if it was recorded in a capture.
    pub(crate) fn refuse_captured_event(&mut self, captured: Option<(u64, Vec<usize>)>) -> Result<(), Code> {
        let Some((id, _)) = captured else {
            return Ok(());
        };
        self.invalidate(Some(id));
        Err(ERROR_CAPTURED_EVENT)
    }

    /// Refuses a call that waits for a whole context if a stream of it is being captured.
    pub(crate) fn refuse_capture_in(&mut self, context: Handle) -> Result<(), Code> {
        let captures: BTreeSet<u64> = self
            .streams
            .values()
            .filter(|stream| stream.context == context)
            .filter_map(|stream| stream.capture)
            .collect();
        captures.iter().for_each(|&id| self.invalidate(Some(id)));
        if captures.is_empty() { Ok(()) } else { Err(ERROR_STREAM_CAPTURE_UNSUPPORTED) }
    }

    /// Refuses calls that may synchronise, such as an allocation, if a capture forbids them to this
    /// thread; that capture becomes invalid. In the words of the driver's documentation on
    /// `cuThreadExchangeStreamCaptureMode`, the thread is prohibited from "potentially unsafe API
    /// calls":
    ///
    /// - in the global mode "if the local thread has an ongoing capture sequence that was not
    ///   initiated with" the relaxed mode, "or if any other thread has a concurrent capture
    ///   sequence initiated with" the global mode;
    /// - in the thread-local mode only by its own captures that are not relaxed; in the relaxed
    ///   mode by none.
    pub(crate) fn refuse_unsafe_call(&mut self) -> Result<(), Code> {
        let (thread, mode) = (std::thread::current().id(), THREAD_MODE.get());
        let mut is_refused = false;
        for capture in self.captures.values_mut() {
            let is_forbidden = mode != MODE_RELAXED
                && if capture.thread == thread {
                    capture.mode != MODE_RELAXED
                } else {
                    capture.mode == MODE_GLOBAL && mode == MODE_GLOBAL
                };
            capture.is_invalid |= is_forbidden;
            is_refused |= is_forbidden;
        }
        if is_refused { Err(ERROR_STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses work on the null stream if a blocking stream, which it would wait for, is being
    /// captured.
    pub(crate) fn refuse_implicit_capture(&mut self, context: Handle) -> Result<(), Code> {
        let captures = self.captures_of_blocking_streams(context);
        captures.iter().for_each(|&id| self.invalidate(Some(id)));
        if captures.is_empty() { Ok(()) } else { Err(ERROR_STREAM_CAPTURE_IMPLICIT) }
    }

    fn captures_of_blocking_streams(&self, context: Handle) -> Vec<u64> {
        let is_caught = |stream: &&super::state::Stream| stream.context == context && stream.is_blocking;
        self.streams.values().filter(is_caught).filter_map(|stream| stream.capture).collect()
    }

    /// The capture of a stream, 0 for none, and its status. For the null stream this fails while a
    /// blocking stream is being captured; that capture stays valid.
    fn capture_status(&mut self, stream: Handle) -> Result<(u64, i32), Code> {
        let (context, capture) = {
            let stream = self.stream(stream)?;
            (stream.context, stream.capture)
        };
        if self.sound_context(context)?.null_stream == stream && !self.captures_of_blocking_streams(context).is_empty()
        {
            return Err(ERROR_STREAM_CAPTURE_IMPLICIT);
        }
        let is_invalid = |id: u64| self.captures.get(&id).is_none_or(|capture| capture.is_invalid);
        let status = capture.map_or(0, |id| if is_invalid(id) { 2 } else { 1 });
        Ok((capture.unwrap_or(0), status))
    }

    fn begin_capture(&mut self, stream: Handle, mode: i32) -> Result<(), Code> {
        let context = self.stream(stream)?.context;
        let is_null = self.sound_context(context)?.null_stream == stream;
        if !(MODE_GLOBAL..=MODE_RELAXED).contains(&mode) {
            return Err(ERROR_INVALID_VALUE);
        }
        if is_null || self.stream(stream)?.capture.is_some() {
            return Err(ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        let id = self.new_handle(Kind::Graph);
        let heads = BTreeMap::from([(stream, Vec::new())]);
        let thread = std::thread::current().id();
        let capture = Capture { origin: stream, mode, thread, graph: Graph::default(), heads, is_invalid: false };
        self.captures.insert(id, capture);
        self.stream(stream)?.capture = Some(id);
        Ok(())
    }

    fn end_capture(&mut self, stream: Handle) -> Result<Handle, Code> {
        let id = self.stream(stream)?.capture.ok_or(ERROR_INVALID_VALUE)?;
        let is_origin = self.captures.get(&id).is_some_and(|capture| capture.origin == stream);
        if !is_origin {
            self.invalidate(Some(id));
            return Err(ERROR_STREAM_CAPTURE_UNMATCHED);
        }
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(id)) {
            stream.capture = None;
        }
        let capture = self.captures.remove(&id).ok_or(ERROR_STREAM_CAPTURE_INVALIDATED)?;
        if capture.is_invalid {
            return Err(ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        if !capture.is_joined() {
            return Err(ERROR_STREAM_CAPTURE_UNJOINED);
        }
        self.graphs.insert(id, capture.graph);
        Ok(id)
    }

    /// A graph by its handle. It has the handle from the beginning of its capture on.
    pub(crate) fn graph_under_way_or_made(&mut self, handle: Handle) -> Result<&mut Graph, Code> {
        if !self.captures.contains_key(&handle) && !self.graphs.contains_key(&handle) {
            return Err(self.bad_handle(handle, Kind::Graph));
        }
        let graph = match self.captures.get_mut(&handle) {
            Some(capture) => Some(&mut capture.graph),
            None => self.graphs.get_mut(&handle),
        };
        graph.ok_or(ERROR_INVALID_HANDLE)
    }

    /// Queues a graph's nodes, each after those it depends on, and a task on the stream that comes
    /// after all of them.
    fn launch_graph(&mut self, exec: Handle, stream: Handle) -> Result<(), Code> {
        if self.stream(stream)?.capture.is_some() {
            return self.refuse_capture_of(stream);
        }
        let Some(GraphExec { graph, last }) = self.execs.get(&exec) else {
            return Err(self.bad_handle(exec, Kind::GraphExec));
        };
        let (Graph { nodes, objects }, last) = (graph.clone(), *last);
        let mut before = self.predecessors(stream)?;
        before.extend(last);
        let mut tasks: Vec<TaskId> = Vec::new();
        for node in nodes {
            let mut after: Vec<TaskId> = node.after.iter().map(|&index| tasks[index]).collect();
            after.extend(&before);
            let task = self.queue_task(stream, node.work, &format!("{} in a graph", node.label), after)?;
            self.queue.mark_of_graph(task);
            tasks.push(task);
        }
        tasks.extend(before);
        let end = self.queue_task(stream, Work::EndOfGraph { objects }, "cuGraphLaunch", tasks)?;
        if let Some(exec) = self.execs.get_mut(&exec) {
            exec.last = Some(end);
        }
        Ok(())
    }
}

impl Capture {
    /// Whether all captured work comes before the origin's next node.
    fn is_joined(&self) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = self.heads.get(&self.origin).cloned().unwrap_or_default();
        while let Some(node) = open.pop() {
            if seen.insert(node) {
                open.extend(&self.graph.nodes[node].after);
            }
        }
        seen.len() == self.graph.nodes.len()
    }
}

/// `live_capture` returns this for a stream without a capture; callers ask only about streams that
/// have one.
const ERROR_ILLEGAL_STREAM: Code = ERROR_INVALID_VALUE;

api! {
    fn cuThreadExchangeStreamCaptureMode(_driver, mode: Out<i32>) {
        mode.exchange(|mode| {
            if (MODE_GLOBAL..=MODE_RELAXED).contains(&mode) {
                Ok(THREAD_MODE.replace(mode))
            } else {
                Err(ERROR_INVALID_VALUE)
            }
        })
    }

    fn cuStreamBeginCapture_v2(driver, stream: Handle, mode: i32) {
        let stream = driver.resolve_stream(stream)?;
        driver.begin_capture(stream, mode)
    }

    fn cuStreamEndCapture(driver, stream: Handle, graph: Out<Handle>) {
        let stream = driver.resolve_stream(stream)?;
        match driver.end_capture(stream) {
            Ok(captured) => graph.set(captured),
            Err(code) => {
                graph.set_if_wanted(0);
                Err(code)
            }
        }
    }

    fn cuStreamIsCapturing(driver, stream: Handle, status: Out<i32>) {
        let stream = driver.resolve_stream(stream)?;
        status.set(driver.capture_status(stream)?.1)
    }

    fn cuStreamGetCaptureInfo_v2(
        driver,
        stream: Handle,
        status: Out<i32>,
        id: Out<u64>,
        graph: Out<Handle>,
        dependencies: Out<HostAddress>,
        count: Out<usize>,
    ) {
        let stream = driver.resolve_stream(stream)?;
        let (capture, state) = driver.capture_status(stream)?;
        if !(dependencies.is_null() && count.is_null()) {
            return Err(ERROR_NOT_SUPPORTED);
        }
        id.set_if_wanted(capture);
        // A failed capture has no graph.
        graph.set_if_wanted(if state == 1 { capture } else { 0 });
        status.set(state)
    }

    fn cuGraphInstantiateWithFlags(driver, exec: Out<Handle>, graph: Handle, flags: u64) {
        driver.current()?;
        // Device-side launch (4) excludes freeing on launch (1).
        if flags & !0xf != 0 || flags & 5 == 5 {
            return Err(ERROR_INVALID_VALUE);
        }
        let Some(graph) = driver.graphs.get(&graph).cloned() else {
            return Err(driver.bad_handle(graph, Kind::Graph));
        };
        let handle = driver.new_handle(Kind::GraphExec);
        driver.execs.insert(handle, GraphExec { graph, last: None });
        exec.set(handle)
    }

    fn cuGraphLaunch(driver, exec: Handle, stream: Handle) {
        let stream = driver.resolve_stream(stream)?;
        driver.launch_graph(exec, stream)
    }

    fn cuGraphUpload(driver, exec: Handle, stream: Handle) {
        driver.resolve_stream(stream)?;
        if driver.execs.contains_key(&exec) { Ok(()) } else { Err(driver.bad_handle(exec, Kind::GraphExec)) }
    }

    fn cuGraphGetNodes(driver, graph: Handle, nodes: List<Handle>, count: Out<usize>) {
        let Some(found) = driver.graphs.get(&graph).map(|graph| graph.nodes.len()) else {
            return Err(driver.bad_handle(graph, Kind::Graph));
        };
        // The nodes themselves have no handles here.
        if nodes.is_null() { count.set(found) } else { Err(ERROR_NOT_SUPPORTED) }
    }

    fn cuGraphExecDestroy(driver, exec: Handle) {
        match driver.execs.remove(&exec) {
            Some(_) => Ok(()),
            None => Err(driver.bad_handle(exec, Kind::GraphExec)),
        }
    }

    fn cuGraphDestroy(driver, graph: Handle) {
        match driver.graphs.remove(&graph) {
            Some(_) => Ok(()),
            None => Err(driver.bad_handle(graph, Kind::Graph)),
        }
    }
}
