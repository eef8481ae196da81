//! Whether the two outcomes of a case agree, and what to print when they do not.

use std::fmt::Write;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic, OpKind};

use crate::case::{Case, Outcome, PAGE, Placed, RDI, SCRATCH, STACK, State};

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
/// The flags that user code can change: CF PF AF ZF SF DF OF, NT, AC, ID. RF, which a fault sets in what the host
/// saves, is not one of them.
const FLAGS: u64 = 0xcd5 | 1 << 14 | 1 << 18 | 1 << 21;

pub fn is_transcendental(code: Code) -> bool {
    use Code::*;
    matches!(code, F2xm1 | Fyl2x | Fyl2xp1 | Fptan | Fpatan | Fsin | Fcos | Fsincos)
}

/// Instructions with two memory operands, of which both may fault.
fn chooses_its_fault(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Enter)
        || matches!(code, Code::Pop_rm16 | Code::Pop_rm32 | Code::Pop_rm64)
}

/// Bytes of what the instruction stores that are not compared: pointers to the last x87 instruction, which some
/// processors keep only after an exception, MXCSR's mask, and which XSAVE components are in use.
pub fn unpredictable(code: Code) -> &'static [(u64, u64)] {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Fnstenv | M::Fnsave => {
            if matches!(code, Code::Fnstenv_m14byte | Code::Fnsave_m94byte) {
                &[(6, 14)]
            } else {
                &[(12, 28)]
            }
        }
        M::Fxsave | M::Fxsave64 => &[(6, 24), (28, 32)],
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => &[(6, 24), (28, 32), (512, 513)],
        _ => &[],
    }
}

fn ignored(case: &Case, host: &Outcome) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for Placed { code, memory, at, .. } in &case.placed {
        let Some((addr, size)) = *memory else { continue };
        for (from, to) in unpredictable(*code) {
            ranges.push((addr + from, addr + to));
        }
        // A store of several parts that faults may have stored some of them.
        if *at == host.state.rip && size > 16 {
            ranges.push((addr, addr + size));
        }
    }
    ranges
}

fn address_of(offset: usize) -> u64 {
    let (page, within) = (offset as u64 / PAGE, offset as u64 % PAGE);
    if page == 2 { STACK + within } else { SCRATCH + offset as u64 }
}

/// Whether two 80-bit numbers are at most one unit in the last place apart.
fn within_one_ulp(a: &[u8], b: &[u8]) -> bool {
    let key = |x: &[u8]| {
        let sig = u64::from_le_bytes(x[..8].try_into().expect("eight bytes"));
        let se = u16::from_le_bytes([x[8], x[9]]);
        (se & 0x8000, i128::from(se & 0x7fff) << 63 | i128::from(sig & (u64::MAX >> 1)))
    };
    let ((sa, ka), (sb, kb)) = (key(a), key(b));
    sa == sb && (ka - kb).abs() <= 1
}

fn compare_fpu(case: &Case, host: &State, soft: &State) -> Option<String> {
    let transcendental = case.forms.iter().any(|&c| is_transcendental(c));
    // C1, precision and underflow of a transcendental result depend on its last bit (SDM vol. 1 section 8.3.10 promises
    // one unit in the last place), and so do ES and B where precision and underflow are not masked.
    let fsw_mask = match (transcendental, case.start.fx16(0) & 0x30) {
        (false, _) => 0xffff,
        (true, 0x30) => !0x0230,
        (true, _) => !0x82b0,
    };
    for (name, at, mask) in [("fcw", 0, 0xffff), ("fsw", 2, fsw_mask), ("ftw", 4, 0x00ff)] {
        let (h, s) = (host.fx16(at) & mask, soft.fx16(at) & mask);
        if h != s {
            return Some(format!("{name}: processor {h:#06x}, software {s:#06x}"));
        }
    }
    if host.fx32(24) != soft.fx32(24) {
        return Some(format!("mxcsr: processor {:#x}, software {:#x}", host.fx32(24), soft.fx32(24)));
    }
    for i in 0..8 {
        let range = 32 + 16 * i..42 + 16 * i;
        let (h, s) = (&host.fx[range.clone()], &soft.fx[range]);
        if h != s && !(transcendental && within_one_ulp(h, s)) {
            return Some(format!("st{i}: processor {}, software {}", hex_number(h), hex_number(s)));
        }
    }
    for i in 0..16 {
        let range = 160 + 16 * i..176 + 16 * i;
        let (h, s) = (&host.fx[range.clone()], &soft.fx[range]);
        if h != s {
            return Some(format!("xmm{i}: processor {}, software {}", hex_number(h), hex_number(s)));
        }
    }
    None
}

