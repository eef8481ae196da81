//! libFuzzer on the target `bhyve_probe`.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::run("bhyve_probe", data));
