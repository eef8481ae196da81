//! What the host offers.
pub mod bhyve; // what the bhyve(8) of a host can do
pub mod dnsmasq; // DHCP and DNS of a switch
pub mod doctor; // the probe behind `vmctl doctor`
pub mod error; // what goes wrong, in the words a user reads
pub mod files; // replaced whole, sparse, copied
pub mod ifconfig; // network interfaces
pub mod inherited; // descriptors that a parent left open
pub mod jail; // the jail that bhyve runs in
pub mod passthru; // PCI devices for guests
pub mod pf; // rules of a switch in the packet filter
pub mod process; // detached and tied children, the boot of this host
pub mod program; // external programs, and steps that can be taken back
pub mod rc; // autostart through rc(8)
pub mod route; // the default route, and the session's own network
pub mod setup; // what a FreeBSD host needs for good
pub mod switch; // what guests are plugged into
pub mod sysrc; // rc.conf, sysctl.conf, loader.conf
pub mod terminal; // raw mode and window size
pub mod zfs; // volumes, through zfs(8)
