//! MUL, IMUL of one operand, DIV, IDIV.
//!
//! SDM vol. 2. Flags that the manual leaves undefined: MUL sets SF, ZF and PF from the low half; DIV leaves all.

use iced_x86::{Instruction, Mnemonic as M};

use super::word::{bytes_of, mask_of, read_rm, reg, set_reg};
use crate::hypervisor::soft::cpu::{Cpu, Fault, rflags};
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::lower::{Builder, Flow};
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::op::called_op;

const A: u8 = 0;
const D: u8 = 2;
/// Byte of AH in `regs`.
const AH: u8 = 1;

fn sign_extend(v: u64, bytes: u32) -> i128 {
    let shift = 64 - 8 * bytes;
    i128::from((v << shift) as i64 >> shift)
}

/// Writes the double-width result to AX, DX:AX, EDX:EAX or RDX:RAX.
fn set_pair(cpu: &mut Cpu, bytes: u32, low: u64, high: u64) {
    if bytes == 1 {
        set_reg(cpu, A, 2, (low & 0xff) | high << 8);
    } else {
        set_reg(cpu, A, bytes, low);
        set_reg(cpu, D, bytes, high);
    }
}

fn set_product_flags(cpu: &mut Cpu, bytes: u32, low: u64, over: bool) {
    let mut f = 0;
    if low & mask_of(bytes) == 0 {
        f |= rflags::ZF;
    }
    if low >> (8 * bytes - 1) & 1 != 0 {
        f |= rflags::SF;
    }
    if (low as u8).count_ones() & 1 == 0 {
        f |= rflags::PF;
    }
    if over {
        f |= rflags::CF | rflags::OF;
    }
    cpu.flags = LazyFlags::raw(f);
}

fn mul(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let b = read_rm(cpu, op)?;
    let product = u128::from(reg(cpu, A, bytes)) * u128::from(b);
    let high = (product >> (8 * bytes)) as u64;
    set_pair(cpu, bytes, product as u64, high);
    set_product_flags(cpu, bytes, product as u64, high != 0);
    Ok(())
}

fn imul(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let b = sign_extend(read_rm(cpu, op)?, bytes);
    let product = sign_extend(reg(cpu, A, bytes), bytes) * b;
    let low = product as u64;
    set_pair(cpu, bytes, low, (product >> (8 * bytes)) as u64);
    set_product_flags(cpu, bytes, low, product != sign_extend(low & mask_of(bytes), bytes));
    Ok(())
}

fn dividend(cpu: &Cpu, bytes: u32) -> u128 {
    if bytes == 1 {
        return u128::from(reg(cpu, A, 2));
    }
    u128::from(reg(cpu, D, bytes)) << (8 * bytes) | u128::from(reg(cpu, A, bytes))
}

fn set_quotient(cpu: &mut Cpu, bytes: u32, quotient: u64, remainder: u64) {
    if bytes == 1 {
        set_reg(cpu, A, 1, quotient);
        set_reg(cpu, AH, 1, remainder);
    } else {
        set_reg(cpu, A, bytes, quotient);
        set_reg(cpu, D, bytes, remainder);
    }
}

fn div(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let divisor = read_rm(cpu, op)?;
    if divisor == 0 {
        return Err(cpu.raise(0, None));
    }
    let n = dividend(cpu, bytes);
    // Most 64-bit divisions have a small dividend, which the host divides much faster.
    let (quotient, remainder) = match u64::try_from(n) {
        Ok(n) => (u128::from(n / divisor), n % divisor),
        Err(_) => (n / u128::from(divisor), (n % u128::from(divisor)) as u64),
    };
    if quotient > u128::from(mask_of(bytes)) {
        return Err(cpu.raise(0, None));
    }
    set_quotient(cpu, bytes, quotient as u64, remainder);
    Ok(())
}

fn idiv(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let divisor = sign_extend(read_rm(cpu, op)?, bytes);
    if divisor == 0 {
        return Err(cpu.raise(0, None));
    }
    let shift = 128 - 16 * bytes;
    let n = (dividend(cpu, bytes) << shift) as i128 >> shift;
    // The only quotient that does not fit in i128 is out of range for the guest too.
    let Some(quotient) = n.checked_div(divisor) else { return Err(cpu.raise(0, None)) };
    let limit = 1i128 << (8 * bytes - 1);
    if quotient >= limit || quotient < -limit {
        return Err(cpu.raise(0, None));
    }
    set_quotient(cpu, bytes, quotient as u64, (n % divisor) as u64);
    Ok(())
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let handler = match insn.mnemonic() {
        M::Mul => called_op!(mul),
        M::Imul if insn.op_count() == 1 => called_op!(imul),
        M::Div => called_op!(div),
        M::Idiv => called_op!(idiv),
        _ => return None,
    };
    let op = b.called_rm(insn, handler, false);
    b.push(op);
    Some(Flow::Next)
}
