//! vCPUs that run at the same time, a host thread each: what one must tell the others.
//!
//! A vCPU has its TLB and a block cache of its own, and runs guest code without a lock. Two things concern the others:
//!
//! * **Code.** A page from which any cache holds code is watched, and no TLB may let stores into it pass unseen. So before a
//!   vCPU decodes the first code of a page, every other one drops its write translation of that page, and the vCPU waits
//!   until all have ([`Crew::claim`]). A store into code, by whichever vCPU or device, reaches all caches
//!   ([`Crew::note_store`], [`Crew::take_device_writes`]).
//! * **Locked instructions**, which are atomic on the host too: see `int/locked`.
//!
//! What a vCPU is told is in its mailbox. It is opened between chains of blocks, before events are taken: so an
//! interrupt that says "the code has changed" never comes before the change.
//!
//! A vCPU that runs no guest code (it sleeps, or its machine does not run) is *away*: nobody waits for it, since it opens its
//! mailbox before it comes back. One that waits for others opens its own meanwhile, so two can wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hypervisor::memory::{GuestAddr, GuestMemory, MemoryMap};

/// Rounds of waiting for another vCPU without giving its thread the processor.
const SPINS: u32 = 200;

/// What a vCPU has been told and has not yet heeded. Pages are guest-physical addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// Pages that hold code now: stores into them must be seen.
    pub protect: BTreeSet<u64>,
    /// Pages that were written to, with the granules that were: code that was decoded from them is stale.
    pub written: BTreeMap<u64, u64>,
}

#[derive(Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    /// There may be mail.
    flag: AtomicBool,
    /// Number of letters that were put in, and of those that were heeded.
    put: AtomicU64,
    heeded: AtomicU64,
    /// Its vCPU runs no guest code, and opens the mailbox before it does.
    away: AtomicBool,
}

/// A page from which some cache holds code, or is about to.
struct CodePage {
    /// Tells it from an entry of the same page that was made after this one was dropped.
    number: u64,
    /// Number of the caches.
    caches: usize,
    /// The granules that any of them has decoded, or more: see [`super::block::granules`].
    granules: u64,
    /// No vCPU can store into it unseen any more.
    settled: bool,
}

