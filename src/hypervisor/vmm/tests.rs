//! The back end on a kernel made up: scripts of exits, and what was asked of the kernel.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use super::abi::{self, IsaIrq, RawExit, Reg, Release, SegDesc};
use super::exit::tests::{inout, raw, spinup, stop};
use super::irqchip::VmmIrqchip;
use super::vm::Vm;
use crate::hypervisor::backend::{Backend, BootState, MachineExit, Platform, VcpuSetup};
use crate::hypervisor::clock::{Clock, ManualClock};
use crate::hypervisor::irq::{IrqLine, IrqSink, Irqchip};
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use crate::hypervisor::waking::Attention;
use crate::units::Topology;

/// A vCPU's next exit, or the number of an error.
type Step = Result<RawExit, i32>;

#[derive(Default)]
struct Kernel {
    steps: Vec<VecDeque<Step>>,
    registers: BTreeMap<(usize, Reg), u64>,
    descriptors: BTreeMap<(usize, Reg), SegDesc>,
    active: Vec<bool>,
    suspended_vcpus: Vec<bool>,
    suspended: Option<i32>,
    /// What else was asked, in words.
    asked: Vec<String>,
}

/// A kernel that returns scripted exits, and waits like vmm(4) where there are none.
struct FakeVm {
    release: Release,
    kernel: Mutex<Kernel>,
    changed: Condvar,
}

impl FakeVm {
    fn new(steps: Vec<Vec<Step>>) -> Arc<FakeVm> {
        let vcpus = steps.len();
        let kernel = Kernel {
            steps: steps.into_iter().map(VecDeque::from).collect(),
            active: vec![false; vcpus],
            suspended_vcpus: vec![false; vcpus],
            ..Kernel::default()
        };
        Arc::new(FakeVm { release: Release::R14, kernel: Mutex::new(kernel), changed: Condvar::new() })
    }

    fn ask(&self, words: String) -> io::Result<()> {
        self.kernel.lock().unwrap().asked.push(words);
        Ok(())
    }

    fn register(&self, vcpu: usize, number: Reg) -> u64 {
        self.kernel.lock().unwrap().registers.get(&(vcpu, number)).copied().unwrap_or(0)
    }

    fn asked(&self) -> Vec<String> {
        self.kernel.lock().unwrap().asked.clone()
    }
}

impl Vm for FakeVm {
    fn release(&self) -> Release {
        self.release
    }
    fn run(&self, vcpu: usize, exit: &mut RawExit) -> io::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        assert!(kernel.active[vcpu], "only an active vCPU runs");
        loop {
            if let Some(how) = kernel.suspended {
                *exit = stop(how);
                return Ok(());
            }
            if kernel.suspended_vcpus[vcpu] {
                *exit = raw(abi::EXIT_DEBUG, 0, &[]);
                return Ok(());
            }
            match kernel.steps[vcpu].pop_front() {
                Some(Ok(next)) => {
                    if next.exitcode == abi::EXIT_SUSPENDED {
                        kernel.suspended = Some(next.u32_at(0) as i32);
                        self.changed.notify_all();
                    }
                    *exit = next;
                    return Ok(());
                }
                Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                None => kernel = self.changed.wait(kernel).unwrap(),
            }
        }
    }
    fn activate(&self, vcpu: usize) -> io::Result<()> {
        self.kernel.lock().unwrap().active[vcpu] = true;
        self.ask(format!("activate {vcpu}"))
    }
    fn suspend(&self, how: i32) -> io::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        kernel.suspended.get_or_insert(how);
        self.changed.notify_all();
        Ok(())
    }
    fn suspend_vcpu(&self, vcpu: usize) -> io::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        if !kernel.active[vcpu] {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        kernel.suspended_vcpus[vcpu] = true;
        self.changed.notify_all();
        Ok(())
    }
    fn resume_vcpu(&self, vcpu: usize) -> io::Result<()> {
        self.kernel.lock().unwrap().suspended_vcpus[vcpu] = false;
        self.ask(format!("resume {vcpu}"))
    }
    fn registers(&self, vcpu: usize, numbers: &[Reg], values: &mut [u64]) -> io::Result<()> {
        numbers.iter().zip(values).for_each(|(&number, value)| *value = self.register(vcpu, number));
        Ok(())
    }
    fn set_register(&self, vcpu: usize, number: Reg, value: u64) -> io::Result<()> {
        self.kernel.lock().unwrap().registers.insert((vcpu, number), value);
        Ok(())
    }
    fn descriptor(&self, vcpu: usize, number: Reg) -> io::Result<SegDesc> {
        Ok(self.kernel.lock().unwrap().descriptors.get(&(vcpu, number)).copied().unwrap_or_default())
    }
    fn set_descriptor(&self, vcpu: usize, number: Reg, descriptor: SegDesc) -> io::Result<()> {
        self.kernel.lock().unwrap().descriptors.insert((vcpu, number), descriptor);
        Ok(())
    }
    fn set_capability(&self, vcpu: usize, capability: i32, value: i32) -> io::Result<()> {
        self.ask(format!("capability {capability} of {vcpu} is {value}"))
    }
    fn inject(&self, vcpu: usize, vector: u8, error: Option<u32>) -> io::Result<()> {
        self.ask(format!("exception {vector} {error:?} for {vcpu}"))
    }
    fn set_isa_line(&self, line: IsaIrq, level: bool) -> io::Result<()> {
        self.ask(format!("isa {} {} {level}", line.atpic_irq, line.ioapic_irq))
    }
    fn set_ioapic_pin(&self, pin: i32, level: bool) -> io::Result<()> {
        self.ask(format!("pin {pin} {level}"))
    }
    fn message(&self, address: u64, data: u32) -> io::Result<()> {
        self.ask(format!("message {address:#x} {data:#x}"))
    }
    fn pulse_lint1(&self) -> io::Result<()> {
        self.ask("lint1".into())
    }
}

