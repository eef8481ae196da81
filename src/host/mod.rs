//! What the host offers.
pub mod bhyve; // what the bhyve(8) of a host can do
pub mod bhyvectl; // a virtual machine, from outside
pub mod dnsmasq; // DHCP and DNS of a switch
pub mod doctor; // the probe behind `vmctl doctor`
pub mod error; // what goes wrong, in the words a user reads
pub mod files; // replaced whole, sparse, copied
pub mod firmware; // where the ports put it
pub mod ifconfig; // network interfaces
pub mod inherited; // descriptors that a parent left open
pub mod iscsi; // units of iSCSI targets
pub mod jail; // the jail that bhyve runs in
pub mod jail_run; // programs in a jail
pub mod kmod; // kernel modules
pub mod memory; // how much there is
pub mod netgraph; // nodes that guests are plugged into
pub mod nmdm; // null-modem lines
pub mod passthru; // PCI devices for guests
pub mod pf; // rules of a switch in the packet filter
pub mod place; // where the host keeps its devices; root or not
pub mod port; // a TCP port for a program that binds it itself
#[cfg(target_os = "freebsd")]
mod pow; // one function of libm's, so that the program needs none
pub mod process; // detached and tied children, the boot of this host
pub mod processor; // what it can for vmm(4)
pub mod program; // external programs, and steps that can be taken back
pub mod rc; // autostart through rc(8)
pub mod rctl; // limits of a process
pub mod route; // the default route, and the session's own network
pub mod scrape; // one document over HTTP, on loopback or a socket
pub mod setup; // what a FreeBSD host needs for good
pub mod sockets; // which program listens on a port
pub mod switch; // what guests are plugged into
pub mod swtpm; // a TPM in software
pub mod sysctl; // the kernel's variables
pub mod sysrc; // rc.conf, sysctl.conf, loader.conf
pub mod systemd; // the unit that starts and stops guests with the host
pub mod tap; // tap interfaces and bridges
pub mod terminal; // raw mode and window size
pub mod vmm; // whether vmm(4) can be had
pub mod zfs; // volumes, through zfs(8)
