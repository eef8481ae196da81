//! The host's tools and facilities, one file per tool.
pub mod bhyve; // features of the host's bhyve(8)
pub mod bhyvectl; // operations on a virtual machine from outside
pub mod dnsmasq; // DHCP and DNS of a switch
pub mod doctor; // the probe behind `vmctl doctor`
pub mod environment; // paths of the host's devices; root or not
pub mod error; // errors of the host, with messages for the user
pub mod files; // replacing files atomically, sparse files, copies
pub mod firmware; // paths of the ports' firmware
pub mod ifconfig; // network interfaces
pub mod inherited; // descriptors that a parent left open
pub mod iscsi; // units of iSCSI targets
pub mod jail; // the jail that bhyve runs in
pub mod jail_run; // programs in a jail
pub mod kmod; // kernel modules
pub mod link; // changes to network interfaces of Linux
pub mod memory; // how much there is
pub mod netgraph; // netgraph(4) nodes
#[cfg(target_os = "linux")]
mod netlink; // interfaces, addresses and routes of Linux
pub mod nft; // NAT of a switch on Linux
pub mod nmdm; // null-modem lines
pub mod passthru; // PCI devices for guests
pub mod pf; // rules of a switch in the packet filter
pub mod port; // a TCP port for a program that binds it itself
#[cfg(target_os = "freebsd")]
mod pow; // pow(3), so that the program needs no libm
pub mod process; // detached and tied children, the boot of this host
#[cfg(target_os = "linux")]
mod process_namespace; // a child that sees no other process
pub mod processor; // the processor's features for vmm(4)
pub mod program; // external programs, and steps that can be taken back
pub mod rc; // autostart through rc(8)
pub mod rctl; // limits of a process
pub mod route; // the default route, and the session's own network
pub mod scrape; // one document over HTTP, on loopback or a socket
pub mod setup; // permanent settings of a FreeBSD host
pub mod sockets; // which program listens on a port
pub mod switch; // the switches that guests are connected to
pub mod swtpm; // a TPM in software
pub mod sysctl; // the kernel's variables
pub mod sysrc; // rc.conf, sysctl.conf, loader.conf
pub mod systemd; // the unit that starts and stops guests with the host
pub mod tap; // tap interfaces and bridges
#[cfg(target_os = "linux")]
pub mod tap_device; // taps of Linux, opened for an engine
pub mod terminal; // raw mode and window size
pub mod vmm; // whether this process can use vmm(4)
pub mod zfs; // volumes, through zfs(8)
