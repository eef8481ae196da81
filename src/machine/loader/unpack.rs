//! Unpacking of a kernel's payload on the host, since a guest CPU in software would take longer.
//!
//! Magic numbers identify the kinds: gzip (RFC 1952), bzip2, xz (the .xz file format 1.2.0), Zstandard (RFC 8878),
//! LZ4's frames and its legacy frame (lz4_Frame_format.md, "Legacy frame"), which is what Linux's build uses. Linux
//! appends the unpacked size as four bytes to all except gzip (scripts/Makefile.lib, `size_append`), which has it in
//! its trailer.
//!
//! The payload comes in pieces. So one piece goes to guest memory while the next is unpacked, and the whole is never
//! held in memory.
//!
//! **Hostile file**: output never grows beyond [`MAX_UNPACKED`], a piece never beyond [`PIECE`], a decoder's own memory
//! never beyond [`XZ_MEMORY_KIB`] (xz) or 100 MiB (Zstandard, by its crate).

use std::io::Read;

use super::LoadError;

/// Maximum size of an unpacked payload: 1 GiB.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// Maximum size of one piece. All pieces of a stream except the last have this size.
pub const PIECE: usize = 8 << 20;

/// Maximum memory that an xz stream may make its decoder reserve: twice that of `xz -9` and of Linux's build.
const XZ_MEMORY_KIB: u32 = 256 << 10;
const LZ4_MAGIC: [u8; 4] = 0x184d_2204u32.to_le_bytes();
const BZIP2_MAGIC: &[u8] = b"BZh";
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// Maximum unpacked size of one block of a legacy frame.
const LZ4_LEGACY_BLOCK: usize = PIECE;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A payload that is being unpacked.
pub struct Unpacker<'a> {
    kind: &'static str,
    source: Source<'a>,
    total: u64,
}

