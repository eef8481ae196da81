//! Hardware task switches: far JMP and CALL to a TSS or through a task gate, task gates in the IDT, IRET with NT.
//!
//! SDM vol. 3 chapter 7 (task management; section 7.3 for the steps and table 7-1 for the checks), vol. 2 (IRET); APM
//! vol. 2 chapter 12. There are none in long mode.
//!
//! A check before the switch raises its exception in the old task, which is then unchanged. The segments of the new
//! task are loaded after the switch, so their exceptions belong to the new task, with its instruction pointer.
//!
//! Where the manuals leave it open: the upper halves of registers that a 16-bit TSS does not hold become zero, and so
//! do FS and GS.

use super::super::cpu::{CS, Cpu, DS, ES, FS, Fault, GS, LDTR, SS, Segment, TR, rflags};
use super::super::mmu::{self, Intent};
use super::super::tlb;
use super::far::set_flags;
use super::flagops::SETTABLE;
use super::regs::{attr, cr0, dr};
use super::segment::*;

/// Kind of a task switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// JMP: the old task is no longer busy.
    Jump,
    /// CALL, an exception or an interrupt: the new task is nested in the old one and links back to it.
    Nest,
    /// IRET with NT: the switch follows the link back.
    Return,
}

/// Result of a switch that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// The new task runs.
    Whole,
    /// The new task is current, and `cpu.exception` must be delivered in it.
    Faulted,
}

/// The old task's registers as they are saved in its TSS.
#[derive(Debug, Clone, Copy)]
pub struct Leaving {
    /// The instruction pointer to return to.
    pub eip: u64,
    /// EFLAGS.
    pub eflags: u64,
}

/// The two layouts of a task-state segment (SDM vol. 3 figures 7-2 and 7-10).
struct Layout {
    wide: bool,
    /// Smallest valid limit.
    limit: u32,
    eip: u64,
    /// Offset of the general registers. The selectors other than LDTR's are from `segments` on.
    registers: u64,
    segments: u64,
    ldt: u64,
}

const WIDE: Layout = Layout { wide: true, limit: 0x67, eip: 0x20, registers: 0x28, segments: 0x48, ldt: 0x60 };
const NARROW: Layout = Layout { wide: false, limit: 0x2b, eip: 0x0e, registers: 0x12, segments: 0x22, ldt: 0x2a };
const CR3: u64 = 0x1c;
/// The word whose bit 0 is the debug trap flag.
const TRAP: u64 = 0x64;

/// In a system descriptor's type: the TSS is busy.
const BUSY: u16 = 2;

impl Layout {
    /// Returns the layout of a TSS segment, by its type.
    fn of(tss: &Segment) -> Layout {
        if tss.system_type() & 8 != 0 { WIDE } else { NARROW }
    }
    /// Returns the size of EIP, EFLAGS and a general register in bytes. Segment registers have the same distance.
    fn word(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }
    /// Returns the number of segment registers in the TSS, in the encoding's order.
    fn segment_count(&self) -> usize {
        if self.wide { 6 } else { 4 }
    }
    fn load(&self, cpu: &mut Cpu, tss: &Segment, offset: u64) -> Result<u64, Fault> {
        let addr = at(tss, offset);
        if self.wide {
            mmu::load_system::<u32>(cpu, addr).map(u64::from)
        } else {
            mmu::load_system::<u16>(cpu, addr).map(u64::from)
        }
    }
    fn store(&self, cpu: &mut Cpu, tss: &Segment, offset: u64, value: u64) -> Result<(), Fault> {
        let addr = at(tss, offset);
        if self.wide { mmu::store_system(cpu, addr, value as u32) } else { mmu::store_system(cpu, addr, value as u16) }
    }
}

fn at(tss: &Segment, offset: u64) -> u64 {
    tss.base.wrapping_add(offset) & 0xffff_ffff
}

/// The contents of a TSS.
struct Image {
    eip: u64,
    eflags: u64,
    registers: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    cr3: Option<u64>,
    trap: bool,
}

