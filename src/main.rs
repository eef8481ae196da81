//! The `vmctl` command.
fn main() -> std::process::ExitCode {
    vmctl::host::process::survive_file_size_limit();
    vmctl::cli::main()
}
