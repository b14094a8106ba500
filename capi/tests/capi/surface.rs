//! The whole C surface, called with what bytes say: random handles, sizes, numbers and pointers
//! into an arena. The fuzzer makes the bytes; here they are random.
//!
//! What is promised of pointers is kept: structs can be read for as many bytes as they say, buffers
//! that pass every check are there. All else is open. After each call: no panic, a known status, a
//! text where it failed, and nothing written in the arena then.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CString, c_char, c_void};
use std::ptr;

use dualadam_capi::*;

/// The most structs in an array.
const MOST: usize = 4;
/// The most bytes that the library believes a struct to have.
const MOST_BYTES: usize = 4096;
/// Behind any pointer into the arena there are as many bytes.
const SLACK: usize = (MOST + 1) * MOST_BYTES;
const ARENA: usize = 16 * 1024 + SLACK;
/// Elements of a buffer, of 4 bytes at most.
const MOST_ELEMENTS: u64 = 300;

/// The bytes that decide; zeros when they have run out.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = N.min(self.0.len());
        bytes[..taken].copy_from_slice(&self.0[..taken]);
        self.0 = &self.0[taken..];
        bytes
    }

    fn byte(&mut self) -> usize {
        self.bytes::<1>()[0].into()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.byte() % n == n - 1
    }

    /// Mostly one of these numbers, at times any.
    fn number(&mut self, usual: &[u32]) -> u32 {
        if self.one_in(16) { self.u32() } else { usual[self.byte() % usual.len()] }
    }

    fn real(&mut self, usual: &[f64]) -> f64 {
        const ODD: [f64; 8] = [-1.0, -0.0, f64::NAN, f64::INFINITY, f64::MAX, 1e-300, 1.0, f64::MIN_POSITIVE];
        match self.byte() % 16 {
            14 => ODD[self.byte() % ODD.len()],
            15 => f64::from_bits(self.u64()),
            _ => usual[self.byte() % usual.len()],
        }
    }

    fn step(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => self.u64(),
            1 => [0, 1, u64::MAX][self.byte() % 3],
            _ => 1 + self.byte() as u64,
        }
    }

    /// The size of a struct: mostly the right one.
    fn size(&mut self, known: usize) -> usize {
        match self.byte() % 16 {
            12 => known.wrapping_add(8 * (self.byte() % 32)),
            13 => self.u32() as usize % 6000,
            14 => [0, 1, 8, known.wrapping_sub(8), known.wrapping_add(1), MOST_BYTES, MOST_BYTES + 8, usize::MAX]
                [self.byte() % 8],
            15 => self.u64() as usize,
            _ => known,
        }
    }

    /// How many sets or groups a control has: mostly one.
    fn control_count(&mut self) -> usize {
        if self.one_in(8) { self.count() } else { 1 + self.byte() % 8 / 7 }
    }

    /// How many structs an array has: few, or more than any memory.
    fn count(&mut self) -> usize {
        match self.byte() % 16 {
            14 => [usize::MAX, 1 << 60, 1 << 56, 1 << 50][self.byte() % 4],
            byte => byte % (MOST + 1),
        }
    }
}

/// Memory whose every part may be read and written by anyone: it is only touched through raw
/// pointers.
struct Arena {
    start: *mut u8,
    before: Vec<u8>,
}

impl Arena {
    const LAYOUT: Layout = Layout::new::<[u64; ARENA / 8]>();