fn is_masked_store(code: Code) -> bool {
    matches!(code.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu)
}

fn loads_mxcsr(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Ldmxcsr | M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64)
}

/// Whether the instruction's access may be done in several parts.
fn parts_at(case: &Case, rip: u64) -> bool {
    let several = |size: u64| size > 10 && size != 16;
    case.at(rip).is_some_and(|p| is_masked_store(p.code) || p.memory.is_some_and(|(_, size)| several(size)))
}

/// Whether the operand begins with a canonical address and ends with another.
fn runs_off(case: &Case, rip: u64) -> bool {
    let end = 1 << 47;
    case.at(rip).and_then(|p| p.memory).is_some_and(|(addr, size)| addr < end && addr + size > end)
}

/// Whether both fault addresses are on pages of the instruction's operand.
fn same_operand(case: &Case, host: &Outcome, soft: &Outcome) -> bool {
    let page = |addr: u64| addr / PAGE;
    match case.at(host.state.rip).and_then(|p| p.memory) {
        Some((addr, size)) => {
            let pages = page(addr)..=page(addr.wrapping_add(size - 1));
            // An operand that runs off the end of what its address size reaches goes on at zero: on some processors each
            // part, on others the whole.
            let wraps = |end: u64| addr < end && addr.wrapping_add(size) > end;
            let inside = |at: u64| {
                let ends = [1 << 16, 1 << 32].into_iter().filter(|&end| wraps(end));
                pages.contains(&page(at)) || ends.into_iter().any(|end| pages.contains(&page(at.wrapping_add(end))))
            };
            inside(host.cr2) && inside(soft.cr2)
        }
        // The mask's bytes are at most 16.
        None => (host.cr2.wrapping_sub(soft.cr2) as i64).abs() < 16,
    }
}

fn decode_at(case: &Case, rip: u64) -> Option<Instruction> {
    let placed = case.at(rip)?;
    let at = (placed.at - case.entry()) as usize;
    Some(Decoder::with_ip(case.bits, &case.bytes[at..], placed.at, DecoderOptions::NONE).decode())
}

/// Where the manuals let one processor fault and another go on.
fn allowed_either_way(case: &Case, host: &Outcome, soft: &Outcome) -> bool {
    // SDM MASKMOVDQU: of bytes that the mask leaves out it is implementation dependent whether their address is checked.
    // Where it is, this CPU goes on, or raises another byte's fault.
    if host.vector == 14
        && (host.state.rip != soft.state.rip || soft.vector != 14)
        && let Some(insn) = decode_at(case, host.state.rip)
        && is_masked_store(insn.code())
    {
        let mask = insn.op2_register();
        let at = if mask.is_mm() { 32 + 16 * mask.number() } else { 160 + 16 * mask.number() };
        let bytes = if mask.is_mm() { 8 } else { 16 };
        let width = match insn.op0_kind() {
            OpKind::MemorySegRDI => u64::MAX,
            OpKind::MemorySegEDI => 0xffff_ffff,
            _ => 0xffff,
        };
        let addr = host.state.gpr[RDI] & width;
        let on_page = |i: usize| addr.wrapping_add(i as u64) / PAGE == host.cr2 / PAGE;
        return (0..bytes).all(|i| host.state.fx[at + i] & 0x80 == 0 || !on_page(i));
    }
    if soft.vector != 13 || soft.error != 0 {
        return false;
    }
    // A page that a case cannot write holds images with MXCSR.MM, which AMD's processors have (APM vol. 1 section 4.2.2)
    // and Intel's refuse.
    if host.state.fx32(24) & 0x2_0000 != 0 && case.at(soft.state.rip).is_some_and(|placed| loads_mxcsr(placed.code)) {
        return true;
    }
    // Intel's processors want the SHA instructions' operand aligned (SDM vol. 2, exceptions of type 4), AMD's do not.
    decode_at(case, soft.state.rip).is_some_and(|insn| insn.code().cpuid_features().contains(&CpuidFeature::SHA))
        && (host.state.rip != soft.state.rip || host.vector != 13)
}

