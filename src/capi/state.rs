//! States: what an optimizer remembers between steps, saved to files and resumed from them.

use std::ffi::c_char;
use std::ptr;
use std::sync::{Arc, Mutex};

use crate::owner::{at, set_config};
use crate::{Error, State};

use super::arguments::{Out, StructOut, collect, path, read};
use super::handles::{self, Object, dualadam_state, lock};
use super::status::{border, dualadam_status};
use super::types::{dualadam_config, dualadam_tensor_layout, dualadam_tensor_state, flag};

/// Makes a state for a model: moments and masters of 0 and steps of 0, in the host's memory, which the state owns. Its arrays may be
/// stepped in place, or be filled with moments from elsewhere, such as from a GPU, to be saved.
///
/// `groups` is an array of the parameter groups, `tensors` one of the tensors; the sizes in each array alike; an empty array may be null.
/// `state` gets the handle, which is to be given back with `dualadam_state_free`.
///
/// Threads: any; the structs are only read.
///
/// Errors: as `dualadam_config_validate`, for each group; `DUALADAM_STATUS_ENUM` for a `has_master` that is not 0 or 1;
/// `DUALADAM_STATUS_INDEX` for a tensor's group that is not there; `DUALADAM_STATUS_MEMORY` or `DUALADAM_STATUS_TOO_MANY` for more than the
/// machine has memory for; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for arrays and `state`.
///
/// # Safety
///
/// Each struct can be read for as many bytes as its size says; `state` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_new(
    groups: *const dualadam_config,
    group_count: usize,
    tensors: *const dualadam_tensor_layout,
    tensor_count: usize,
    state: *mut dualadam_state,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let (groups, layout) = unsafe {
            let groups =
                collect("groups", groups, group_count, |_, place, config: dualadam_config| config.convert(place));
            let convert = |index, place, layout: dualadam_tensor_layout| layout.convert(index, place);
            (groups?, collect("tensors", tensors, tensor_count, convert)?)
        };
        let out = Out::new("state", state)?;
        let made = State::new(&groups, &layout)?;
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(Object::State(Arc::new(Mutex::new(made))))) };
        Ok(())
    })
}

/// Reads a state from a file that any backend or language of this library has saved. The checksum over the whole file is tested first.
///
/// `file` is a path in UTF-8. `state` gets the handle, which is to be given back with `dualadam_state_free`. Compare what it holds with
/// your model before you use it: `dualadam_state_counts` and `dualadam_state_tensor` tell. Or let `dualadam_state_resume` do that.
///
/// Threads: any.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_UTF8`; `DUALADAM_STATUS_IO` if the file cannot be read;
/// `DUALADAM_STATUS_STATE_TOO_SHORT`, `DUALADAM_STATUS_STATE_CHECKSUM`, `DUALADAM_STATUS_STATE_VERSION` or
/// `DUALADAM_STATUS_STATE_MALFORMED` if it is not a whole state of this version.
///
/// # Safety
///
/// `file` is null or a C string; `state` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_load(file: *const c_char, state: *mut dualadam_state) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let file = unsafe { path("file", file) }?;
        let out = Out::new("state", state)?;
        let loaded = State::load(file)?;
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(Object::State(Arc::new(Mutex::new(loaded))))) };
        Ok(())
    })
}

/// Reads a file into a state that is there, if it is of a model with the same groups and tensors: configs, steps, moments and masters become
/// those of the file. The arrays stay where they are.
///
/// `file` is a path in UTF-8.
///
/// Threads: any; waits for other calls with the same state. Nothing may use the state's arrays meanwhile.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; as `dualadam_state_load`; `DUALADAM_STATUS_STATE_LAYOUT` if the
/// number of groups or tensors, or a tensor's length, group or masters differ.
///
/// # Safety
///
/// `file` is null or a C string; nothing uses the state's arrays meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_resume(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        // SAFETY: as this function requires.
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

/// Writes a state to a file, replacing what is there at once: a crash leaves the old or the new file whole.
///
/// `file` is a path in UTF-8.
///
/// Threads: any; waits for other calls with the same state. Nothing may write the state's arrays meanwhile.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`, `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_UTF8`;
/// `DUALADAM_STATUS_VALUE` for a second moment that is negative somewhere; `DUALADAM_STATUS_IO` if the file cannot be written: what was
/// there is still there then.
///
/// # Safety
///
/// `file` is null or a C string; nothing writes the state's arrays meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_save(state: dualadam_state, file: *const c_char) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        // SAFETY: as this function requires.
        let file = unsafe { path("file", file) }?;
        Ok(lock(&state).save(file)?)
    })
}

