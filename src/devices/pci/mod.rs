//! PCI: configuration space, BARs, MSI-X, the root.