/// The first difference.
pub fn compare(case: &Case, host: &Outcome, soft: &Outcome) -> Option<String> {
    if host.vector == 255 {
        return Some("the native child died".to_string());
    }
    if allowed_either_way(case, host, soft) {
        return None;
    }
    // Of two faulting accesses it is not defined which is told: the page that is not there or the address that is not
    // canonical.
    let memory_fault = |o: &Outcome| matches!(o.vector, 12..=14);
    let chooses = memory_fault(host) && case.at(host.state.rip).is_some_and(|placed| chooses_its_fault(placed.code));
    let chooses = chooses || memory_fault(host) && parts_at(case, host.state.rip) && runs_off(case, host.state.rip);
    if host.vector != soft.vector && !(chooses && memory_fault(soft)) {
        return Some(format!("vector: processor {}, software {}", host.vector, soft.vector));
    }
    if host.state.rip != soft.state.rip {
        return Some(format!("rip: processor {:#x}, software {:#x}", host.state.rip, soft.state.rip));
    }
    let parts = parts_at(case, host.state.rip);
    // Linux tells user mode that all of its own addresses, from the last page of the lower half on, are protected and
    // not absent (`set_signal_archinfo` in arch/x86/mm/fault.c; TASK_SIZE_MAX).
    let kernel_address = host.vector == 14 && host.cr2 >= (1 << 47) - PAGE;
    // Of an access of several parts it is not defined which part faults first: a part on a page that is not there
    // or one on a page that may not be written.
    let present = u64::from(parts && host.vector == 14);
    let excused = kernel_address || chooses;
    if matches!(host.vector, 8 | 10..=14 | 17) && host.error | present != soft.error | present && !excused {
        return Some(format!("error code: processor {:#x}, software {:#x}", host.error, soft.error));
    }
    // Nor is it defined which part's address is told.
    let near = parts && same_operand(case, host, soft);
    if host.vector == 14 && host.cr2 != soft.cr2 && !near && !chooses {
        return Some(format!("cr2: processor {:#x}, software {:#x}", host.cr2, soft.cr2));
    }
    for (i, name) in NAMES.iter().enumerate() {
        let (h, s) = (host.state.gpr[i], soft.state.gpr[i]);
        if h != s {
            return Some(format!("{name}: processor {h:#x}, software {s:#x}"));
        }
    }
    // A fetch that faults stands behind a branch: after which one is not known.
    let somewhere = case.placed.iter().fold(case.undefined, |all, p| all | p.undefined);
    let at_end = if host.vector == 3 { case.undefined } else { somewhere };
    let undefined = case.at(host.state.rip).map_or(at_end, |p| p.undefined);
    let (h, s) = (host.state.rflags & FLAGS & !undefined, soft.state.rflags & FLAGS & !undefined);
    if h != s {
        return Some(format!("rflags: processor {}, software {} ({:#x} undefined)", flag_names(h), flag_names(s), undefined));
    }
    if let Some(difference) = compare_fpu(case, &host.state, &soft.state) {
        return Some(difference);
    }
    if host.memory == soft.memory {
        return None;
    }
    let ranges = ignored(case, host);
    for (offset, (h, s)) in host.memory.iter().zip(soft.memory.iter()).enumerate() {
        let addr = address_of(offset);
        if h != s && !ranges.iter().any(|&(from, to)| addr >= from && addr < to) {
            return Some(format!("memory at {addr:#x}: processor {h:#04x}, software {s:#04x}"));
        }
    }
    None
}

