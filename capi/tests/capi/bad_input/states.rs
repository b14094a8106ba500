//! States, their handles and their files.

use std::ffi::{CString, c_char};
use std::ptr;

use dualadam_capi::*;

use crate::calls::*;

#[test]
fn states() {
    let mut handle = 9;
    let mut status = |spec: dualadam_tensor_spec| {
        // SAFETY: the pointers are to live structs and to a local variable.
        let status = unsafe { dualadam_state_new(&config(), 1, &spec, 1, &mut handle) };
        assert_eq!(handle, 9);
        status
    };
    let with = |group, has_master| dualadam_tensor_spec { group, has_master, ..spec(4) };
    fails(status(with(1, 0)), DUALADAM_STATUS_INDEX, "tensor 0 must have a group below 1, got 1");
    fails(status(with(0, 2)), DUALADAM_STATUS_ENUM, "has_master of tensors[0] must be 0 or 1, got 2");
    for len in [1 << 50, u64::MAX / 4, u64::MAX] {
        let bytes = len.saturating_mul(4);
        let text = format!("tensor 0 must fit in memory, each of its arrays needs {bytes} bytes");
        fails(status(spec(len)), DUALADAM_STATUS_MEMORY, &text);
    }

    let state = state(4);
    let mut config = config();
    config.lr = -1.0;
    let (mut count, mut values) = (9, state_tensor(state, 0));
    let position = DUALADAM_STATUS_POSITION;
    let mut read = config;
    // SAFETY: the pointers are to live structs and to local variables.
    unsafe {
        fails(dualadam_state_config(state, 1, &mut read, 104), position, "group must be below 1, got 1");
        fails(dualadam_state_tensor(state, 7, &mut values, 56), position, "tensor must be below 1, got 7");
        fails(dualadam_state_set_config(state, 1, &crate::calls::config()), position, "group must be below 1, got 1");
        let text = "lr must be finite and at least 0, got -1.0";
        fails(dualadam_state_set_config(state, 0, &config), DUALADAM_STATUS_VALUE, text);
        fails(
            dualadam_state_counts(state, &mut count, ptr::null_mut()),
            DUALADAM_STATUS_NULL,
            "tensors must not be null",
        );
        assert_eq!((count, read.lr), (9, -1.0));
        ok(dualadam_state_config(state, 0, &mut read, 104));
    }
    assert_eq!(read.lr, 1e-3);
    fails(dualadam_state_set_step(state, 1, 5, 0), position, "tensor must be below 1, got 1");
    let text = "master_is_set of the arguments must be 0 or 1, got 2";
    fails(dualadam_state_set_step(state, 0, 5, 2), DUALADAM_STATUS_ENUM, text);
    let text = "master of tensor 0 must exist to be set, the tensor has no master";
    fails(dualadam_state_set_step(state, 0, 5, 1), DUALADAM_STATUS_VALUE, text);
    assert_eq!(state_tensor(state, 0).step, 0);
    ok(dualadam_state_free(state));
}

#[test]
fn handles() {
    let stale = DUALADAM_STATUS_STALE_HANDLE;
    let first = state(1);
    ok(dualadam_state_free(first));
    let text = |handle: u64| {
        format!("state must be a live handle, got {handle:#x}: it was never given out, or what it stood for is freed")
    };
    fails(dualadam_state_free(first), stale, &text(first));
    // Another object may take its slot, but not its handle.
    let live: Vec<_> = (0..10).map(|_| state(1)).collect();
    assert!(!live.contains(&first));
    fails(dualadam_state_set_step(first, 0, 1, 0), stale, &text(first));
    let near = live.iter().flat_map(|&live| [live ^ (1 << 32), live ^ (2 << 32), live + 100]);
    for handle in near.chain([0, 1, u64::MAX, 1 << 32, (1 << 32) - 1]) {
        fails(dualadam_state_free(handle), stale, &text(handle));
    }
    let (mut count, mut config, mut values) = (0, config(), state_tensor(live[0], 0));
    // SAFETY: the pointers are to live structs and to local variables.
    unsafe {
        assert_eq!(dualadam_state_counts(first, &mut count, &mut count), stale);
        assert_eq!(dualadam_state_config(first, 0, &mut config, 104), stale);
        assert_eq!(dualadam_state_set_config(first, 0, &config), stale);
        assert_eq!(dualadam_state_tensor(first, 0, &mut values, 56), stale);
        assert_eq!(dualadam_state_save(first, c"x".as_ptr()), stale);
    }
    live.into_iter().for_each(|live| ok(dualadam_state_free(live)));
}

