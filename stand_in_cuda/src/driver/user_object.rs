//! User objects: what graphs hold, and whose owner learns when the last of them is gone.

use std::sync::Arc;

use super::abi::{HostAddress, HostFunction, Out, api};
use super::codes::*;
use super::state::{Driver, Handle, Kind};

/// What several owners hold: graphs, executables of theirs, launches under way, and the caller. Its
/// function is called at its end.
#[derive(Debug)]
pub(crate) struct UserObject {
    data: HostAddress,
    destroy: HostFunction,
}

impl Drop for UserObject {
    fn drop(&mut self) {
        super::in_callback(|| (self.destroy)(self.data as *mut std::ffi::c_void));
    }
}

/// A graph's references to objects.
pub(crate) type UserObjects = Vec<Arc<UserObject>>;

/// `CU_USER_OBJECT_NO_DESTRUCTOR_SYNC`, which callers must give.
const NO_DESTRUCTOR_SYNC: u32 = 1;
/// `CU_GRAPH_USER_OBJECT_MOVE`: the references are the caller's, which gives them up.
const MOVE: u32 = 1;

impl Driver {
    /// Gives up references that the caller holds. The last one ends the caller's part in the
    /// object.
    fn release(&mut self, object: Handle, count: u32) -> Result<(), Code> {
        let Some((_, held)) = self.user_objects.get_mut(&object) else {
            return Err(self.bad_handle(object, Kind::UserObject));
        };
        *held = held.checked_sub(count).ok_or(ERROR_INVALID_VALUE)?;
        if *held == 0 {
            self.user_objects.remove(&object);
        }
        Ok(())
    }
}

api! {
    fn cuUserObjectCreate(driver, object: Out<Handle>, data: HostAddress, destroy: Option<HostFunction>, count: u32, flags: u32) {
        let Some(destroy) = destroy.filter(|_| count > 0 && flags == NO_DESTRUCTOR_SYNC && !object.is_null()) else {
            return Err(ERROR_INVALID_VALUE);
        };
        let handle = driver.new_handle(Kind::UserObject);
        driver.user_objects.insert(handle, (Arc::new(UserObject { data, destroy }), count));
        object.set(handle)
    }

    fn cuUserObjectRelease(driver, object: Handle, count: u32) {
        driver.release(object, count)
    }

    fn cuGraphRetainUserObject(driver, graph: Handle, object: Handle, count: u32, flags: u32) {
        let Some((held, _)) = driver.user_objects.get(&object) else {
            return Err(driver.bad_handle(object, Kind::UserObject));
        };
        if count == 0 || flags & !MOVE != 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        let references = vec![held.clone(); count as usize];
        driver.graph_under_way_or_made(graph)?.objects.extend(references);
        if flags == MOVE { driver.release(object, count) } else { Ok(()) }
    }
}