/// A board that stops the machine where a guest writes to port 0x604, and records the rest.
struct FakeBoard {
    attention: Arc<Attention>,
    clock: Arc<ManualClock>,
    seen: Mutex<Vec<String>>,
}

impl Platform for FakeBoard {
    fn port_read(&self, vcpu: usize, port: u16, width: u8) -> u32 {
        self.seen.lock().unwrap().push(format!("{vcpu} in {port:#x} {width}"));
        0x8765_4321
    }
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32) {
        self.seen.lock().unwrap().push(format!("{vcpu} out {port:#x} {width} {value:#x}"));
        if port == 0x604 {
            self.attention.stop(MachineExit::PowerOff);
        }
    }
    fn mmio_read(&self, vcpu: usize, addr: u64, width: u8) -> u64 {
        self.seen.lock().unwrap().push(format!("{vcpu} read {addr:#x} {width}"));
        0x1122_3344_5566_7788
    }
    fn mmio_write(&self, vcpu: usize, addr: u64, width: u8, value: u64) {
        self.seen.lock().unwrap().push(format!("{vcpu} write {addr:#x} {width} {value:#x}"));
    }
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

const CODE: u64 = 0x1000;

struct World {
    vm: Arc<FakeVm>,
    board: Arc<FakeBoard>,
    memory: GuestMemory,
    attention: Arc<Attention>,
    backend: Option<super::VmmBackend>,
}

impl World {
    /// A machine whose vCPUs leave VM_RUN by these steps; the first one enters 32-bit code at [`CODE`].
    fn of(steps: Vec<Vec<Step>>) -> World {
        let vcpus = steps.len();
        let (vm, attention) = (FakeVm::new(steps), Attention::new(vcpus));
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), 0x10_0000, Mode::Ram)]).unwrap();
        let board = Arc::new(FakeBoard { attention: Arc::clone(&attention), clock: ManualClock::new(0), seen: Mutex::default() });
        let setup = VcpuSetup {
            vcpus,
            topology: Topology { sockets: 1, cores: vcpus as u32, threads: 1 },
            memory: memory.clone(),
            platform: Arc::clone(&board) as _,
            apics: None,
            attention: Arc::clone(&attention),
            boot: BootState::Protected { eip: CODE as u32, eax: 1, ebx: 2, esi: 3, gdt_base: 0x500, gdt_limit: 31 },
            device_windows: Vec::new(),
            manual_clock: None,
        };
        super::prepare(&*vm, vcpus).unwrap();
        let backend = super::build(Arc::clone(&vm) as _, setup).unwrap();
        World { vm, board, memory, attention, backend: Some(backend) }
    }

    fn run(&mut self) -> MachineExit {
        self.backend.take().unwrap().run()
    }

    fn seen(&self) -> Vec<String> {
        self.board.seen.lock().unwrap().clone()
    }
}

fn power_off() -> Step {
    Ok(inout(1, 0x604, 0))
}

/// An instruction that the kernel leaves to us.
fn instruction() -> Step {
    Ok(raw(abi::EXIT_INST_EMUL, 0, &[]))
}

