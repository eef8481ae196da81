//! The state of a machine on KVM: paused, saved, loaded into a new one, and run on.

use std::sync::Arc;
use std::time::Duration;

use vmctl::testing::hypervisor::backend::{Backend, BootState, MachineExit, Needs, Platform, VcpuSetup};
use vmctl::testing::hypervisor::backends;
use vmctl::testing::hypervisor::clock::{Clock, ManualClock};
use vmctl::testing::hypervisor::irq::Irqchip;
use vmctl::testing::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use vmctl::testing::hypervisor::state::Section;
use vmctl::testing::hypervisor::waking::Attention;
use vmctl::testing::units::Topology;

/// Page tables that map the first 4 GiB to themselves; interrupt and global descriptors; what the vCPUs count; code.
const TABLES: u64 = 0x1000;
const GATES: u64 = 0x8000;
const DESCRIPTORS: u64 = 0x9000;
const GATES_REGISTER: u64 = 0x9100;
const COUNTS: u64 = 0xa000;
const OTHER_CODE: u64 = 0xb000;
const CODE: u64 = 0x1_0000;
const MEMORY: u64 = 0x4_0000;

/// The real-mode code of the second vCPU: `lock inc word ptr [0xa010]` for ever.
const OTHER: [u8; 7] = [0xf0, 0xff, 0x06, 0x10, 0xa0, 0xeb, 0xf9];
/// How often the last loop of the guest is paused.
const PAUSES: u64 = 5;

// Counts at 0xa000: ticks of the local APIC's timer, ticks of the 8254, turns of the second vCPU. Results from 0xa100.
std::arch::global_asm!(
    ".pushsection .rodata",
    ".globl vmctl_state_begin",
    "vmctl_state_begin:",
    "mov esp, 0x20000",
    "lidt [0x9100]",
    "mov rax, cr4",
    "or eax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    "mov al, 0xff", // no interrupt of the 8259A pair
    "out 0x21, al",
    "out 0xa1, al",
    "fninit",
    "fld1",
    "fldpi",
    "mov rax, 0x1122334455667788",
    "movq xmm15, rax",
    "mov eax, 0x123456",
    "mov dr0, rax",
    "mov ecx, 0xc0000082", // LSTAR
    "mov eax, 0x89abcdef",
    "mov edx, 0xffff8123",
    "wrmsr",
    "mov edi, 0xfee00000",
    "mov dword ptr [rdi + 0xf0], 0x1ff",
    "mov dword ptr [rdi + 0x3e0], 0xb",
    "mov dword ptr [rdi + 0x320], 0x20040", // periodic, vector 0x40
    "mov dword ptr [rdi + 0x380], 5000000",
    "mov ebx, 0xfec00000", // pin 2 of the I/O APIC: vector 0x41 to vCPU 0
    "mov dword ptr [rbx], 0x15",
    "mov dword ptr [rbx + 0x10], 0",
    "mov dword ptr [rbx], 0x14",
    "mov dword ptr [rbx + 0x10], 0x41",
    "mov al, 0x34", // channel 0, mode 2, every 0x4000 ticks
    "out 0x43, al",
    "xor eax, eax",
    "out 0x40, al",
    "mov al, 0x40",
    "out 0x40, al",
    "mov dword ptr [rdi + 0x310], 0x01000000", // INIT and start-up for vCPU 1
    "mov dword ptr [rdi + 0x300], 0x4500",
    "mov dword ptr [rdi + 0x310], 0x01000000",
    "mov dword ptr [rdi + 0x300], 0x460b",
    "sti",
    "2:",
    "pause",
    "cmp qword ptr [0xa000], 3",
    "jb 2b",
    "cmp qword ptr [0xa008], 2",
    "jb 2b",
    "cmp word ptr [0xa010], 0",
    "je 2b",
    "mov r8, 0x0808080808080808",
    "mov r15, 0x1515151515151515",
    "mov eax, 0x7700",
    "in al, 0x81", // the board pauses the machine and answers 0x5a
    "mov qword ptr [0xa100], rax",
    "mov qword ptr [0xa108], r8",
    "mov qword ptr [0xa110], r15",
    "movq rax, xmm15",
    "mov qword ptr [0xa118], rax",
    "mov rax, dr0",
    "mov qword ptr [0xa120], rax",
    "mov ecx, 0xc0000082",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov qword ptr [0xa128], rax",
    "fistp qword ptr [0xa130]",
    "fistp qword ptr [0xa138]",
    "mov r9, qword ptr [0xa000]", // the timers go on, and so does the second vCPU
    "add r9, 3",
    "3:",
    "hlt",
    "cmp qword ptr [0xa000], r9",
    "jb 3b",
    "mov r9, qword ptr [0xa008]",
    "add r9, 2",
    "4:",
    "hlt",
    "cmp qword ptr [0xa008], r9",
    "jb 4b",
    "mov ax, word ptr [0xa010]",
    "5:",
    "pause",
    "cmp word ptr [0xa010], ax",
    "je 5b",
    "out 0x82, al",
    "xor r12d, r12d", // counts in an integer and in the x87 until it is told to stop
    "fldz",
    "6:",
    "fld1",
    "faddp",
    "inc r12",
    "test r12d, 0xfffff",
    "jnz 7f",
    "hlt",
    "7:",
    "cmp qword ptr [0xa300], 0",
    "je 6b",
    "mov qword ptr [0xa200], r12",
    "fistp qword ptr [0xa208]",
    "out 0x83, al",
    "8:",
    "hlt",
    "jmp 8b",
    ".globl vmctl_state_timer",
    "vmctl_state_timer:",
    "lock inc qword ptr [0xa000]",
    "jmp 9f",
    ".globl vmctl_state_pit",
    "vmctl_state_pit:",
    "lock inc qword ptr [0xa008]",
    "9:",
    "push rax",
    "mov eax, 0xfee00000",
    "mov dword ptr [rax + 0xb0], 0",
    "pop rax",
    "iretq",
    ".globl vmctl_state_init", // vCPU 0 sends INIT to itself
    "vmctl_state_init:",
    "mov edi, 0xfee00000",
    "mov dword ptr [rdi + 0xf0], 0x1ff",
    "mov dword ptr [rdi + 0x310], 0",
    "mov dword ptr [rdi + 0x300], 0x4500",
    "2:",
    "pause",
    "jmp 2b",
    ".globl vmctl_state_end",
    "vmctl_state_end:",
    ".popsection",
);

