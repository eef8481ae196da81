//! What this repository's own tests, benches and fuzz targets use of the library, each name where the library has it.
//!
//! The library's parts are private, so that the compiler finds what nothing uses. A test below `tests/`, a bench or a
//! fuzz body that needs a name more adds it here; a unit test stands beside the code and needs no line.

pub mod choices {
    pub use crate::choices::{
        Choices, DiskBackend, DiskDevice, EngineKind, GrubSystem, HookEvent, NicBackend, NicDevice, Support,
    };
}
pub mod cli {
    pub use crate::cli::Cli;
}
pub mod config {
    pub use crate::config::{
        DatastoreConfig, Diagnostics, EngineKind, FleetRequest, GrubSystem, GuestConfig, GuestRequest, HostConfig, HostPaths,
        LoadedGuest, LoaderKind, SwitchConfig, SwitchKind, load_fleet, load_guest,
    };
    pub mod check {
        pub use crate::config::check::EMBEDDED_SLOTS;
    }
    pub mod fleet {
        pub mod keys {
            pub use crate::config::fleet::keys::FLEET_KEYS;
        }
    }
    pub mod host_keys {
        pub use crate::config::host_keys::HOST_KEYS;
    }
    pub mod key {
        pub use crate::config::key::{Key, Kind};
    }
    pub mod keys {
        pub use crate::config::keys::GUEST_KEYS;
    }
    pub mod render {
        pub use crate::config::render::render;
    }
    pub mod resolve {
        pub use crate::config::resolve::BUILT_IN_TEMPLATES;
    }
}
pub mod devices {
    pub mod ahci {
        pub use crate::devices::ahci::{Ahci, DriveKind};
    }
    pub mod debug_exit {
        pub use crate::devices::debug_exit::DebugExit;
    }
    pub mod disk {
        pub use crate::devices::disk::DiskReader;
        pub mod memory {
            pub use crate::devices::disk::memory::{MemoryDisk, MemoryDiskHandle};
        }
    }
    pub mod ioapic {
        pub use crate::devices::ioapic::{IoApic, PINS};
    }
    pub mod lapic {
        pub use crate::devices::lapic::{DeliveryMode, Lapic};
    }
    pub mod net {
        pub use crate::devices::net::Nic;
        pub mod user {
            pub mod answers {
                pub use crate::devices::net::user::answers::{Exchange, Files};
            }
            pub mod connector {
                pub use crate::devices::net::user::connector::{REPLY_BYTES, REQUEST_BYTES, RemoteSockets, serve};
            }
            pub mod fragments {
                pub use crate::devices::net::user::fragments::{Fragments, MAX_DATAGRAMS};
            }
            pub mod packet {
                pub use crate::devices::net::user::packet::{fragment, parse};
            }
            pub mod relay {
                pub use crate::devices::net::user::relay::ForwardSocket;
            }
            pub mod sockets {
                pub use crate::devices::net::user::sockets::{EchoSocket, Scope, Sockets};
            }
        }
    }
    pub mod pci {
        pub use crate::devices::pci::{PciDevice, PciRoot, Window, Windows};
    }
    pub mod pic {
        pub use crate::devices::pic::Pic;
    }
    pub mod pit {
        pub use crate::devices::pit::Pit;
    }
    pub mod pm {
        pub use crate::devices::pm::Pm;
    }
    pub mod ps2 {
        pub use crate::devices::ps2::Ps2;
    }
    pub mod rtc {
        pub use crate::devices::rtc::Rtc;
    }
    pub mod serial {
        pub use crate::devices::serial::{CharBackend, Serial};
    }
    pub mod virtio {
        pub use crate::devices::virtio::{CHAINS_PER_ENTRY, VirtioDevice};
        pub mod blk {
            pub use crate::devices::virtio::blk::{Blk, BlkOptions};
        }
        pub mod console {
            pub use crate::devices::virtio::console::{Console, control_message};
        }
        pub mod mock {
            pub use crate::devices::virtio::mock::{Desc, MockDriver, PciDriver};
        }
        pub mod net {
            pub use crate::devices::virtio::net::Net;
        }
        pub mod queue {
            pub use crate::devices::virtio::queue::{Chain, MAX_INDIRECT, Queue};
        }
        pub mod rng {
            pub use crate::devices::virtio::rng::Rng;
        }
        pub mod transport {
            pub use crate::devices::virtio::transport::{NEEDS_RESET, NO_VECTOR, VirtioPci};
        }
    }
}
pub mod fetch {
    pub use crate::fetch::{
        Catalogue, CatalogueSource, Digest, Event, Fault, FetchError, Fetcher, Kind, Obtained, Progress, Request, Silent,
    };
    pub mod archive {
        pub use crate::fetch::archive::Choice;
    }
    pub mod digest {
        pub use crate::fetch::digest::Algorithm;
    }
    pub mod image {
        pub use crate::fetch::image::{FileStorage, Format, MAX_DISK, MAX_UNIT, Sink, Storage, convert, open, probe, threads};
    }
    pub mod net {
        pub use crate::fetch::net::Patience;
    }
    pub mod progress {
        pub use crate::fetch::progress::{Job, Silent};
    }
    pub mod signify {
        pub use crate::fetch::signify::open;
    }
    pub mod space {
        pub use crate::fetch::space::Room;
    }
    pub mod sparse {
        pub use crate::fetch::sparse::create;
    }
    pub mod sums {
        pub use crate::fetch::sums::find;
    }
    pub mod unpack {
        pub use crate::fetch::unpack::{damaged, unpack};
    }
}
pub mod guest {
    pub mod engine {
        pub use crate::guest::engine::{BootSetup, resolve};
        pub mod bhyve {
            pub mod argv {
                pub use crate::guest::engine::bhyve::argv::{CommandLine, Inputs, Lines, Resolved, as_shell_text, build};
            }
            pub mod boot_planner {
                pub use crate::guest::engine::bhyve::boot_planner::plan;
            }
            pub mod partitions {
                pub use crate::guest::engine::bhyve::partitions::find;
            }
            pub mod run {
                pub mod journal {
                    pub use crate::guest::engine::bhyve::run::journal::{Made, read, write};
                }
                pub mod boot_plan {
                    pub use crate::guest::engine::bhyve::run::boot_plan::BhyvePlan;
                }
            }
        }
    }
    pub mod control {
        pub use crate::guest::control::{ControlClient, Frame, Reply, Request};
    }
    pub mod import {
        pub use crate::guest::import::Notes;
        pub mod conf {
            pub use crate::guest::import::conf::Conf;
        }
        pub mod switches {
            pub use crate::guest::import::switches::read;
        }
        pub mod translate {
            pub use crate::guest::import::translate::{Source, translate};
        }
    }
    pub mod lock {
        pub use crate::guest::lock::{GuestLock, Role};
    }
    pub mod metrics_format {
        pub use crate::guest::metrics_format::Format;
    }
    pub mod state {
        pub use crate::guest::state::GuestState;
    }
    pub mod store {
        pub use crate::guest::store::{GuestDir, Store};
    }
    pub mod switch {
        pub mod taps {
            pub use crate::guest::switch::taps::plan;
        }
    }
}
pub mod host {
    pub mod bhyve {
        pub use crate::host::bhyve::{HostFeatures, ProbeOutputs};
    }
    pub mod bhyvectl {
        pub use crate::host::bhyvectl::counters;
    }
    pub mod ifconfig {
        pub use crate::host::ifconfig::parse;
    }
    pub mod iscsi {
        pub use crate::host::iscsi::{Target, find};
    }
    pub mod netgraph {
        pub use crate::host::netgraph::is_taken;
    }
    pub mod passthru {
        pub use crate::host::passthru::parse;
    }
    pub mod process {
        pub use crate::host::process::spawn_tied;
    }
    pub mod scrape {
        pub use crate::host::scrape::understands;
    }
}
pub mod hypervisor {
    pub mod backend {
        pub use crate::hypervisor::backend::{Backend, BootState, LocalApics, MachineExit, Needs, Platform, VcpuSetup};
    }
    pub mod backends {
        pub use crate::hypervisor::backends::open;
    }
    pub mod bus {
        pub use crate::hypervisor::bus::{Access, Device};
    }
    pub mod clock {
        pub use crate::hypervisor::clock::{Clock, ManualClock};
    }
    pub mod irq {
        pub use crate::hypervisor::irq::{IrqLine, IrqProbe, IrqSink, Irqchip};
    }
    pub mod waking {
        pub use crate::hypervisor::waking::{Attention, Waker};
    }
    pub mod memory {
        pub use crate::hypervisor::memory::{GuestAddr, GuestMemory, HostMemory, MapError, MapListener, MemoryMap, Mode, Region};
    }
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub mod kvm {
        pub use crate::hypervisor::kvm::replay_exit;
    }
    pub mod soft {
        pub mod block {
            pub use crate::hypervisor::soft::block::BlockCache;
        }
        pub mod cpu {
            pub use crate::hypervisor::soft::cpu::{CS, Cpu, DS, ES, Leave, RIP, SS, Segment, rflags};
        }
        pub mod crew {
            pub use crate::hypervisor::soft::crew::Crew;
        }
        pub mod flags {
            pub use crate::hypervisor::soft::flags::LazyFlags;
        }
        pub mod tlb {
            pub use crate::hypervisor::soft::tlb::flush;
        }
        pub mod rig {
            pub use crate::hypervisor::soft::rig::{NoPlatform, Rig, Stop};
        }
        pub mod run {
            pub use crate::hypervisor::soft::run::run_alone;
        }
        pub mod system {
            pub use crate::hypervisor::soft::system::reset;
        }
    }
    pub mod state {
        pub use crate::hypervisor::state::{Section, open, seal};
    }
}
pub mod machine {
    pub mod assembly {
        use crate::devices::net::user::{Outside, sockets::OwnSockets};
        use crate::hypervisor::{backend::Needs, backends};
        use crate::machine::{assembly::Streams, assembly::assemble, opened::Opened, spec::VmmSpec};
        use std::os::unix::net::{UnixDatagram, UnixStream};
        use std::sync::Arc;

