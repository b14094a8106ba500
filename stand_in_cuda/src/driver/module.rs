//! Modules from PTX, their functions, and launches.

use std::sync::Arc;

use super::abi::{HostAddress, List, Out, Text, api, read_host, write_host, write_text};
use super::codes::*;
use super::queue::{LaunchWork, Work};
use super::state::{Driver, Function, Handle, Kind, LoadedModule};
use crate::ptx::{Module, PtxError, read_header};

/// `CUjit_option` numbers.
mod jit {
    pub(super) const INFO_LOG: i32 = 3;
    pub(super) const INFO_LOG_SIZE: i32 = 4;
    pub(super) const ERROR_LOG: i32 = 5;
    pub(super) const ERROR_LOG_SIZE: i32 = 6;
    pub(super) const LAST: i32 = 32;
}

/// The newest PTX that a driver of each CUDA version reads.
const PTX_OF_CUDA: [((i32, i32), (u32, u32)); 25] = [
    ((9, 0), (6, 0)),
    ((9, 1), (6, 1)),
    ((10, 0), (6, 3)),
    ((10, 1), (6, 4)),
    ((10, 2), (6, 5)),
    ((11, 0), (7, 0)),
    ((11, 1), (7, 1)),
    ((11, 2), (7, 2)),
    ((11, 3), (7, 3)),
    ((11, 4), (7, 4)),
    ((11, 5), (7, 5)),
    ((11, 6), (7, 6)),
    ((11, 7), (7, 7)),
    ((11, 8), (7, 8)),
    ((12, 0), (8, 0)),
    ((12, 1), (8, 1)),
    ((12, 2), (8, 2)),
    ((12, 3), (8, 3)),
    ((12, 4), (8, 4)),
    ((12, 5), (8, 5)),
    ((12, 7), (8, 6)),
    ((12, 8), (8, 7)),
    ((12, 9), (8, 8)),
    ((13, 0), (9, 0)),
    ((13, 1), (9, 1)),
];

fn newest_ptx(driver_version: i32) -> (u32, u32) {
    let cuda = (driver_version / 1000, driver_version % 1000 / 10);
    PTX_OF_CUDA.iter().rev().find(|(known, _)| *known <= cuda).map_or((5, 0), |(_, ptx)| *ptx)
}

/// Where the caller wants the compiler's messages.
#[derive(Default)]
struct Logs {
    info: HostAddress,
    info_size: usize,
    error: HostAddress,
    error_size: usize,
    /// Where the used sizes are returned: in place of the option values.
    info_size_slot: Option<HostAddress>,
    error_size_slot: Option<HostAddress>,
}

impl Logs {
    fn read(count: u32, options: List<i32>, values: HostAddress) -> Result<Self, Code> {
        let mut logs = Self::default();
        for (index, option) in options.read(count as usize)?.into_iter().enumerate() {
            if values == 0 || !(0..=jit::LAST).contains(&option) {
                return Err(ERROR_INVALID_VALUE);
            }
            let slot = values + index * size_of::<HostAddress>();
            let bytes = read_host(slot, size_of::<HostAddress>());
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
            match option {
                jit::INFO_LOG => logs.info = value,
                jit::ERROR_LOG => logs.error = value,
                // Sizes are 32-bit numbers kept in a pointer's place.
                jit::INFO_LOG_SIZE => (logs.info_size, logs.info_size_slot) = (value & 0xffff_ffff, Some(slot)),
                jit::ERROR_LOG_SIZE => (logs.error_size, logs.error_size_slot) = (value & 0xffff_ffff, Some(slot)),
                _ => {}
            }
        }
        Ok(logs)
    }

    fn write(&self, error: &str) {
        let written = write_text(error, self.error, self.error_size).min(self.error_size.saturating_sub(1));
        if let Some(slot) = self.error_size_slot {
            write_host(slot, &written.to_le_bytes());
        }
        write_text("", self.info, self.info_size);
        if let Some(slot) = self.info_size_slot {
            write_host(slot, &0usize.to_le_bytes());
        }
    }
}

impl Driver {
    fn load_module(&mut self, module: Out<Handle>, image: &[u8], logs: &Logs) -> Result<(), Code> {
        let context = self.current()?;
        self.refuse_unsafe_call()?;
        if module.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let parsed = self.compile(image);
        logs.write(parsed.as_ref().err().map_or("", |(_, log)| log));
        let parsed = parsed.map_err(|(code, _)| code)?;
        let handle = self.new_handle(Kind::Module);
        self.modules.insert(handle, LoadedModule { context, module: parsed });
        module.set(handle)
    }

