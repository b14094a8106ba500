//! States: what an optimizer keeps between steps, saved to files and resumed from them.

use std::ffi::c_char;
use std::ptr;

use dualadam::{State, StateError};

use crate::arguments::{check_pointer, path, read, read_all};
use crate::handles::{Locked, dualadam_state, get, insert_locked, lock, remove};
use crate::results::{Answer as _, give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_config, dualadam_tensor_spec, dualadam_tensor_state, flag};

/// Makes a state for a model, with moments and masters of 0 and step counts of 0. The state owns
/// its arrays, which lie in the host's memory.
///
/// `groups` is an array of `group_count` configs, one for each parameter group. `tensors` is an
/// array of `tensor_count` specs. `dualadam_state_tensor` gives the addresses of the arrays.
/// `dualadam_cpu_step` can step them in place; or the caller can fill them, such as with moments
/// from a GPU, and save them.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_ENUM` for a `has_master` that is not 0 or 1.
/// - `DUALADAM_STATUS_INDEX` for a `group` that is not below `group_count`.
/// - `DUALADAM_STATUS_MEMORY` for a tensor whose arrays do not fit in memory.
///
/// # Example
///
/// A tensor of `len` elements that is stepped on the CPU and saved:
///
/// ```c
/// dualadam_tensor_spec spec;
/// dualadam_tensor_state values;
/// dualadam_state state;
/// dualadam_tensor_spec_init(&spec, sizeof spec);
/// spec.len = len;
/// dualadam_state_new(config, 1, &spec, 1, &state);
/// dualadam_state_tensor(state, 0, &values, sizeof values);
/// tensor->exp_avg = values.exp_avg; // the step updates the state's own arrays
/// tensor->exp_avg_sq = values.exp_avg_sq;
/// dualadam_cpu_step(tensor, coeffs);
/// dualadam_state_set_step(state, 0, values.step + 1, 0);
/// dualadam_state_save(state, "optimizer.safetensors");
/// dualadam_state_free(state);
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_new(
    groups: *const dualadam_config,
    group_count: usize,
    tensors: *const dualadam_tensor_spec,
    tensor_count: usize,
    state: *mut dualadam_state,
) -> dualadam_status {
    border(|| {
        // SAFETY: the arrays' structs can be read for their sizes (required of every call).
        let (groups, specs) =
            unsafe { (read_all("groups", groups, group_count)?, read_all("tensors", tensors, tensor_count)?) };
        let make = || Ok(insert_locked(State::new(&groups, &specs)?));
        // SAFETY: `state` can be written (required of every call).
        unsafe { give("state", state, make) }
    })
}

/// Makes a state from a file that any backend or language of this library saved. `file` is its
/// path. The call tests the checksum of the whole file before it uses anything of it.
///
/// The caller must compare the state with its model, with `dualadam_state_counts` and
/// `dualadam_state_tensor`. `dualadam_state_resume` does that comparison itself.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_IO` if the file cannot be read.
/// - `DUALADAM_STATUS_STATE_TOO_SHORT` or `DUALADAM_STATUS_STATE_CHECKSUM` for a file that is cut
///   or damaged.
/// - `DUALADAM_STATUS_STATE_VERSION` for another version of the format.
/// - `DUALADAM_STATUS_STATE_MALFORMED` for a file that is not a state.
///
/// # Example
///
/// ```c
/// dualadam_state state;
/// dualadam_tensor_state values;
/// dualadam_state_load("optimizer.safetensors", &state);
/// dualadam_state_tensor(state, 0, &values, sizeof values);
/// tensor->exp_avg = values.exp_avg;
/// tensor->exp_avg_sq = values.exp_avg_sq;
/// // go on with step values.step + 1
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_load(file: *const c_char, state: *mut dualadam_state) -> dualadam_status {
    border(|| {
        // SAFETY: `file` is null or a C string (required of every call).
        let file = unsafe { path("file", file) }?;
        // SAFETY: `state` can be written (required of every call).
        unsafe { give("state", state, || Ok(insert_locked(State::load(file)?))) }
    })
}

