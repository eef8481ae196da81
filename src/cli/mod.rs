//! The command line: one file a verb, and the only place that prints.

/// Runs the command line of this process and returns its exit status.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
