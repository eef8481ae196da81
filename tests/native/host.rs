//! Runs cases natively, in a child process whose faults are caught and told.
//!
//! Parent and child share one anonymous mapping: the inputs of a batch and the outcomes. The child maps code, scratch
//! and stack at the addresses that the software CPU's page tables have too, and the gate, a page with the registers
//! that the entry stub loads; it enters each case, and every case ends in a signal: its handler notes registers and
//! fault and returns to the exit stub. A child that dies is started again behind the case that killed it. Several hosts
//! may run at a time, each with a child of its own.
//!
//! What a case can reach besides its own pages would be seen as a difference, so the gate is one page at an address
//! that arithmetic on a case's addresses does not give, everything else is above 4 GiB where the kernel put it, and
//! the code pages may not be written through the addresses that a case knows.

use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::case::{self, CODE, Case, FILLER, Outcome, PAGE, POOL, READ_ONLY, SCRATCH, STACK, State};

/// Cases that go to the child at a time.
pub const BATCH: usize = 128;
const PATCHES: usize = 4;
const PATCH_BYTES: usize = 576;
/// Where the entry stub's registers are, in the child; below 2 GiB so that it needs no base register.
const GATE: u64 = 0x6b5d_3000;
/// Bytes of the mapping that parent and child share.
const SHARED_BYTES: usize = size_of::<Shared>().next_multiple_of(PAGE as usize);
/// One fork at a time: a child that got a copy of another's `done` end would hide that one's death.
static FORKING: Mutex<()> = Mutex::new(());

/// Selectors of Linux's user segments.
pub const USER_CODE_64: u16 = 0x33;
pub const USER_CODE_32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;

#[derive(Clone, Copy)]
#[repr(C)]
struct Patch {
    addr: u64,
    len: u64,
    bytes: [u8; PATCH_BYTES],
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Input {
    state: State,
    pages: [u8; 3],
    code_len: u8,
    selector: u16,
    code: [u8; 122],
    patches: [Patch; PATCHES],
    patch_count: u64,
}

#[repr(C, align(64))]
struct Output {
    state: State,
    vector: u64,
    error: u64,
    cr2: u64,
    memory: [u8; 3 * PAGE as usize],
}

/// What the stubs and the signal handler reach at a fixed address: `state` first.
#[repr(C, align(64))]
struct Gate {
    state: State,
    host_rsp: u64,
    selector: u64,
    shared: *mut Shared,
}

#[repr(C)]
struct Shared {
    count: u64,
    /// Cases of the batch that are done.
    done: u64,
    inputs: [Input; BATCH],
    outputs: [Output; BATCH],
}

// The registers' offsets in `State`: FXSAVE image 0, general registers 512, RFLAGS 640, RIP 648; then `host_rsp` 704
// and `selector` 712.
const _: () = assert!(size_of::<State>() == 704);

// The case is entered by IRET, which loads everything that is left at once and serialises: the code was written through
// other addresses than those it is fetched from (SDM vol. 3 section 8.1.3).
std::arch::global_asm!(
    ".pushsection .text",
    ".globl vmctl_native_enter",
    "vmctl_native_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov qword ptr ds:[{gate} + 704], rsp",
    // NT, which the signal's return leaves as the case before set it, would make IRET fault.
    "push 0x202",
    "popfq",
    "fxrstor64 ds:[{gate}]",
    "push {data}",
    "push qword ptr ds:[{gate} + 544]",
    "push qword ptr ds:[{gate} + 640]",
    "push qword ptr ds:[{gate} + 712]",
    "push qword ptr ds:[{gate} + 648]",
    "mov rax, qword ptr ds:[{gate} + 512]",
    "mov rcx, qword ptr ds:[{gate} + 520]",
    "mov rdx, qword ptr ds:[{gate} + 528]",
    "mov rbx, qword ptr ds:[{gate} + 536]",
    "mov rbp, qword ptr ds:[{gate} + 552]",
    "mov rsi, qword ptr ds:[{gate} + 560]",
    "mov rdi, qword ptr ds:[{gate} + 568]",
    "mov r8, qword ptr ds:[{gate} + 576]",
    "mov r9, qword ptr ds:[{gate} + 584]",
    "mov r10, qword ptr ds:[{gate} + 592]",
    "mov r11, qword ptr ds:[{gate} + 600]",
    "mov r12, qword ptr ds:[{gate} + 608]",
    "mov r13, qword ptr ds:[{gate} + 616]",
    "mov r14, qword ptr ds:[{gate} + 624]",
    "mov r15, qword ptr ds:[{gate} + 632]",
    "iretq",
    ".globl vmctl_native_exit",
    "vmctl_native_exit:",
    "mov rsp, qword ptr ds:[{gate} + 704]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    gate = const GATE,
    data = const USER_DATA,
);

unsafe extern "C" {
    fn vmctl_native_enter();
    fn vmctl_native_exit();
}

/// The running child.
struct Child {
    pid: libc::pid_t,
    /// A byte starts a batch, a byte says that it is done.
    start: OwnedFd,
    done: OwnedFd,
}

pub struct Host {
    shared: *mut Shared,
    pool: Vec<[u8; PAGE as usize]>,
    child: Option<Child>,
}

// SAFETY: the mapping is this host's alone; the child that shares it works on its own copy of the pointer.
unsafe impl Send for Host {}

fn map(addr: u64, len: u64, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE refuses to touch what is mapped already.
    let got = unsafe { libc::mmap(addr as *mut libc::c_void, len as usize, protection, flags, -1, 0) };
    assert_eq!(got as u64, addr, "cannot map {addr:#x}: {}", std::io::Error::last_os_error());
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors; they are owned here from now on.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0, "pipe: {}", std::io::Error::last_os_error());
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

/// True if the byte came, false at the end of the pipe.
fn read_byte(fd: i32) -> bool {
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte into a local.
        let n = unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
        if n >= 0 {
            return n == 1;
        }
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return false;
        }
    }
}

