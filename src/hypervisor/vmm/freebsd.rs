//! vmm(4) itself: how machines are made and destroyed, their requests by ioctl(2), and their memory by mmap(2).
//!
//! Sources: lib/libvmmapi/vmmapi.c (vm_create, vm_open, vm_destroy, setup_memory_segment) and sys/amd64/vmm/vmm_dev.c of
//! stable/14 (1400507); sys/dev/vmm/vmm_dev.c of 15 (freebsd-src 012895d5be9d).
//!
//! An unsafe island: ioctl(2) and sysctl(3) read and write the structures that they are given, mmap(2) hands memory over.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::abi::{self, IsaIrq, RawExit, Reg, Release, SegDesc};
use super::irqchip::VmmIrqchip;
use super::probe::{self, HostFacts, VmmError, cannot};
use super::vm::Vm;
use crate::hypervisor::backend::{Backend, Needs, OpenBackend, RamPiece, Reason, Rights, VcpuSetup};
use crate::hypervisor::irq::Irqchip;
use crate::hypervisor::memory::HostMemory;
use crate::hypervisor::waking::Attention;

const CONTROL: &str = "/dev/vmmctl";
const CREATE: &CStr = c"hw.vmm.create";
const DESTROY: &CStr = c"hw.vmm.destroy";
/// How often the name of a machine is asked for that an earlier boot left, and how long is waited between.
const ATTEMPTS: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(50);
/// VM_SYSMEM of vmm_dev.h: the segment of RAM.
const SYSTEM_MEMORY: i32 = 0;

/// Opens vmm(4), if this host has it and it has what the guest needs.
pub fn open(needs: &Needs<'_>) -> Result<Box<dyn OpenBackend>, Reason> {
    let release = probe::check(&host_facts(), needs)?;
    let name = if needs.machine.is_empty() { format!("vmctl-probe-{}", std::process::id()) } else { needs.machine.into() };
    let vm = VmFile::create(probe::checked_name(&name)?, release)?;
    let topology = needs.topology;
    let narrow = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let mut places = abi::CpuTopology {
        sockets: narrow(topology.sockets),
        cores: narrow(topology.cores),
        threads: narrow(topology.threads),
        maxcpus: 0,
    };
    vm.request(abi::VM_SET_TOPOLOGY, &mut places).map_err(cannot("set the topology of the vCPUs"))?;
    let mut now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    vm.request(abi::VM_RTC_SETTIME, &mut now).map_err(cannot("set the real-time clock"))?;
    super::prepare(&vm, topology.count() as usize)?;
    Ok(Box::new(OpenVmm { vm: Arc::new(vm) }))
}

/// Returns what the kernel says about itself.
fn host_facts() -> HostFacts {
    let known = |name| !matches!(read_sysctl(name, &mut []), Err(error) if error.raw_os_error() == Some(libc::ENOENT));
    HostFacts {
        osreldate: number(c"kern.osreldate").unwrap_or(0),
        is_loaded: Path::new(CONTROL).exists() || known(CREATE),
        has_hardware: has_hardware(),
        most_vcpus: number(c"hw.vmm.maxcpu"),
    }
}

/// Returns whether the processor has VMX, or SVM with nested paging: SDM vol. 3 section 24.6; APM vol. 3 appendix E.
fn has_hardware() -> bool {
    // SAFETY: every x86-64 processor has CPUID.
    #[allow(unused_unsafe, reason = "newer compilers know")]
    let cpuid = |leaf| unsafe { std::arch::x86_64::__cpuid(leaf) };
    let vmx = cpuid(1).ecx & 1 << 5 != 0;
    let highest = cpuid(0x8000_0000).eax;
    let svm = highest >= 0x8000_000a && cpuid(0x8000_0001).ecx & 1 << 2 != 0 && cpuid(0x8000_000a).edx & 1 != 0;
    vmx || svm
}

/// Reads a variable of the kernel, as far as it fits. Returns its size.
fn read_sysctl(name: &CStr, value: &mut [u8]) -> io::Result<usize> {
    let mut bytes = value.len();
    let out = if value.is_empty() { std::ptr::null_mut() } else { value.as_mut_ptr().cast() };
    // SAFETY: the kernel writes at most `bytes` bytes to `value`, and none to a null pointer.
    done(unsafe { libc::sysctlbyname(name.as_ptr(), out, &mut bytes, std::ptr::null(), 0) })?;
    Ok(bytes)
}

fn number(name: &CStr) -> Option<u32> {
    let mut value = [0; 4];
    (read_sysctl(name, &mut value).ok()? == value.len()).then(|| u32::from_ne_bytes(value))
}

fn write_sysctl(name: &CStr, value: &str) -> io::Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes of `value`.
    done(unsafe {
        libc::sysctlbyname(name.as_ptr(), std::ptr::null_mut(), std::ptr::null_mut(), value.as_ptr().cast(), value.len())
    })
}

