//! Tests of the CUDA backend: the host layer, cudarc, the driver and the embedded kernels. Each
//! takes a [`Gpu`], which is a real device or the stand-in. All results are compared with the CPU
//! backend, bit for bit.

/// The tests of a file, by name. Tests after `on a device` get the stand-in's first device; the
/// others make their own.
macro_rules! bodies {
    ($file:literal: $($test:ident),* $(,)?; on a device: $($on_device:ident),* $(,)?) => {
        &[
            $((concat!($file, "::", stringify!($test)), $test),)*
            $((concat!($file, "::", stringify!($on_device)), || $crate::failures::on_device($on_device)),)*
        ]
    };
    ($file:literal: $($test:ident),* $(,)?) => {
        &[$((concat!($file, "::", stringify!($test)), $test)),*]
    };
}

pub(crate) mod bad_input;
pub(crate) mod captures;
pub(crate) mod control;
pub(crate) mod flat;
pub(crate) mod gpu;
pub(crate) mod graphs;
pub(crate) mod large;
mod lists;
pub(crate) mod masters;
pub(crate) mod owner;
pub(crate) mod refused;
mod streams;
mod tour;
pub(crate) mod twin;

// Nearly every test uses these.
pub(crate) use control::{Run, switching};
pub(crate) use gpu::{Gpu, Memory};
pub(crate) use graphs::{GLOBAL, RELAXED, THREAD_LOCAL, capture};
pub(crate) use twin::{Models, Twin, step_owner, with_len};

/// A test's name and what it does. It fails by panicking.
pub(crate) type Body = (&'static str, fn(&Gpu));

/// Every test that makes sense on both kinds of device.
pub(crate) fn all() -> Vec<Body> {
    let files = [
        tour::TESTS,
        flat::TESTS,
        lists::TESTS,
        owner::TESTS,
        masters::TESTS,
        streams::TESTS,
        control::TESTS,
        graphs::TESTS,
        captures::TESTS,
        large::TESTS,
        bad_input::TESTS,
    ];
    files.concat()
}