fn write_byte(fd: i32) {
    // SAFETY: one byte from a constant.
    unsafe { libc::write(fd, [1u8].as_ptr().cast(), 1) };
}

impl Host {
    pub fn new() -> Host {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel likes.
        let got = unsafe { libc::mmap(std::ptr::null_mut(), SHARED_BYTES, rights, kind, -1, 0) };
        assert_ne!(got, libc::MAP_FAILED, "cannot map a batch: {}", std::io::Error::last_os_error());
        Host { shared: got.cast(), pool: case::pool(), child: None }
    }

    /// The pages that cases start from.
    pub fn pages(&self) -> Vec<[u8; PAGE as usize]> {
        self.pool.clone()
    }

    fn spawn(&mut self) {
        let _alone = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
        let (start_read, start_write) = pipe();
        let (done_read, done_write) = pipe();
        // SAFETY: the child runs only `child`, which allocates nothing and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // The write ends are the parent's: without closing this one the child would not see the parent go.
            drop(start_write);
            drop(done_read);
            // SAFETY: in the child, with the shared mapping in place.
            unsafe { child(self.shared, &self.pool, start_read.as_raw_fd(), done_write.as_raw_fd()) };
        }
        drop(done_write);
        self.child = Some(Child { pid, start: start_write, done: done_read });
    }

    /// Hands a batch to the child.
    pub fn start(&mut self, batch: &[Case]) {
        // SAFETY: the child waits for the start byte and touches nothing meanwhile.
        let shared = unsafe { &mut *self.shared };
        for (input, case) in shared.inputs.iter_mut().zip(batch) {
            input.state = case.start;
            input.pages = case.pages;
            input.selector = if case.bits == 64 { USER_CODE_64 } else { USER_CODE_32 };
            input.code_len = case.bytes.len() as u8;
            input.code[..case.bytes.len()].copy_from_slice(&case.bytes);
            input.patch_count = case.patches.len() as u64;
            assert!(case.patches.len() <= PATCHES, "a case has at most {PATCHES} patches");
            for (patch, (addr, bytes)) in input.patches.iter_mut().zip(&case.patches) {
                patch.addr = *addr;
                patch.len = bytes.len() as u64;
                patch.bytes[..bytes.len()].copy_from_slice(bytes);
            }
        }
        shared.count = batch.len() as u64;
        shared.done = 0;
        if self.child.is_none() {
            self.spawn();
        }
        if let Some(child) = &self.child {
            write_byte(child.start.as_raw_fd());
        }
    }

    /// Waits for the batch and takes the outcomes.
    pub fn finish(&mut self, batch: &[Case]) -> Vec<Outcome> {
        loop {
            let child = self.child.as_ref().expect("started by `start`");
            if read_byte(child.done.as_raw_fd()) {
                break;
            }
            let child = self.child.take().expect("looked at above");
            // SAFETY: our own child, which has closed its pipe and is ending.
            unsafe {
                libc::kill(child.pid, libc::SIGKILL);
                libc::waitpid(child.pid, std::ptr::null_mut(), 0);
            }
            // SAFETY: no child runs now.
            let shared = unsafe { &mut *self.shared };
            let killer = shared.done as usize;
            assert!(killer < batch.len(), "the native child died outside of a case");
            shared.outputs[killer].vector = 255;
            shared.outputs[killer].state = batch[killer].start;
            shared.done += 1;
            self.spawn();
            let child = self.child.as_ref().expect("just spawned");
            write_byte(child.start.as_raw_fd());
        }
        // SAFETY: the child is done and waits.
        let shared = unsafe { &*self.shared };
        shared.outputs[..batch.len()]
            .iter()
            .map(|o| Outcome { state: o.state, vector: o.vector as u8, error: o.error, cr2: o.cr2, memory: Box::new(o.memory) })
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // SAFETY: our own child. It is killed and not left to see its start pipe end, of which another host's child
            // may have a copy.
            unsafe {
                libc::kill(child.pid, libc::SIGKILL);
                libc::waitpid(child.pid, std::ptr::null_mut(), 0);
            }
        }
        // SAFETY: no child runs, and nothing points into the mapping any more.
        unsafe { libc::munmap(self.shared.cast(), SHARED_BYTES) };
    }
}