/// The vCPUs of one machine that run on threads of their own.
pub struct Crew {
    boxes: Box<[Mailbox]>,
    code: Mutex<BTreeMap<u64, CodePage>>,
    /// Numbers the entries of `code`.
    entries: AtomicU64,
    /// Held while stores of devices are handed to the mailboxes.
    devices: Mutex<()>,
    handing_over: AtomicBool,
    /// Held by locked instructions whose operand is not in one page of memory.
    split: Mutex<()>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Creates a crew of `vcpus`, all away.
    pub fn new(vcpus: usize) -> Crew {
        let boxes: Box<[Mailbox]> = (0..vcpus).map(|_| Mailbox::default()).collect();
        boxes.iter().for_each(|each| each.away.store(true, Ordering::SeqCst));
        Crew {
            boxes,
            code: Mutex::default(),
            entries: AtomicU64::new(0),
            devices: Mutex::default(),
            handing_over: AtomicBool::new(false),
            split: Mutex::default(),
        }
    }

    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.boxes.len()
    }

    /// Marks that the vCPU is about to run guest code. It must open its mailbox next.
    pub fn come(&self, me: usize) {
        self.boxes[me].away.store(false, Ordering::SeqCst);
    }

    /// Marks that the vCPU runs no guest code until it comes back.
    pub fn leave(&self, me: usize) {
        self.boxes[me].away.store(true, Ordering::SeqCst);
    }

    /// Returns whether the vCPU may have mail.
    #[inline]
    pub fn has_mail(&self, me: usize) -> bool {
        self.boxes[me].flag.load(Ordering::SeqCst)
    }

    /// Takes the vCPU's mail and has it heeded. Must be called only while no chain runs on the vCPU.
    pub fn open(&self, me: usize, heed: impl FnOnce(Mail)) {
        let mailbox = &self.boxes[me];
        let (mail, put) = {
            let mut mail = lock(&mailbox.mail);
            mailbox.flag.store(false, Ordering::SeqCst);
            (std::mem::take(&mut *mail), mailbox.put.load(Ordering::Relaxed))
        };
        heed(mail);
        mailbox.heeded.store(put, Ordering::SeqCst);
    }

    /// Puts a letter into a mailbox. Returns the number of letters that were put in.
    fn put(&self, to: usize, write: impl FnOnce(&mut Mail)) -> u64 {
        let mailbox = &self.boxes[to];
        let mut mail = lock(&mailbox.mail);
        write(&mut mail);
        mailbox.flag.store(true, Ordering::SeqCst);
        mailbox.put.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn others(&self, me: usize) -> impl Iterator<Item = usize> {
        (0..self.boxes.len()).filter(move |&other| other != me)
    }

    /// Counts the cache of `me` among those that hold code from `page`, and watches the page in `map`. Returns once no vCPU
    /// can store into the page unseen. `meanwhile` opens the mailbox of `me`.
    ///
    /// Must be called before the code is read, and only while no chain runs on the vCPU.
    pub fn claim(&self, me: usize, page: u64, map: &MemoryMap, mut meanwhile: impl FnMut()) {
        let number = {
            let mut code = lock(&self.code);
            let entry = code.entry(page).or_insert_with(|| {
                let number = self.entries.fetch_add(1, Ordering::Relaxed);
                map.watch(GuestAddr(page), true);
                CodePage { number, caches: 0, granules: 0, settled: false }
            });
            entry.caches += 1;
            if entry.settled {
                return;
            }
            entry.number
        };
        // The mark of the page comes before the letters: a vCPU that enters the page into its TLB and has not seen the mark
        // opens its mailbox afterwards.
        fence(Ordering::SeqCst);
        let letters: Vec<(usize, u64)> =
            self.others(me).map(|other| (other, self.put(other, |mail| _ = mail.protect.insert(page)))).collect();
        for (other, put) in letters {
            let mailbox = &self.boxes[other];
            let mut rounds = 0;
            while mailbox.heeded.load(Ordering::SeqCst) < put && !mailbox.away.load(Ordering::SeqCst) {
                if self.has_mail(me) {
                    meanwhile();
                }
                rounds += 1;
                if rounds < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
        // Meanwhile the page may have been dropped by all and claimed again. Then others wait for those letters, not for these.
        if let Some(entry) = lock(&self.code).get_mut(&page).filter(|entry| entry.number == number) {
            entry.settled = true;
        }
    }

    /// Notes that a vCPU whose cache has claimed `page` is about to read these granules of it as code, at most.
    pub fn will_decode(&self, page: u64, granules: u64) {
        if let Some(entry) = lock(&self.code).get_mut(&page) {
            entry.granules |= granules;
        }
    }

    /// Notes that one of the caches that claimed `page` has dropped its code.
    pub fn drop_page(&self, page: u64, map: &MemoryMap) {
        let mut code = lock(&self.code);
        let Some(entry) = code.get_mut(&page) else { return };
        entry.caches -= 1;
        if entry.caches == 0 {
            code.remove(&page);
            map.watch(GuestAddr(page), false);
        }
    }

    /// Tells all other vCPUs of a store of `me` into these granules of `page`, if one of them may have code there.
    pub fn note_store(&self, me: usize, page: u64, granules: u64) {
        let hit = lock(&self.code).get(&page).is_some_and(|entry| entry.granules & granules != 0);
        if hit {
            self.others(me).for_each(|other| _ = self.put(other, |mail| *mail.written.entry(page).or_default() |= granules));
        }
    }

    /// Hands the watched pages that devices wrote to over to all mailboxes. A vCPU calls it before it looks for mail.
    pub fn take_device_writes(&self, memory: &GuestMemory) {
        // Another vCPU may have taken them and not yet handed them over.
        if !memory.has_watch_hits() && !self.handing_over.load(Ordering::SeqCst) {
            return;
        }
        let _alone = lock(&self.devices);
        self.handing_over.store(true, Ordering::SeqCst);
        for page in memory.take_watch_hits() {
            (0..self.boxes.len()).for_each(|each| _ = self.put(each, |mail| _ = mail.written.insert(page, u64::MAX)));
        }
        self.handing_over.store(false, Ordering::SeqCst);
    }

    /// Returns the right to access an operand of a locked instruction in several parts. Such instructions exclude each
    /// other, and not those whose operand is in one page.
    pub fn split(&self) -> MutexGuard<'_, ()> {
        lock(&self.split)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::hypervisor::memory::Mode;

    const PAGE: u64 = 0x1000;

    fn memory() -> GuestMemory {
        GuestMemory::anonymous(&[(GuestAddr(0), 4 * PAGE, Mode::Ram)]).unwrap()
    }

    fn opened(crew: &Crew, me: usize) -> Mail {
        let mut taken = Mail::default();
        crew.open(me, |mail| taken = mail);
        taken
    }

    #[test]
    fn nobody_waits_for_a_vcpu_that_is_away_and_it_finds_its_mail() {
        let (crew, memory) = (Crew::new(3), memory());
        crew.come(0);
        crew.claim(0, PAGE, &memory.map(), || unreachable!("there is no mail for it"));
        assert!(memory.map().page(GuestAddr(PAGE)).unwrap().is_watched());
        for other in [1, 2] {
            crew.come(other);
            assert!(crew.has_mail(other));
            assert_eq!(opened(&crew, other), Mail { protect: [PAGE].into(), ..Mail::default() });
            assert!(!crew.has_mail(other));
        }
        crew.claim(1, PAGE, &memory.map(), || unreachable!("it is settled"));
        assert!(!crew.has_mail(0) && !crew.has_mail(2));
    }

    #[test]
    fn a_claim_returns_when_every_running_vcpu_has_heeded_it() {
        let (crew, memory) = (Arc::new(Crew::new(2)), memory());
        let heeded = Arc::new(AtomicU32::new(0));
        crew.come(0);
        crew.come(1);
        let (crew2, heeded2) = (crew.clone(), heeded.clone());
        let other = std::thread::spawn(move || {
            while heeded2.load(Ordering::SeqCst) == 0 {
                if crew2.has_mail(1) {
                    crew2.open(1, |mail| {
                        assert_eq!(mail.protect, [2 * PAGE].into());
                        heeded2.fetch_add(1, Ordering::SeqCst);
                    });
                }
            }
        });
        crew.claim(0, 2 * PAGE, &memory.map(), || {});
        assert_eq!(heeded.load(Ordering::SeqCst), 1);
        other.join().unwrap();
    }

    #[test]
    fn two_that_claim_at_once_do_not_wait_for_ever() {
        let (crew, memory) = (Arc::new(Crew::new(2)), memory());
        let both: Vec<_> = (0..2)
            .map(|me| {
                let (crew, memory) = (crew.clone(), memory.clone());
                std::thread::spawn(move || {
                    crew.come(me);
                    for round in 0..200 {
                        let page = (round % 4) * PAGE;
                        crew.claim(me, page, &memory.map(), || crew.open(me, |_| {}));
                        crew.drop_page(page, &memory.map());
                    }
                    crew.leave(me);
                })
            })
            .collect();
        both.into_iter().for_each(|thread| thread.join().unwrap());
        assert!((0..4).all(|page| !memory.map().page(GuestAddr(page * PAGE)).unwrap().is_watched()));
    }

    #[test]
    fn a_page_that_was_dropped_and_claimed_again_meanwhile_is_not_settled_by_the_first_claim() {
        let (crew, memory) = (Arc::new(Crew::new(2)), memory());
        crew.come(0);
        crew.come(1);
        crew.put(0, |mail| _ = mail.written.insert(PAGE, u64::MAX));
        let (crew1, heeds) = (crew.clone(), Arc::new(AtomicBool::new(false)));
        let may_heed = heeds.clone();
        let other = std::thread::spawn(move || {
            while !crew1.has_mail(1) || !may_heed.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            crew1.open(1, |_| {});
        });
        let again = CodePage { number: u64::MAX, caches: 1, granules: 0, settled: false };
        crew.claim(0, PAGE, &memory.map(), || {
            // The store that it is told of drops its code; another vCPU claims the page and still waits for its letters.
            crew.open(0, |_| crew.drop_page(PAGE, &memory.map()));
            lock(&crew.code).insert(PAGE, CodePage { ..again });
            heeds.store(true, Ordering::SeqCst);
        });
        assert!(!lock(&crew.code)[&PAGE].settled);
        other.join().unwrap();
    }

    #[test]
    fn a_page_is_watched_until_the_last_cache_has_dropped_it() {
        let (crew, memory) = (Crew::new(2), memory());
        let watched = || memory.map().page(GuestAddr(0)).unwrap().is_watched();
        crew.claim(0, 0, &memory.map(), || {});
        crew.claim(1, 0, &memory.map(), || {});
        crew.drop_page(0, &memory.map());
        assert!(watched());
        crew.drop_page(0, &memory.map());
        assert!(!watched());
    }

    #[test]
    fn only_stores_into_code_are_told_and_those_of_devices_are_told_to_all() {
        let (crew, memory) = (Crew::new(2), memory());
        crew.claim(1, PAGE, &memory.map(), || {});
        opened(&crew, 0);
        crew.will_decode(PAGE, 0b10);
        crew.note_store(0, PAGE, 0b01);
        crew.note_store(1, PAGE, 0b10);
        assert_eq!(opened(&crew, 1), Mail::default());
        assert_eq!(opened(&crew, 0).written, [(PAGE, 0b10)].into());
        crew.note_store(0, PAGE, 0b10);
        assert_eq!(opened(&crew, 1).written, [(PAGE, 0b10)].into());
        memory.write(GuestAddr(PAGE + 5), b"dma").unwrap();
        crew.take_device_writes(&memory);
        assert_eq!(opened(&crew, 0).written, [(PAGE, u64::MAX)].into());
        assert_eq!(opened(&crew, 1).written, [(PAGE, u64::MAX)].into());
    }
}
