//! local APIC and x2APIC.