/// The child: never returns.
///
/// # Safety
/// Must run in a freshly forked process, and `shared` must be its parent's shared mapping.
unsafe fn child(shared: *mut Shared, pool: &[[u8; PAGE as usize]], start: i32, done: i32) -> ! {
    use libc::{PROT_READ, PROT_WRITE};
    map(GATE, PAGE, PROT_READ | PROT_WRITE);
    map(SCRATCH, 3 * PAGE, PROT_READ | PROT_WRITE);
    map(STACK, PAGE, PROT_READ | PROT_WRITE);
    // SAFETY: all addresses below are mapped above; the handlers run on a stack of their own.
    unsafe {
        (*(GATE as *mut Gate)).shared = shared;
        let code = map_code();
        std::ptr::copy_nonoverlapping(pool[0].as_ptr(), READ_ONLY as *mut u8, PAGE as usize);
        libc::mprotect(READ_ONLY as *mut libc::c_void, PAGE as usize, PROT_READ);
        // 64-bit processes have null selectors in DS and ES; 32-bit code needs real ones.
        std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) USER_DATA);
        let stack_bytes = 64 << 10;
        let stack =
            libc::mmap(std::ptr::null_mut(), stack_bytes, PROT_READ | PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: stack_bytes };
        libc::sigaltstack(&alternate, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGBUS] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
        while read_byte(start) {
            while (*shared).done < (*shared).count {
                let i = (*shared).done as usize;
                // A case that loops for ever is killed by SIGALRM, and the parent goes on behind it.
                libc::alarm(10);
                run(shared, code, pool, i);
                libc::alarm(0);
                (*shared).done += 1;
            }
            write_byte(done);
        }
        libc::_exit(0)
    }
}