unsafe extern "C" {
    static vmctl_state_begin: u8;
    static vmctl_state_timer: u8;
    static vmctl_state_pit: u8;
    static vmctl_state_init: u8;
    static vmctl_state_end: u8;
}

/// Ports of the guest's: it wants to be paused and answered, has got through, has ended.
const PAUSE: u16 = 0x81;
const THROUGH: u16 = 0x82;
const ENDED: u16 = 0x83;

/// What is around the vCPUs.
struct Ports {
    attention: Arc<Attention>,
    clock: Arc<ManualClock>,
}

impl Platform for Ports {
    fn port_read(&self, _: usize, port: u16, _: u8) -> u32 {
        if port == PAUSE {
            self.attention.stop(MachineExit::Suspended);
        }
        0x5a
    }
    fn port_write(&self, _: usize, port: u16, _: u8, _: u32) {
        match port {
            THROUGH => self.attention.stop(MachineExit::Suspended),
            ENDED => self.attention.stop(MachineExit::PowerOff),
            _ => {}
        }
    }
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn advance(&self, _: u64) -> Option<u64> {
        None
    }
    fn vcpu_failed(&self, _: usize, exit: MachineExit) {
        self.attention.stop(exit);
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

struct Machine {
    attention: Arc<Attention>,
    chips: Arc<dyn Irqchip>,
    backend: Box<dyn Backend>,
}

/// The saved state of a machine: its chips and its vCPUs.
type Saved = (Section, Vec<Section>);

impl Machine {
    /// Creates a machine with two vCPUs, of which the first enters at `entry`.
    fn new(memory: &GuestMemory, entry: u64) -> Machine {
        let topology = Topology { sockets: 1, cores: 2, threads: 1 };
        let attention = Attention::new(2);
        let needs = Needs { machine: "", topology, deterministic: false };
        let mut open = backends::open(Some("kvm"), &needs, &|_| ()).unwrap_or_else(|error| panic!("{error:?}"));
        let chips = open.irqchip(&attention).expect("KVM has chips");
        let platform = Arc::new(Ports { attention: Arc::clone(&attention), clock: ManualClock::new(0) });
        let setup = VcpuSetup {
            vcpus: 2,
            topology,
            memory: memory.clone(),
            platform,
            apics: None,
            attention: Arc::clone(&attention),
            boot: BootState::Long { rip: entry, rsi: 0, cr3: TABLES, gdt_base: DESCRIPTORS, gdt_limit: 31 },
            device_windows: Vec::new(),
            manual_clock: None,
        };
        let backend = open.build(setup).unwrap_or_else(|error| panic!("{error:?}"));
        Machine { attention, chips, backend }
    }

    fn save(&self) -> Saved {
        (self.chips.save().expect("saved chips"), self.backend.save().expect("saved vCPUs"))
    }

    /// Creates a machine that goes on from a state, on the memory that it was saved with.
    fn from(memory: &GuestMemory, (chips, vcpus): &Saved) -> Machine {
        let mut machine = Machine::new(memory, CODE);
        machine.chips.load(chips).unwrap_or_else(|error| panic!("{error}"));
        machine.backend.load(vcpus).unwrap_or_else(|error| panic!("{error}"));
        machine
    }
}

/// The address at which a label of the guest's code is.
fn address(label: *const u8) -> u64 {
    CODE + (label.addr() - (&raw const vmctl_state_begin).addr()) as u64
}

fn memory() -> GuestMemory {
    let memory = GuestMemory::anonymous(&[(GuestAddr(0), MEMORY, Mode::Ram)]).expect("some memory");
    let put = |at: u64, value: u64| memory.write_le(GuestAddr(at), value).expect("inside the memory");
    put(TABLES, TABLES + 0x1000 | 3);
    for gib in 0..4 {
        let directory = TABLES + 0x2000 + gib * 0x1000;
        put(TABLES + 0x1000 + gib * 8, directory | 3);
        // Large pages; those of the devices would be uncached, which the processor sees to by itself.
        (0..512).for_each(|page| put(directory + page * 8, gib << 30 | page << 21 | 0x83));
    }
    put(DESCRIPTORS + 0x10, 0x00af_9b00_0000_ffff);
    put(DESCRIPTORS + 0x18, 0x00cf_9300_0000_ffff);
    for (vector, label) in [(0x40, &raw const vmctl_state_timer), (0x41, &raw const vmctl_state_pit)] {
        let at = address(label);
        put(GATES + vector * 16, at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (at >> 16) << 48);
        put(GATES + vector * 16 + 8, 0);
    }
    put(GATES_REGISTER, 0x0fff | GATES << 16);
    memory.write(GuestAddr(OTHER_CODE), &OTHER).expect("inside the memory");
    let begin = &raw const vmctl_state_begin;
    let bytes = (&raw const vmctl_state_end).addr() - begin.addr();
    // SAFETY: both labels are of one block of this program's read-only data.
    memory.write(GuestAddr(CODE), unsafe { std::slice::from_raw_parts(begin, bytes) }).expect("inside the memory");
    memory
}

/// A guest is paused within an instruction, in HLT and anywhere, and does not notice.
pub fn pause_save_load_run() {
    let memory = memory();
    let word = |at: u64| memory.read_le::<u64>(GuestAddr(at)).expect("inside the memory");
    let mut machine = Machine::new(&memory, CODE);
    assert_eq!(machine.backend.run(), MachineExit::Suspended, "the guest asks to be paused");
    let saved = machine.save();
    let mut machine = Machine::from(&memory, &saved);
    assert_eq!(machine.backend.run(), MachineExit::Suspended, "it gets through");
    let results: Vec<u64> = (0..8).map(|n| word(COUNTS + 0x100 + 8 * n)).collect();
    let expected =
        [0x775a, 0x0808_0808_0808_0808, 0x1515_1515_1515_1515, 0x1122_3344_5566_7788, 0x12_3456, 0xffff_8123_89ab_cdef, 3, 1];
    assert_eq!(results, expected, "registers, x87, SSE, a debug register and an MSR are what they were");
    for pause in 1..=PAUSES {
        machine = Machine::from(&memory, &machine.save());
        let attention = Arc::clone(&machine.attention);
        let stops = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60 + 17 * pause));
            attention.stop(MachineExit::Suspended);
        });
        assert_eq!(machine.backend.run(), MachineExit::Suspended, "pause {pause}");
        stops.join().expect("it only sleeps");
    }
    memory.write_le(GuestAddr(COUNTS + 0x300), 1u64).expect("inside the memory");
    machine = Machine::from(&memory, &machine.save());
    assert_eq!(machine.backend.run(), MachineExit::PowerOff, "it ends");
    let (integer, x87) = (word(COUNTS + 0x200), word(COUNTS + 0x208));
    assert!(integer > 0 && integer == x87, "counted {integer} in an integer and {x87} in the x87");
    foreign_states_are_refused(&memory, &machine.save());
}

fn foreign_states_are_refused(memory: &GuestMemory, (chips, vcpus): &Saved) {
    let mut machine = Machine::new(memory, CODE);
    assert!(machine.backend.load(&vcpus[..1]).is_err(), "a vCPU is missing");
    let swapped = [vcpus[1].clone(), vcpus[0].clone()];
    let why = machine.backend.load(&swapped).expect_err("the vCPUs are swapped").to_string();
    assert!(why.contains("another CPUID"), "{why}");
    assert!(machine.chips.load(&vcpus[0]).is_err(), "a vCPU for the chips");
    let before = machine.chips.save().expect("saved chips");
    let cut = Section { bytes: chips.bytes[..chips.bytes.len() / 2].to_vec(), ..chips.clone() };
    assert!(machine.chips.load(&cut).is_err(), "half of the chips");
    assert_eq!(machine.chips.save().expect("saved chips").kind, before.kind);
}

/// An INIT of vCPU 0 reboots a machine without firmware.
pub fn init_reboots() {
    let memory = memory();
    let mut machine = Machine::new(&memory, address(&raw const vmctl_state_init));
    assert_eq!(machine.backend.run(), MachineExit::Reboot);
}
