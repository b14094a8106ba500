//! Gives the cdylib the name that cudarc asks for first.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The dynamic linker answers a request for "libcuda.so" with a library that is already loaded
    // and has that SONAME. So a test needs no search path: it opens the cdylib by its full path
    // before cudarc asks.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
