//! Modules of kernels: the PTX that the build embedded, loaded into a context.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUfunction, CUjit_option, CUmodule};

use crate::tensor::Variant;

use super::driver::{self, check};
use super::error::{CudaError, PtxError};

// `MODULES`, in the order of the variants, and `CONTROL`: PTX, which the driver compiles for the
// device.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));
const PTX_ORIGIN: &str = env!("DUALADAM_PTX_ORIGIN");

/// Bytes for the log of the driver's compiler.
const LOG_BYTES: usize = 16 << 10;

/// A loaded kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(CUfunction);

// SAFETY: a function is a handle, and any thread may use it once its context is current there.
unsafe impl Send for Function {}
// SAFETY: a function is a handle, and nothing changes it after it is loaded.
unsafe impl Sync for Function {}

impl Function {
    pub(super) fn handle(self) -> CUfunction {
        self.0
    }
}

/// The kernels of one variant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Functions {
    pub(super) dual_adam: Function,
    pub(super) adam: Function,
    pub(super) list: Function,
    /// For variants with masters.
    pub(super) sync_master: Option<Function>,
}

impl Functions {
    /// Loads the kernels of a variant into the current context.
    pub(super) fn load(variant: Variant) -> Result<Self, CudaError> {
        let module = Module::load(variant.name(), MODULES[variant.index()])?;
        let function = |kind: &str| module.function(&format!("{kind}_{}", variant.name()));
        let (dual_adam, adam, list) = (function("dual_adam")?, function("adam")?, function("list")?);
        let sync_master = variant.formats().master.map(|_| function("sync_master")).transpose()?;
        Ok(Self { dual_adam, adam, list, sync_master })
    }
}

/// Loads the kernel that prepares the coefficients of controlled steps into the current context.
pub(super) fn load_prepare_sets() -> Result<Function, CudaError> {
    Module::load("control", CONTROL)?.function("prepare_sets")
}

/// A module in the current context. It is never unloaded, since unloading may block until the
/// device is idle.
#[derive(Debug)]
struct Module(CUmodule);

impl Module {
    /// Loads PTX that the build embedded. A context must be current.
    fn load(kernels: &'static str, ptx: &'static str) -> Result<Self, CudaError> {
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut handle = ptr::null_mut();
        // SAFETY: the PTX ends in a zero byte (tested below). `values` has a value for each option,
        // of the type that the driver asks for: an address, and a number in place of an address.
        // All of it outlives the call.
        let answer = unsafe {
            let (count, options, values) = (options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut handle, ptx.as_ptr().cast(), count, options, values)
        };
        match answer.result() {
            Ok(()) => Ok(Self(handle)),
            Err(error) => {
                let log = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
                let log = if log.trim().is_empty() { "it gave no reason" } else { log.trim() }.to_owned();
                let (code, name) = (error.0 as i32, driver::name_of(error));
                Err(Box::new(PtxError { code, name, kernels, origin: PTX_ORIGIN, log }).into())
            }
        }
    }

    fn function(&self, name: &str) -> Result<Function, CudaError> {
        let mut function = ptr::null_mut();
        // The names have no zero byte; an empty name would not be found.
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded, and `name` is a C string.
        let answer = unsafe { sys::cuModuleGetFunction(&mut function, self.0, name.as_ptr()) };
        check("cuModuleGetFunction", answer)?;
        Ok(Function(function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_a_module_with_its_kernels() {
        for variant in Variant::all() {
            let (name, ptx) = (variant.name(), MODULES[variant.index()]);
            for kind in ["dual_adam", "adam", "list"] {
                assert!(ptx.contains(&format!(".entry {kind}_{name}(")), "{kind}_{name}");
            }
            let has_master = variant.formats().master.is_some();
            assert_eq!(ptx.contains(&format!(".entry sync_master_{name}(")), has_master, "sync_master_{name}");
            assert!(ptx.ends_with('\0'));
        }
        assert!(CONTROL.contains(".entry prepare_sets(") && CONTROL.ends_with('\0'));
    }
}
