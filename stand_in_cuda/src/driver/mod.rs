//! The stand-in driver: the C interface of libcuda, as far as a host layer over cudarc needs it, on
//! top of the interpreter.
//!
//! One lock guards all of it. Every call is counted, and fails before it does anything if a test
//! has asked for that.

mod abi;
mod capture;
mod codes;
mod context;
mod control;
mod memory;
mod module;
mod queue;
mod run;
mod state;
mod stream;
mod user_object;

use std::cell::Cell;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use codes::*;
use state::Driver;

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::default()));

thread_local! {
    /// Whether this thread is inside one of the caller's host functions, which must not call the
    /// driver.
    static IS_IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_callback(run: impl FnOnce()) {
    IS_IN_CALLBACK.set(true);
    run();
    IS_IN_CALLBACK.set(false);
}

/// Functions that work before `cuInit`.
const WITHOUT_INIT: [&str; 4] = ["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"];

/// What every function of the interface does around its own work.
fn call(name: &str, body: impl FnOnce(&mut Driver) -> Result<(), Code>) -> Code {
    if IS_IN_CALLBACK.get() {
        return ERROR_NOT_PERMITTED;
    }
    let mut driver = lock();
    *driver.journal.calls.entry(name.to_owned()).or_default() += 1;
    if let Some(code) = driver.injected(name) {
        return code;
    }
    if !driver.is_initialised && !WITHOUT_INIT.contains(&name) {
        return ERROR_NOT_INITIALIZED;
    }
    match body(&mut driver) {
        Ok(()) => SUCCESS,
        Err(code) => code,
    }
}