fn done(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a request whose argument the kernel reads, and writes back where its number says so.
fn request<T>(file: &File, request: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: the size of `T` is in the request's number, as `abi` makes it; `argument` lives over the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(request), (&raw mut *argument).cast::<c_void>()) })
}

fn device(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)
}

/// Makes or destroys a machine: by the control device where there is one, or else by a variable of the kernel.
fn by_name(number: u32, variable: &CStr, name: &str) -> io::Result<()> {
    match device(CONTROL) {
        Ok(control) => {
            let mut argument = abi::VmName { name: [0; abi::VM_MAX_NAMELEN + 1], reserved: [0; 16] };
            argument.name[..name.len()].copy_from_slice(name.as_bytes());
            request(&control, number, &mut argument)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_sysctl(variable, name),
        Err(error) => Err(error),
    }
}

/// A machine of the kernel, which is destroyed with this where the process still may.
pub struct VmFile {
    name: String,
    file: File,
    release: Release,
}

impl Drop for VmFile {
    fn drop(&mut self) {
        // In capability mode it fails. Then the supervisor does it.
        let _ = by_name(abi::VMMCTL_VM_DESTROY, DESTROY, &self.name);
    }
}

impl VmFile {
    /// Makes a machine. One of this name that an earlier boot left is destroyed first.
    fn create(name: &str, release: Release) -> Result<VmFile, VmmError> {
        for attempt in 0.. {
            match by_name(abi::VMMCTL_VM_CREATE, CREATE, name) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && attempt < ATTEMPTS => {
                    // The kernel frees its memory before its name.
                    let _ = by_name(abi::VMMCTL_VM_DESTROY, DESTROY, name);
                    std::thread::sleep(BETWEEN);
                }
                Err(error) => return Err(probe::refused(error, name)),
            }
        }
        let file = device(&format!("/dev/vmm/{name}")).map_err(|error| {
            let _ = by_name(abi::VMMCTL_VM_DESTROY, DESTROY, name);
            probe::refused(error, name)
        })?;
        Ok(VmFile { name: name.into(), file, release })
    }

    fn request<T>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        request(&self.file, number, argument)
    }

    /// Reserves the RAM and puts it at its guest addresses.
    fn lay_out(&self, bytes: u64, pieces: &[RamPiece]) -> io::Result<()> {
        match self.release {
            Release::R13 | Release::R14 => {
                let mut segment = abi::MemSeg { segid: SYSTEM_MEMORY, len: bytes, ..Default::default() };
                self.request(self.release.alloc_memseg(), &mut segment)?;
            }
            Release::R15 => {
                let mut segment = abi::MemSeg15 { segid: SYSTEM_MEMORY, len: bytes, ..Default::default() };
                self.request(self.release.alloc_memseg(), &mut segment)?;
            }
        }
        for piece in pieces {
            let mut map = abi::MemMap {
                gpa: piece.base.0,
                segid: SYSTEM_MEMORY,
                segoff: piece.offset as i64,
                len: piece.len,
                prot: libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                flags: 0,
            };
            self.request(abi::VM_MMAP_MEMSEG, &mut map)?;
        }
        Ok(())
    }

    /// Maps a piece of the RAM into this process. `self` lives as long as the mapping.
    fn map(self: &Arc<VmFile>, piece: &RamPiece) -> io::Result<HostMemory> {
        let bytes = usize::try_from(piece.len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NOCORE);
        // SAFETY: a mapping at an address of the kernel's choice aliases nothing of Rust's.
        let host =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, self.file.as_raw_fd(), piece.base.0 as libc::off_t) };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = Mapping { host: host.expose_provenance(), bytes, _vm: Arc::clone(self) };
        // SAFETY: the bytes are mapped until `mapping` is dropped, and nothing else in this process knows of them.
        unsafe { HostMemory::lent(host.cast(), piece.len, Box::new(mapping)) }
    }
}

/// A piece of a machine's RAM in this process.
struct Mapping {
    host: usize,
    bytes: usize,
    _vm: Arc<VmFile>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's alone and is given back once; who used its memory held the object.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(self.host), self.bytes) };
    }
}

impl Vm for VmFile {
    fn release(&self) -> Release {
        self.release
    }

    fn run(&self, vcpu: usize, exit: &mut RawExit) -> io::Result<()> {
        let cpuid = vcpu as i32;
        match self.release {
            Release::R13 => {
                let mut run = abi::Run13 { cpuid, exit: *exit };
                self.request(self.release.run(), &mut run)?;
                *exit = run.exit;
            }
            // The set of an IPI's receivers is not asked for: VM_CAP_IPI_EXIT is off.
            Release::R14 | Release::R15 => {
                let mut run = abi::Run14 { cpuid, cpuset: std::ptr::null_mut(), cpusetsize: 0, exit };
                self.request(self.release.run(), &mut run)?;
            }
        }
        Ok(())
    }

