//! The test's side of the stand-in: what to fail, what to forbid, what happened. `client` calls it.

use super::abi::{HostAddress, Text, write_text};
use super::codes::Code;
use super::lock;
use super::state::{Driver, Failure};

/// A name that a test passes. A null pointer and text that is not UTF-8 become a name that nothing
/// has.
fn name_of(text: Text) -> String {
    text.read_string().unwrap_or_default()
}

/// Resets everything: no context, no memory, no injected error, nothing counted.
#[unsafe(no_mangle)]
extern "C" fn stand_in_reset() {
    lock().reset();
    super::context::clear_stack();
    super::capture::clear_thread_mode();
}

/// Makes the `nth` call of a function from now on fail with a code, before it does anything. `*`
/// stands for every function, and `execute` for the execution of a task: the code then stays, as
/// after a lost device.
#[unsafe(no_mangle)]
extern "C" fn stand_in_fail(name: Text, nth: u64, code: Code) {
    let name = name_of(name);
    lock().failures.push(Failure { name, nth, code });
}

/// How often a function was called since the reset; `*` for all functions together.
#[unsafe(no_mangle)]
extern "C" fn stand_in_calls(name: Text) -> u64 {
    let name = name_of(name);
    let driver = lock();
    if name == "*" {
        driver.journal.calls.values().sum()
    } else {
        driver.journal.calls.get(&name).copied().unwrap_or(0)
    }
}

/// All functions called, a line each: name, space, number. Like all texts: returns the full length,
/// writes what fits.
#[unsafe(no_mangle)]
extern "C" fn stand_in_call_list(buffer: HostAddress, size: usize) -> usize {
    let lines: Vec<String> = lock().journal.calls.iter().map(|(name, count)| format!("{name} {count}")).collect();
    write_text(&lines.join("\n"), buffer, size)
}

/// Kernels run, a line each: name, blocks, threads a block.
#[unsafe(no_mangle)]
extern "C" fn stand_in_launch_list(buffer: HostAddress, size: usize) -> usize {
    let text = lock().journal.launches.join("\n");
    write_text(&text, buffer, size)
}

/// The violations so far, a line each.
#[unsafe(no_mangle)]
extern "C" fn stand_in_violations(buffer: HostAddress, size: usize) -> usize {
    let text = lock().journal.violations.join("\n");
    write_text(&text, buffer, size)
}

#[unsafe(no_mangle)]
extern "C" fn stand_in_set_driver_version(version: i32) {
    lock().settings.driver_version = version;
}

/// Sets a device attribute by its number.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set_attribute(number: i32, value: i32) {
    lock().settings.attributes.insert(number, value);
}

/// `devices`, `total_memory`, `patience` (how often a query answers "not ready" before the work is
/// done), `check_order` (0: unordered work on the same bytes is not reported),
/// `reads_pageable_late` (1: copies read pageable memory when they run). Returns whether there is
/// such a setting.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set(name: Text, value: i64) -> bool {
    let name = name_of(name);
    let mut driver = lock();
    let settings = &mut driver.settings;
    match name.as_str() {
        "devices" => settings.devices = value as i32,
        "total_memory" => settings.total_memory = value as usize,
        "patience" => settings.patience = value as u32,
        "check_order" => settings.check_order = value != 0,
        "reads_pageable_late" => settings.reads_pageable_late = value != 0,
        _ => return false,
    }
    true
}

/// Forbids or allows writes to a range of device memory. Returns whether it lies in an allocation.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set_readonly(address: u64, bytes: usize, read_only: bool) -> bool {
    lock().memory.set_read_only(address, bytes, read_only).is_ok()
}

/// Makes a range of device memory count as never written. Returns whether it lies in an allocation.
#[unsafe(no_mangle)]
extern "C" fn stand_in_forget(address: u64, bytes: usize) -> bool {
    lock().memory.forget(address, bytes).is_ok()
}

/// Lets only graphs touch the allocation at an address, as if it were of a graph's private pool.
/// Returns whether there is an allocation.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set_private(address: u64) -> bool {
    let mut driver = lock();
    let allocation = driver.memory.allocation(address);
    allocation.is_some_and(|(base, _, _)| driver.private.insert(base))
}

/// PTX instructions executed.
#[unsafe(no_mangle)]
extern "C" fn stand_in_instructions() -> u64 {
    lock().journal.stats.instructions
}

/// Twelve numbers: instructions, threads, loads of 1, 2, 4, 8 and 16 bytes, stores of the same.
#[unsafe(no_mangle)]
extern "C" fn stand_in_stats(buffer: HostAddress) {
    let stats = lock().journal.stats;
    let numbers = [&[stats.instructions, stats.threads][..], &stats.loads, &stats.stores].concat();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    if buffer != 0 {
        super::abi::write_host(buffer, &bytes);
    }
}

/// How many objects of a kind there are: `memory`, `pinned`, `context`, `stream`, `event`,
/// `module`, `graph`, `graph_exec`.
#[unsafe(no_mangle)]
extern "C" fn stand_in_live(name: Text) -> u64 {
    live(&lock(), &name_of(name)) as u64
}

fn live(driver: &Driver, name: &str) -> usize {
    match name {
        "memory" => driver.memory.live_allocations(),
        "pinned" => driver.pinned.len(),
        "context" => driver.contexts.values().filter(|context| context.is_live).count(),
        // Null streams come with their contexts.
        "stream" => driver.streams.len() - driver.contexts.len(),
        "event" => driver.events.len(),
        "module" => driver.modules.len(),
        "graph" => driver.graphs.len(),
        "graph_exec" => driver.execs.len(),
        _ => 0,
    }
}

/// Tasks that were submitted and have not run.
#[unsafe(no_mangle)]
extern "C" fn stand_in_pending() -> u64 {
    lock().queue.len() as u64
}

/// Runs everything that is pending, without the host waiting for it.
#[unsafe(no_mangle)]
extern "C" fn stand_in_run_pending() {
    let mut driver = lock();
    let pending = driver.queue.all_pending();
    driver.run(&pending);
}
