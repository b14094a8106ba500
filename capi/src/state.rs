//! States: what an optimizer remembers between steps, saved to files and resumed from them.

use std::ffi::c_char;
use std::ptr;

use dualadam::{State, StateError};

use crate::arguments::{check_pointer, path, read, read_all};
use crate::handles::{Locked, dualadam_state, get, insert_locked, lock, remove};
use crate::results::{Answer as _, give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_config, dualadam_tensor_spec, dualadam_tensor_state, flag};

/// Makes a state for a model: moments and masters of 0 and steps of 0, in the host's memory, which
/// the state owns. Its arrays may be stepped in place. Or they may be filled with moments from
/// elsewhere, such as from a GPU, to be saved.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` for a `has_master` that is not 0 or 1.
/// - `DUALADAM_STATUS_INDEX` for a tensor's group that is not there.
/// - `DUALADAM_STATUS_MEMORY` for a tensor that the machine has no memory for.
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

/// Reads a state from a file that any backend or language of this library has saved. The checksum
/// over the whole file is tested first.
///
/// Compare what the state holds with your model before you use it: `dualadam_state_counts` and
/// `dualadam_state_tensor` tell. Or let `dualadam_state_resume` do that.
///
/// # Errors
///
/// - `DUALADAM_STATUS_IO` if the file cannot be read.
/// - `DUALADAM_STATUS_STATE_TOO_SHORT`, `DUALADAM_STATUS_STATE_CHECKSUM`,
///   `DUALADAM_STATUS_STATE_VERSION` or `DUALADAM_STATUS_STATE_MALFORMED` if it is not a whole
///   state of this version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_load(file: *const c_char, state: *mut dualadam_state) -> dualadam_status {
    border(|| {
        // SAFETY: `file` is null or a C string (required of every call).
        let file = unsafe { path("file", file) }?;
        // SAFETY: `state` can be written (required of every call).
        unsafe { give("state", state, || Ok(insert_locked(State::load(file)?))) }
    })
}

/// Reads a file into a state, if the file is of a model with the same groups and tensors. Configs,
/// steps, moments and masters become those of the file. The arrays keep their addresses.
///
/// # Errors
///
/// - As `dualadam_state_load`.
/// - `DUALADAM_STATUS_STATE_LAYOUT` if the number of groups or tensors, or a tensor's length, group
///   or masters differ, or its name where both have one, as Rust programs give them.
///
/// # Safety
///
/// - Nothing uses the state's arrays meanwhile.
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

/// Writes a state to a file, and replaces what is there at once: after a crash the old or the new
/// file is there, whole.
///
/// # Errors
///
/// - `DUALADAM_STATUS_VALUE` for a second moment that is negative somewhere.
/// - `DUALADAM_STATUS_IO` if the file cannot be written. An old file is still there then.
///
/// # Safety
///
/// - Nothing writes the state's arrays meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_save(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state: Locked<State> = get(state)?;
        // SAFETY: `file` is null or a C string (required of every call).
        let file = unsafe { path("file", file) }?;
        Ok(lock(&state).save(file)?)
    })
}

/// Frees a state and its arrays.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_free(state: dualadam_state) -> dualadam_status {
    border(|| remove::<Locked<State>>(state))
}

/// Writes how many parameter groups and tensors a state has.
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

/// Writes the config of a parameter group.
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

/// Replaces the config of a parameter group, such as for another learning rate.
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

/// Writes what a state has of a tensor: its length, group and step, and where its arrays are. The
/// arrays keep their addresses until the state is freed. Two threads must not use the same arrays
/// at the same time.
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
            // The ledger has the tensor, so its arrays are there.
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

/// Sets the number of updates that a tensor has had, and whether its masters hold the parameters:
/// 1, or 0 if they are still to be set from the 16-bit ones, or if the tensor has none.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` for a `master_is_set` that is not 0 or 1.
/// - `DUALADAM_STATUS_VALUE` for 1 where the tensor has no masters.
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