/// Frees a state and its arrays. The handle is stale from then on.
///
/// Threads: any; a call with the same state that is under way in another thread goes on to its end.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, also for one that was freed before; `DUALADAM_STATUS_HANDLE_KIND`.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_free(state: dualadam_state) -> dualadam_status {
    border(|| handles::remove::<Arc<Mutex<State>>>("state", state))
}

/// Writes how many parameter groups and tensors a state has.
///
/// Threads: any; waits for other calls with the same state.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`, `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`.
///
/// # Safety
///
/// `groups` and `tensors` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_counts(
    state: dualadam_state,
    groups: *mut usize,
    tensors: *mut usize,
) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        let (groups, tensors) = (Out::new("groups", groups)?, Out::new("tensors", tensors)?);
        let state = lock(&state);
        // SAFETY: as this function requires.
        unsafe {
            groups.write(state.groups.len());
            tensors.write(state.tensors.len());
        }
        Ok(())
    })
}

/// Writes the config of a parameter group, numbered from 0. `size` is sizeof(dualadam_config).
///
/// Threads: any; waits for other calls with the same state.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such group;
/// `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for `config`.
///
/// # Safety
///
/// `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_config(
    state: dualadam_state,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        let out = StructOut::new("config", config, size)?;
        let made = dualadam_config::new(out.size(), at("group", &lock(&state).groups, group)?);
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Replaces the config of a parameter group, numbered from 0, such as for another learning rate.
///
/// Threads: any; waits for other calls with the same state.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such group; as
/// `dualadam_config_validate`.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_set_config(
    state: dualadam_state,
    group: usize,
    config: *const dualadam_config,
) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        // SAFETY: as this function requires.
        let config = unsafe { read("config", config) }?.convert("config".into())?;
        Ok(set_config(&mut lock(&state).groups, group, config)?)
    })
}

/// Writes what a state has of a tensor, numbered from 0: its length, group and step, and where its arrays are. `size` is
/// sizeof(dualadam_tensor_state).
///
/// The arrays stay where they are until the state is freed.
///
/// Threads: any; waits for other calls with the same state. What one thread does with the arrays, no other may do with the same ones at
/// the same time.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such tensor;
/// `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for `values`.
///
/// # Safety
///
/// `values` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_state_tensor(
    state: dualadam_state,
    tensor: usize,
    values: *mut dualadam_tensor_state,
    size: usize,
) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        let out = StructOut::new("values", values, size)?;
        let mut state = lock(&state);
        at("tensor", &state.tensors, tensor)?;
        let found = &mut state.tensors[tensor];
        let made = dualadam_tensor_state {
            size: out.size(),
            len: found.exp_avg.len() as u64,
            step: found.step,
            exp_avg: found.exp_avg.as_mut_ptr(),
            exp_avg_sq: found.exp_avg_sq.as_mut_ptr(),
            master: found.master.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr),
            group: found.group as u32,
            master_is_set: found.master_is_set.into(),
        };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Sets the updates that a tensor, numbered from 0, has had, and whether its masters hold the parameters: 1, or 0 if they are still to be
/// set from the 16-bit ones, or if the tensor has none.
///
/// Threads: any; waits for other calls with the same state.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such tensor;
/// `DUALADAM_STATUS_ENUM` for a `master_is_set` that is not 0 or 1; `DUALADAM_STATUS_VALUE` for 1 where the tensor has no masters.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_state_set_step(
    state: dualadam_state,
    tensor: usize,
    step: u64,
    master_is_set: u32,
) -> dualadam_status {
    border(|| {
        let state: Arc<Mutex<State>> = handles::get("state", state)?;
        let mut state = lock(&state);
        let master = &at("tensor", &state.tensors, tensor)?.master;
        let master_is_set = flag("the arguments".into(), "master_is_set", master_is_set)?;
        if master_is_set && master.is_none() {
            let requirement = "be 0 for a tensor without masters";
            return Err(Error::Value { name: "master_is_set", requirement, value: 1.0 }.into());
        }
        let tensor = &mut state.tensors[tensor];
        (tensor.step, tensor.master_is_set) = (step, master_is_set);
        Ok(())
    })
}
