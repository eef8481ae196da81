//! How threads reach each other: a door for each vCPU, a bell for the board, and the reason to stop.
//!
//! A vCPU runs guest instructions, sleeps in HLT, or is inside of a kernel's hypervisor; the back end knows which, and hangs
//! a kick at the vCPU's [`VcpuDoor`] that brings it back. The board's devices are served by one thread, which sleeps at the
//! [`BoardBell`] until a device is woken or a timer is due. That thread is the machine's ([`Attention::serve`]); in
//! deterministic mode the back end serves the board between instructions.
//!
//! A flag is set before its sleeper is woken, and a sleeper looks at its flags after each sleep. A wake-up that comes before
//! the sleep ends it at once (`Thread::unpark`). So none is lost.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::Thread;
use std::time::Duration;

use super::backend::{MachineExit, Platform};

/// Maximum time of one sleep until a timer. It bounds how late a timer is that came due while the host slept, since the
/// sleep uses a clock that stops with the host, and the timer one that does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// A sleep of the host up to this long is not reported.
const SHORT_HOST_SLEEP_NS: u64 = 100_000_000;

/// What brings a vCPU back from where it runs or sleeps.
pub type Kick = Box<dyn Fn() + Send + Sync>;

/// The flag by which other threads reach one vCPU, and how to make it look.
#[derive(Default)]
pub struct VcpuDoor {
    raised: AtomicBool,
    kick: RwLock<Option<Kick>>,
}

impl VcpuDoor {
    /// Sets what brings the vCPU back. The back end calls it before the vCPU runs, and looks at the flag afterwards.
    pub fn set_kick(&self, kick: Kick) {
        *self.kick.write().unwrap_or_else(PoisonError::into_inner) = Some(kick);
    }
    fn kick(&self) {
        if let Some(kick) = &*self.kick.read().unwrap_or_else(PoisonError::into_inner) {
            kick();
        }
    }
}

/// Where the board's thread sleeps, and why it wakes: devices that have something for it, and its next timer.
struct BoardBell {
    rung: AtomicBool,
    /// When the board's next timer is due; `u64::MAX` for never.
    deadline_ns: AtomicU64,
    server: RwLock<Option<Thread>>,
    /// The thread that looks at the deadline, if that is not the server.
    timekeeper: RwLock<Option<Thread>>,
}

/// Wakes a thread. The one that calls is awake, and looks at its flags and at the deadline before it sleeps.
fn wake(thread: &Thread) {
    if thread.id() != std::thread::current().id() {
        thread.unpark();
    }
}

