//! Control instructions and the saved forms of the state: FNSTENV and FNSAVE, FXSAVE, XSAVE. SDM vol. 1, 8.1.10,
//! 10.5 and 13; vol. 2, the instructions' pages.
//!
//! **Not modelled**: the selectors FCS and FDS, which read as 0 (CPUID.7.0:EBX bit 13, "deprecates FPU CS and DS"); the
//! compacted form of XSAVE, which CPUID does not advertise. Every XSAVE component counts as in use, so that XSAVEOPT
//! writes what XSAVE writes.

use super::ops::address;
use super::unit::{BUSY, C1, ES, EXCEPTIONS, check_pending, note_instruction};
use crate::hypervisor::soft::cpu::{Cpu, Fault};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::Op;

/// Bits of MXCSR that exist.
pub const MXCSR_MASK: u32 = 0xffff;

/// Bit of [`Op::aux`]: the 16-bit layout of the environment.
pub const SMALL: u32 = 1;
/// Bit of [`Op::aux`]: the real-mode layout.
pub const REAL: u32 = 2;
/// Bit of [`Op::aux`]: REX.W, 64-bit pointers in FXSAVE and XSAVE.
pub const WIDE: u32 = 4;
/// Bit of [`Op::aux`]: a waiting form.
pub const WAITING: u32 = 8;

/// Executes FWAIT.
pub fn wait(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    // CR0.MP and CR0.TS.
    if cpu.sys.cr0 & 0xa == 0xa {
        return Err(cpu.raise(7, None));
    }
    check_pending(cpu)
}

/// Raises #MF if it is pending, before the operand's address is looked at.
pub fn pending(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_pending(cpu)
}

/// Raises #NM: CR0.EM or CR0.TS is set.
pub fn no_device(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    Err(cpu.raise(7, None))
}

/// Executes FNINIT.
pub fn init(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    cpu.fpu.init();
    Ok(())
}

fn wait_if_asked(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if op.aux & WAITING != 0 { check_pending(cpu) } else { Ok(()) }
}

/// Executes FNCLEX.
pub fn clear_exceptions(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    cpu.fpu.fsw &= 0x7f00;
    Ok(())
}

/// Executes FNOP, and the 8087's and 287's FNENI, FNDISI and FNSETPM, which do nothing.
pub fn nop(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    note_instruction(cpu, op, false);
    Ok(())
}

/// Executes FNENI, FNDISI and FNSETPM. They do nothing, and do not wait.
pub fn obsolete(_: &mut Cpu, _: &Op) -> Result<(), Fault> {
    Ok(())
}

/// Executes FINCSTP and FDECSTP. `aux` is added to TOP.
pub fn turn(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let top = cpu.fpu.top() + op.aux as usize;
    cpu.fpu.set_top(top);
    cpu.fpu.fsw &= !C1;
    note_instruction(cpu, op, false);
    Ok(())
}

/// Executes FFREE and FFREEP (`aux` 1).
pub fn free(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    cpu.fpu.free(usize::from(op.dst));
    cpu.fpu.fsw &= !C1;
    if op.aux != 0 {
        cpu.fpu.pop();
    }
    note_instruction(cpu, op, false);
    Ok(())
}

/// Executes FLDCW.
pub fn load_control(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let fcw = cpu.load::<u16>(op.addr(cpu))?;
    cpu.fpu.set_control(fcw);
    Ok(())
}

/// Executes FNSTCW.
pub fn store_control(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    let addr = op.addr(cpu);
    cpu.store(addr, cpu.fpu.fcw)
}

/// Executes FNSTSW to memory.
pub fn store_status(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    let addr = op.addr(cpu);
    cpu.store(addr, cpu.fpu.fsw)
}

/// Executes FNSTSW AX.
pub fn status_to_ax(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    cpu.regs[0] = cpu.regs[0] & !0xffff | u64::from(cpu.fpu.fsw);
    Ok(())
}

/// Stores `bytes` from byte `offset` of the memory operand on, in words of the largest size that fits. The caller has
/// probed the range.
fn store_bytes(cpu: &mut Cpu, op: &Op, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
    let mut at = 0;
    while at < bytes.len() {
        let addr = address(cpu, op, (offset + at) as u64);
        if let Some(word) = bytes[at..].first_chunk::<8>() {
            cpu.store(addr, u64::from_le_bytes(*word))?;
            at += 8;
        } else if let Some(word) = bytes[at..].first_chunk::<4>() {
            cpu.store(addr, u32::from_le_bytes(*word))?;
            at += 4;
        } else if let Some(word) = bytes[at..].first_chunk::<2>() {
            cpu.store(addr, u16::from_le_bytes(*word))?;
            at += 2;
        } else {
            cpu.store(addr, bytes[at])?;
            at += 1;
        }
    }
    Ok(())
}

