//! vmctl: a virtual-machine manager for FreeBSD's bhyve and for Linux, with an engine of its own.
//!
//! In reading order:
mod choices; // the words that a file may choose between, and which engine has each
mod cli; // one file per verb
mod config; // guest, template, fleet and host files: reading and checking them
mod devices; // one chip or function per file, and their back ends
mod error; // the error that a user reads
mod fetch; // images, media and firmware: finding, fetching, verifying and keeping them
mod guest; // the life of a guest: store, supervisor, engines, console
mod host; // the host's tools, and the checks of `vmctl doctor`
mod hypervisor; // memory, bus, interrupt lines, clock, state; the vCPU back ends
mod inputs; // files that a user names, opened and read within bounds
mod machine; // the board: addresses, wiring, loaders, tables, vCPU threads
mod poll; // waiting for several descriptors at once
pub mod testing; // what the tests, benches and fuzz targets of this repository use
mod units; // sizes and durations

/// Runs the `vmctl` command.
pub fn main() -> std::process::ExitCode {
    host::process::survive_file_size_limit();
    cli::main()
}