    /// Reads the text as a driver of the set version and a device of the set capability would.
    fn compile(&self, image: &[u8]) -> Result<Module, (Code, String)> {
        let invalid = |error: PtxError| (ERROR_INVALID_PTX, format!("ptxas fatal: {error}"));
        if image.starts_with(b"\x7fELF") || image.starts_with(b"\x50\xed\x55\xba") {
            return Err((ERROR_NO_BINARY_FOR_GPU, "the stand-in reads PTX, not machine code".to_owned()));
        }
        let text = std::str::from_utf8(image).map_err(|_| (ERROR_INVALID_IMAGE, "the image is not text".to_owned()))?;
        let header = read_header(text).map_err(invalid)?;
        let newest = newest_ptx(self.settings.driver_version);
        if header.version > newest {
            let (major, minor) = header.version;
            let log = format!(
                "ptxas fatal: unsupported .version {major}.{minor}; current version is '{}.{}'",
                newest.0, newest.1
            );
            return Err((ERROR_UNSUPPORTED_PTX_VERSION, log));
        }
        let capability = self.attribute(75).unwrap_or(0) * 10 + self.attribute(76).unwrap_or(0);
        if header.target as i32 > capability {
            let log = format!("ptxas fatal: .target sm_{} is higher than the device's sm_{capability}", header.target);
            return Err((ERROR_NO_BINARY_FOR_GPU, log));
        }
        Module::parse(text).map_err(invalid)
    }

    fn launch_kernel(
        &mut self,
        function: Handle,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        stream: Handle,
        params: Params,
    ) -> Result<(), Code> {
        let stream = self.resolve_stream(stream)?;
        let function = self.function(function)?;
        if self.stream(stream)?.context != function.context {
            return Err(ERROR_INVALID_HANDLE);
        }
        let limits = |extent: &[u32; 3], most: [u32; 3]| extent.iter().zip(most).all(|(&n, most)| n > 0 && n <= most);
        if !limits(&grid, [i32::MAX as u32, 65535, 65535]) || !limits(&block, [1024, 1024, 64]) {
            return Err(ERROR_INVALID_VALUE);
        }
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        if threads > 1024 || threads > function.kernel.max_threads.unwrap_or(1024) {
            return Err(if threads > 1024 { ERROR_INVALID_VALUE } else { ERROR_LAUNCH_OUT_OF_RESOURCES });
        }
        if shared > 49152 {
            return Err(ERROR_INVALID_VALUE);
        }
        let params = params.read(&function)?;
        let launch = LaunchWork { kernel: Arc::clone(&function.kernel), grid, block, params };
        self.submit(stream, Work::Launch(Arc::new(launch)), "cuLaunchKernel")
    }
}

/// A launch's arguments as the caller passes them: one pointer a parameter.
struct Params {
    pointers: List<HostAddress>,
    extra: HostAddress,
}

