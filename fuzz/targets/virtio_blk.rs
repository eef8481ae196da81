//! libFuzzer on the target `virtio_blk`.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::run("virtio_blk", data));