    fn new() -> Self {
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(Self::LAYOUT) };
        assert!(!start.is_null());
        Self { start, before: vec![0; ARENA] }
    }

    fn content(&self) -> &[u8] {
        // SAFETY: nothing writes the arena while the result lives.
        unsafe { std::slice::from_raw_parts(self.start, ARENA) }
    }

    fn clear(&mut self) {
        // SAFETY: the arena has as many bytes.
        unsafe { self.start.write_bytes(0, ARENA) };
    }

    fn remember(&mut self) {
        // SAFETY: both have as many bytes.
        unsafe { self.before.as_mut_ptr().copy_from_nonoverlapping(self.start, ARENA) };
    }

    /// A place: mostly aligned, at times not, seldom null.
    fn place<T>(&self, input: &mut Input<'_>) -> *mut T {
        let at = input.u32() as usize % (ARENA - SLACK);
        match input.byte() % 32 {
            30 => self.start.wrapping_add(at).cast(),
            31 => ptr::null_mut(),
            _ => self.start.wrapping_add(at & !15).cast(),
        }
    }

    /// Writes structs one after the other, each the first one's size apart, where they are to be
    /// read.
    fn put<T: Copy>(&self, to: *mut T, values: &[T], stride: usize) {
        for (index, value) in values.iter().enumerate().filter(|_| !to.is_null()) {
            let stride = if stride <= MOST_BYTES { stride } else { 0 };
            // SAFETY: a place has as much room behind it.
            unsafe { to.byte_add(index * stride).write_unaligned(*value) };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, Self::LAYOUT) };
    }
}

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    State,
    Kernels,
    List,
    Control,
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
    device: device::Device,
    /// Calls so far, and how many of them did something.
    pub(crate) calls: u64,
    pub(crate) successes: u64,
}

impl Surface {
    pub(crate) fn new() -> Self {
        // Saving syncs; in memory that costs nothing.
        let folder = tempfile::Builder::new().tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = |name: &[u8]| {
            let folder = folder.path().as_os_str().as_encoded_bytes();
            CString::new([folder, b"/", name].concat()).unwrap()
        };
        let paths =
            vec![path(b"state"), path(b"other"), path(b"damaged"), path(b"\xff"), path(b"no/folder"), c"".into()];
        Self {
            arena: Arena::new(),
            handles: vec![],
            live: vec![],
            folder,
            paths,
            device: device::Device::new(),
            calls: 0,
            successes: 0,
        }
    }

    /// Makes the calls that the bytes say, from a fresh start.
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
            let status = match kind {
                Kind::State => dualadam_state_free(handle),
                Kind::Kernels => dualadam_cuda_kernels_free(handle),
                Kind::List => dualadam_cuda_list_free(handle),
                Kind::Control => dualadam_cuda_control_free(handle),
            };
            assert!(status == DUALADAM_STATUS_OK, "{handle:#x} was live");
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

    fn config(&self, input: &mut Input<'_>) -> dualadam_config {
        if input.one_in(2) {
            return self.usual_config(input);
        }
        let weight_decay_kind = input.number(&[0, 0, 1, 2, 3]);
        dualadam_config {
            size: input.size(size_of::<dualadam_config>()),
            lr: input.real(&[1e-3, 0.0, 0.1]),
            beta1: input.real(&[0.9, 0.0]),
            beta2: input.real(&[0.999, 0.0]),
            eps: input.real(&[1e-8, 1e-2]),
            weight_decay: if weight_decay_kind == 0 && !input.one_in(8) { 0.0 } else { input.real(&[0.1, 0.0]) },
            weight_decay_kind,
            inverse_term: input.number(&[0, 1]),
            maximize: input.number(&[0, 1]),
            schedule: input.number(&[0, 1, 2, 3]),
            switching_rate: input.real(&[8e-5, 0.01, 0.0, 1.0]),
            base: input.real(&[0.5, 1.0, 0.0]),
            period: input.step(),
            cutoff: input.real(&[0.0, 0.1, 1.0]),
            switching_step: input.step(),
        }
    }

    /// One that is valid, as far as its lr is.
    fn usual_config(&self, input: &mut Input<'_>) -> dualadam_config {
        dualadam_config {
            size: size_of::<dualadam_config>(),
            lr: input.real(&[1e-3, 0.0, 0.1]),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            weight_decay_kind: 0,
            inverse_term: 0,
            maximize: 0,
            schedule: 0,
            switching_rate: 0.01,
            base: 0.0,
            period: 0,
            cutoff: 0.0,
            switching_step: 0,
        }
    }