#[test]
fn the_first_vcpu_enters_where_the_loader_says_and_the_kernel_waits_for_halts() {
    let mut world = World::of(vec![vec![power_off()], vec![]]);
    assert_eq!(world.run(), MachineExit::PowerOff);
    let [rip, rax, rbx, rsi, cr0] = [Reg::Rip, Reg::Rax, Reg::Rbx, Reg::Rsi, Reg::Cr0].map(|number| world.vm.register(0, number));
    assert_eq!((rip, rax, rbx, rsi, cr0), (CODE, 1, 2, 3, 0x11));
    let kernel = world.vm.kernel.lock().unwrap();
    assert_eq!(kernel.descriptors[&(0, Reg::Cs)], SegDesc { base: 0, limit: u32::MAX, access: 0xc09b });
    assert_eq!(kernel.descriptors[&(0, Reg::Gdtr)].base, 0x500);
    let first =
        ["capability 0 of 0 is 1", "capability 3 of 0 is 1", "capability 0 of 1 is 1", "capability 3 of 1 is 1", "activate 0"];
    assert_eq!(kernel.asked, first);
}

#[test]
fn ports_are_read_and_written_with_their_width() {
    let steps = vec![Ok(inout(1 | 8, 0x3f8, 0)), Ok(inout(2 | 8, 0x3f8, 0)), Ok(inout(2, 0x3f8, 0x1_2345)), power_off()];
    let mut world = World::of(vec![steps]);
    world.vm.set_register(0, Reg::Rax, 0xaaaa_bbbb_cccc_dddd).unwrap();
    world.run();
    assert_eq!(world.vm.register(0, Reg::Rax), 0xaaaa_bbbb_cccc_4321);
    assert_eq!(world.seen(), ["0 in 0x3f8 1", "0 in 0x3f8 2", "0 out 0x3f8 2 0x2345", "0 out 0x604 1 0x0"]);
    let mut world = World::of(vec![vec![Ok(inout(4 | 8, 0xcfc, 0)), power_off()]]);
    world.vm.set_register(0, Reg::Rax, u64::MAX).unwrap();
    world.run();
    assert_eq!(world.vm.register(0, Reg::Rax), 0x8765_4321);
}

#[test]
fn an_access_to_a_device_is_carried_out_on_the_vcpus_registers() {
    // mov eax, [0xc0000010]; mov [0xc0000014], al
    let code = [0xa1, 0x10, 0, 0, 0xc0, 0xa2, 0x14, 0, 0, 0xc0];
    let mut world = World::of(vec![vec![instruction(), instruction(), power_off()]]);
    world.memory.write(GuestAddr(CODE), &code).unwrap();
    assert_eq!(world.run(), MachineExit::PowerOff);
    assert_eq!(world.seen()[..2], ["0 read 0xc0000010 4", "0 write 0xc0000014 1 0x88"]);
    assert_eq!((world.vm.register(0, Reg::Rax), world.vm.register(0, Reg::Rip)), (0x5566_7788, CODE + 10));
}

#[test]
fn what_an_instruction_raises_is_the_vcpus_exception() {
    // ud2, then a register that no processor has
    let steps = vec![instruction(), Ok(raw(3, 2, &[(0, &0x480u32.to_le_bytes())])), power_off()];
    let mut world = World::of(vec![steps]);
    world.memory.write(GuestAddr(CODE), &[0x0f, 0x0b]).unwrap();
    world.run();
    let asked = world.vm.asked();
    assert_eq!(asked[asked.len() - 2..], ["exception 6 None for 0", "exception 13 Some(0) for 0"]);
}

#[test]
fn a_register_that_the_kernel_leaves_to_us_is_read_as_two_halves() {
    let steps =
        vec![Ok(raw(3, 2, &[(0, &0x606u32.to_le_bytes())])), Ok(raw(4, 2, &[(0, &0xc001_0015u32.to_le_bytes())])), power_off()];
    let mut world = World::of(vec![steps]);
    world.vm.set_register(0, Reg::Rdx, 7).unwrap();
    world.run();
    assert_eq!((world.vm.register(0, Reg::Rax), world.vm.register(0, Reg::Rdx)), (0x000a_1003, 0));
    assert!(!world.vm.asked().iter().any(|words| words.starts_with("exception")));
}

#[test]
fn a_vcpu_starts_at_its_message_in_real_mode_and_again_at_another() {
    let mut world =
        World::of(vec![vec![Ok(spinup(1, 0x9a000))], vec![Ok(inout(1, 0x80, 1)), Ok(spinup(1, 0x10000)), power_off()]]);
    assert_eq!(world.run(), MachineExit::PowerOff);
    assert_eq!(world.seen(), ["1 out 0x80 1 0x1", "1 out 0x604 1 0x0"]);
    let asked = world.vm.asked();
    assert_eq!(asked[asked.len() - 2..], ["activate 1", "resume 1"]);
    assert_eq!((world.vm.register(1, Reg::Rip), world.vm.register(1, Reg::Cs)), (0, 0x1000));
    assert_eq!(world.vm.descriptor(1, Reg::Cs).unwrap().base, 0x1_0000);
    assert_eq!((world.vm.register(1, Reg::Cr0), world.vm.register(1, Reg::Rdx)), (0x10, 0xf00));
}

