//! AES, carry-less multiplication and SHA (SDM vol. 2; FIPS 197, FIPS 180-4).
//!
//! Secret bytes index tables: there is no protection against timing attacks by other users of the host.

use iced_x86::{Instruction, Mnemonic};

use super::fast::*;
use super::form::*;
use super::lanes::*;

/// Returns the handlers of a cryptographic instruction.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    Some(match insn.mnemonic() {
        Mnemonic::Aesenc => {
            host_or!("aes", aesenc, |a, b| (a, b), xmm_op!(u128, encrypt))
        }
        Mnemonic::Aesenclast => {
            host_or!("aes", aesenclast, |a, b| (a, b), xmm_op!(u128, encrypt_last))
        }
        Mnemonic::Aesdec => host_or!("aes", aesdec, |a, b| (a, b), xmm_op!(u128, decrypt)),
        Mnemonic::Aesdeclast => {
            host_or!("aes", aesdeclast, |a, b| (a, b), xmm_op!(u128, decrypt_last))
        }
        Mnemonic::Aesimc => xmm_op!(u128, |_a, b| inverse_mix_columns(b)),
        Mnemonic::Aeskeygenassist => xmm_op!(u128, imm, |_a, b, imm| key_assist(b, imm)),
        Mnemonic::Pclmulqdq => host_or!(
            "pclmulqdq",
            carryless,
            |a, b, imm| (u128::from(half(a, imm)), u128::from(half(b, imm >> 4))),
            xmm_op!(u128, imm, |a, b, imm| carryless(half(a, imm), half(b, imm >> 4)))
        ),
        Mnemonic::Sha1rnds4 => xmm_op!(u128, imm, sha1_rounds),
        Mnemonic::Sha1nexte => xmm_op!(u128, |a, b| b & (u128::MAX >> 32)
            | u128::from(dwords(b)[3].wrapping_add(dwords(a)[3].rotate_left(30))) << 96),
        Mnemonic::Sha1msg1 => xmm_op!(u128, |a, b| a ^ (a << 64 | b >> 64)),
        Mnemonic::Sha1msg2 => xmm_op!(u128, sha1_schedule),
        Mnemonic::Sha256rnds2 => [
            called!(|cpu, op| {
                let r = sha256_rounds(xmm(cpu, op.dst), xmm(cpu, op.src), xmm(cpu, 0));
                set_xmm(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                let b = <u128 as Source>::memory(cpu, op)?;
                let r = sha256_rounds(xmm(cpu, op.dst), b, xmm(cpu, 0));
                set_xmm(cpu, op.dst, r)
            }),
        ],
        Mnemonic::Sha256msg1 => xmm_op!(u128, |a, b| {
            let (w, next) = (dwords(a), b as u32);
            let sigma0 = |x: u32| x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            from_dwords(std::array::from_fn(|i| w[i].wrapping_add(sigma0(if i < 3 { w[i + 1] } else { next }))))
        }),
        Mnemonic::Sha256msg2 => xmm_op!(u128, |a, b| {
            let (w, b) = (dwords(a), dwords(b));
            let sigma1 = |x: u32| x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10;
            let w16 = w[0].wrapping_add(sigma1(b[2]));
            let w17 = w[1].wrapping_add(sigma1(b[3]));
            from_dwords([w16, w17, w[2].wrapping_add(sigma1(w16)), w[3].wrapping_add(sigma1(w17))])
        }),
        _ => return None,
    })
}

/// Doubles in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn double(x: u8) -> u8 {
    x << 1 ^ if x & 0x80 != 0 { 0x1b } else { 0 }
}

