//! How much memory the host has.

use std::sync::OnceLock;

/// Returns the bytes of RAM, where the host reports them: of the machine, or the limit of this process's control group.
pub fn total_memory() -> Option<u64> {
    // Read once: `check` compares it with each of a thousand guests.
    static TOTAL: OnceLock<Option<u64>> = OnceLock::new();
    *TOTAL.get_or_init(|| {
        let total = of_machine("MemTotal", "hw.physmem")?;
        Some(limit_of_group().map_or(total, |limit| limit.min(total)))
    })
}

/// Returns the bytes that programs can have without paging, where the host reports them.
#[cfg(target_os = "linux")]
pub fn available_memory() -> Option<u64> {
    of_machine("MemAvailable", "")
}

/// Returns `None`: FreeBSD keeps no such figure, since its caches are freed when memory is needed.
#[cfg(not(target_os = "linux"))]
pub fn available_memory() -> Option<u64> {
    None
}

/// proc_meminfo(5).
#[cfg(target_os = "linux")]
fn of_machine(linux: &str, _freebsd: &str) -> Option<u64> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, linux)
}

#[cfg(not(target_os = "linux"))]
fn of_machine(_linux: &str, freebsd: &str) -> Option<u64> {
    super::program::run("sysctl", &["-n", freebsd]).ok()?.trim().parse().ok()
}

/// A field of proc_meminfo(5) in bytes; the file has KiB.
#[cfg(any(target_os = "linux", test))]
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// `memory.max` of the control group (Linux, admin-guide/cgroup-v2), as seen in a container of its own.
#[cfg(target_os = "linux")]
fn limit_of_group() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn limit_of_group() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_in_its_unit() {
        let text = "MemTotal:       24555000 kB\nMemFree:         1000 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(field(text, "MemAvailable"), Some(2 << 20));
        assert_eq!(field(text, "Mem"), None);
        assert!(total_memory().is_none_or(|total| total > 16 << 20));
    }
}