#[test]
fn paths_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
        CString::new(folder.path().join(name).to_str().unwrap()).unwrap()
    };
    let load = |path: *const c_char| {
        let mut state = 9;
        // SAFETY: `path` is null or a C string, and `state` is a local variable.
        let status = unsafe { dualadam_state_load(path, &mut state) };
        assert!(status == DUALADAM_STATUS_OK || state == 9);
        status
    };
    let state = state(2);
    fails(load(ptr::null()), DUALADAM_STATUS_NULL, "file must not be null");
    let latin1 = c"gr\xfc\xdfe".as_ptr();
    fails(load(latin1), DUALADAM_STATUS_UTF8, "file must be UTF-8, got byte 0xfc at position 2");
    // SAFETY: the paths are null or C strings.
    unsafe {
        fails(dualadam_state_save(state, ptr::null()), DUALADAM_STATUS_NULL, "file must not be null");
        let text = "file must be UTF-8, got byte 0xfc at position 2";
        fails(dualadam_state_save(state, latin1), DUALADAM_STATUS_UTF8, text);
        assert_eq!(dualadam_state_save(state, c"".as_ptr()), DUALADAM_STATUS_IO);
        assert_eq!(dualadam_state_save(state, c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    }
    assert_eq!(load(c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    assert_eq!(load(file("short", b"123").as_ptr()), DUALADAM_STATUS_STATE_TOO_SHORT);
    assert_eq!(load(file("other", b"12345678").as_ptr()), DUALADAM_STATUS_STATE_CHECKSUM);
    assert_eq!(load(file("empty", &[0; 4]).as_ptr()), DUALADAM_STATUS_STATE_MALFORMED);

    let whole = file("whole", b"");
    // SAFETY: the path is a C string.
    ok(unsafe { dualadam_state_save(state, whole.as_ptr()) });
    let bytes = std::fs::read(folder.path().join("whole")).unwrap();
    let at = bytes.windows(11).position(|bytes| bytes == b"version\\\":1").unwrap() + 10;
    let mut later = bytes.clone();
    later[at] = b'9';
    let body = later.len() - 4;
    let crc = crc32fast::hash(&later[..body]);
    later[body..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(load(file("later", &later).as_ptr()), DUALADAM_STATUS_STATE_VERSION);
    assert!(last_error().ends_with("its format version must be 1, it is 9"), "{}", last_error());

    // An existing state resumes only from a file with the same tensors.
    let resume = |state, path: *const c_char| {
        // SAFETY: the path is null or a C string.
        unsafe { dualadam_state_resume(state, path) }
    };
    ok(resume(state, whole.as_ptr()));
    let longer = crate::calls::state(3);
    assert_eq!(resume(longer, whole.as_ptr()), DUALADAM_STATUS_STATE_LAYOUT);
    let text = "tensor 0 must be 3 elements in group 0 without masters, it is 2 elements in group 0 without masters";
    assert!(last_error().ends_with(text), "{}", last_error());
    assert_eq!(resume(longer, ptr::null()), DUALADAM_STATUS_NULL);
    assert_eq!(resume(longer, c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    assert_eq!(resume(longer, file("damaged", b"12345678").as_ptr()), DUALADAM_STATUS_STATE_CHECKSUM);
    ok(dualadam_state_free(longer));
    assert_eq!(resume(longer, whole.as_ptr()), DUALADAM_STATUS_STALE_HANDLE);

    // SAFETY: the state's array has two elements.
    unsafe { state_tensor(state, 0).exp_avg_sq.write(-1.0) };
    // SAFETY: the path is a C string.
    let status = unsafe { dualadam_state_save(state, whole.as_ptr()) };
    fails(status, DUALADAM_STATUS_VALUE, "exp_avg_sq of tensor 0 must be at least 0 everywhere, got -1.0");
    assert_eq!(std::fs::read(folder.path().join("whole")).unwrap(), bytes);
    ok(dualadam_state_free(state));
}