fn flag_names(flags: u64) -> String {
    let names =
        [("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("DF", 10), ("OF", 11), ("NT", 14), ("AC", 18), ("ID", 21)];
    let set: Vec<&str> = names.iter().filter(|(_, bit)| flags >> bit & 1 != 0).map(|(name, _)| *name).collect();
    format!("[{}]", set.join(" "))
}

/// Little-endian bytes as one number.
fn hex_number(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

/// Disassembly, inputs and both outcomes.
pub fn describe(case: &Case, host: &Outcome, soft: &Outcome) -> String {
    let mut out = String::new();
    let mut formatter = FastFormatter::new();
    let mut decoder = Decoder::with_ip(case.bits, &case.bytes, case.entry(), DecoderOptions::NONE);
    while decoder.can_decode() {
        let insn = decoder.decode();
        let at = (insn.ip() - case.entry()) as usize;
        let bytes: String = case.bytes[at..at + insn.len()].iter().map(|b| format!("{b:02x} ")).collect();
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        let _ = writeln!(out, "  {:#x}  {bytes:30} {text:40} ; {:?}", insn.ip(), insn.code());
    }
    for Placed { memory, .. } in &case.placed {
        if let Some((addr, size)) = memory {
            let _ = writeln!(out, "  memory operand: {size} bytes at {addr:#x}");
        }
    }
    for (addr, bytes) in &case.patches {
        let shown = &bytes[..bytes.len().min(32)];
        let _ =
            writeln!(out, "  memory at {addr:#x} starts with {}", shown.iter().map(|b| format!("{b:02x} ")).collect::<String>());
    }
    let _ = writeln!(out, "  pages {:?}; {:>8} {:>20} {:>20} {:>20}", case.pages, "", "before", "processor", "software");
    let mut row = |name: &str, a: String, h: String, s: String| {
        let mark = if h != s { " <--" } else { "" };
        let changed = a != h || a != s;
        if changed || name.starts_with('r') || name == "fsw" || name == "fcw" || name == "mxcsr" {
            let _ = writeln!(out, "  {name:>8} {a:>34} {h:>34} {s:>34}{mark}");
        }
    };
    let fault = |o: &Outcome| format!("{} error {:#x} cr2 {:#x}", o.vector, o.error, o.cr2);
    row("vector", "-".to_string(), fault(host), fault(soft));
    let (a, h, s) = (&case.start, &host.state, &soft.state);
    row("rip", format!("{:x}", a.rip), format!("{:x}", h.rip), format!("{:x}", s.rip));
    row("rflags", flag_names(a.rflags & FLAGS), flag_names(h.rflags & FLAGS), flag_names(s.rflags & FLAGS));
    for (i, name) in NAMES.iter().enumerate() {
        row(name, format!("{:x}", a.gpr[i]), format!("{:x}", h.gpr[i]), format!("{:x}", s.gpr[i]));
    }
    for (name, at) in [("fcw", 0), ("fsw", 2), ("ftw", 4)] {
        row(name, format!("{:04x}", a.fx16(at)), format!("{:04x}", h.fx16(at)), format!("{:04x}", s.fx16(at)));
    }
    row("mxcsr", format!("{:x}", a.fx32(24)), format!("{:x}", h.fx32(24)), format!("{:x}", s.fx32(24)));
    let relevant = case.forms.iter().any(|c| {
        let name = format!("{c:?}");
        name.starts_with('F') || name.contains("mm") || name.contains("xmm")
    });
    if relevant {
        for i in 0..8 {
            let range = 32 + 16 * i..42 + 16 * i;
            let _ = writeln!(
                out,
                "  {:>8} {:>34} {:>34} {:>34}{}",
                format!("st{i}"),
                hex_number(&a.fx[range.clone()]),
                hex_number(&h.fx[range.clone()]),
                hex_number(&s.fx[range.clone()]),
                if h.fx[range.clone()] != s.fx[range] { " <--" } else { "" }
            );
        }
        for i in 0..16 {
            let range = 160 + 16 * i..176 + 16 * i;
            let _ = writeln!(
                out,
                "  {:>8} {:>34} {:>34} {:>34}{}",
                format!("xmm{i}"),
                hex_number(&a.fx[range.clone()]),
                hex_number(&h.fx[range.clone()]),
                hex_number(&s.fx[range.clone()]),
                if h.fx[range.clone()] != s.fx[range] { " <--" } else { "" }
            );
        }
    }
    let mut shown = 0;
    for (offset, (h, s)) in host.memory.iter().zip(soft.memory.iter()).enumerate() {
        if h != s && shown < 16 {
            let _ = writeln!(out, "  memory {:#x}: processor {h:02x} software {s:02x}", address_of(offset));
            shown += 1;
        }
    }
    out
}