/// Loads `bytes` from byte `offset` of the memory operand on.
fn load_bytes(cpu: &mut Cpu, op: &Op, offset: usize, bytes: &mut [u8]) -> Result<(), Fault> {
    let mut at = 0;
    while at < bytes.len() {
        let addr = address(cpu, op, (offset + at) as u64);
        if bytes.len() - at >= 8 {
            bytes[at..at + 8].copy_from_slice(&cpu.load::<u64>(addr)?.to_le_bytes());
            at += 8;
        } else {
            bytes[at..at + 2].copy_from_slice(&cpu.load::<u16>(addr)?.to_le_bytes());
            at += 2;
        }
    }
    Ok(())
}

fn put16(image: &mut [u8], offset: usize, value: u16) {
    image[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}
fn put32(image: &mut [u8], offset: usize, value: u32) {
    image[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
fn put64(image: &mut [u8], offset: usize, value: u64) {
    image[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}
fn get16(image: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([image[offset], image[offset + 1]])
}
fn get32(image: &[u8], offset: usize) -> u32 {
    u32::from(get16(image, offset)) | u32::from(get16(image, offset + 2)) << 16
}
fn get64(image: &[u8], offset: usize) -> u64 {
    u64::from(get32(image, offset)) | u64::from(get32(image, offset + 4)) << 32
}

/// Returns the environment's bytes: 14 or 28.
fn environment(cpu: &Cpu, layout: u32) -> Vec<u8> {
    let fpu = &cpu.fpu;
    let (ip, dp, op) = (fpu.fip as u32, fpu.fdp as u32, u32::from(fpu.fop & 0x7ff));
    if layout & SMALL != 0 {
        let mut image = vec![0; 14];
        let (high_ip, high_dp) = if layout & REAL != 0 { (ip >> 4 & 0xf000 | op, dp >> 4 & 0xf000) } else { (0, 0) };
        let words = [fpu.fcw, fpu.fsw, fpu.full_tags(), ip as u16, high_ip as u16, dp as u16, high_dp as u16];
        for (i, word) in words.into_iter().enumerate() {
            put16(&mut image, 2 * i, word);
        }
        return image;
    }
    let mut image = vec![0; 28];
    let upper = 0xffff_0000;
    let pointers = if layout & REAL != 0 {
        [upper | ip & 0xffff, ip >> 4 & 0x0fff_f000 | op, upper | dp & 0xffff, dp >> 4 & 0x0fff_f000]
    } else {
        [ip, op << 16, dp, upper]
    };
    let words = [u32::from(fpu.fcw) | upper, u32::from(fpu.fsw) | upper, u32::from(fpu.full_tags()) | upper];
    for (i, word) in words.into_iter().chain(pointers).enumerate() {
        put32(&mut image, 4 * i, word);
    }
    image
}

fn set_environment(cpu: &mut Cpu, layout: u32, image: &[u8]) {
    let fpu = &mut cpu.fpu;
    let real = layout & REAL != 0;
    let (fcw, fsw, tags);
    if layout & SMALL != 0 {
        (fcw, fsw, tags) = (get16(image, 0), get16(image, 2), get16(image, 4));
        let (high_ip, high_dp) = (u64::from(get16(image, 8)), u64::from(get16(image, 12)));
        fpu.fip = u64::from(get16(image, 6)) | if real { (high_ip & 0xf000) << 4 } else { 0 };
        fpu.fdp = u64::from(get16(image, 10)) | if real { (high_dp & 0xf000) << 4 } else { 0 };
        fpu.fop = if real { high_ip as u16 & 0x7ff } else { 0 };
    } else {
        (fcw, fsw, tags) = (get16(image, 0), get16(image, 4), get16(image, 8));
        let words = [12, 16, 20, 24].map(|at| get32(image, at));
        if real {
            fpu.fip = u64::from(words[0] & 0xffff | (words[1] & 0x0fff_f000) << 4);
            fpu.fdp = u64::from(words[2] & 0xffff | (words[3] & 0x0fff_f000) << 4);
            fpu.fop = words[1] as u16 & 0x7ff;
        } else {
            fpu.fip = u64::from(words[0]);
            fpu.fdp = u64::from(words[2]);
            fpu.fop = (words[1] >> 16) as u16 & 0x7ff;
        }
    }
    fpu.fsw = fsw;
    fpu.set_full_tags(tags);
    fpu.set_control(fcw);
}

/// Executes FNSTENV.
pub fn store_environment(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    let image = environment(cpu, op.aux);
    mmu::probe_write(cpu, op.addr(cpu), image.len() as u64)?;
    store_bytes(cpu, op, 0, &image)?;
    cpu.fpu.fcw |= EXCEPTIONS;
    cpu.fpu.fsw &= !(ES | BUSY);
    Ok(())
}

/// Executes FLDENV.
pub fn load_environment(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut image = [0; 28];
    let len = if op.aux & SMALL != 0 { 14 } else { 28 };
    load_bytes(cpu, op, 0, &mut image[..len])?;
    set_environment(cpu, op.aux, &image);
    Ok(())
}

/// Executes FNSAVE.
pub fn save(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    wait_if_asked(cpu, op)?;
    let mut image = environment(cpu, op.aux);
    for i in 0..8 {
        let value = cpu.fpu.st(i);
        image.extend_from_slice(&value.mantissa.to_le_bytes());
        image.extend_from_slice(&value.sign_exp.to_le_bytes());
    }
    mmu::probe_write(cpu, op.addr(cpu), image.len() as u64)?;
    store_bytes(cpu, op, 0, &image)?;
    cpu.fpu.init();
    Ok(())
}

/// Executes FRSTOR.
pub fn restore(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut image = [0; 108];
    let header = if op.aux & SMALL != 0 { 14 } else { 28 };
    load_bytes(cpu, op, 0, &mut image[..header + 80])?;
    set_environment(cpu, op.aux, &image);
    for i in 0..8 {
        let r = cpu.fpu.physical(i);
        cpu.fpu.mantissa[r] = get64(&image, header + 10 * i);
        cpu.fpu.sign_exp[r] = get16(&image, header + 10 * i + 8);
    }
    Ok(())
}

/// Returns bytes 0 to 23 of the FXSAVE image.
fn legacy_header(cpu: &Cpu, wide: bool) -> [u8; 24] {
    let mut image = [0; 24];
    let fpu = &cpu.fpu;
    put16(&mut image, 0, fpu.fcw);
    put16(&mut image, 2, fpu.fsw);
    image[4] = fpu.ftw;
    put16(&mut image, 6, fpu.fop & 0x7ff);
    put64(&mut image, 8, if wide { fpu.fip } else { fpu.fip & 0xffff_ffff });
    put64(&mut image, 16, if wide { fpu.fdp } else { fpu.fdp & 0xffff_ffff });
    image
}

/// Returns bytes 32 to 159 of the FXSAVE image.
fn legacy_registers(cpu: &Cpu) -> [u8; 128] {
    let mut image = [0; 128];
    for i in 0..8 {
        let value = cpu.fpu.st(i);
        put64(&mut image, 16 * i, value.mantissa);
        put16(&mut image, 16 * i + 8, value.sign_exp);
    }
    image
}

/// Returns the bytes from 160 on of the FXSAVE image: the XMM registers that the mode can reach.
fn legacy_xmm(cpu: &Cpu) -> Vec<u8> {
    let count = if cpu.is_64bit() { 16 } else { 8 };
    cpu.xmm[..count].iter().flatten().flat_map(|half| half.to_le_bytes()).collect()
}

fn load_legacy_x87(cpu: &mut Cpu, image: &[u8], wide: bool) {
    let fpu = &mut cpu.fpu;
    fpu.fsw = get16(image, 2);
    fpu.ftw = image[4];
    fpu.fop = get16(image, 6) & 0x7ff;
    fpu.fip = if wide { get64(image, 8) } else { u64::from(get32(image, 8)) };
    fpu.fdp = if wide { get64(image, 16) } else { u64::from(get32(image, 16)) };
    fpu.set_control(get16(image, 0));
    for i in 0..8 {
        let r = fpu.physical(i);
        fpu.mantissa[r] = get64(image, 32 + 16 * i);
        fpu.sign_exp[r] = get16(image, 40 + 16 * i);
    }
}

fn load_legacy_xmm(cpu: &mut Cpu, image: &[u8]) {
    let count = if cpu.is_64bit() { 16 } else { 8 };
    for i in 0..count {
        cpu.xmm[i] = [get64(image, 160 + 16 * i), get64(image, 168 + 16 * i)];
    }
}

/// Raises #GP unless the memory operand is aligned.
fn require_alignment(cpu: &mut Cpu, op: &Op, bytes: u64) -> Result<(), Fault> {
    if op.addr(cpu) % bytes != 0 { Err(cpu.general_protection(0)) } else { Ok(()) }
}

/// Checks the same for FXSAVE and FXRSTOR, which first check that the address is canonical.
fn require_alignment_of_fx(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    mmu::require_canonical(cpu, op.addr(cpu), 1)?;
    require_alignment(cpu, op, 16)
}

/// Executes FXSAVE.
pub fn fxsave(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    require_alignment_of_fx(cpu, op)?;
    mmu::probe_write(cpu, op.addr(cpu), 512)?;
    let header = legacy_header(cpu, op.aux & WIDE != 0);
    store_bytes(cpu, op, 0, &header)?;
    store_mxcsr(cpu, op)?;
    let registers = legacy_registers(cpu);
    store_bytes(cpu, op, 32, &registers)?;
    let xmm = legacy_xmm(cpu);
    store_bytes(cpu, op, 160, &xmm)
}

fn store_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let mut image = [0; 8];
    put32(&mut image, 0, cpu.mxcsr);
    put32(&mut image, 4, MXCSR_MASK);
    store_bytes(cpu, op, 24, &image)
}

/// Executes FXRSTOR.
pub fn fxrstor(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    require_alignment_of_fx(cpu, op)?;
    let mut image = [0; 512];
    load_bytes(cpu, op, 0, &mut image)?;
    let mxcsr = get32(&image, 24);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.general_protection(0));
    }
    load_legacy_x87(cpu, &image, op.aux & WIDE != 0);
    cpu.mxcsr = mxcsr;
    load_legacy_xmm(cpu, &image);
    Ok(())
}

/// Returns the requested components: bit 0 x87, bit 1 SSE. Raises #UD without CR4.OSXSAVE, #NM with CR0.TS, #GP when
/// misaligned.
fn requested_components(cpu: &mut Cpu, op: &Op) -> Result<u64, Fault> {
    if cpu.sys.cr4 & 1 << 18 == 0 {
        return Err(cpu.undefined());
    }
    if cpu.sys.cr0 & 8 != 0 {
        return Err(cpu.raise(7, None));
    }
    require_alignment(cpu, op, 64)?;
    Ok((cpu.regs[0] & 0xffff_ffff | cpu.regs[2] << 32) & cpu.sys.xcr0 & 3)
}

/// Executes XSAVE and XSAVEOPT.
pub fn xsave(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let components = requested_components(cpu, op)?;
    mmu::probe_write(cpu, op.addr(cpu), 576)?;
    let header = address(cpu, op, 512);
    let in_image = cpu.load::<u64>(header)?;
    if components & 1 != 0 {
        let header = legacy_header(cpu, op.aux & WIDE != 0);
        store_bytes(cpu, op, 0, &header)?;
        let registers = legacy_registers(cpu);
        store_bytes(cpu, op, 32, &registers)?;
    }
    if components & 2 != 0 {
        store_mxcsr(cpu, op)?;
        let xmm = legacy_xmm(cpu);
        store_bytes(cpu, op, 160, &xmm)?;
    }
    cpu.store(header, in_image | components)
}

/// Executes XRSTOR, in the standard form.
pub fn xrstor(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let components = requested_components(cpu, op)?;
    let mut image = [0; 576];
    load_bytes(cpu, op, 0, &mut image)?;
    let in_image = get64(&image, 512);
    let reserved = get64(&image, 520) | get64(&image, 528);
    let mxcsr = get32(&image, 24);
    if reserved != 0 || in_image & !cpu.sys.xcr0 != 0 || (components & 2 != 0 && mxcsr & !MXCSR_MASK != 0) {
        return Err(cpu.general_protection(0));
    }
    if components & 1 != 0 {
        if in_image & 1 != 0 {
            load_legacy_x87(cpu, &image, op.aux & WIDE != 0);
        } else {
            cpu.fpu.init();
            (cpu.fpu.mantissa, cpu.fpu.sign_exp) = ([0; 8], [0; 8]);
        }
    }
    if components & 2 != 0 {
        cpu.mxcsr = mxcsr;
        if in_image & 2 == 0 {
            image[160..416].fill(0);
        }
        load_legacy_xmm(cpu, &image);
    }
    Ok(())
}