impl Params {
    /// The argument block, laid out by the parameters' sizes and offsets.
    fn read(&self, function: &Function) -> Result<Vec<u8>, Code> {
        let kernel = &function.kernel;
        if self.extra != 0 {
            return Err(ERROR_NOT_SUPPORTED);
        }
        let pointers = self.pointers.read(kernel.params.len())?;
        let mut block = vec![0; kernel.param_bytes()];
        for (param, pointer) in kernel.params.iter().zip(pointers) {
            if pointer == 0 {
                return Err(ERROR_INVALID_VALUE);
            }
            block[param.offset..param.offset + param.size].copy_from_slice(&read_host(pointer, param.size));
        }
        Ok(block)
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    attributes: HostAddress,
    attribute_count: u32,
}

api! {
    fn cuModuleLoadData(driver, module: Out<Handle>, image: Text) {
        let image = image.read()?;
        driver.load_module(module, &image, &Logs::default())
    }

    fn cuModuleLoadDataEx(
        driver,
        module: Out<Handle>,
        image: Text,
        count: u32,
        options: List<i32>,
        values: HostAddress,
    ) {
        let image = image.read()?;
        let logs = Logs::read(count, options, values)?;
        driver.load_module(module, &image, &logs)
    }

    fn cuModuleLoad(driver, module: Out<Handle>, path: Text) {
        let image = std::fs::read(path.read_string()?).map_err(|_| ERROR_FILE_NOT_FOUND)?;
        driver.load_module(module, &image, &Logs::default())
    }

    fn cuModuleUnload(driver, module: Handle) {
        driver.current()?;
        driver.refuse_unsafe_call()?;
        let of_module = driver.functions.values().filter(|function| function.module == module);
        let kernels: Vec<_> = of_module.map(|function| Arc::clone(&function.kernel)).collect();
        if driver.queue.has_launches_of(&kernels) {
            driver.violation("a module is unloaded before its launches have run".to_owned());
        }
        if driver.modules.remove(&module).is_none() {
            return Err(driver.bad_handle(module, Kind::Module));
        }
        driver.functions.retain(|_, function| function.module != module);
        Ok(())
    }

    fn cuModuleGetFunction(driver, function: Out<Handle>, module: Handle, name: Text) {
        driver.current()?;
        let name = name.read_string()?;
        let Some(loaded) = driver.modules.get(&module) else {
            return Err(driver.bad_handle(module, Kind::Module));
        };
        let kernel = Arc::clone(loaded.module.kernel(&name).ok_or(ERROR_NOT_FOUND)?);
        let (context, ptx_version) = (loaded.context, loaded.module.version);
        let same = |known: &Function| known.module == module && known.kernel.name == name;
        if let Some((&known, _)) = driver.functions.iter().find(|(_, known)| same(known)) {
            return function.set(known);
        }
        let handle = driver.new_handle(Kind::Function);
        driver.functions.insert(handle, Function { module, context, kernel, ptx_version });
        function.set(handle)
    }

    fn cuModuleGetGlobal_v2(driver, _address: Out<u64>, _bytes: Out<usize>, module: Handle, _name: Text) {
        driver.current()?;
        if driver.modules.contains_key(&module) {
            // No module that the interpreter reads has variables.
            Err(ERROR_NOT_FOUND)
        } else {
            Err(driver.bad_handle(module, Kind::Module))
        }
    }

    fn cuModuleGetLoadingMode(_driver, mode: Out<i32>) {
        mode.set(1)
    }

    fn cuFuncGetModule(driver, module: Out<Handle>, function: Handle) {
        let function = driver.function(function)?;
        module.set(function.module)
    }

    fn cuFuncGetAttribute(driver, value: Out<i32>, number: i32, function: Handle) {
        let function = driver.function(function)?;
        let (major, minor) = function.ptx_version;
        value.set(match number {
            0 => function.kernel.max_threads.unwrap_or(1024) as i32, // MAX_THREADS_PER_BLOCK
            1..=3 | 7 | 8 => 0,                                      // shared, constant and local bytes, and the like
            4 => 40,                                                 // NUM_REGS
            5 => (major * 10 + minor) as i32,                        // PTX_VERSION
            6 => 90,                                                 // BINARY_VERSION
            _ => return Err(ERROR_INVALID_VALUE),
        })
    }

    fn cuFuncSetAttribute(driver, function: Handle, number: i32, _value: i32) {
        driver.function(function)?;
        if (8..=15).contains(&number) { Ok(()) } else { Err(ERROR_INVALID_VALUE) }
    }

    fn cuFuncSetCacheConfig(driver, function: Handle, _config: i32) {
        driver.function(function).map(|_| ())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(driver, blocks: Out<i32>, function: Handle, block_size: i32, _shared: usize) {
        driver.function(function)?;
        blocks.set(2048 / block_size.max(1))
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        driver,
        blocks: Out<i32>,
        function: Handle,
        block_size: i32,
        _shared: usize,
        _flags: u32,
    ) {
        driver.function(function)?;
        blocks.set(2048 / block_size.max(1))
    }

    fn cuLaunchKernel(
        driver,
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: Handle,
        params: List<HostAddress>,
        extra: HostAddress,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        driver.launch_kernel(function, grid, block, shared, stream, Params { pointers: params, extra })
    }

    fn cuLaunchKernelEx(driver, config: List<LaunchConfig>, function: Handle, params: List<HostAddress>, extra: HostAddress) {
        let config = config.read(1)?[0];
        if config.attribute_count != 0 {
            return Err(ERROR_NOT_SUPPORTED);
        }
        let LaunchConfig { grid, block, shared, stream, .. } = config;
        driver.launch_kernel(function, grid, block, shared, stream, Params { pointers: params, extra })
    }
}
