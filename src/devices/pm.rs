//! ACPI fixed hardware.