#[test]
fn a_machine_stops_though_some_vcpus_never_started_and_others_wait_in_the_kernel() {
    let mut world = World::of(vec![vec![Ok(spinup(2, 0x9a000))], vec![], vec![], vec![]]);
    let attention = Arc::clone(&world.attention);
    let stopper = std::thread::spawn(move || attention.stop(MachineExit::Reboot));
    assert_eq!(world.run(), MachineExit::Reboot);
    stopper.join().unwrap();
}

#[test]
fn the_guests_own_end_is_the_machines() {
    for (how, exit) in
        [(3, MachineExit::Halt), (4, MachineExit::TripleFault), (1, MachineExit::Reboot), (2, MachineExit::PowerOff)]
    {
        assert_eq!(World::of(vec![vec![Ok(stop(how))]]).run(), exit);
    }
}

#[test]
fn whatever_the_kernel_returns_ends_the_guest_and_nothing_else() {
    let vector = [0x0f, 0x11, 0x05, 0, 0, 0, 0xc0];
    let hostile = [
        raw(99, 0, &[]),
        raw(0, 1, &[(0, &[7])]),
        raw(9, 200, &[]),
        raw(16, 2, &[]),
        raw(1, 0, &[(0, &[1]), (20, &[7])]),
        stop(77),
        // movups [0xc0000000], xmm0
        raw(abi::EXIT_INST_EMUL, 0, &[(56, &vector), (71, &[7])]),
    ];
    for exit in hostile {
        let mut world = World::of(vec![vec![Ok(exit), power_off()], vec![]]);
        world.memory.write(GuestAddr(CODE), &vector).unwrap();
        assert_eq!(world.run(), MachineExit::Error, "exit {}", exit.exitcode);
        assert_eq!(world.seen(), [] as [&str; 0]);
    }
}

#[test]
fn a_vcpu_that_the_kernel_does_not_run_ends_the_machine_though_others_wait_for_it() {
    // The second vCPU is active and would wait for the first one in the kernel.
    let mut world = World::of(vec![vec![Ok(spinup(1, 0x9a000)), Err(libc::EINTR), Err(libc::EFAULT)], vec![]]);
    assert_eq!(world.run(), MachineExit::Error);
}

#[test]
fn lines_go_to_both_controllers_and_shared_ones_are_counted() {
    let vm = FakeVm::new(vec![vec![]]);
    let chip: Arc<dyn Irqchip> = Arc::new(VmmIrqchip::new(Arc::clone(&vm) as _));
    let line = |gsi| IrqLine::new(Arc::clone(&chip) as Arc<dyn IrqSink>, gsi);
    let (first, second) = (line(20), line(20));
    first.raise();
    second.raise();
    first.lower();
    second.lower();
    line(4).pulse();
    line(0).raise();
    line(2).raise();
    line(32).raise();
    chip.message(0xfee0_1000, 0x31);
    chip.message(0xfed0_0000, 0x31);
    chip.nmi();
    let all =
        ["pin 20 true", "pin 20 false", "isa 4 4 true", "isa 4 4 false", "isa 0 2 true", "message 0xfee01000 0x31", "lint1"];
    assert_eq!(vm.asked(), all);
}

#[test]
fn a_running_guest_has_the_requests_of_its_release_and_none_that_make_a_machine() {
    for release in [Release::R13, Release::R14, Release::R15] {
        let rights = super::rights(release, 7);
        assert_eq!(rights.device, Some(7));
        assert!(rights.running.contains(&release.run()));
        assert_eq!(rights.assembly, [release.alloc_memseg(), abi::VM_MMAP_MEMSEG]);
        // VM_REINIT, the memory's, the passthrough's, topology and snapshots by their numbers.
        let numbers: Vec<u32> = rights.running.iter().map(|request| request & 0xff).collect();
        assert!((10..=19).chain([5, 63, 113]).chain(40..=46).all(|number| !numbers.contains(&number)), "{numbers:?}");
    }
}

#[test]
fn the_memory_of_a_running_guest_stays_as_it_was_handed_over() {
    let world = World::of(vec![vec![]]);
    let change = world.memory.change(|map| map.set_mode(GuestAddr(0), Mode::Rom));
    assert!(change.unwrap_err().to_string().contains("the `vmm` back end cannot change the memory"));
}