/// Maps the code pages twice: at [`CODE`], where a case cannot write to them, and where the address returned says.
///
/// # Safety
/// Nothing may be mapped at [`CODE`] that is still needed.
unsafe fn map_code() -> *mut u8 {
    let bytes = 2 * PAGE as usize;
    // SAFETY: a new mapping; of a shared one, mremap from no bytes makes another of the same pages.
    unsafe {
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let code = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
        let moves = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let second = libc::mremap(code, 0, bytes, moves, CODE as *mut libc::c_void);
        assert_eq!(second as u64, CODE, "cannot map the code: {}", std::io::Error::last_os_error());
        libc::mprotect(second, bytes, libc::PROT_READ | libc::PROT_EXEC);
        code.cast::<u8>().write_bytes(FILLER, bytes);
        code.cast()
    }
}

unsafe fn run(shared: *mut Shared, code: *mut u8, pool: &[[u8; PAGE as usize]], i: usize) {
    // SAFETY: as in `child`; `i` is below BATCH.
    unsafe {
        let input = &(*shared).inputs[i];
        for (page, to) in input.pages.iter().zip([SCRATCH, SCRATCH + PAGE, STACK]) {
            std::ptr::copy_nonoverlapping(pool[usize::from(*page) % POOL].as_ptr(), to as *mut u8, PAGE as usize);
        }
        for patch in &input.patches[..input.patch_count as usize] {
            for (k, byte) in patch.bytes[..patch.len as usize].iter().enumerate() {
                let addr = patch.addr.wrapping_add(k as u64);
                if writable(addr) {
                    (addr as *mut u8).write(*byte);
                }
            }
        }
        let at = code.add((input.state.rip - CODE) as usize);
        std::ptr::copy_nonoverlapping(input.code.as_ptr(), at, usize::from(input.code_len));
        let gate = GATE as *mut Gate;
        (*gate).state = input.state;
        (*gate).selector = u64::from(input.selector);
        vmctl_native_enter();
        at.write_bytes(FILLER, usize::from(input.code_len));
        let output = &mut (*shared).outputs[i];
        for (k, from) in [SCRATCH, SCRATCH + PAGE, STACK].into_iter().enumerate() {
            std::ptr::copy_nonoverlapping(from as *const u8, output.memory.as_mut_ptr().add(k * PAGE as usize), PAGE as usize);
        }
    }
}

/// Whether a case may start with a byte of its own at the address.
pub fn writable(addr: u64) -> bool {
    (SCRATCH..SCRATCH + 2 * PAGE).contains(&addr) || (STACK..STACK + PAGE).contains(&addr)
}

/// Encoding order of the registers in the signal frame.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; the shared mapping is there, and `done` is the running case.
    unsafe {
        let shared = (*(GATE as *mut Gate)).shared;
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let output = &mut (*shared).outputs[((*shared).done as usize).min(BATCH - 1)];
        for (to, from) in output.state.gpr.iter_mut().zip(ORDER) {
            *to = registers[from as usize] as u64;
        }
        output.state.rip = registers[libc::REG_RIP as usize] as u64;
        output.state.rflags = registers[libc::REG_EFL as usize] as u64;
        output.vector = registers[libc::REG_TRAPNO as usize] as u64;
        output.error = registers[libc::REG_ERR as usize] as u64;
        output.cr2 = registers[libc::REG_CR2 as usize] as u64;
        let fp = context.uc_mcontext.fpregs.cast::<u8>();
        std::ptr::copy_nonoverlapping(fp, output.state.fx.as_mut_ptr(), 512);
        // The software-reserved bytes are the kernel's.
        output.state.fx[416..].fill(0);
        // Back to the exit stub, with a floating-point unit that the compiler's code can live with.
        fp.cast::<u16>().write_unaligned(0x37f);
        fp.add(2).cast::<u16>().write_unaligned(0);
        fp.add(4).cast::<u16>().write_unaligned(0);
        fp.add(24).cast::<u32>().write_unaligned(0x1f80);
        let stub: unsafe extern "C" fn() = vmctl_native_exit;
        registers[libc::REG_RIP as usize] = stub as usize as i64;
        registers[libc::REG_EFL as usize] = 0x202;
        // CS, in the low word, may be that of 32-bit code.
        registers[libc::REG_CSGSFS as usize] = registers[libc::REG_CSGSFS as usize] & !0xffff | i64::from(USER_CODE_64);
    }
}