        /// Assembles the machine of `spec` and drops it. The error is for a test's message.
        pub fn assembles(spec: &VmmSpec) -> Result<(), String> {
            let (console, _other) = UnixStream::pair().expect("a pair");
            let (agent, _its_other) = UnixStream::pair().expect("a pair");
            // Sockets that keep messages apart stand in for taps.
            let tap = |_| UnixDatagram::pair().expect("a pair").0;
            let non_blocking = |tap: UnixDatagram| tap.set_nonblocking(true).map(|()| tap.into()).expect("sets");
            let taps = (0..spec.taps()).map(tap).map(non_blocking).collect();
            let streams = Streams { console, agent: spec.agent_port.as_ref().map(|_| agent), taps };
            let outside = Outside { sockets: Arc::new(OwnSockets), on_open: Arc::new(|_| ()), on_note: Arc::new(|_: &str| ()) };
            let opened = Opened::open(spec, &*outside.sockets).map_err(|error| format!("{error:?}"))?;
            let needs = Needs { machine: "", topology: spec.cpus, deterministic: spec.deterministic };
            let mut backend = backends::open(Some("soft"), &needs, &|_| ()).map_err(|error| format!("{error:?}"))?;
            assemble(spec, opened, streams, &outside, &mut *backend).map(drop).map_err(|error| format!("{error:?}"))
        }
    }
    pub mod interrupts {
        pub use crate::machine::interrupts::{InterruptRegisters, Interrupts};
    }
    pub mod loader {
        pub mod grub {
            pub use crate::machine::loader::grub::{BootDisk, Devices, GrubError, Halt, Limits, Loaded, Loader, Options, Port};
        }
        pub mod initrd {
            pub use crate::machine::loader::initrd::Initrd;
        }
        pub mod kernel {
            pub use crate::machine::loader::kernel::{Image, Module, Way, load_image};
        }
        pub mod volume {
            pub use crate::machine::loader::volume::{FileSystem, Medium, NodeKind, Result, VolumeError};
            pub mod in_place {
                pub use crate::machine::loader::volume::in_place::replace;
            }
            pub mod iso9660 {
                pub use crate::machine::loader::volume::iso9660::{BootImage, Iso};
            }
            pub mod partition {
                pub use crate::machine::loader::volume::partition::{Scheme, read};
            }
            pub mod probe {
                pub use crate::machine::loader::volume::probe::{Found, probe};
            }
        }
    }
    pub mod memory {
        pub use crate::machine::memory::build;
    }
    pub mod spec {
        pub use crate::machine::spec::{
            AGENT_FD, CONNECTOR_FD, CONSOLE_FD, CONTROL_FD, DEVICE_SLOTS, EngineCommand, EngineEvent, LoaderSpec, SERVICES_FD,
            VmmSpec,
        };
    }
}
pub mod units {
    pub use crate::units::Topology;
}
