//! The whole C surface, called with what bytes say: random handles, sizes, numbers and pointers
//! into an arena. The fuzzer makes the bytes; here they are random.
//!
//! The calls keep the requirements on pointers: structs can be read for as many bytes as their size
//! says, and buffers that pass every check are live. All else is arbitrary. Each call must return a
//! known status other than a panic. If it fails, it must leave a text and write nothing in the
//! arena.

mod arena;
mod calls;
mod device;
mod input;
mod structs;

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use dualadam_capi::*;

use arena::Arena;
use device::Device;
use input::Input;

/// The most structs in an array.
const MOST: usize = 4;
/// The most bytes that the library believes a struct to have.
const MOST_BYTES: usize = 4096;
/// Elements of a buffer, of 4 bytes at most.
const MOST_ELEMENTS: u64 = 300;

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    State,
    Kernels,
    List,
    Control,
}

impl Kind {
    fn free(self, handle: u64) -> dualadam_status {
        match self {
            Self::State => dualadam_state_free(handle),
            Self::Kernels => dualadam_cuda_kernels_free(handle),
            Self::List => dualadam_cuda_list_free(handle),
            Self::Control => dualadam_cuda_control_free(handle),
        }
    }
}

/// Everything that the calls share.
pub(crate) struct Surface {
    arena: Arena,
    /// Handles that were given out, whether they are live or not.
    handles: Vec<u64>,
    /// Objects that are live.
    live: Vec<(u64, Kind)>,
    folder: tempfile::TempDir,
    paths: Vec<CString>,
    device: Device,
    /// Calls so far, and how many of them did something.
    pub(crate) calls: u64,
    pub(crate) successes: u64,
}

impl Surface {
    pub(crate) fn new() -> Self {
        // Saving syncs; in memory that costs nothing.
        let folder = tempfile::Builder::new().tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path =
            |name: &[u8]| CString::new([folder.path().as_os_str().as_encoded_bytes(), b"/", name].concat()).unwrap();
        let paths =
            vec![path(b"state"), path(b"other"), path(b"damaged"), path(b"\xff"), path(b"no/folder"), c"".into()];
        Self {
            arena: Arena::new(),
            handles: vec![],
            live: vec![],
            folder,
            paths,
            device: Device::new(),
            calls: 0,
            successes: 0,
        }
    }

    /// Makes the calls that the bytes decide, from a fresh start.
    pub(crate) fn run(&mut self, bytes: &[u8]) {
        let mut input = Input(bytes);
        while !input.is_empty() {
            self.call(&mut input);
            if self.live.len() > 16 {
                self.free_all();
            }
        }
        self.free_all();
        self.handles.clear();
        self.arena.clear();
        self.device.finish();
    }

    fn free_all(&mut self) {
        for (handle, kind) in self.live.drain(..) {
            assert!(kind.free(handle) == DUALADAM_STATUS_OK, "{handle:#x} was live");
        }
    }

    /// Mostly a live handle of that kind, if there is one.
    fn handle(&self, input: &mut Input<'_>, kind: Kind) -> u64 {
        let pick = |handles: &[u64], at: usize| if handles.is_empty() { 0 } else { handles[at % handles.len()] };
        let live = |is_wanted: &dyn Fn(Kind) -> bool| -> Vec<u64> {
            self.live.iter().filter(|(_, kind)| is_wanted(*kind)).map(|&(handle, _)| handle).collect()
        };
        match input.byte() % 16 {
            11 => pick(&live(&|_| true), input.byte()),
            12 => pick(&self.handles, input.byte()),
            13 => pick(&live(&|_| true), input.byte()) ^ (1 << (input.byte() % 64)),
            14 => input.u64(),
            15 => [0, 1, u64::MAX, u64::from(u32::MAX)][input.byte() % 4],
            _ => pick(&live(&|other| other == kind), input.byte()),
        }
    }

    fn path(&self, input: &mut Input<'_>) -> *const c_char {
        match input.byte() % 32 {
            31 => ptr::null(),
            byte => self.paths[byte % self.paths.len()].as_ptr(),
        }
    }

    /// Notes a handle that a call has written into the arena, if it was not refused.
    fn given_out(&mut self, kind: Kind, place: *const u64, status: dualadam_status) -> dualadam_status {
        if status == DUALADAM_STATUS_OK {
            // SAFETY: the call wrote a handle there.
            let handle = unsafe { place.read() };
            self.handles.push(handle);
            self.live.push((handle, kind));
        }
        status
    }

    /// Frees what may be of that kind.
    fn free(&mut self, input: &mut Input<'_>, kind: Kind) -> dualadam_status {
        let handle = self.handle(input, kind);
        let status = kind.free(handle);
        // What is live can only be refused as being of another kind; what is not can never be
        // freed.
        match self.live.iter().position(|&(live, _)| live == handle) {
            Some(live) if status == DUALADAM_STATUS_OK => {
                self.live.swap_remove(live);
            }
            Some(_) => assert_eq!(status, DUALADAM_STATUS_HANDLE_KIND),
            None => assert_eq!(status, DUALADAM_STATUS_STALE_HANDLE),
        }
        status
    }

    fn check(&mut self, which: usize, status: dualadam_status) {
        if status == DUALADAM_STATUS_OK {
            self.successes += 1;
            return;
        }
        let mut text = [0_u8; 300];
        // SAFETY: the buffer has that length.
        let told = unsafe { dualadam_last_error(text.as_mut_ptr().cast(), text.len(), ptr::null_mut()) };
        assert_eq!(told, DUALADAM_STATUS_OK);
        let text = String::from_utf8_lossy(&text);
        assert!(status != DUALADAM_STATUS_PANIC, "call {which}: {text}");
        // SAFETY: the name is a C string that stays valid.
        let name = unsafe { CStr::from_ptr(dualadam_status_name(status)) };
        assert!(name != c"unknown status", "call {which}: {status}");
        assert!(self.arena.is_untouched(), "call {which} failed with {name:?} and has written: {text}");
    }
}

#[test]
fn random_calls_are_refused_or_done() {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    let mut surface = Surface::new();
    let mut rng = SmallRng::seed_from_u64(4);
    let mut bytes = vec![0; 4096];
    while surface.calls < 100_000 {
        rng.fill_bytes(&mut bytes);
        surface.run(&bytes);
    }
    let share = surface.successes as f64 / surface.calls as f64;
    assert!(share > 0.2, "only {share} of the calls were more than bad input");
}
