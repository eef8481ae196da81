//! libFuzzer on the target `vm_bhyve`.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::run("vm_bhyve", data));
