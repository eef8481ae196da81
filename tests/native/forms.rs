//! Every opcode form of the decoder: tried, or left out with the reason.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// The forms, sorted.
pub struct Forms {
    pub tried: Vec<Code>,
    pub left_out: Vec<(Code, &'static str)>,
    /// Those that need no preparation of registers or memory: what follows the first instruction of a case.
    pub fillers: Vec<Code>,
}

impl Forms {
    pub fn new(only: Option<&str>) -> Forms {
        let mut forms = Forms { tried: Vec::new(), left_out: Vec::new(), fillers: Vec::new() };
        for code in Code::values() {
            let info = code.op_code();
            if info.encoding() != EncodingKind::Legacy || !info.is_instruction() {
                continue;
            }
            match left_out(code) {
                Some(why) => forms.left_out.push((code, why)),
                None => forms.tried.push(code),
            }
        }
        forms.fillers = forms.tried.iter().copied().filter(|&code| is_filler(code)).collect();
        if let Some(text) = only {
            let wanted: Vec<&str> = text.split(',').collect();
            forms.tried.retain(|code| wanted.iter().any(|w| format!("{code:?}").to_lowercase().starts_with(&w.to_lowercase())));
            assert!(!forms.tried.is_empty(), "no form starts with `{text}`");
        }
        forms
    }

    pub fn print_left_out(&self) {
        let mut reasons: Vec<&str> = self.left_out.iter().map(|&(_, why)| why).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for why in reasons {
            let codes: Vec<String> = self.left_out.iter().filter(|(_, w)| *w == why).map(|(c, _)| format!("{c:?}")).collect();
            println!("left out ({}): {why}: {}", codes.len(), codes.join(" "));
        }
    }
}

fn is_filler(code: Code) -> bool {
    use iced_x86::FlowControl;
    code.flow_control() == FlowControl::Next
        && !matches!(
            code.mnemonic(),
            Mnemonic::Popf
                | Mnemonic::Popfd
                | Mnemonic::Popfq
                | Mnemonic::Enter
                | Mnemonic::Leave
                | Mnemonic::Fxsave
                | Mnemonic::Fxsave64
                | Mnemonic::Fxrstor
                | Mnemonic::Fxrstor64
                | Mnemonic::Fldenv
                | Mnemonic::Frstor
                | Mnemonic::Fnstenv
                | Mnemonic::Fnsave
                | Mnemonic::Shld
                | Mnemonic::Shrd
                | Mnemonic::Hlt
                | Mnemonic::Bsf
                | Mnemonic::Bsr
        )
        && !crate::verdict::is_transcendental(code)
        && !crate::soft::is_xsave(code)
        && !code.op_code().is_privileged()
}

/// Features that the CPU advertises (x86-64-v2 with AES and PCLMULQDQ), and what needs no advertising.
fn advertised(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | FPU
            | FPU287
            | FPU387
            | MMX
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | CMOV
            | CX8
            | CMPXCHG16B
            | POPCNT
            | AES
            | PCLMULQDQ
            | FXSR
            | MULTIBYTENOP
            | PAUSE
            | PREFETCHW
            | CLFSH
            | XSAVE
            | XSAVEOPT
            | CPUID
            | MSR
            | TSC
            | RDTSCP
            | RDRAND
            | SEP
            | SYSCALL
            | SMAP
            | FSGSBASE
            | MONITOR
            | RDPMC
            | SHA
            | CET_IBT
    )
}

/// Whether the form is tried in 64-bit mode. 16-bit near branches there do as Intel or as AMD defines them; in 32-bit
/// mode all processors agree.
pub fn runs_in_64(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let branch16 = (0..info.op_count()).any(|i| matches!(info.op_kind(i), K::br16_1 | K::br16_2))
        || matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Call_rm16 | Code::Jmp_rm16);
    info.mode64() && !branch16
}

fn left_out(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.mode64() && !info.mode32() {
        return Some("encodable in 16-bit mode only");
    }
    if !runs_in_64(code) && !info.mode32() {
        return Some("a 16-bit near branch in 64-bit mode: vendors differ");
    }
    if !code.cpuid_features().iter().all(|&f| advertised(f)) {
        return Some("the CPU does not advertise it");
    }
    if info.fwait() {
        return Some("two instructions: WAIT and the form without it");
    }
    if code == Code::Ud0 {
        return Some("the decoder reads a ModRM byte behind it: Ud0_r32_rm32 and its like are tried");
    }
    if code == Code::Int3 {
        return Some("ends every case, so all of them try it");
    }
    let operands: Vec<OpCodeOperandKind> = (0..info.op_count()).map(|i| info.op_kind(i)).collect();
    match code.mnemonic() {
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Some("an approximation that differs by vendor"),
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Cpuid | M::Rdrand | M::Rdseed | M::Xgetbv => {
            Some("the result depends on the machine or the moment")
        }
        M::Syscall | M::Sysenter | M::Sysexit | M::Sysret | M::Int | M::Into | M::Int1 => Some("enters the system"),
        M::Iret
        | M::Iretd
        | M::Iretq
        | M::Retf
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Les
        | M::Lds => Some("reads the host system's descriptor tables"),
        M::Call | M::Jmp if is_far(code) => Some("reads the host system's descriptor tables"),
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => Some("reads the host's system state, or is trapped by UMIP"),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => Some("the FS base is the test's own thread"),
        M::Monitor | M::Mwait => Some("allowed in user mode on some hosts"),
        M::Mov | M::Pop if operands.iter().any(|k| segment(*k)) && !from_segment(code) => {
            Some("loads a segment register from the host's descriptor tables")
        }
        M::Movsxd if code == Code::Movsxd_r16_rm16 => Some("Intel's processors read 16 bits, AMD's 32"),
        M::Bswap if code == Code::Bswap_r16 => Some("the result is undefined"),
        M::Stac | M::Clac => Some("#UD outside of the supervisor, and the flag would stop the test's own accesses"),
        _ if info.is_reserved_nop() => Some("reserved: later processors gave the encoding a meaning"),
        _ if info.is_input_output() => Some("whether it faults depends on the host's I/O permission map"),
        _ if system_only(code) => Some("privileged: the unit tests of `system` hold it"),
        _ => None,
    }
}

fn is_far(code: Code) -> bool {
    matches!(
        code,
        Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_ptr1616
            | Code::Call_ptr1632
            | Code::Jmp_ptr1616
            | Code::Jmp_ptr1632
    )
}

fn system_only(code: Code) -> bool {
    code.op_code().is_privileged() && code.mnemonic() != Mnemonic::Hlt
}

fn segment(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
}

/// Whether the segment register is only read: `mov r/m, Sreg`.
fn from_segment(code: Code) -> bool {
    matches!(code, Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg)
}
