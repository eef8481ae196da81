//! I/O APIC.
