//! Tells the software CPU whether its handlers can tail-call: LLVM turns them into jumps from opt-level 1 on.
fn main() {
    println!("cargo::rustc-check-cfg=cfg(tail_calls)");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0") {
        println!("cargo::rustc-cfg=tail_calls");
    }
}
