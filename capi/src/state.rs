//! States: what an optimizer remembers between steps, saved to files and resumed from them.

use std::ffi::c_char;
use std::ptr;

use dualadam::{Error, State};

use crate::arguments::{collect, path};
use crate::config::read_config;
use crate::handles::{self, Locked, dualadam_state, lock};
use crate::results::{Out, StructOut};
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_config, dualadam_tensor_layout, dualadam_tensor_state, flag};

fn get(state: dualadam_state) -> Result<Locked<State>, Failure> {
    handles::get("state", state)
}

/// The group or tensor at a position that the caller named.
fn at<'a, T>(list: &'static str, entries: &'a mut [T], position: usize) -> Result<&'a mut T, Failure> {
    let len = entries.len();
    entries.get_mut(position).ok_or(Error::Position { list, len, value: position }.into())
}

/// Makes a state for a model: moments and masters of 0 and steps of 0, in the host's memory, which
/// the state owns. Its arrays may be stepped in place. Or they may be filled with moments from
/// elsewhere, such as from a GPU, to be saved.
///
/// `groups` is an array of the parameter groups, `tensors` one of the tensors. `state` gets the
/// handle; free it with `dualadam_state_free`.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` for a `has_master` that is not 0 or 1.
/// - `DUALADAM_STATUS_INDEX` for a tensor's group that is not there.
/// - `DUALADAM_STATUS_MEMORY` for a tensor that the machine has no memory for.
///
/// # Safety
///
/// - Each struct can be read for as many bytes as its size says.
/// - `state` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_new(
    groups: *const dualadam_config,
    group_count: usize,
    tensors: *const dualadam_tensor_layout,
    tensor_count: usize,
    state: *mut dualadam_state,
) -> dualadam_status {
    border(|| {
        // SAFETY: the arrays' structs can be read for their sizes (the first requirement).
        let (groups, layout) = unsafe {
            let groups = collect("groups", groups, group_count, |_, place, config| config.convert(place))?;
            let layout =
                collect("tensors", tensors, tensor_count, |tensor, place, layout| layout.convert(tensor, place));
            (groups, layout?)
        };
        let out = Out::new("state", state)?;
        let made = State::new(&groups, &layout)?;
        // SAFETY: `state` can be written (the second requirement).
        unsafe { out.write(handles::insert_locked(made)) };
        Ok(())
    })
}

/// Reads a state from a file that any backend or language of this library has saved. The checksum
/// over the whole file is tested first.
///
/// `file` is a path in UTF-8. `state` gets the handle; free it with `dualadam_state_free`. Compare
/// what the state holds with your model before you use it: `dualadam_state_counts` and
/// `dualadam_state_tensor` tell. Or let `dualadam_state_resume` do that.
///
/// # Errors
///
/// - `DUALADAM_STATUS_UTF8` for the path.
/// - `DUALADAM_STATUS_IO` if the file cannot be read.
/// - `DUALADAM_STATUS_STATE_TOO_SHORT`, `DUALADAM_STATUS_STATE_CHECKSUM`,
///   `DUALADAM_STATUS_STATE_VERSION` or `DUALADAM_STATUS_STATE_MALFORMED` if it is not a whole
///   state of this version.
///
/// # Safety
///
/// - `file` is null or a C string.
/// - `state` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_load(file: *const c_char, state: *mut dualadam_state) -> dualadam_status {
    border(|| {
        // SAFETY: `file` is null or a C string (the first requirement).
        let file = unsafe { path("file", file) }?;
        let out = Out::new("state", state)?;
        let loaded = State::load(file)?;
        // SAFETY: `state` can be written (the second requirement).
        unsafe { out.write(handles::insert_locked(loaded)) };
        Ok(())
    })
}

/// Reads a file into a state, if the file is of a model with the same groups and tensors. Configs,
/// steps, moments and masters become those of the file. The arrays keep their addresses.
///
/// `file` is a path in UTF-8.
///
/// # Errors
///
/// - As `dualadam_state_load`.
/// - `DUALADAM_STATUS_STATE_LAYOUT` if the number of groups or tensors, or a tensor's length, group
///   or masters differ.
///
/// # Safety
///
/// - `file` is null or a C string.
/// - Nothing uses the state's arrays meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_resume(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        // SAFETY: `file` is null or a C string (the first requirement).
        let file = unsafe { path("file", file) }?;
        let loaded = State::load(file)?;
        let mut state = lock(&state);
        state.check_layout(&loaded).map_err(|problem| Error::State { path: file.to_owned(), problem })?;
        state.groups = loaded.groups;
        for (own, loaded) in state.tensors.iter_mut().zip(loaded.tensors) {
            own.exp_avg.copy_from_slice(&loaded.exp_avg);
            own.exp_avg_sq.copy_from_slice(&loaded.exp_avg_sq);
            if let (Some(own), Some(loaded)) = (&mut own.master, &loaded.master) {
                own.copy_from_slice(loaded);
            }
            (own.step, own.master_is_set) = (loaded.step, loaded.master_is_set);
        }
        Ok(())
    })
}

