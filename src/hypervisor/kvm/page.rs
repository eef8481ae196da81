//! The page that a vCPU shares with the kernel (`struct kvm_run`), and the kick that brings its thread back from KVM_RUN.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, section 5 (the kvm_run structure) and 4.10 (KVM_RUN).
//!
//! The page is mapped here a second time, beside kvm-ioctls' own mapping. So the one that kicks keeps alive what it writes
//! to, whatever became of the vCPU. The data of an I/O exit is read here too, since kvm-ioctls hides the width of string
//! I/O, which the kernel hands over as several accesses at once.
//!
//! An unsafe island: mmap(2), the page, the handler of the kick's signal, and tgkill(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// The signal that ends KVM_RUN. Nothing else in an engine uses it.
pub const KICK_SIGNAL: libc::c_int = libc::SIGUSR1;

/// Most bytes of an MMIO exit.
const MMIO_BYTES: usize = 8;

/// Why KVM_RUN returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// `in`: `count` times `width` bytes are to be put at `offset` of the page.
    PortIn {
        /// The port.
        port: u16,
        /// Bytes of one access.
        width: u8,
        /// Accesses.
        count: usize,
        /// Where the data is.
        offset: usize,
    },
    /// `out`, as above.
    PortOut {
        /// The port.
        port: u16,
        /// Bytes of one access.
        width: u8,
        /// Accesses.
        count: usize,
        /// Where the data is.
        offset: usize,
    },
    /// A load outside of memory.
    Load {
        /// Its address.
        addr: u64,
        /// Its bytes, 1 to 8.
        len: usize,
    },
    /// A store outside of memory.
    Store {
        /// Its address.
        addr: u64,
        /// Its bytes, 1 to 8.
        len: usize,
        /// What is stored.
        value: u64,
    },
    /// A triple fault.
    Shutdown,
    /// The guest powered the machine off by a hypercall.
    PowerOff,
    /// The guest reset the machine by a hypercall.
    Reset,
    /// Nothing: a signal, or a vCPU that was started.
    Nothing,
    /// HLT, which only a machine without local APICs in the kernel reports.
    Halt,
    /// The processor refused to enter the guest, with its own reason.
    FailEntry(u64),
    /// KVM gave up, with its reason.
    InternalError(u32),
    /// An exit that this machine cannot have.
    Unknown(u32),
}

/// The page of one vCPU.
pub struct RunPage {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping lives as long as this. What the kernel and the vCPU's thread exchange is only touched by that thread,
// between two runs; `immediate_exit`, which others write, is accessed atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are the whole of what `of` mapped, unmapped once, here.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

impl RunPage {
    /// Maps the page of a vCPU, of `len` bytes (KVM_GET_VCPU_MMAP_SIZE).
    pub fn of(vcpu: &VcpuFd, len: usize) -> io::Result<Arc<RunPage>> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's page of a vCPU is too small"));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(RunPage { start: start.cast(), len }))
    }

    /// Creates a page that no kernel fills in, with `contents` at its start: for exits that no kernel would make.
    pub fn replayed(contents: &[u8]) -> io::Result<RunPage> {
        let len = 3 * 4096;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: as in `of`.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = RunPage { start: start.cast(), len };
        // SAFETY: at most as many bytes as the mapping has, which nothing else knows yet.
        unsafe { std::ptr::copy_nonoverlapping(contents.as_ptr(), page.start, contents.len().min(len)) };
        Ok(page)
    }