/// Reads the descriptor of a TSS that a far transfer or a gate names. It must be available, or for IRET busy; otherwise
/// `vector` is raised.
fn tss_descriptor(cpu: &mut Cpu, selector: u16, way: Way, vector: u8, ext: u32) -> Result<Descriptor, Fault> {
    if selector & 4 != 0 || (is_null(selector) && way != Way::Return) {
        return Err(selector_fault(cpu, vector, selector, ext));
    }
    let d = read_descriptor(cpu, selector, vector, ext)?;
    let busy = if way == Way::Return { BUSY } else { 0 };
    let right = !d.segment.is_code_or_data() && matches!(d.segment.system_type() & !BUSY, 1 | 9);
    if !right || d.segment.system_type() & BUSY != busy {
        return Err(selector_fault(cpu, vector, selector, ext));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 11, selector, ext));
    }
    Ok(d)
}

/// Executes a far JMP or CALL to `d`, a TSS or a task gate outside long mode.
pub fn transfer(cpu: &mut Cpu, way: Way, d: Descriptor, eip: u64) -> Result<Arrival, Fault> {
    let selector = d.segment.selector;
    if d.segment.dpl() < cpu.cpl.max((selector & 3) as u8) {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    let tss = if d.segment.system_type() == TASK_GATE {
        if !d.segment.present() {
            return Err(selector_fault(cpu, 11, selector, 0));
        }
        (d.raw >> 16) as u16
    } else {
        selector
    };
    let leaving = Leaving { eip, eflags: cpu.rflags_value() & !rflags::RF };
    switch(cpu, way, tss, leaving, 0)
}

/// The type of a task gate.
pub const TASK_GATE: u16 = 5;
/// Returns whether a far transfer to this system descriptor switches tasks, outside long mode.
pub fn names_task(d: &Descriptor) -> bool {
    matches!(d.segment.system_type(), TASK_GATE | 1 | 3 | 9 | 0xb)
}

/// Delivers an exception or interrupt through a task gate in the IDT. Pushes `error` on the new task's stack.
pub fn enter(cpu: &mut Cpu, tss: u16, leaving: Leaving, error: Option<u32>, ext: u32) -> Result<Arrival, Fault> {
    let arrival = switch(cpu, Way::Nest, tss, leaving, ext)?;
    let Some(error) = error.filter(|_| arrival == Arrival::Whole) else { return Ok(arrival) };
    let size = Layout::of(&cpu.segs[TR]).word();
    let mut stack = Stack::current(cpu);
    match stack.push(cpu, size, u64::from(error)) {
        Ok(()) => stack.commit(cpu),
        Err(Fault) => return Ok(faulted(cpu, ext)),
    }
    Ok(Arrival::Whole)
}

/// Executes IRET with NT set, outside long mode and virtual-8086 mode.
pub fn return_to_link(cpu: &mut Cpu, eip: u64) -> Result<Arrival, Fault> {
    let tr = cpu.segs[TR];
    let link = mmu::load_system::<u16>(cpu, at(&tr, 0))?;
    // The saved image has NT clear, or the task would return again when it is next entered.
    let leaving = Leaving { eip, eflags: cpu.rflags_value() & !(rflags::NT | rflags::RF) };
    switch(cpu, Way::Return, link, leaving, 0)
}

/// Leaves the current task for that of `selector`. `ext` is the EXT bit of the error codes.
fn switch(cpu: &mut Cpu, way: Way, selector: u16, leaving: Leaving, ext: u32) -> Result<Arrival, Fault> {
    let vector = if way == Way::Return { 10 } else { 13 };
    let mut new = tss_descriptor(cpu, selector, way, vector, ext)?;
    let layout = Layout::of(&new.segment);
    if new.segment.limit < layout.limit {
        return Err(selector_fault(cpu, 10, selector, ext));
    }
    let old = cpu.segs[TR];
    let old_layout = Layout::of(&old);
    if old.limit < old_layout.limit {
        return Err(selector_fault(cpu, 10, old.selector, ext));
    }
    probe(cpu, &old, &old_layout, Intent::Write)?;
    probe(cpu, &new.segment, &layout, if way == Way::Nest { Intent::Write } else { Intent::Read })?;
    let busy = new.addr.wrapping_add(5);
    for byte in [busy, busy_byte(cpu, old.selector).unwrap_or(busy)] {
        mmu::translate_system(cpu, byte, Intent::Write)?;
    }
    // From here on nothing of the old task and of the tables can fault.
    save(cpu, &old, &old_layout, leaving)?;
    if way != Way::Nest
        && let Some(addr) = busy_byte(cpu, old.selector)
    {
        let byte = mmu::load_system::<u8>(cpu, addr)?;
        mmu::store_system(cpu, addr, byte & !(BUSY as u8))?;
    }
    let mut image = read(cpu, &new.segment, &layout)?;
    if way == Way::Nest {
        mmu::store_system(cpu, at(&new.segment, 0), old.selector)?;
        image.eflags |= rflags::NT;
    }
    if way != Way::Return {
        mmu::store_system(cpu, busy, (new.raw >> 40) as u8 | BUSY as u8)?;
        new.segment.attr |= BUSY;
    }
    cpu.segs[TR] = new.segment;
    Ok(arrive(cpu, &image, ext))
}

/// Returns the address of the byte that says whether the TSS of `selector` is busy. Returns `None` for the task that
/// runs before LTR.
fn busy_byte(cpu: &Cpu, selector: u16) -> Option<u64> {
    (!is_null(selector)).then(|| cpu.sys.gdt_base.wrapping_add(u64::from(selector & !7) + 5))
}

/// Checks that the bytes of a TSS that a switch reads and writes can be reached.
fn probe(cpu: &mut Cpu, tss: &Segment, layout: &Layout, intent: Intent) -> Result<(), Fault> {
    for offset in [0, u64::from(layout.limit)] {
        mmu::translate_system(cpu, at(tss, offset), intent)?;
    }
    Ok(())
}

/// Saves the current task's registers.
fn save(cpu: &mut Cpu, tss: &Segment, layout: &Layout, leaving: Leaving) -> Result<(), Fault> {
    let word = layout.word();
    layout.store(cpu, tss, layout.eip, leaving.eip)?;
    layout.store(cpu, tss, layout.eip + word, leaving.eflags)?;
    for n in 0..8 {
        let value = cpu.regs[n as usize];
        layout.store(cpu, tss, layout.registers + word * n, value)?;
    }
    for n in 0..layout.segment_count() {
        let selector = cpu.segs[n].selector;
        mmu::store_system(cpu, at(tss, layout.segments + word * n as u64), selector)?;
    }
    Ok(())
}

/// Reads the registers of the task in `tss`.
fn read(cpu: &mut Cpu, tss: &Segment, layout: &Layout) -> Result<Image, Fault> {
    let word = layout.word();
    let mut image = Image {
        eip: layout.load(cpu, tss, layout.eip)?,
        eflags: layout.load(cpu, tss, layout.eip + word)?,
        registers: [0; 8],
        selectors: [0; 6],
        ldt: mmu::load_system::<u16>(cpu, at(tss, layout.ldt))?,
        cr3: None,
        trap: false,
    };
    for n in 0..8 {
        image.registers[n as usize] = layout.load(cpu, tss, layout.registers + word * n)?;
    }
    for n in 0..layout.segment_count() {
        image.selectors[n] = mmu::load_system::<u16>(cpu, at(tss, layout.segments + word * n as u64))?;
    }
    if layout.wide {
        image.cr3 = Some(layout.load(cpu, tss, CR3)?);
        image.trap = mmu::load_system::<u16>(cpu, at(tss, TRAP))? & 1 != 0;
    }
    Ok(image)
}

/// Makes `image` the current task's state.
fn arrive(cpu: &mut Cpu, image: &Image, ext: u32) -> Arrival {
    if let Some(cr3) = image.cr3
        && cpu.sys.cr0 & cr0::PG != 0
    {
        cpu.sys.cr3 = cr3;
        tlb::flush(cpu, true);
    }
    cpu.regs[..8].copy_from_slice(&image.registers);
    set_flags(cpu, image.eflags, SETTABLE | rflags::VM | rflags::RF);
    cpu.sys.cr0 |= cr0::TS;
    cpu.sys.dr[7] &= !dr::DR7_LOCAL;
    mmu::watchpoints_changed(cpu);
    cpu.next_rip = image.eip;
    // The segments are unusable until they are loaded, one after the other.
    for (n, selector) in image.selectors.into_iter().enumerate() {
        cpu.segs[n] = Segment { selector, ..Segment::default() };
    }
    cpu.segs[LDTR] = Segment { selector: image.ldt, ..Segment::default() };
    cpu.cpl = if is_vm86(cpu) { 3 } else { (image.selectors[CS] & 3) as u8 };
    mmu::select_bank(cpu);
    cpu.interrupt_shadow = false;
    // The new task's TF decides whether the next instruction is stepped.
    cpu.no_step_trap = true;
    if image.trap {
        cpu.debug_pending |= dr::BT;
    }
    match load_segments(cpu, image, ext) {
        Ok(()) => Arrival::Whole,
        Err(Fault) => faulted(cpu, ext),
    }
}

/// Marks that the exception in `cpu.exception` was raised in the new task.
fn faulted(cpu: &mut Cpu, ext: u32) -> Arrival {
    if let Some(error) = &mut cpu.exception.error
        && cpu.exception.vector != 14
    {
        *error |= ext;
    }
    Arrival::Faulted
}

/// Loads LDTR and the segment registers by their selectors (SDM vol. 3 table 7-1).
fn load_segments(cpu: &mut Cpu, image: &Image, ext: u32) -> Result<(), Fault> {
    if !is_null(image.ldt) {
        let wrong = image.ldt & 4 != 0;
        let d = if wrong { None } else { Some(read_descriptor(cpu, image.ldt, 10, ext)?) };
        match d.filter(|d| !d.segment.is_code_or_data() && d.segment.system_type() == 2 && d.segment.present()) {
            Some(d) => cpu.segs[LDTR] = d.segment,
            None => return Err(selector_fault(cpu, 10, image.ldt, ext)),
        }
    }
    if is_vm86(cpu) {
        for (n, selector) in image.selectors.into_iter().enumerate() {
            cpu.segs[n] = vm86_segment(selector);
        }
        return Ok(());
    }
    let level = cpu.cpl;
    let code = load_code(cpu, image.selectors[CS], ext)?;
    set_cs(cpu, code, level);
    cpu.segs[SS] = load_stack(cpu, image.selectors[SS], ext)?;
    for which in [ES, DS, FS, GS] {
        let selector = image.selectors[which];
        if !is_null(selector) {
            cpu.segs[which] = load_data(cpu, selector, ext)?;
        }
    }
    Ok(())
}

/// Loads the descriptor of `selector`, which is not null, and checks it with `valid`. Raises `absent` if it is not
/// present.
fn load(cpu: &mut Cpu, selector: u16, ext: u32, absent: u8, valid: impl FnOnce(&Segment) -> bool) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Err(selector_fault(cpu, 10, selector, ext));
    }
    let mut d = read_descriptor(cpu, selector, 10, ext)?;
    if !valid(&d.segment) {
        return Err(selector_fault(cpu, 10, selector, ext));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, absent, selector, ext));
    }
    mark_accessed(cpu, &mut d)?;
    Ok(d.segment)
}

fn load_code(cpu: &mut Cpu, selector: u16, ext: u32) -> Result<Segment, Fault> {
    let level = (selector & 3) as u8;
    let level_ok = |s: &Segment| if s.attr & attr::DC != 0 { s.dpl() <= level } else { s.dpl() == level };
    load(cpu, selector, ext, 11, |s| s.is_code() && level_ok(s))
}

fn load_stack(cpu: &mut Cpu, selector: u16, ext: u32) -> Result<Segment, Fault> {
    let level = cpu.cpl;
    load(cpu, selector, ext, 12, |s| s.is_writable() && s.dpl() == level && (selector & 3) as u8 == level)
}

fn load_data(cpu: &mut Cpu, selector: u16, ext: u32) -> Result<Segment, Fault> {
    let level = cpu.cpl.max((selector & 3) as u8);
    load(cpu, selector, ext, 11, |s| s.is_readable() && (s.is_conforming() || s.dpl() >= level))
}
