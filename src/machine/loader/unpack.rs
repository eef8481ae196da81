//! Unpacks a kernel's payload on the host: a guest CPU in software would take longer.
//!
//! Kinds are told by their magic numbers: gzip (RFC 1952), xz (the .xz file format 1.2.0), Zstandard (RFC 8878), and
//! LZ4's legacy frame (lz4_Frame_format.md, "Legacy frame"), which is what Linux's build uses. Linux appends the
//! unpacked size as four bytes to all but gzip (scripts/Makefile.lib, `size_append`), gzip has it in its trailer.
//!
//! **Hostile file**: output never grows beyond [`MAX_UNPACKED`].

use std::io::Read;

use super::LoadError;

/// The most that a payload may unpack to: 1 GiB.
pub const MAX_UNPACKED: u64 = 1 << 30;

const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// The most that one block of a legacy frame unpacks to.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Unpacks `payload`; `None` when its kind is not known.
pub fn unpack(payload: &[u8]) -> Option<Result<Vec<u8>, LoadError>> {
    let kind = kind_of(payload)?;
    let result = match kind {
        "gzip" => read_all(flate2::read::GzDecoder::new(payload), payload),
        "xz" => read_all(lzma_rust2::XzReader::new(payload, false), payload),
        "zstd" => unpack_zstd(payload),
        _ => unpack_lz4(payload),
    };
    Some(result.map_err(|detail| LoadError::Unpack { kind, detail }))
}

fn kind_of(payload: &[u8]) -> Option<&'static str> {
    if payload.starts_with(&GZIP_MAGIC) {
        Some("gzip")
    } else if payload.starts_with(&XZ_MAGIC) {
        Some("xz")
    } else if payload.starts_with(&ZSTD_MAGIC) {
        Some("zstd")
    } else if payload.starts_with(&LZ4_LEGACY_MAGIC) {
        Some("lz4")
    } else {
        None
    }
}

/// The unpacked size as the last four bytes tell it: good enough to reserve memory by, within bounds.
fn size_hint(payload: &[u8]) -> usize {
    let tail: Option<[u8; 4]> = payload.last_chunk::<4>().copied();
    tail.map_or(0, u32::from_le_bytes).min(256 << 20) as usize
}

fn read_all(reader: impl Read, payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size_hint(payload));
    reader.take(MAX_UNPACKED + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    bounded(out)
}

fn bounded(out: Vec<u8>) -> Result<Vec<u8>, String> {
    if out.len() as u64 > MAX_UNPACKED {
        return Err(format!("it unpacks to more than {MAX_UNPACKED} bytes"));
    }
    Ok(out)
}

fn unpack_zstd(payload: &[u8]) -> Result<Vec<u8>, String> {
    // RFC 8878 section 3.1.1.1: byte 4 is the frame header descriptor; without the single-segment flag (bit 5) byte
    // 5 is the window descriptor. Kernels are packed with a window far larger than themselves, which the decoder
    // refuses; no match reaches further back than the frame's own start, so a window that holds the whole is enough.
    let mut packed = payload.to_vec();
    let size = size_hint(payload) as u64;
    let windowed = packed.get(4).is_some_and(|descriptor| descriptor & 0x20 == 0) && packed.len() > 5;
    if windowed && size > 0 {
        let declared_log = 10 + u32::from(packed[5] >> 3);
        let needed_log = 64 - (size - 1).leading_zeros();
        if needed_log >= 10 && needed_log < declared_log {
            packed[5] = ((needed_log - 10) << 3) as u8;
        }
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).map_err(|e| e.to_string())?;
    read_all(decoder, payload)
}

fn unpack_lz4(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size_hint(payload));
    let mut rest = &payload[4..];
    // The four bytes of appended size are what is left at the end.
    while rest.len() > 4 {
        let (len, behind) = rest.split_first_chunk::<4>().expect("more than four bytes are left");
        let len = u32::from_le_bytes(*len);
        if len.to_le_bytes() == LZ4_LEGACY_MAGIC {
            rest = behind;
            continue;
        }
        let block = behind.get(..len as usize).ok_or_else(|| format!("a block of {len} bytes is cut short"))?;
        let start = out.len();
        out.resize(start + LZ4_LEGACY_BLOCK, 0);
        let n = lz4_flex::block::decompress_into(block, &mut out[start..]).map_err(|e| e.to_string())?;
        out.truncate(start + n);
        if out.len() as u64 > MAX_UNPACKED {
            return bounded(out);
        }
        rest = &behind[len as usize..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_gzip_payload_comes_back_whole() {
        let mut enc = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        enc.write_all(&[7; 100_000]).unwrap();
        let packed = enc.finish().unwrap();
        assert_eq!(unpack(&packed).unwrap().unwrap(), vec![7; 100_000]);
    }

    #[test]
    fn a_legacy_lz4_frame_of_two_blocks_comes_back_whole() {
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        for byte in [1u8, 2] {
            let block = lz4_flex::block::compress(&[byte; 5000]);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend(10_000u32.to_le_bytes());
        let out = unpack(&packed).unwrap().unwrap();
        assert_eq!(out, [vec![1u8; 5000], vec![2; 5000]].concat());
    }

    #[test]
    fn damaged_payloads_are_errors_and_unknown_ones_are_told_apart() {
        assert!(unpack(b"\0\0\0\0nothing").is_none());
        assert!(unpack(&[0x1f, 0x8b, 8, 0, 1, 2, 3]).unwrap().is_err());
        assert!(unpack(&[0xfd, b'7', b'z', b'X', b'Z', 0, 9, 9]).unwrap().is_err());
        assert!(unpack(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x88, 1]).unwrap().is_err());
        assert!(unpack(&[2, 0x21, 0x4c, 0x18, 0xff, 0xff, 0xff, 0x7f, 1, 2]).unwrap().is_err());
    }
}