    /// A config in the arena.
    fn put_config(&self, input: &mut Input<'_>) -> *const dualadam_config {
        let (place, config) = (self.arena.place(input), self.config(input));
        self.arena.put(place, &[config], 0);
        place
    }

    fn coeffs(input: &mut Input<'_>) -> dualadam_coeffs {
        let mut next = || f32::from_bits(input.u32());
        dualadam_coeffs {
            size: 0,
            one_minus_beta1: next(),
            one_minus_beta2: next(),
            inv_sqrt_bc2: next(),
            eps: next(),
            inverse_eps: next(),
            inverse_scale: next(),
            adam_scale: next(),
            decay: next(),
            l2: next(),
            grad_scale: next(),
        }
    }

    /// Coefficients in the arena: one struct, or an array and its length.
    fn put_coeffs(&self, input: &mut Input<'_>, array: bool) -> (*const dualadam_coeffs, usize) {
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_coeffs>()));
        let count = if array { input.count() } else { 1 };
        let coeffs: Vec<_> = (0..count.min(MOST))
            .map(|_| {
                let size = if input.one_in(32) { input.size(size) } else { size };
                dualadam_coeffs { size, ..Self::coeffs(input) }
            })
            .collect();
        self.arena.put(place, &coeffs, size);
        (place, count)
    }

    /// A tensor's buffers: in the arena, or the moments of a state, or on the device.
    fn tensor(&self, input: &mut Input<'_>, on_device: bool) -> dualadam_tensor {
        let mut len = match input.byte() % 16 {
            14 => [u64::MAX, 1 << 62, 1 << 63, u64::MAX / 2, 1 << 61 | 1 << 62][input.byte() % 5],
            15 => 0,
            byte => (byte * input.byte()) as u64 % (MOST_ELEMENTS + 1),
        };
        let buffer = |input: &mut Input<'_>| -> *mut c_void {
            if on_device { self.device.place(input) } else { self.arena.place(input) }
        };
        let (mut exp_avg, mut exp_avg_sq) = (buffer(input), buffer(input));
        if !on_device && input.one_in(4) {
            let mut values = std::mem::MaybeUninit::<dualadam_tensor_state>::uninit();
            let (handle, size) = (self.handle(input, Kind::State), size_of::<dualadam_tensor_state>());
            // SAFETY: the struct has that size; it is only used if it was filled.
            unsafe {
                if dualadam_state_tensor(handle, input.byte() % MOST, values.as_mut_ptr(), size) == DUALADAM_STATUS_OK {
                    let values = values.assume_init();
                    (exp_avg, exp_avg_sq) = (values.exp_avg.cast(), values.exp_avg_sq.cast());
                    len = len.min(values.len);
                }
            }
        }
        let master_dtype = input.number(&[0, 0, 0, 1, 1, 2]);
        dualadam_tensor {
            size: 0,
            param: buffer(input),
            grad: buffer(input),
            exp_avg,
            exp_avg_sq,
            master: if master_dtype == 0 && !input.one_in(16) { ptr::null_mut() } else { buffer(input) },
            len,
            param_dtype: input.number(if master_dtype == 1 { &[2, 2, 3, 3, 1] } else { &[1, 1, 1, 2, 3] }),
            grad_dtype: input.number(&[1, 1, 1, 2, 3]),
            master_dtype,
            coeffs_index: input.number(&[0, 0, 0, 0, 1, 2]),
        }
    }

    /// Tensors in the arena: one struct, or an array and its length.
    fn put_tensors(&self, input: &mut Input<'_>, array: bool, on_device: bool) -> (*const dualadam_tensor, usize) {
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_tensor>()));
        let count = if array { input.count() } else { 1 };
        let tensors: Vec<_> = (0..count.min(MOST))
            .map(|_| {
                let size = if input.one_in(32) { input.size(size) } else { size };
                dualadam_tensor { size, ..self.tensor(input, on_device) }
            })
            .collect();
        self.arena.put(place, &tensors, size);
        (place, count)
    }

    fn put_specs(&self, input: &mut Input<'_>) -> (*const dualadam_tensor_spec, usize) {
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_tensor_spec>()));
        let count = input.count();
        let specs: Vec<_> = (0..count.min(MOST))
            .map(|_| dualadam_tensor_spec {
                size: if input.one_in(32) { input.size(size) } else { size },
                len: if input.one_in(32) { (1 << 50) | input.u64() } else { input.byte() as u64 },
                group: input.number(&[0, 0, 0, 1]),
                has_master: input.number(&[0, 0, 1]),
            })
            .collect();
        self.arena.put(place, &specs, size);
        (place, count)
    }

    fn put_configs(&self, input: &mut Input<'_>) -> (*const dualadam_config, usize) {
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_config>()));
        let count = input.count();
        let configs: Vec<_> = (0..count.min(MOST))
            .map(|_| {
                let size = if input.one_in(32) { input.size(size) } else { size };
                dualadam_config { size, ..self.config(input) }
            })
            .collect();
        self.arena.put(place, &configs, size);
        (place, count)
    }

    /// An address on the device, often null.
    fn device_place_or_null<T>(&self, input: &mut Input<'_>) -> *mut T {
        if input.one_in(3) { self.device.place(input) } else { ptr::null_mut() }
    }

    fn put_control_sets(&self, input: &mut Input<'_>) -> (*const dualadam_cuda_control_set, usize) {
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_cuda_control_set>()));
        let count = input.control_count();
        let sets: Vec<_> = (0..count.min(MOST))
            .map(|_| dualadam_cuda_control_set {
                size: if input.one_in(32) { input.size(size) } else { size },
                group: input.number(&[0, 0, 0, 1]) as usize,
                step: self.device_place_or_null(input),
            })
            .collect();
        self.arena.put(place, &sets, size);
        (place, count)
    }

    /// To be put after all else: the groups' pointers are believed.
    fn put_control_groups(&self, input: &mut Input<'_>) -> (*const dualadam_cuda_control_group, usize) {
        let count = input.control_count();
        let configs: Vec<_> = (0..count.min(MOST)).map(|_| self.put_config(input)).collect();
        let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_cuda_control_group>()));
        let groups: Vec<_> = configs
            .into_iter()
            .map(|config| {
                let size = if input.one_in(32) { input.size(size) } else { size };
                let (lr_f32, lr_f64) = match input.byte() % 8 {
                    0 => (self.device.place(input), ptr::null_mut()),
                    1 => (ptr::null_mut(), self.device.place(input)),
                    2 => (self.device.place(input), self.device.place(input)),
                    _ => (ptr::null_mut(), ptr::null_mut()),
                };
                dualadam_cuda_control_group { size, config, lr_f32, lr_f64 }
            })
            .collect();
        self.arena.put(place, &groups, size);
        (place, count)
    }

    fn put_scalars(&self, input: &mut Input<'_>) -> *const dualadam_cuda_scalars {
        let place = self.arena.place(input);
        let scalars = dualadam_cuda_scalars {
            size: input.size(size_of::<dualadam_cuda_scalars>()),
            loss_scale: self.device_place_or_null(input),
            clip_factor: self.device_place_or_null(input),
            found_inf: self.device_place_or_null(input),
        };
        self.arena.put(place, &[scalars], 0);
        place
    }

    /// Damages a saved file.
    fn damage(&self, input: &mut Input<'_>) {
        if let Ok(mut bytes) = std::fs::read(self.folder.path().join("state"))
            && !bytes.is_empty()
        {
            let at = input.u32() as usize % bytes.len();
            if input.one_in(2) {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << (input.byte() % 8);
            }
            std::fs::write(self.folder.path().join("damaged"), bytes).unwrap();
        }
    }

    /// Notes a handle that a call has written into the arena, if it was not refused.
    fn given_out(&mut self, kind: Kind, place: *const u64, status: dualadam_status) {
        if status == DUALADAM_STATUS_OK {
            // SAFETY: the call has written there.
            let handle = unsafe { place.read() };
            self.handles.push(handle);
            self.live.push((handle, kind));
        }
    }

    fn taken_back(&mut self, handle: u64, status: dualadam_status) {
        let live = self.live.iter().position(|&(live, _)| live == handle);
        // What is live can only be refused as being of another kind; what is not can never be
        // freed.
        match live {
            Some(live) if status == DUALADAM_STATUS_OK => {
                self.live.swap_remove(live);
            }
            Some(_) => assert_eq!(status, DUALADAM_STATUS_HANDLE_KIND),
            None => assert_eq!(status, DUALADAM_STATUS_STALE_HANDLE),
        }
    }

    #[expect(clippy::too_many_lines, reason = "a line or two for each function of the library")]
    fn call(&mut self, input: &mut Input<'_>) {
        self.calls += 1;
        let which = input.byte() % 96;
        // SAFETY: structs and places are in the arena, with room behind them; buffers that can pass
        // the checks are in it as well, or in a live state, or on the device; paths are null or C
        // strings.
        let status = unsafe {
            match which {
                0 | 1 => {
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_config>()));
                    self.arena.remember();
                    dualadam_config_init(place, size)
                }
                2 => {
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_tensor>()));
                    self.arena.remember();
                    dualadam_tensor_init(place, size)
                }
                3 => {
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_tensor_spec>()));
                    self.arena.remember();
                    dualadam_tensor_spec_init(place, size)
                }
                4 | 5 => {
                    let config = self.put_config(input);
                    self.arena.remember();
                    dualadam_config_validate(config)
                }
                6 => {
                    let (config, place) = (self.put_config(input), self.arena.place(input));
                    self.arena.remember();
                    dualadam_config_alpha(config, input.step(), place)
                }
                7 => {
                    let (config, step) = (self.put_config(input), self.arena.place(input));
                    let exists = self.arena.place(input);
                    self.arena.remember();
                    dualadam_config_first_adam_step(config, step, exists)
                }
                8..=11 => {
                    let (config, place) = (self.put_config(input), self.arena.place(input));
                    let (step, multiplier) = (input.step(), input.real(&[1.0, 0.5, 0.0]));
                    let size = input.size(size_of::<dualadam_coeffs>());
                    self.arena.remember();
                    dualadam_config_coeffs(config, step, multiplier, place, size)
                }
                12..=19 => {
                    let ((tensor, _), (coeffs, _)) =
                        (self.put_tensors(input, false, false), self.put_coeffs(input, false));
                    self.arena.remember();
                    dualadam_cpu_step(tensor, coeffs)
                }
                20..=27 => {
                    let (tensors, tensor_count) = self.put_tensors(input, true, false);
                    let (coeffs, coeffs_count) = self.put_coeffs(input, true);
                    self.arena.remember();
                    dualadam_cpu_step_list(tensors, tensor_count, coeffs, coeffs_count)
                }
                28..=31 => {
                    let (groups, group_count) = self.put_configs(input);
                    let (tensors, tensor_count) = self.put_specs(input);
                    let place = self.arena.place(input);
                    self.arena.remember();
                    let status = dualadam_state_new(groups, group_count, tensors, tensor_count, place);
                    self.given_out(Kind::State, place, status);
                    status
                }
                32 => {
                    let place = self.arena.place(input);
                    if input.one_in(2) {
                        self.damage(input);
                    }
                    self.arena.remember();
                    let status = dualadam_state_load(self.path(input), place);
                    self.given_out(Kind::State, place, status);
                    status
                }
                33 => {
                    let (handle, path) = (self.handle(input, Kind::State), self.path(input));
                    self.arena.remember();
                    dualadam_state_save(handle, path)
                }
                34 | 35 => {
                    let handle = self.handle(input, Kind::State);
                    self.arena.remember();
                    let status = dualadam_state_free(handle);
                    self.taken_back(handle, status);
                    status
                }
                36 => {
                    let (handle, groups) = (self.handle(input, Kind::State), self.arena.place(input));
                    let tensors = self.arena.place(input);
                    self.arena.remember();
                    dualadam_state_counts(handle, groups, tensors)
                }
                37 => {
                    let (handle, group) = (self.handle(input, Kind::State), input.number(&[0, 0, 1]) as usize);
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_config>()));
                    self.arena.remember();
                    dualadam_state_config(handle, group, place, size)
                }
                38 => {
                    let (handle, group) = (self.handle(input, Kind::State), input.number(&[0, 0, 1]) as usize);
                    let config = self.put_config(input);
                    self.arena.remember();
                    dualadam_state_set_config(handle, group, config)
                }
                39 | 40 => {
                    let (handle, tensor) = (self.handle(input, Kind::State), input.number(&[0, 0, 1, 2, 3]) as usize);
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_tensor_state>()));
                    self.arena.remember();
                    dualadam_state_tensor(handle, tensor, place, size)
                }
                41 | 42 => {
                    let (handle, tensor) = (self.handle(input, Kind::State), input.number(&[0, 0, 1, 2, 3]) as usize);
                    let (step, master_is_set) = (input.step(), input.number(&[0, 0, 1]));
                    self.arena.remember();
                    dualadam_state_set_step(handle, tensor, step, master_is_set)
                }
                43 => {
                    // Not device 1, whose kernels could be launched on memory of device 0.
                    let device = if input.one_in(4) { input.u64().max(2) as usize } else { 0 };
                    let place = self.arena.place(input);
                    self.arena.remember();
                    let status = dualadam_cuda_kernels_new(device, place);
                    self.given_out(Kind::Kernels, place, status);
                    status
                }
                44 => {
                    let place = self.arena.place(input);
                    self.arena.remember();
                    let status = dualadam_cuda_kernels_in_current_context(place);
                    self.given_out(Kind::Kernels, place, status);
                    status
                }
                45 => {
                    let handle = self.handle(input, Kind::Kernels);
                    self.arena.remember();
                    let status = dualadam_cuda_kernels_free(handle);
                    self.taken_back(handle, status);
                    status
                }
                46..=49 => {
                    let (handle, stream) = (self.handle(input, Kind::Kernels), self.device.stream(input));
                    let ((tensor, _), (coeffs, _)) =
                        (self.put_tensors(input, false, true), self.put_coeffs(input, false));
                    self.arena.remember();
                    dualadam_cuda_step(handle, tensor, coeffs, stream)
                }
                50 | 51 => {
                    let (handle, (tensors, count)) =
                        (self.handle(input, Kind::Kernels), self.put_tensors(input, true, true));
                    let place = self.arena.place(input);
                    self.arena.remember();
                    let status = dualadam_cuda_list_new(handle, tensors, count, place);
                    self.given_out(Kind::List, place, status);
                    status
                }
                52 => {
                    let (handle, (tensors, count)) =
                        (self.handle(input, Kind::List), self.put_tensors(input, true, true));
                    self.arena.remember();
                    dualadam_cuda_list_update(handle, tensors, count)
                }
                53..=56 => {
                    let (handle, stream) = (self.handle(input, Kind::List), self.device.stream(input));
                    let (coeffs, count) = self.put_coeffs(input, true);
                    self.arena.remember();
                    dualadam_cuda_list_step(handle, coeffs, count, stream)
                }
                57 => {
                    let handle = self.handle(input, Kind::List);
                    self.arena.remember();
                    let status = dualadam_cuda_list_free(handle);
                    self.taken_back(handle, status);
                    status
                }
                58 | 59 => {
                    let (place, len) = (self.arena.place(input), input.u32() as usize % SLACK);
                    let needed = self.arena.place(input);
                    self.arena.remember();
                    // The text stays the same, so that what follows need not be told.
                    dualadam_last_error(place, len, needed)
                }
                60 => {
                    let (place, size) = (self.arena.place::<u64>(input), input.size(32));
                    self.arena.remember();
                    match input.byte() % 3 {
                        0 => dualadam_cuda_control_group_init(place.cast(), size),
                        1 => dualadam_cuda_control_set_init(place.cast(), size),
                        _ => dualadam_cuda_scalars_init(place.cast(), size),
                    }
                }
                61..=66 => {
                    let (handle, (sets, set_count)) = (self.handle(input, Kind::Kernels), self.put_control_sets(input));
                    let (groups, group_count) = self.put_control_groups(input);
                    let place = self.arena.place(input);
                    self.arena.remember();
                    let status = dualadam_cuda_control_new(handle, groups, group_count, sets, set_count, place);
                    self.given_out(Kind::Control, place, status);
                    status
                }
                67 => {
                    let handle = self.handle(input, Kind::Control);
                    self.arena.remember();
                    let status = dualadam_cuda_control_free(handle);
                    self.taken_back(handle, status);
                    status
                }
                68 => {
                    let (handle, group) = (self.handle(input, Kind::Control), input.number(&[0, 0, 1]) as usize);
                    let (place, size) = (self.arena.place(input), input.size(size_of::<dualadam_config>()));
                    self.arena.remember();
                    dualadam_cuda_control_config(handle, group, place, size)
                }
                69 | 70 => {
                    let (handle, group) = (self.handle(input, Kind::Control), input.number(&[0, 0, 1]) as usize);
                    let (lr, stream) = (input.real(&[1e-3, 0.0, 0.1]), self.device.stream(input));
                    self.arena.remember();
                    dualadam_cuda_control_set_lr(handle, group, lr, stream)
                }
                71 => {
                    let (handle, group) = (self.handle(input, Kind::Control), input.number(&[0, 0, 1]) as usize);
                    let (config, stream) = (self.put_config(input), self.device.stream(input));
                    self.arena.remember();
                    dualadam_cuda_control_set_config(handle, group, config, stream)
                }
                72 | 73 => {
                    let (handle, place, count) =
                        (self.handle(input, Kind::Control), self.arena.place(input), input.control_count());
                    let stream = self.device.stream(input);
                    self.arena.remember();
                    dualadam_cuda_control_steps(handle, place, count, stream)
                }
                74 | 75 => {
                    let (handle, place, count) =
                        (self.handle(input, Kind::Control), self.arena.place(input), input.control_count());
                    let (steps, stream) =
                        (std::array::from_fn::<_, MOST, _>(|_| input.step()), self.device.stream(input));
                    self.arena.put(place, &steps, 8);
                    self.arena.remember();
                    dualadam_cuda_control_set_steps(handle, place, count, stream)
                }
                76 | 77 => {
                    let (handle, place, count) =
                        (self.handle(input, Kind::Control), self.arena.place(input), input.control_count());
                    let (size, stream) = (input.size(size_of::<dualadam_cuda_set_report>()), self.device.stream(input));
                    self.arena.remember();
                    dualadam_cuda_control_report(handle, place, size, count, stream)
                }
                78 => {
                    let (handle, place, count) =
                        (self.handle(input, Kind::Control), self.arena.place(input), input.control_count());
                    let (size, stream) = (input.size(size_of::<dualadam_coeffs>()), self.device.stream(input));
                    self.arena.remember();
                    dualadam_cuda_control_coeffs(handle, place, size, count, stream)
                }
                79..=88 => {
                    let (list, control) = (self.handle(input, Kind::List), self.handle(input, Kind::Control));
                    let (scalars, stream) = (self.put_scalars(input), self.device.stream(input));
                    self.arena.remember();
                    dualadam_cuda_list_step_controlled(list, control, scalars, stream)
                }
                89 | 90 => {
                    let (handle, (tensor, _)) =
                        (self.handle(input, Kind::Kernels), self.put_tensors(input, false, true));
                    self.arena.remember();
                    dualadam_cuda_kernels_prepare(handle, tensor)
                }
                91 => {
                    let (handle, path) = (self.handle(input, Kind::State), self.path(input));
                    self.arena.remember();
                    dualadam_state_resume(handle, path)
                }
                _ => {
                    assert!(!dualadam_status_name(input.u32() as i32).is_null() && !dualadam_version().is_null());
                    DUALADAM_STATUS_OK
                }
            }
        };
        self.check(which, status);
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
        // SAFETY: a C string that stays.
        let name = unsafe { std::ffi::CStr::from_ptr(dualadam_status_name(status)) };
        assert!(name != c"unknown status", "call {which}: {status}");
        assert!(self.arena.content() == self.arena.before, "call {which} failed with {name:?} and has written: {text}");
    }
}

