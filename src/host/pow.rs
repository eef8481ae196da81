//! `pow(3)` of FreeBSD's program, which a progress bar's moving average calls: a Rust function by that name, so that
//! the program needs no libm.so.5. The linker prefers the program's own definition to that of a library.

/// Returns `x` to the power of `y`, within one unit in the last place (musl's algorithm, in the crate `libm`).
#[allow(unsafe_code, reason = "this folder is an island")]
// SAFETY: the name and the signature are those of C's function, and no other definition is linked in.
#[unsafe(no_mangle)]
pub extern "C" fn pow(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}
