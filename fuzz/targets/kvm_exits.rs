//! libFuzzer on the target `kvm_exits`.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::run("kvm_exits", data));