/// The S-box (FIPS 197 section 5.1.1), made by stepping through the powers of the field's generator 3 and their
/// inverses together.
const SBOX: [u8; 256] = {
    let mut table = [0u8; 256];
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p = p ^ double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        table[p as usize] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    table[0] = 0x63;
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn substitute(v: u128, table: &[u8; 256]) -> u128 {
    u128::from_le_bytes(v.to_le_bytes().map(|b| table[b as usize]))
}

/// Rotates row `r` of the state left by `r * turn` columns: 1 to encrypt, 3 to decrypt.
fn shift_rows(v: u128, turn: usize) -> u128 {
    let b = v.to_le_bytes();
    u128::from_le_bytes(std::array::from_fn(|i| b[(i / 4 + i % 4 * turn) % 4 * 4 + i % 4]))
}

fn mix_columns(v: u128) -> u128 {
    // This doubles all sixteen bytes at once.
    const ONES: u128 = u128::from_le_bytes([1; 16]);
    let carry = v >> 7 & ONES;
    let doubled = (v & !(ONES << 7)) << 1 ^ carry * 0x1b;
    let turned = |v: u128, bytes: u32| from_dwords(dwords(v).map(|d| d.rotate_right(8 * bytes)));
    doubled ^ turned(v ^ doubled, 1) ^ turned(v, 2) ^ turned(v, 3)
}

fn inverse_mix_columns(v: u128) -> u128 {
    // The inverse matrix is the matrix itself times (4, 0, 4, 0) + 1.
    const ONES: u128 = u128::from_le_bytes([1; 16]);
    let twice = |v: u128| (v & !(ONES << 7)) << 1 ^ (v >> 7 & ONES) * 0x1b;
    let across = v ^ from_dwords(dwords(v).map(|d| d.rotate_right(16)));
    mix_columns(v ^ twice(twice(across)))
}

pub(super) fn encrypt(a: u128, key: u128) -> u128 {
    mix_columns(substitute(shift_rows(a, 1), &SBOX)) ^ key
}

pub(super) fn encrypt_last(a: u128, key: u128) -> u128 {
    substitute(shift_rows(a, 1), &SBOX) ^ key
}

pub(super) fn decrypt(a: u128, key: u128) -> u128 {
    inverse_mix_columns(substitute(shift_rows(a, 3), &INVERSE_SBOX)) ^ key
}

pub(super) fn decrypt_last(a: u128, key: u128) -> u128 {
    substitute(shift_rows(a, 3), &INVERSE_SBOX) ^ key
}

fn key_assist(v: u128, imm: u8) -> u128 {
    let d = dwords(substitute(v, &SBOX));
    let constant = u32::from(imm);
    from_dwords([d[1], d[1].rotate_right(8) ^ constant, d[3], d[3].rotate_right(8) ^ constant])
}

/// Returns the half that bit 0 of `choice` selects.
pub(super) fn half(v: u128, choice: u8) -> u64 {
    qwords(v)[usize::from(choice & 1)]
}

pub(super) fn carryless(a: u64, b: u64) -> u128 {
    // Four bits of `b` at a time.
    let mut table = [0u128; 16];
    for i in 1..16 {
        table[i] = table[i >> 1] << 1 ^ if i & 1 != 0 { u128::from(a) } else { 0 };
    }
    (0..16).rev().fold(0, |product, i| product << 4 ^ table[(b >> (4 * i) & 15) as usize])
}

/// Executes SHA1RNDS4: four rounds with function and constant `imm & 3`. A is in the highest lane.
fn sha1_rounds(a: u128, b: u128, imm: u8) -> u128 {
    let [mut d, mut c, mut bb, mut aa] = dwords(a);
    // E is already in the first word of the message.
    let mut e = 0u32;
    for w in dwords(b).into_iter().rev() {
        let (f, k) = match imm & 3 {
            0 => (bb & c ^ !bb & d, 0x5a82_7999u32),
            1 => (bb ^ c ^ d, 0x6ed9_eba1),
            2 => (bb & c ^ bb & d ^ c & d, 0x8f1b_bcdc),
            _ => (bb ^ c ^ d, 0xca62_c1d6),
        };
        let next = f.wrapping_add(aa.rotate_left(5)).wrapping_add(w).wrapping_add(e).wrapping_add(k);
        (e, d, c, bb, aa) = (d, c, bb.rotate_left(30), aa, next);
    }
    from_dwords([d, c, bb, aa])
}

fn sha1_schedule(a: u128, b: u128) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    let w16 = (a[3] ^ b[2]).rotate_left(1);
    let w17 = (a[2] ^ b[1]).rotate_left(1);
    let w18 = (a[1] ^ b[0]).rotate_left(1);
    let w19 = (a[0] ^ w16).rotate_left(1);
    from_dwords([w19, w18, w17, w16])
}

/// Executes SHA256RNDS2: `cdgh` is the destination, `abef` the source, `wk` XMM0.
fn sha256_rounds(cdgh: u128, abef: u128, wk: u128) -> u128 {
    let [mut h, mut g, mut d, mut c] = dwords(cdgh);
    let [mut f, mut e, mut b, mut a] = dwords(abef);
    for k in &dwords(wk)[..2] {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t1 = h.wrapping_add(s1).wrapping_add(e & f ^ !e & g).wrapping_add(*k);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    let _ = (c, d, g, h);
    from_dwords([f, e, b, a])
}