    fn run(&self) -> *mut kvm_run {
        self.start.cast()
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: one byte of the mapping, which lives as long as `self`; nothing here accesses it in another way, and the
        // kernel reads it as one byte.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    /// Lets the next KVM_RUN run. Flags that are raised before a kick are seen after this.
    pub fn arm(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
        // Without it, the store could come after the thread's look at its flags: then a kick in between would be lost.
        fence(Ordering::SeqCst);
    }

    /// Makes the next KVM_RUN return at once.
    pub fn leave_at_once(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Returns why the last KVM_RUN returned. Must be called by the vCPU's thread, after a run that succeeded.
    pub fn exit(&self) -> Exit {
        // SAFETY: the kernel has filled in the page, and writes to it again only in the next run of this thread.
        let (reason, body) = unsafe { ((*self.run()).exit_reason, &raw const (*self.run()).__bindgen_anon_1) };
        // SAFETY: in each arm the reason says which member of the union the kernel filled in; all are plain numbers.
        unsafe {
            match reason {
                KVM_EXIT_IO => self.port_exit((*body).io),
                KVM_EXIT_MMIO => mmio_exit((*body).mmio),
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_HLT => Exit::Halt,
                KVM_EXIT_SYSTEM_EVENT => match (*body).system_event.type_ {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Exit::PowerOff,
                    KVM_SYSTEM_EVENT_RESET => Exit::Reset,
                    _ => Exit::Unknown(reason),
                },
                KVM_EXIT_FAIL_ENTRY => Exit::FailEntry((*body).fail_entry.hardware_entry_failure_reason),
                KVM_EXIT_INTERNAL_ERROR => Exit::InternalError((*body).internal.suberror),
                KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Nothing,
                other => Exit::Unknown(other),
            }
        }
    }

    fn port_exit(&self, io: kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4) -> Exit {
        let (port, width, count) = (io.port, io.size, io.count as usize);
        let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        let end = count.checked_mul(usize::from(width)).and_then(|len| len.checked_add(offset));
        if !matches!(width, 1 | 2 | 4) || end.is_none_or(|end| end > self.len) {
            return Exit::Unknown(KVM_EXIT_IO);
        }
        match u32::from(io.direction) {
            KVM_EXIT_IO_IN => Exit::PortIn { port, width, count, offset },
            _ => Exit::PortOut { port, width, count, offset },
        }
    }

    /// Returns the `width` bytes at `offset` of the page.
    pub fn read(&self, offset: usize, width: usize) -> u64 {
        let mut bytes = [0; 8];
        assert!(width <= 8 && offset.saturating_add(width) <= self.len, "an exit's data is inside the page");
        // SAFETY: inside the mapping, as checked; the kernel touches it only while this thread is in KVM_RUN.
        unsafe { std::ptr::copy_nonoverlapping(self.start.add(offset), bytes.as_mut_ptr(), width) };
        u64::from_le_bytes(bytes)
    }

    /// Puts `width` bytes at `offset` of the page.
    pub fn write(&self, offset: usize, width: usize, value: u64) {
        let bytes = value.to_le_bytes();
        assert!(width <= 8 && offset.saturating_add(width) <= self.len, "an exit's data is inside the page");
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), width) };
    }

    /// Answers [`Exit::Load`].
    pub fn answer_load(&self, len: usize, value: u64) {
        // SAFETY: the member is plain bytes inside the mapping, which the kernel reads in the next run of this thread.
        let data = unsafe { (&raw const (*self.run()).__bindgen_anon_1.mmio.data).addr() };
        self.write(data - self.start.addr(), len.min(MMIO_BYTES), value);
    }
}

fn mmio_exit(mmio: kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6) -> Exit {
    let (addr, len) = (mmio.phys_addr, mmio.len as usize);
    if !(1..=MMIO_BYTES).contains(&len) {
        return Exit::Unknown(KVM_EXIT_MMIO);
    }
    match mmio.is_write {
        0 => Exit::Load { addr, len },
        _ => Exit::Store { addr, len, value: u64::from_le_bytes(mmio.data) & u64::MAX >> (64 - 8 * len) },
    }
}

/// The thread that a kick is for, while it runs a vCPU.
#[derive(Default)]
pub struct KickedThread(Mutex<Option<libc::pid_t>>);

impl KickedThread {
    fn thread(&self) -> std::sync::MutexGuard<'_, Option<libc::pid_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this thread the one to kick, until the guard is dropped.
    pub fn is_here(&self) -> KickedHere<'_> {
        // SAFETY: gettid has no argument and cannot fail.
        *self.thread() = Some(unsafe { libc::gettid() });
        KickedHere(self)
    }

    /// Sends the signal to the thread, if there is one. The lock is held: the thread does not end meanwhile.
    pub fn kick(&self) {
        if let Some(thread) = *self.thread() {
            // SAFETY: both are numbers; the thread is one of this process and alive.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, KICK_SIGNAL) };
        }
    }
}