enum Source<'a> {
    Stream(Box<dyn Read + Send + 'a>),
    /// The rest of a legacy frame.
    Lz4(&'a [u8]),
}

impl<'a> Unpacker<'a> {
    /// Creates an unpacker. Returns `None` when the payload's kind is not known.
    pub fn new(payload: &'a [u8]) -> Option<Result<Unpacker<'a>, LoadError>> {
        let kind = kind_of(payload)?;
        let source = match kind {
            "gzip" => Ok(Source::Stream(Box::new(flate2::read::GzDecoder::new(payload)))),
            "xz" => Ok(Source::Stream(Box::new(lzma_rust2::XzReader::new_mem_limit(payload, false, XZ_MEMORY_KIB)))),
            "bzip2" => Ok(Source::Stream(Box::new(bzip2::read::BzDecoder::new(payload)))),
            "lz4" if payload.starts_with(&LZ4_MAGIC) => Ok(Source::Stream(Box::new(lz4_flex::frame::FrameDecoder::new(payload)))),
            "zstd" => zstd(payload),
            _ => Ok(Source::Lz4(&payload[LZ4_LEGACY_MAGIC.len()..])),
        };
        Some(match source {
            Ok(source) => Ok(Unpacker { kind, source, total: 0 }),
            Err(detail) => Err(LoadError::Unpack { kind, detail }),
        })
    }

    /// Replaces the contents of `piece` with the next bytes. Returns `false` at the end.
    pub fn next_piece(&mut self, piece: &mut Vec<u8>) -> Result<bool, LoadError> {
        let more = match &mut self.source {
            Source::Stream(reader) => next_of_stream(reader.as_mut(), piece),
            Source::Lz4(rest) => next_of_lz4(rest, piece),
        };
        self.total += piece.len() as u64;
        match more {
            Ok(_) if self.total > MAX_UNPACKED => Err(format!("it unpacks to more than {MAX_UNPACKED} bytes")),
            more => more,
        }
        .map_err(|detail| LoadError::Unpack { kind: self.kind, detail })
    }
}

/// Unpacks a file that is packed as a whole. Returns `None` if it is not packed.
pub fn whole(bytes: &[u8], limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let Some(unpacker) = Unpacker::new(bytes) else { return Ok(None) };
    let mut unpacker = unpacker?;
    let (mut whole, mut piece) = (Vec::new(), Vec::new());
    while unpacker.next_piece(&mut piece)? {
        if (whole.len() + piece.len()) as u64 > limit {
            let detail = format!("it unpacks to more than {limit} bytes");
            return Err(LoadError::Unpack { kind: unpacker.kind, detail });
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Some(whole))
}

fn kind_of(payload: &[u8]) -> Option<&'static str> {
    if payload.starts_with(&GZIP_MAGIC) {
        Some("gzip")
    } else if payload.starts_with(&XZ_MAGIC) {
        Some("xz")
    } else if payload.starts_with(&ZSTD_MAGIC) {
        Some("zstd")
    } else if payload.starts_with(&LZ4_LEGACY_MAGIC) || payload.starts_with(&LZ4_MAGIC) {
        Some("lz4")
    } else if payload.starts_with(BZIP2_MAGIC) && payload.get(3).is_some_and(|level| (b'1'..=b'9').contains(level)) {
        Some("bzip2")
    } else {
        None
    }
}

/// Returns the unpacked size from the last four bytes.
fn size_hint(payload: &[u8]) -> u64 {
    payload.last_chunk::<4>().map_or(0, |tail| u64::from(u32::from_le_bytes(*tail)))
}

fn next_of_stream(reader: &mut dyn Read, piece: &mut Vec<u8>) -> Result<bool, String> {
    piece.clear();
    piece.reserve_exact(PIECE);
    reader.take(PIECE as u64).read_to_end(piece).map_err(|e| e.to_string())?;
    Ok(!piece.is_empty())
}

fn zstd(payload: &[u8]) -> Result<Source<'_>, String> {
    // RFC 8878 section 3.1.1.1: byte 4 is the frame header descriptor; without the single-segment flag (bit 5) byte 5
    // is the window descriptor. Kernels are packed with a window far larger than themselves, which the decoder refuses.
    // No match reaches further back than the frame's own start, so a window of the whole size is enough.
    let (start, rest) = payload.split_at(payload.len().min(6));
    let mut start = start.to_vec();
    let size = size_hint(payload).min(256 << 20);
    let windowed = start.get(4).is_some_and(|descriptor| descriptor & 0x20 == 0) && start.len() > 5;
    if windowed && size > 0 {
        let declared_log = 10 + u32::from(start[5] >> 3);
        let needed_log = 64 - (size - 1).leading_zeros();
        if needed_log >= 10 && needed_log < declared_log {
            start[5] = ((needed_log - 10) << 3) as u8;
        }
    }
    let packed = std::io::Cursor::new(start).chain(rest);
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|e| e.to_string())?;
    Ok(Source::Stream(Box::new(decoder)))
}

fn next_of_lz4(rest: &mut &[u8], piece: &mut Vec<u8>) -> Result<bool, String> {
    // The four bytes of the appended size are left at the end.
    while rest.len() > 4 {
        let (len, behind) = rest.split_first_chunk::<4>().expect("more than four bytes are left");
        if *len == LZ4_LEGACY_MAGIC {
            *rest = behind;
            continue;
        }
        let len = u32::from_le_bytes(*len) as usize;
        let block = behind.get(..len).ok_or_else(|| format!("a block of {len} bytes is cut short"))?;
        // A piece that is used again already has this length, so nothing is cleared.
        piece.resize(LZ4_LEGACY_BLOCK, 0);
        let unpacked = lz4_flex::block::decompress_into(block, piece).map_err(|e| e.to_string())?;
        piece.truncate(unpacked);
        *rest = &behind[len..];
        return Ok(true);
    }
    piece.clear();
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn unpack(payload: &[u8]) -> Option<Result<Vec<u8>, LoadError>> {
        Unpacker::new(payload).map(|unpacker| {
            let (mut unpacker, mut whole, mut piece) = (unpacker?, Vec::new(), Vec::new());
            while unpacker.next_piece(&mut piece)? {
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        })
    }

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
    fn what_is_larger_than_a_piece_comes_in_several() {
        let whole: Vec<u8> = (0..PIECE + 1000).map(|at| (at / 777) as u8).collect();
        let mut enc = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        enc.write_all(&whole).unwrap();
        assert_eq!(unpack(&enc.finish().unwrap()).unwrap().unwrap(), whole);
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