/// Writes a state to a file, and replaces what is there at once: after a crash the old or the new
/// file is there, whole.
///
/// `file` is a path in UTF-8.
///
/// # Errors
///
/// - `DUALADAM_STATUS_UTF8` for the path.
/// - `DUALADAM_STATUS_VALUE` for a second moment that is negative somewhere.
/// - `DUALADAM_STATUS_IO` if the file cannot be written. An old file is still there then.
///
/// # Safety
///
/// - `file` is null or a C string.
/// - Nothing writes the state's arrays meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_save(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        // SAFETY: `file` is null or a C string (the first requirement).
        let file = unsafe { path("file", file) }?;
        Ok(lock(&state).save(file)?)
    })
}

/// Frees a state and its arrays. The handle is stale from then on.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_free(state: dualadam_state) -> dualadam_status {
    border(|| handles::remove::<Locked<State>>("state", state))
}

/// Writes how many parameter groups and tensors a state has.
///
/// # Safety
///
/// - `groups` and `tensors` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_counts(
    state: dualadam_state,
    groups: *mut usize,
    tensors: *mut usize,
) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        let (groups, tensors) = (Out::new("groups", groups)?, Out::new("tensors", tensors)?);
        let state = lock(&state);
        // SAFETY: `groups` and `tensors` can be written (this function's requirement).
        unsafe {
            groups.write(state.groups.len());
            tensors.write(state.tensors.len());
        }
        Ok(())
    })
}

/// Writes the config of a parameter group, numbered from 0. `size` is sizeof(dualadam_config).
///
/// # Errors
///
/// - `DUALADAM_STATUS_POSITION` if there is no such group.
///
/// # Safety
///
/// - `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_config(
    state: dualadam_state,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        let out = StructOut::new("config", config, size)?;
        let made = dualadam_config::from(&*at("group", &mut lock(&state).groups, group)?);
        // SAFETY: `config` can be written for `size` bytes (this function's requirement).
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Replaces the config of a parameter group, numbered from 0, such as for another learning rate.
///
/// # Errors
///
/// - `DUALADAM_STATUS_POSITION` if there is no such group.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_set_config(
    state: dualadam_state,
    group: usize,
    config: *const dualadam_config,
) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        // SAFETY: `config` can be read for its size (this function's requirement).
        let config = unsafe { read_config(config) }?;
        let mut state = lock(&state);
        let group = at("group", &mut state.groups, group)?;
        config.validate()?;
        *group = config;
        Ok(())
    })
}

/// Writes what a state has of a tensor, numbered from 0: its length, group and step, and where its
/// arrays are. `size` is sizeof(dualadam_tensor_state). The arrays keep their addresses until the
/// state is freed. Two threads must not use the same arrays at the same time.
///
/// # Errors
///
/// - `DUALADAM_STATUS_POSITION` if there is no such tensor.
///
/// # Safety
///
/// - `values` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_tensor(
    state: dualadam_state,
    tensor: usize,
    values: *mut dualadam_tensor_state,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state = get(state)?;
        let out = StructOut::new("values", values, size)?;
        let mut state = lock(&state);
        let found = at("tensor", &mut state.tensors, tensor)?;
        let made = dualadam_tensor_state {
            size,
            len: found.exp_avg.len() as u64,
            step: found.step,
            exp_avg: found.exp_avg.as_mut_ptr(),
            exp_avg_sq: found.exp_avg_sq.as_mut_ptr(),
            master: found.master.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr),
            group: found.group as u32,
            master_is_set: found.master_is_set.into(),
        };
        // SAFETY: `values` can be written for `size` bytes (this function's requirement).
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Sets the number of updates that a tensor, numbered from 0, has had, and whether its masters hold
/// the parameters: 1, or 0 if they are still to be set from the 16-bit ones, or if the tensor has
/// none.
///
/// # Errors
///
/// - `DUALADAM_STATUS_POSITION` if there is no such tensor.
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
        let state = get(state)?;
        let mut state = lock(&state);
        let tensor = at("tensor", &mut state.tensors, tensor)?;
        let master_is_set = flag("the arguments".into(), "master_is_set", master_is_set)?;
        if master_is_set && tensor.master.is_none() {
            let requirement = "be 0 for a tensor without masters";
            return Err(Error::Value { name: "master_is_set", requirement, value: 1.0 }.into());
        }
        (tensor.step, tensor.master_is_set) = (step, master_is_set);
        Ok(())
    })
}