impl BoardBell {
    fn wake(&self) {
        self.server.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(wake);
    }
    /// Tells the thread that looks at the deadline that it is nearer than before.
    fn tell_nearer(&self) {
        match &*self.timekeeper.read().unwrap_or_else(PoisonError::into_inner) {
            Some(keeper) => wake(keeper),
            None => self.wake(),
        }
    }
    fn has_timekeeper(&self) -> bool {
        self.timekeeper.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// The flags by which the threads of a machine reach each other.
pub struct Attention {
    doors: Box<[VcpuDoor]>,
    bell: BoardBell,
    stop: AtomicU32,
    /// How long the host has slept so far, as far as vCPUs must know.
    slept_ns: AtomicU64,
}

const NOT_STOPPED: u32 = u32::MAX;

impl Attention {
    /// Creates the flags for `vcpus` virtual CPUs, with nothing pending.
    pub fn new(vcpus: usize) -> Arc<Attention> {
        Arc::new(Attention {
            doors: (0..vcpus).map(|_| VcpuDoor::default()).collect(),
            bell: BoardBell {
                rung: AtomicBool::new(false),
                deadline_ns: AtomicU64::new(0),
                server: RwLock::default(),
                timekeeper: RwLock::default(),
            },
            stop: AtomicU32::new(NOT_STOPPED),
            slept_ns: AtomicU64::new(0),
        })
    }

    /// Returns the door of a vCPU.
    pub fn door(&self, vcpu: usize) -> &VcpuDoor {
        &self.doors[vcpu]
    }

    /// Marks that something may be pending for `vcpu`. The vCPU looks at its next block end, or wakes from HLT.
    pub fn raise(&self, vcpu: usize) {
        let door = &self.doors[vcpu];
        if !door.raised.swap(true, Ordering::AcqRel) {
            door.kick();
        }
    }
    /// Returns whether something may be pending for `vcpu`.
    #[inline]
    pub fn is_raised(&self, vcpu: usize) -> bool {
        self.doors[vcpu].raised.load(Ordering::Acquire)
    }
    /// Clears and returns the flag of `vcpu`. A vCPU calls it before it takes its events.
    pub fn take(&self, vcpu: usize) -> bool {
        self.doors[vcpu].raised.swap(false, Ordering::AcqRel)
    }

    /// Marks that a back end has something for the board: [`Platform::advance`] must run soon.
    pub fn wake_board(&self) {
        if !self.bell.rung.swap(true, Ordering::AcqRel) {
            self.bell.wake();
        }
    }
    /// Clears and returns the board's flag.
    pub fn take_board(&self) -> bool {
        self.bell.rung.swap(false, Ordering::AcqRel)
    }
    /// Returns whether the board has work at time `now_ns`.
    #[inline]
    pub fn board_due(&self, now_ns: u64) -> bool {
        self.bell.rung.load(Ordering::Acquire) || now_ns >= self.deadline_ns()
    }
    /// Notes a timer that may be due earlier than what `advance` last returned, and wakes the thread that waits for timers.
    pub fn due_by(&self, deadline_ns: u64) {
        if self.bell.deadline_ns.fetch_min(deadline_ns, Ordering::AcqRel) > deadline_ns {
            self.bell.tell_nearer();
        }
    }
    /// Returns when the board is due next.
    #[inline]
    pub fn deadline_ns(&self) -> u64 {
        self.bell.deadline_ns.load(Ordering::Acquire)
    }

    /// Runs what is due on the board.
    ///
    /// It forgets the old deadline before it asks the board for the next one, and the answer can only lower the
    /// deadline. So a timer that another thread sets meanwhile is not lost: either it was set under the board's lock
    /// before the answer, which then includes it, or its [`Attention::due_by`] comes after the old deadline was
    /// forgotten.
    pub fn serve_board(&self, platform: &dyn Platform) {
        let now_ns = platform.clock().now_ns();
        if !self.board_due(now_ns) {
            return;
        }
        self.bell.deadline_ns.store(u64::MAX, Ordering::Release);
        if let Some(next_ns) = platform.advance(now_ns) {
            self.due_by(next_ns);
        }
        let slept_ns = platform.clock().slept_ns();
        if slept_ns.saturating_sub(self.slept_ns()) > SHORT_HOST_SLEEP_NS {
            self.slept_ns.store(slept_ns, Ordering::Release);
            (0..self.doors.len()).for_each(|vcpu| self.raise(vcpu));
        }
    }

    /// Returns how long the host has slept so far. A vCPU that finds more than before, once its flag was raised, tells the
    /// guest: its clocks ran and it did not.
    pub fn slept_ns(&self) -> u64 {
        self.slept_ns.load(Ordering::Acquire)
    }

    /// Serves the board on this thread until the machine stops.
    pub fn serve(&self, platform: &dyn Platform) {
        self.serve_here();
        while self.stopped().is_none() {
            self.serve_board(platform);
            self.sleep_until_due(platform);
        }
    }

    /// Makes this thread the one that is woken for the board, instead of another.
    pub fn serve_here(&self) {
        *self.bell.server.write().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    /// Makes this thread the one that looks at the board's timers, instead of the server: it calls
    /// [`Attention::serve_board`] again and again, and sleeps by [`Attention::sleep_until_timer`].
    pub fn keep_timers_here(&self) {
        *self.bell.timekeeper.write().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    fn sleep_until_due(&self, platform: &dyn Platform) {
        if self.bell.has_timekeeper() {
            if !self.bell.rung.load(Ordering::Acquire) && self.stopped().is_none() {
                std::thread::park();
            }
        } else if !self.bell.rung.load(Ordering::Acquire) {
            self.sleep_until_timer(platform);
        }
    }

    /// Sleeps until the board's next timer is due, or this thread is woken.
    pub fn sleep_until_timer(&self, platform: &dyn Platform) {
        let (now_ns, deadline_ns) = (platform.clock().now_ns(), self.deadline_ns());
        if deadline_ns <= now_ns || self.stopped().is_some() {
            return;
        }
        match deadline_ns {
            u64::MAX => std::thread::park(),
            _ => std::thread::park_timeout(Duration::from_nanos(deadline_ns - now_ns).min(LONGEST_SLEEP)),
        }
    }

    /// Stops the machine; the first reason wins.
    pub fn stop(&self, exit: MachineExit) {
        let word = match exit {
            MachineExit::Debug(value) => 0x100 | u32::from(value),
            other => u32::from(other.code()),
        };
        let _ = self.stop.compare_exchange(NOT_STOPPED, word, Ordering::AcqRel, Ordering::Acquire);
        self.doors.iter().for_each(VcpuDoor::kick);
        self.bell.wake();
    }
    /// Returns the reason why the machine must stop, if it must.
    #[inline]
    pub fn stopped(&self) -> Option<MachineExit> {
        match self.stop.load(Ordering::Acquire) {
            NOT_STOPPED => None,
            0 => Some(MachineExit::Reboot),
            1 => Some(MachineExit::PowerOff),
            2 => Some(MachineExit::Halt),
            3 => Some(MachineExit::TripleFault),
            5 => Some(MachineExit::Suspended),
            word if word & 0x100 != 0 => Some(MachineExit::Debug(word as u8)),
            _ => Some(MachineExit::Error),
        }
    }
}

/// A guard of a thread without which the machine cannot go on: it stops the machine, if nothing did before. A thread that
/// panics is a bug, and the guest must not hang then.
pub struct EndsMachine<'a>(pub &'a Attention);

impl Drop for EndsMachine<'_> {
    fn drop(&mut self) {
        self.0.stop(MachineExit::Error);
    }
}

/// A handle that a device's back-end threads use to wake the board, which then polls that device.
#[derive(Clone)]
pub struct Waker {
    attention: Arc<Attention>,
    woken: Arc<AtomicBool>,
}

impl Waker {
    /// Creates a waker for one device of the machine that `attention` belongs to.
    pub fn new(attention: Arc<Attention>) -> Waker {
        Waker { attention, woken: Arc::new(AtomicBool::new(false)) }
    }
    /// Asks for a poll of the device. Cheap, callable from any thread, never lost.
    pub fn wake(&self) {
        // The board is woken also where the flag is set already: a device that polls without asking never clears it.
        self.woken.store(true, Ordering::Release);
        self.attention.wake_board();
    }
    /// Clears and returns whether the device was woken.
    pub fn take(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    use super::super::clock::{Clock, HostClock, ManualClock};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A board without devices that does what a test wants when it is served.
    struct Empty<C, A> {
        clock: Arc<C>,
        advance: A,
    }

    impl<C: Clock, A: Fn(u64) -> Option<u64> + Send + Sync> Platform for Empty<C, A> {
        fn advance(&self, now_ns: u64) -> Option<u64> {
            (self.advance)(now_ns)
        }
        fn clock(&self) -> &dyn Clock {
            &*self.clock
        }
        fn port_read(&self, _: usize, _: u16, _: u8) -> u32 {
            0
        }
        fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
        fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
            0
        }
        fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
        fn vcpu_failed(&self, _: usize, _: MachineExit) {}
    }

    #[test]
    fn a_timer_that_is_set_while_the_board_looks_for_its_next_one_is_not_lost() {
        for (raced_ns, next_ns, due) in [(500, Some(900), 500), (500, None, 500), (900, Some(500), 500)] {
            let attention = Attention::new(1);
            let clock = ManualClock::new(0);
            clock.set_ns(100);
            // Another vCPU sets its timer after the board computed its next one and before it returns that.
            let raced = attention.clone();
            let advance = move |_| {
                raced.due_by(raced_ns);
                next_ns
            };
            let board = Empty { clock, advance };
            attention.serve_board(&board);
            assert_eq!(attention.deadline_ns(), due);
            attention.serve_board(&board);
            assert_eq!(attention.deadline_ns(), due, "nothing is due yet");
        }
    }

    #[test]
    fn the_board_is_served_for_a_device_and_for_a_timer_that_comes_before_the_next_one() {
        let attention = Attention::new(1);
        let clock = HostClock::new();
        let (served, times) = channel();
        let (bell, hour) = (attention.clone(), clock.now_ns() + 3_600_000_000_000);
        let advance = move |now_ns| {
            bell.take_board();
            served.send(now_ns).expect("the test waits");
            Some(hour)
        };
        let board = Empty { clock: clock.clone(), advance };
        let server = std::thread::spawn({
            let attention = attention.clone();
            move || attention.serve(&board)
        });
        times.recv_timeout(PATIENCE).expect("a board looks at its devices first of all");
        attention.wake_board();
        times.recv_timeout(PATIENCE).expect("a device woke it");
        let soon = clock.now_ns() + 5_000_000;
        attention.due_by(soon);
        assert!(times.recv_timeout(PATIENCE).expect("an earlier timer woke it") >= soon);
        attention.stop(MachineExit::PowerOff);
        server.join().expect("it ends with the machine");
    }

    #[test]
    fn a_thread_that_keeps_the_timers_serves_them_and_the_server_sleeps_for_devices_alone() {
        let attention = Attention::new(1);
        let clock = HostClock::new();
        let (served, calls) = channel();
        let bell = attention.clone();
        let advance = move |_| {
            let device = bell.take_board();
            served.send((device, std::thread::current().name().map(str::to_owned))).expect("the test waits");
            None
        };
        let board = Arc::new(Empty { clock: clock.clone(), advance });
        attention.keep_timers_here();
        attention.serve_board(&*board);
        calls.recv_timeout(PATIENCE).expect("the first deadline is the start");
        let server = std::thread::Builder::new().name("server".into()).spawn({
            let (attention, board) = (attention.clone(), board.clone());
            move || attention.serve(&*board)
        });
        attention.wake_board();
        assert_eq!(calls.recv_timeout(PATIENCE).expect("a device woke it"), (true, Some("server".into())));
        // Another thread sets a timer: it wakes this one from its sleep without a timer, and the sleep goes to its end.
        let other = attention.clone();
        let due_ns = clock.now_ns() + 20_000_000;
        let setter = std::thread::spawn(move || other.due_by(due_ns));
        while clock.now_ns() < due_ns {
            attention.sleep_until_timer(&*board);
        }
        attention.serve_board(&*board);
        let (device, thread) = calls.recv_timeout(PATIENCE).expect("the timer is due");
        assert!(!device && thread != Some("server".into()));
        setter.join().expect("it only sets a timer");
        attention.stop(MachineExit::PowerOff);
        server.expect("a thread").join().expect("it ends with the machine");
    }

    #[test]
    fn a_waker_wakes_the_board_each_time_whether_or_not_its_device_asks_it() {
        for asks in [false, true] {
            let attention = Attention::new(1);
            let waker = Waker::new(attention.clone());
            for _ in 0..3 {
                waker.wake();
                assert!(attention.take_board());
                assert!(!asks || waker.take());
            }
        }
    }

    #[test]
    fn a_door_kicks_once_until_the_flag_is_taken_and_whenever_the_machine_stops() {
        let attention = Attention::new(2);
        attention.raise(0);
        let kicks: [Arc<AtomicUsize>; 2] = Default::default();
        for (vcpu, count) in kicks.iter().enumerate() {
            let count = count.clone();
            attention.door(vcpu).set_kick(Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }));
        }
        let counts = || kicks.each_ref().map(|count| count.load(Ordering::Relaxed));
        attention.raise(0);
        attention.raise(1);
        attention.raise(1);
        assert_eq!(counts(), [0, 1], "the first was raised before it had a kick, and looks at its flag then");
        assert!(attention.take(0) && !attention.take(0));
        attention.raise(0);
        assert_eq!(counts(), [1, 1]);
        attention.stop(MachineExit::Reboot);
        assert_eq!(counts(), [2, 2]);
    }

    #[test]
    fn vcpus_are_told_when_the_host_has_slept() {
        let attention = Attention::new(2);
        let clock = ManualClock::new(0);
        let board = Empty { clock: clock.clone(), advance: |_| Some(0) };
        for (slept_ns, told_ns) in [(0, 0), (SHORT_HOST_SLEEP_NS, 0), (1, SHORT_HOST_SLEEP_NS + 1), (5, SHORT_HOST_SLEEP_NS + 1)]
        {
            clock.sleep_ns(slept_ns);
            let before = attention.slept_ns();
            attention.serve_board(&board);
            assert_eq!(attention.slept_ns(), told_ns);
            assert_eq!((attention.take(0), attention.take(1)), (told_ns != before, told_ns != before));
        }
    }
}
