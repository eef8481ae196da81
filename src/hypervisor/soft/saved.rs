//! The saved state of a vCPU. Caches (TLB, blocks, jumps) are not part of it. The arithmetic flags are saved computed.

use serde::{Deserialize, Serialize};

use super::cpu::{Cpu, Fpu, REGS, RIP, Segment, SystemState, rflags};
use super::flags::LazyFlags;
use super::system::regs::dr;
use crate::hypervisor::state::{Section, StateError};

/// The section's kind.
pub const KIND: &str = "soft-vcpu";
const VERSION: u32 = 1;

/// The complete state of a vCPU.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedCpu {
    regs: [u64; 16],
    rip: u64,
    rflags: u64,
    interrupt_shadow: bool,
    #[serde(default)]
    debug_shadow: bool,
    #[serde(default)]
    debug_pending: u64,
    nmi_blocked: bool,
    halted: bool,
    wait_for_sipi: bool,
    cpl: u8,
    retired: u64,
    #[serde(default)]
    randoms: u64,
    segs: [Segment; 8],
    xmm: [[u64; 2]; 16],
    mxcsr: u32,
    mantissa: [u64; 8],
    sign_exp: [u16; 8],
    fcw: u16,
    fsw: u16,
    ftw: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    sys: SystemState,
}

/// Returns the state of a vCPU between runs.
pub fn save(cpu: &Cpu) -> Section {
    let mut regs = [0; 16];
    regs.copy_from_slice(&cpu.regs[..16]);
    let f = &cpu.fpu;
    let state = SavedCpu {
        regs,
        rip: cpu.regs[RIP],
        rflags: cpu.rflags_value(),
        interrupt_shadow: cpu.interrupt_shadow,
        debug_shadow: cpu.debug_shadow,
        debug_pending: cpu.debug_pending,
        nmi_blocked: cpu.nmi_blocked,
        halted: cpu.halted,
        wait_for_sipi: cpu.wait_for_sipi,
        cpl: cpu.cpl,
        retired: cpu.retired,
        randoms: cpu.randoms,
        segs: cpu.segs,
        xmm: cpu.xmm,
        mxcsr: cpu.mxcsr,
        mantissa: f.mantissa,
        sign_exp: f.sign_exp,
        fcw: f.fcw,
        fsw: f.fsw,
        ftw: f.ftw,
        fop: f.fop,
        fip: f.fip,
        fdp: f.fdp,
        sys: cpu.sys.clone(),
    };
    Section::encode(KIND, VERSION, &state)
}

/// Reads a state and refuses values that no vCPU can have.
pub fn decode(section: &Section) -> Result<SavedCpu, StateError> {
    let state: SavedCpu = section.decode(KIND, VERSION)?;
    let damaged = |why: &str| Err(StateError::Damaged { kind: KIND, why: why.to_string() });
    if state.cpl > 3 {
        return damaged("the privilege level is above 3");
    }
    if state.mxcsr > 0xffff {
        return damaged("a reserved bit of MXCSR is set");
    }
    if state.rflags & rflags::FIXED == 0 || state.rflags >> 22 != 0 {
        return damaged("RFLAGS has an impossible value");
    }
    Ok(state)
}

/// Restores a decoded state. The caller drops the caches.
pub fn load(cpu: &mut Cpu, state: SavedCpu) {
    cpu.regs = [0; REGS];
    cpu.regs[..16].copy_from_slice(&state.regs);
    cpu.regs[RIP] = state.rip;
    cpu.flags = LazyFlags::raw(state.rflags);
    cpu.rflags = state.rflags & !rflags::ARITH;
    cpu.interrupt_shadow = state.interrupt_shadow;
    cpu.debug_shadow = state.debug_shadow;
    cpu.debug_pending = state.debug_pending & dr::DR6_MASK;
    cpu.nmi_blocked = state.nmi_blocked;
    cpu.halted = state.halted;
    cpu.wait_for_sipi = state.wait_for_sipi;
    cpu.cpl = state.cpl;
    cpu.retired = state.retired;
    cpu.clock_synced = state.retired;
    cpu.randoms = state.randoms;
    cpu.segs = state.segs;
    cpu.xmm = state.xmm;
    cpu.mxcsr = state.mxcsr;
    cpu.fpu = Fpu {
        mantissa: state.mantissa,
        sign_exp: state.sign_exp,
        fcw: state.fcw,
        fsw: state.fsw,
        ftw: state.ftw,
        fop: state.fop,
        fip: state.fip,
        fdp: state.fdp,
    };
    cpu.sys = state.sys;
    let mode = super::system::refresh_mode(cpu);
    cpu.set_mode(mode);
}
