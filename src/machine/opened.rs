//! The open files, disks and ports of a machine.
//!
//! They are opened first, with the rights of the user who started the guest and while this process has one thread. Then the
//! process gives up these rights ([`sandbox`](super::sandbox)), and the machine is built from the open files.

use std::sync::Arc;

use super::assembly::AssemblyError;
use super::loader::kernel::KernelFiles;
use super::loader::{HostFile, LoadError};
use super::spec::{
    AnswerContent, AnswerSpec, DiskSpec, ForwardSpec, LoaderSpec, ModuleSpec, NicBackend, NicSpec, PortsSpec, UserNetSpec,
    VmmSpec,
};
use crate::choices::{EmbeddedDiskCache, EmbeddedDiskDevice, ForwardProto};
use crate::devices::disk::file::{self, DiskOptions, OpenDisk};
use crate::devices::net::user::reach::{Addresses, NicReach, Ports, Reach};
use crate::devices::net::user::{self, sockets::Sockets};
use crate::inputs;

/// Maximum size of an answer file: 16 MiB.
const ANSWER_BYTES: u64 = 16 << 20;

/// The open files and ports of one machine.
pub struct Opened {
    /// Files of `loader = "kernel"`.
    pub kernel: Option<KernelFiles>,
    /// Disks, in the order of the specification.
    pub disks: Vec<(DiskOptions, OpenDisk)>,
    /// Networks of the interfaces, in the order of the specification. `None` for an interface without a user-mode network.
    pub nics: Vec<Option<(user::UserNetConfig, user::Listeners)>>,
}

impl Opened {
    /// Opens everything that `spec` names, and passes the forwards to `sockets`.
    pub fn open(spec: &VmmSpec, sockets: &dyn Sockets) -> Result<Opened, AssemblyError> {
        let kernel = match &spec.loader {
            LoaderSpec::Kernel { image, initrd, modules, cmdline } => {
                let image = HostFile::open("kernel image", image)?;
                let initrd = initrd.as_deref().map(|path| HostFile::open("initrd", path)).transpose()?;
                let open_module = |module: &ModuleSpec| Ok((HostFile::open("module", &module.path)?, module.args.clone()));
                let modules = modules.iter().map(open_module).collect::<Result<_, LoadError>>()?;
                Some(KernelFiles { image, initrd, modules, cmdline: cmdline.clone() })
            }
            LoaderSpec::Grub(_) => None,
        };
        let disks = spec.disks.iter().map(open_disk).collect::<Result<_, _>>()?;
        let nics = spec.nics.iter().map(|nic| open_nic(nic, sockets)).collect::<Result<_, _>>()?;
        Ok(Opened { kernel, disks, nics })
    }
}

fn open_disk(spec: &DiskSpec) -> Result<(DiskOptions, OpenDisk), AssemblyError> {
    let options = DiskOptions {
        // A CD drive never writes, so several may share its image.
        read_only: spec.read_only || spec.device == EmbeddedDiskDevice::AhciCd,
        cache: match spec.cache {
            EmbeddedDiskCache::Writeback => file::CacheMode::Writeback,
            EmbeddedDiskCache::None => file::CacheMode::None,
            EmbeddedDiskCache::Writethrough => file::CacheMode::Writethrough,
            EmbeddedDiskCache::Unsafe => file::CacheMode::Unsafe,
        },
        discard: spec.discard,
    };
    let failed = |source| AssemblyError::Disk { id: spec.id.clone(), source };
    let disk = file::open_file(&spec.path, &options).map_err(failed)?;
    Ok((options, disk))
}

fn open_nic(spec: &NicSpec, sockets: &dyn Sockets) -> Result<Option<(user::UserNetConfig, user::Listeners)>, AssemblyError> {
    let NicBackend::User(network) = &spec.backend else { return Ok(None) };
    let config = network_config(network, spec.mtu)?;
    let failed = |source| AssemblyError::Nic { id: spec.id.clone(), source };
    let listeners = user::Listeners::open(&config, sockets).map_err(failed)?;
    Ok(Some((config, listeners)))
}

fn network_config(spec: &UserNetSpec, mtu: u16) -> Result<user::UserNetConfig, AssemblyError> {
    let NicReach { addresses, reach, name_servers } = nic_reach(spec);
    Ok(user::UserNetConfig {
        addresses,
        reach,
        mtu: Some(mtu),
        forwards: spec.forwards.iter().map(forward).collect(),
        host_name: None,
        name_servers,
        answers: answers(&spec.answers)?,
    })
}

/// Returns the addresses and ports that a guest may reach through an interface.
pub fn nic_reach(spec: &UserNetSpec) -> NicReach {
    let ports = |ports: &PortsSpec| Ports { protocol: protocol(ports.protocol), first: ports.first, last: ports.last };
    NicReach {
        addresses: Addresses {
            network: spec.network,
            prefix: spec.prefix,
            gateway: spec.gateway,
            dns: spec.dns,
            answers: spec.answers_address,
            guest: spec.guest,
        },
        reach: Reach {
            isolated: spec.isolated,
            host_access: spec.host_access,
            host_ports: spec.host_ports.iter().map(ports).collect(),
            link_local: spec.link_local,
        },
        name_servers: spec.dns_servers.iter().map(|&address| (address, 53).into()).collect(),
    }
}

fn protocol(spec: ForwardProto) -> user::Protocol {
    match spec {
        ForwardProto::Tcp => user::Protocol::Tcp,
        ForwardProto::Udp => user::Protocol::Udp,
    }
}

/// Reads the files that the guest may read into memory.
fn answers(specs: &[AnswerSpec]) -> Result<Option<Arc<user::answers::Files>>, AssemblyError> {
    if specs.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for AnswerSpec { path, content } in specs {
        let bytes = match content {
            AnswerContent::Text(text) => text.clone().into_bytes(),
            AnswerContent::File(file) => {
                inputs::read(file, ANSWER_BYTES).map_err(|source| AssemblyError::Answer { path: file.clone(), source })?
            }
        };
        files.push((path.clone(), bytes));
    }
    Ok(Some(Arc::new(user::answers::Files::new(files))))
}

/// A forward of the specification, as the network knows it.
pub fn forward(spec: &ForwardSpec) -> user::Forward {
    user::Forward {
        protocol: protocol(spec.protocol),
        host: std::net::SocketAddr::new(spec.host_address, spec.host_port),
        guest_port: spec.guest_port,
    }
}