    fn activate(&self, vcpu: usize) -> io::Result<()> {
        self.request(abi::VM_ACTIVATE_CPU, &mut (vcpu as i32))
    }

    fn suspend(&self, mut how: i32) -> io::Result<()> {
        self.request(abi::VM_SUSPEND, &mut how)
    }

    fn suspend_vcpu(&self, vcpu: usize) -> io::Result<()> {
        self.request(abi::VM_SUSPEND_CPU, &mut (vcpu as i32))
    }

    fn resume_vcpu(&self, vcpu: usize) -> io::Result<()> {
        self.request(abi::VM_RESUME_CPU, &mut (vcpu as i32))
    }

    fn registers(&self, vcpu: usize, numbers: &[Reg], values: &mut [u64]) -> io::Result<()> {
        assert_eq!(numbers.len(), values.len(), "each register has a place");
        let regnums: Vec<i32> = numbers.iter().map(|&number| number as i32).collect();
        let mut set = abi::RegisterSet {
            cpuid: vcpu as i32,
            count: regnums.len() as u32,
            regnums: regnums.as_ptr(),
            regvals: values.as_mut_ptr(),
        };
        self.request(abi::VM_GET_REGISTER_SET, &mut set)
    }

    fn set_register(&self, vcpu: usize, number: Reg, regval: u64) -> io::Result<()> {
        let mut value = abi::RegisterValue { cpuid: vcpu as i32, regnum: number as i32, regval };
        self.request(abi::VM_SET_REGISTER, &mut value)
    }

    fn descriptor(&self, vcpu: usize, number: Reg) -> io::Result<SegDesc> {
        let mut value = abi::SegDescValue { cpuid: vcpu as i32, regnum: number as i32, desc: SegDesc::default() };
        self.request(abi::VM_GET_SEGMENT_DESCRIPTOR, &mut value)?;
        Ok(value.desc)
    }

    fn set_descriptor(&self, vcpu: usize, number: Reg, desc: SegDesc) -> io::Result<()> {
        let mut value = abi::SegDescValue { cpuid: vcpu as i32, regnum: number as i32, desc };
        self.request(abi::VM_SET_SEGMENT_DESCRIPTOR, &mut value)
    }

    fn set_capability(&self, vcpu: usize, captype: i32, capval: i32) -> io::Result<()> {
        let mut value = abi::Capability { cpuid: vcpu as i32, captype, capval, allcpus: 0 };
        self.request(abi::VM_SET_CAPABILITY, &mut value)
    }

    fn inject(&self, vcpu: usize, vector: u8, error: Option<u32>) -> io::Result<()> {
        let mut exception = abi::ExceptionArgument {
            cpuid: vcpu as i32,
            vector: vector.into(),
            error_code: error.unwrap_or(0),
            error_code_valid: error.is_some().into(),
            restart_instruction: 1,
        };
        self.request(abi::VM_INJECT_EXCEPTION, &mut exception)
    }

    fn set_isa_line(&self, mut line: IsaIrq, level: bool) -> io::Result<()> {
        self.request(if level { abi::VM_ISA_ASSERT_IRQ } else { abi::VM_ISA_DEASSERT_IRQ }, &mut line)
    }

    fn set_ioapic_pin(&self, mut pin: i32, level: bool) -> io::Result<()> {
        self.request(if level { abi::VM_IOAPIC_ASSERT_IRQ } else { abi::VM_IOAPIC_DEASSERT_IRQ }, &mut pin)
    }

    fn message(&self, addr: u64, data: u32) -> io::Result<()> {
        self.request(abi::VM_LAPIC_MSI, &mut abi::LapicMsi { msg: data.into(), addr })
    }

    fn pulse_lint1(&self) -> io::Result<()> {
        self.request(abi::VM_LAPIC_LOCAL_IRQ, &mut abi::LapicIrq { cpuid: -1, vector: abi::APIC_LVT_LINT1 })
    }
}

/// A machine whose vCPUs are made, before it has memory.
struct OpenVmm {
    vm: Arc<VmFile>,
}

impl OpenBackend for OpenVmm {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn rights(&self) -> Rights {
        super::rights(self.vm.release, self.vm.file.as_raw_fd())
    }

    fn irqchip(&mut self, _: &Arc<Attention>) -> Option<Arc<dyn Irqchip>> {
        Some(Arc::new(VmmIrqchip::new(Arc::clone(&self.vm) as _)))
    }

    fn ram(&mut self, bytes: u64, pieces: &[RamPiece]) -> io::Result<Option<Vec<Arc<HostMemory>>>> {
        self.vm.lay_out(bytes, pieces)?;
        pieces.iter().map(|piece| self.vm.map(piece).map(Arc::new)).collect::<io::Result<_>>().map(Some)
    }

    fn build(self: Box<Self>, setup: VcpuSetup) -> Result<Box<dyn Backend>, Reason> {
        Ok(Box::new(super::build(self.vm, setup)?))
    }
}
