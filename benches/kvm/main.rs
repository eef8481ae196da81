//! What must be tried, or measured, on a host with KVM: run there by `scripts/test-kvm` and `scripts/bench-kvm`.
//!
//! `kvm CHECK` runs one check, and panics where it does not hold:
//!
//! | check | what |
//! |---|---|
//! | `state` | a machine is paused, saved, loaded into a new one, and runs on; foreign states are refused |
//! | `init` | an INIT of vCPU 0 reboots a machine without firmware |
//! | `sequences` | the instruction sequences of `tests/native` on KVM, on the processor and on the software CPU |
//!
//! `kvm figures` races guests against other VMMs ([`figures`]). Without an argument, as `cargo bench` runs it, it says where
//! its figures are made.
#![cfg_attr(all(target_os = "linux", target_arch = "x86_64"), allow(unsafe_code))]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/case.rs"]
mod case;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod figures;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/forms.rs"]
mod forms;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/host.rs"]
mod host;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/random.rs"]
mod random;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod sequences;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/soft.rs"]
mod soft;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod state;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the test uses more of it")]
#[path = "../../tests/native/verdict.rs"]
mod verdict;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("state") => state::pause_save_load_run(),
        Some("init") => state::init_reboots(),
        Some("sequences") => sequences::three_agree(),
        Some("figures") => figures::race(),
        _ => println!("kvm: run on a host with KVM by scripts/test-kvm and scripts/bench-kvm"),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("kvm: there is none on this system");
}