/// A guard: this thread is kicked as long as it lives.
pub struct KickedHere<'a>(&'a KickedThread);

impl Drop for KickedHere<'_> {
    fn drop(&mut self) {
        *self.0.thread() = None;
    }
}

extern "C" fn ignore(_: libc::c_int) {}

/// Installs a handler of the kick's signal that does nothing: the signal only interrupts KVM_RUN.
pub fn handle_kicks() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no flags, no signals masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as *const () as usize;
    // SAFETY: the action lives over the call, and its handler touches nothing.
    match unsafe { libc::sigaction(KICK_SIGNAL, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> RunPage {
        RunPage::replayed(&[]).unwrap()
    }

    fn set(page: &RunPage, fill: impl FnOnce(&mut kvm_run)) {
        // SAFETY: nothing else has the page.
        fill(unsafe { &mut *page.run() });
    }

    #[test]
    fn string_io_has_its_width_and_its_count() {
        let page = page();
        set(&page, |run| {
            run.exit_reason = KVM_EXIT_IO;
            let io = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
                direction: KVM_EXIT_IO_IN as u8,
                size: 2,
                port: 0x1f0,
                count: 256,
                data_offset: 4096,
            };
            run.__bindgen_anon_1.io = io;
        });
        assert_eq!(page.exit(), Exit::PortIn { port: 0x1f0, width: 2, count: 256, offset: 4096 });
        page.write(4096 + 2, 2, 0xffff_1234);
        assert_eq!((page.read(4096, 4), page.read(4098, 2)), (0x1234_0000, 0x1234));
    }

    #[test]
    fn what_the_kernel_never_says_is_unknown_and_no_access_leaves_the_page() {
        let page = page();
        for (size, count, data_offset) in [(3, 1, 4096), (4, 1 << 31, 4096), (1, 1, u64::MAX), (2, 2049, 8192)] {
            set(&page, |run| {
                run.exit_reason = KVM_EXIT_IO;
                run.__bindgen_anon_1.io =
                    kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 { direction: 1, size, port: 1, count, data_offset };
            });
            assert_eq!(page.exit(), Exit::Unknown(KVM_EXIT_IO));
        }
        for len in [0, 9] {
            set(&page, |run| {
                run.exit_reason = KVM_EXIT_MMIO;
                run.__bindgen_anon_1.mmio = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6 { len, ..Default::default() };
            });
            assert_eq!(page.exit(), Exit::Unknown(KVM_EXIT_MMIO));
        }
    }

    #[test]
    fn loads_are_answered_and_stores_have_only_their_bytes() {
        let page = page();
        let mmio = |is_write| kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6 {
            phys_addr: 0xc000_0000,
            data: [0xff; 8],
            len: 2,
            is_write,
        };
        set(&page, |run| (run.exit_reason, run.__bindgen_anon_1.mmio) = (KVM_EXIT_MMIO, mmio(1)));
        assert_eq!(page.exit(), Exit::Store { addr: 0xc000_0000, len: 2, value: 0xffff });
        set(&page, |run| run.__bindgen_anon_1.mmio = mmio(0));
        assert_eq!(page.exit(), Exit::Load { addr: 0xc000_0000, len: 2 });
        page.answer_load(2, 0x1234);
        // SAFETY: nothing else has the page.
        assert_eq!(unsafe { (*page.run()).__bindgen_anon_1.mmio.data }, [0x34, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_kick_ends_the_next_run_and_interrupts_a_call() {
        handle_kicks().unwrap();
        let page = page();
        page.leave_at_once();
        assert_eq!(page.immediate_exit().load(Ordering::SeqCst), 1);
        page.arm();
        assert_eq!(page.immediate_exit().load(Ordering::SeqCst), 0);
        let thread = KickedThread::default();
        thread.kick();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let here = thread.is_here();
                // SAFETY: pause has no argument. The kicks come until it has returned.
                unsafe { libc::pause() };
                drop(here);
            });
            while thread.thread().is_none() {
                std::thread::yield_now();
            }
            while thread.thread().is_some() {
                thread.kick();
            }
        });
        thread.kick();
    }
}