/// Reads a file into a state. The file must be of a model with the same groups and tensors. The
/// state gets the configs, step counts, moments and masters of the file. Its arrays keep their
/// addresses.
///
/// # Errors
///
/// - As `dualadam_state_load`.
/// - `DUALADAM_STATUS_STATE_LAYOUT` for another number of groups or tensors, or a tensor with
///   another length, another group, or masters in only one of the two. Also for another name of a
///   tensor, where both have names: Rust programs can give them.
///
/// # Safety
///
/// - Nothing uses the state's arrays during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_resume(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        // SAFETY: `file` is null or a C string (required of every call).
        let file = unsafe { path("file", file) }?;
        let mut loaded = State::load(file)?;
        let mut state = lock(&state);
        state.check_layout(&loaded).map_err(|problem| StateError::File { path: file.to_owned(), problem })?;
        loaded.ledger.fill_names(&state.ledger);
        state.ledger = loaded.ledger;
        for (own, loaded) in state.arrays.iter_mut().zip(loaded.arrays) {
            own.exp_avg.copy_from_slice(&loaded.exp_avg);
            own.exp_avg_sq.copy_from_slice(&loaded.exp_avg_sq);
            if let (Some(own), Some(loaded)) = (&mut own.master, &loaded.master) {
                own.copy_from_slice(loaded);
            }
        }
        Ok(())
    })
}

/// Saves a state to a file in the safetensors format, with a checksum. The call replaces an older
/// file in one operation: after a crash, the folder has the whole old file or the whole new one. A
/// symbolic link is replaced, not followed.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_VALUE` for a second moment with a negative element.
/// - `DUALADAM_STATUS_IO` if the file cannot be written. An older file is then unchanged, unless
///   only the sync of the folder failed after the replacement.
///
/// # Safety
///
/// - Nothing writes the state's arrays during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_save(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        // SAFETY: `file` is null or a C string (required of every call).
        let file = unsafe { path("file", file) }?;
        Ok(lock(&state).save(file)?)
    })
}

/// Frees a state and its arrays. The caller must not use the arrays afterwards.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_free(state: dualadam_state) -> dualadam_status {
    border(|| remove::<Locked<State>>(state))
}

/// Writes the number of parameter groups and the number of tensors of a state.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_counts(
    state: dualadam_state,
    groups: *mut usize,
    tensors: *mut usize,
) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        check_pointer("groups".into(), groups)?;
        check_pointer("tensors".into(), tensors)?;
        let state = lock(&state);
        // SAFETY: `groups` and `tensors` can be written (required of every call) and are aligned.
        unsafe {
            groups.write(state.ledger.groups().len());
            tensors.write(state.ledger.len());
        }
        Ok(())
    })
}

/// Writes the config of a parameter group of a state. `size` is sizeof(dualadam_config).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_config(
    state: dualadam_state,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        let make = || dualadam_config::of(lock(&state).ledger.config(group)?);
        // SAFETY: `config` can be written for `size` bytes (required of every call).
        unsafe { give_struct("config", config, size, make) }
    })
}

/// Replaces the config of a parameter group of a state, such as to change its learning rate.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_set_config(
    state: dualadam_state,
    group: usize,
    config: *const dualadam_config,
) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        Ok(lock(&state).ledger.set_config(group, config)?)
    })
}

/// Writes a tensor's part of a state: its length, group and step count, and the addresses of its
/// arrays. `size` is sizeof(dualadam_tensor_state). The arrays keep their addresses until the state
/// is freed. Two threads must not use the same arrays at the same time.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_tensor(
    state: dualadam_state,
    tensor: usize,
    values: *mut dualadam_tensor_state,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        let make = || {
            let State { ledger, arrays, .. } = &mut *lock(&state);
            let spec = ledger.spec(tensor)?;
            // The ledger has `tensor`, so `arrays` has it too.
            let arrays = &mut arrays[tensor];
            Ok(dualadam_tensor_state {
                size,
                len: spec.len as u64,
                step: ledger.step(tensor)?,
                exp_avg: arrays.exp_avg.as_mut_ptr(),
                exp_avg_sq: arrays.exp_avg_sq.as_mut_ptr(),
                master: arrays.master.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr),
                group: spec.group as u32,
                master_is_set: ledger.master_is_set(tensor)?.into(),
            })
        };
        // SAFETY: `values` can be written for `size` bytes (required of every call).
        unsafe { give_struct("values", values, size, make) }
    })
}

/// Sets the number of updates that a tensor has had, and whether its masters are set.
/// `master_is_set` is 1 if the masters have the values of the parameters. It is 0 if they must
/// still be filled from the parameters, or if the tensor has no masters.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_ENUM` for a `master_is_set` that is not 0 or 1.
/// - `DUALADAM_STATUS_VALUE` for a `master_is_set` of 1 where the tensor has no masters.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_set_step(
    state: dualadam_state,
    tensor: usize,
    step: u64,
    master_is_set: u32,
) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        let master_is_set = flag("the arguments".into(), "master_is_set", master_is_set)?;
        let ledger = &mut lock(&state).ledger;
        ledger.set_master_is_set(tensor, master_is_set)?;
        Ok(ledger.set_step(tensor, step)?)
    })
}
