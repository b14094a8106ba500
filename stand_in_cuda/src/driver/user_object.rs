//! User objects, which graphs hold. A function of the caller runs when the last reference to one is
//! gone.

use std::sync::Arc;

use super::abi::{HostAddress, HostFunction, Out, api};
use super::codes::*;
use super::state::{Driver, Handle, Kind};

/// A user object. Graphs, their executables, launches under way and the caller hold it; `destroy`
/// is called when none of them does any more.
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
/// `CU_GRAPH_USER_OBJECT_MOVE`: the graph takes references of the caller.
const MOVE: u32 = 1;

impl Driver {
    /// Releases references that the caller holds. After the last one the caller does not hold the
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