/// The stand-in for a CUDA device: an arena of its memory, and streams.
mod device {
    use std::ffi::c_void;
    use std::ptr;
    use std::sync::Arc;

    use dualadam::cuda::Kernels;
    use dualadam::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
    use stand_in_cuda::client::StandIn;

    use super::{Input, MOST_ELEMENTS};

    const SLACK: usize = 4 * MOST_ELEMENTS as usize;
    const MEMORY: usize = 32 * 1024 + SLACK;

    /// Fields are dropped in this order: the stand-in last.
    pub(super) struct Device {
        /// They stay loaded, so that it is quick to load them again.
        _kernels: Kernels,
        stream: Arc<CudaStream>,
        foreign: Arc<CudaStream>,
        context: Arc<CudaContext>,
        address: u64,
        stand_in: StandIn,
    }

    impl Device {
        pub(super) fn new() -> Self {
            let stand_in = StandIn::start().unwrap_or_else(|error| panic!("{error}"));
            stand_in.set("devices", 2);
            let foreign = CudaContext::new(1).unwrap().new_stream().unwrap();
            let kernels = Kernels::new(0).unwrap();
            let context = CudaContext::new(0).unwrap();
            // SAFETY: a context is current; the memory is as long.
            let address = unsafe {
                let address = result::malloc_sync(MEMORY).unwrap();
                result::memset_d8_sync(address, 0, MEMORY).unwrap();
                address
            };
            let mut stream = ptr::null_mut();
            // A stream that the default stream waits for, and that waits for it: all work is in
            // order. SAFETY: a place for the stream, which is live as long as this.
            let stream = unsafe {
                sys::cuStreamCreate(&mut stream, 0).result().unwrap();
                context.wrap_borrowed_stream(stream)
            };
            context.synchronize().unwrap();
            Self { _kernels: kernels, stream, foreign, context, address, stand_in }
        }

        pub(super) fn place<T>(&self, input: &mut Input<'_>) -> *mut T {
            let at = input.u32() as usize % (MEMORY - SLACK);
            let start = self.address as usize;
            ptr::without_provenance_mut(match input.byte() % 32 {
                30 => start + at,
                31 => 0,
                _ => start + (at & !15),
            })
        }

        pub(super) fn stream(&self, input: &mut Input<'_>) -> *mut c_void {
            match input.byte() % 16 {
                14 => ptr::null_mut(),
                15 => self.foreign.cu_stream().cast(),
                _ => self.stream.cu_stream().cast(),
            }
        }

        /// Lets all work run, and fails if any of it was wrong.
        pub(super) fn finish(&self) {
            self.context.synchronize().unwrap();
            let violations = self.stand_in.violations();
            assert!(violations.is_empty(), "{violations:#?}");
        }
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
