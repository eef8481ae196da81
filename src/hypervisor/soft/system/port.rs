//! IN, OUT, INS, OUTS.
//!
//! SDM vol. 1 chapter 19 (I/O privilege, the permission bitmap), vol. 2 (INS, OUTS, REP).
//!
//! **Hostile guest**: a repeated instruction stops every 1024 elements and continues after a check for events.

use super::super::cpu::{Cpu, ES, Fault, TR, rflags};
use super::super::lower::Mode;
use super::super::mmu;
use super::super::op::Op;
use super::debug::note_port;
use super::segment::*;
use super::{read_gpr, write_gpr};

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
const BURST: u32 = 1024;

/// Raises #GP(0) unless IOPL or the task's bitmap permits the port.
fn check_port(cpu: &mut Cpu, port: u16, size: u8) -> Result<(), Fault> {
    let iopl = (cpu.rflags >> 12 & 3) as u8;
    if is_real(cpu) || (cpu.cpl <= iopl && cpu.rflags & rflags::VM == 0) {
        return Ok(());
    }
    let tr = cpu.segs[TR];
    if !tr.present() || tr.system_type() & 8 == 0 || tr.limit < 0x67 {
        return Err(cpu.general_protection(0));
    }
    let map = mmu::load_system::<u16>(cpu, tr.base.wrapping_add(0x66))?;
    let byte = u32::from(map) + u32::from(port / 8);
    // Two bytes are always read, so the bitmap ends with one more byte of ones.
    if byte + 1 > tr.limit {
        return Err(cpu.general_protection(0));
    }
    let bits = mmu::load_system::<u16>(cpu, tr.base.wrapping_add(u64::from(byte)))?;
    if bits >> (port & 7) & ((1 << size) - 1) != 0 {
        return Err(cpu.general_protection(0));
    }
    Ok(())
}

fn port_of(cpu: &Cpu, op: &Op) -> u16 {
    if op.dst == 1 { cpu.regs[2] as u16 } else { op.imm as u16 }
}

/// Executes IN: `src` is the number of bytes. The port is DX with `dst` 1, else `imm`.
pub fn input(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let port = port_of(cpu, op);
    check_port(cpu, port, op.src)?;
    cpu.sync_clock();
    let value = u64::from(cpu.platform.port_read(cpu.index, port, op.src));
    if op.src == 1 {
        cpu.regs[0] = cpu.regs[0] & !0xff | value & 0xff;
    } else {
        write_gpr(cpu, 0, op.src, value);
    }
    note_port(cpu, port, op.src);
    mmu::after_device_access(cpu);
    Ok(())
}

/// Executes OUT, with fields as in [`input`].
pub fn output(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let port = port_of(cpu, op);
    check_port(cpu, port, op.src)?;
    cpu.sync_clock();
    let value = cpu.regs[0] as u32 & (u32::MAX >> (32 - 8 * u32::from(op.src)));
    cpu.platform.port_write(cpu.index, port, op.src, value);
    note_port(cpu, port, op.src);
    mmu::after_device_access(cpu);
    Ok(())
}

/// A REP prefix, in `imm` of the string forms. There also are OUTS, the address's bytes in bits 15:8 and the segment in
/// bits 23:16.
pub const REP: u64 = 1;
/// OUTS, in `imm`: see [`REP`].
pub const OUTS: u64 = 2;

/// Executes INS and OUTS: `src` is the number of bytes. It ends its block, and starts again if a repetition is not
/// done.
pub fn string(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let address_bytes = (op.imm >> 8) as u8;
    let rep = op.imm & REP != 0;
    let port = cpu.regs[2] as u16;
    check_port(cpu, port, op.src)?;
    cpu.sync_clock();
    let step = if cpu.rflags & rflags::DF != 0 { -i64::from(op.src) } else { i64::from(op.src) };
    // A single-step trap comes after each repetition.
    for _ in 0..if rep && !cpu.mode.has(Mode::STEP) { BURST } else { 1 } {
        if rep && read_gpr(cpu, RCX, address_bytes) == 0 {
            return Ok(());
        }
        let moved =
            if op.imm & OUTS != 0 { put(cpu, op, port, address_bytes, step) } else { get(cpu, op, port, address_bytes, step) };
        moved?;
        note_port(cpu, port, op.src);
        if rep {
            let left = read_gpr(cpu, RCX, address_bytes).wrapping_sub(1);
            write_gpr(cpu, RCX, address_bytes, left);
            if left == 0 {
                return Ok(());
            }
        }
        if cpu.attention.is_raised(cpu.index) || cpu.debug_pending != 0 {
            break;
        }
    }
    if rep {
        cpu.next_rip = op.rip(cpu);
    }
    Ok(())
}

fn put(cpu: &mut Cpu, op: &Op, port: u16, address_bytes: u8, step: i64) -> Result<(), Fault> {
    let offset = read_gpr(cpu, RSI, address_bytes);
    let addr = linear(cpu, (op.imm >> 16 & 0xff) as usize, offset, u64::from(op.src), false)?;
    let value = match op.src {
        1 => u32::from(cpu.load::<u8>(addr)?),
        2 => u32::from(cpu.load::<u16>(addr)?),
        _ => cpu.load::<u32>(addr)?,
    };
    cpu.platform.port_write(cpu.index, port, op.src, value);
    write_gpr(cpu, RSI, address_bytes, offset.wrapping_add(step as u64));
    Ok(())
}

fn get(cpu: &mut Cpu, op: &Op, port: u16, address_bytes: u8, step: i64) -> Result<(), Fault> {
    let offset = read_gpr(cpu, RDI, address_bytes);
    let addr = linear(cpu, ES, offset, u64::from(op.src), true)?;
    // The port is read only once the store cannot fail: the read may have taken a byte from a device.
    mmu::probe_write(cpu, addr, u64::from(op.src))?;
    let value = cpu.platform.port_read(cpu.index, port, op.src);
    match op.src {
        1 => cpu.store::<u8>(addr, value as u8)?,
        2 => cpu.store::<u16>(addr, value as u16)?,
        _ => cpu.store::<u32>(addr, value)?,
    }
    write_gpr(cpu, RDI, address_bytes, offset.wrapping_add(step as u64));
    Ok(())
}
