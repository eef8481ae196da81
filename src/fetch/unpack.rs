//! Unpacks a stream while it comes: gzip (RFC 1952), xz (the .xz file format), Zstandard (RFC 8878), bzip2, and the one file
//! wanted out of a tar archive (POSIX pax, GNU tar).
//!
//! What a stream is is told by its first bytes, layer by layer: a `.tar.xz` is xz, then tar.
//!
//! **Hostile file**: at most [`MAX_LAYERS`] layers; a decoder takes at most [`MAX_WINDOW_KIB`] of memory; the headers of
//! a tar member at most [`MAX_TAR_HEADERS`] bytes; the writer bounds what comes out.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::error::{FetchError, Result};

/// Archives within archives are not followed any further.
pub const MAX_LAYERS: usize = 4;
/// The most that a decoder may ask for its window: 256 MiB (`xz -9` needs 65 MiB).
pub const MAX_WINDOW_KIB: u32 = 256 << 10;
/// Names and attributes before a member of a tar archive.
pub const MAX_TAR_HEADERS: u64 = 1 << 20;
/// Bytes that must be seen to tell a tar archive.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Tar,
}

fn packing_of(head: &[u8]) -> Option<Packing> {
    match head {
        [0x1f, 0x8b, ..] => Some(Packing::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Packing::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Packing::Bzip2),
        head if head.get(TAR_MAGIC) == Some(b"ustar") => Some(Packing::Tar),
        _ => None,
    }
}

/// Whether these first bytes of a file are of something to unpack. 512 are enough to tell.
pub fn is_packed(head: &[u8]) -> bool {
    packing_of(head).is_some()
}

/// Hands what is in `stream`, with every layer taken off, to `take`. Out of a tar archive that is `member`, or
/// without one the first file that looks like an image.
pub fn unpack<T>(
    stream: Box<dyn Read + '_>,
    member: Option<&str>,
    take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    layer(stream, member, take, MAX_LAYERS)
}

fn layer<T>(
    stream: Box<dyn Read + '_>,
    member: Option<&str>,
    take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
    depth: usize,
) -> Result<T> {
    let mut stream = Head::of(stream).map_err(damaged)?;
    let Some(packing) = packing_of(stream.seen()) else { return take(&mut stream) };
    if depth == 0 {
        return Err(FetchError::user("it is packed more than four times over"));
    }
    let inner: Box<dyn Read + '_> = match packing {
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(stream, true, MAX_WINDOW_KIB)),
        Packing::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(stream)),
        Packing::Zstd => Box::new(ZstdFrames::new(Box::new(stream))),
        Packing::Tar => return tar_member(stream, member, take, depth),
    };
    layer(inner, member, take, depth - 1)
}

/// A packed stream that does not unpack. An error of the stream itself comes through as it is.
pub fn damaged(error: io::Error) -> FetchError {
    match error.downcast::<FetchError>() {
        Ok(error) => error,
        Err(error) => FetchError::user("the packed file is damaged").because(error),
    }
}

/// A stream whose first bytes were looked at.
struct Head<R> {
    head: [u8; 512],
    len: usize,
    at: usize,
    rest: R,
}

impl<R: Read> Head<R> {
    fn of(mut rest: R) -> io::Result<Self> {
        let (mut head, mut len) = ([0; 512], 0);
        while len < head.len() {
            match rest.read(&mut head[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { head, len, at: 0, rest })
    }
    fn seen(&self) -> &[u8] {
        &self.head[..self.len]
    }
}

impl<R: Read> Read for Head<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.len {
            return self.rest.read(buffer);
        }
        let n = buffer.len().min(self.len - self.at);
        buffer[..n].copy_from_slice(&self.head[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// All frames of a Zstandard stream, one after the other; skippable frames are skipped.
struct ZstdFrames<'a> {
    source: BufReader<Box<dyn Read + 'a>>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<'a> ZstdFrames<'a> {
    fn new(stream: Box<dyn Read + 'a>) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(u64::from(MAX_WINDOW_KIB) << 10);
        Self { source: BufReader::with_capacity(128 << 10, stream), decoder, in_frame: false }
    }

    /// Opens the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }
}

impl Read for ZstdFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if buffer.is_empty() || !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            match self.decoder.read(buffer)? {
                0 => self.in_frame = false,
                n => return Ok(n),
            }
        }
    }
}

/// A stream that ends with an error when more than a budget is taken.
struct Budgeted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other("the headers of an archive member are longer than 1 MiB"));
        }
        let n = buffer.len().min(usize::try_from(self.left.get()).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buffer[..n])?;
        self.left.set(self.left.get() - n as u64);
        Ok(n)
    }
}

/// What an image in an archive may be called.
const IMAGE_NAMES: [&str; 8] = [".raw", ".img", ".qcow2", ".vmdk", ".vhd", ".iso", ".fd", ".bin"];

fn tar_member<T>(
    stream: impl Read,
    member: Option<&str>,
    take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
    depth: usize,
) -> Result<T> {
    let left = Rc::new(Cell::new(MAX_TAR_HEADERS));
    let mut archive = tar::Archive::new(Budgeted { inner: stream, left: left.clone() });
    let mut seen = Vec::new();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        // The bytes of a member are not bounded here; the headers up to the next one are.
        left.set(u64::MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous() {
            let file = name.trim_start_matches("./").trim_start_matches('/');
            let wanted = match member {
                Some(member) => file == member || file.rsplit('/').next() == Some(member),
                None => IMAGE_NAMES.iter().any(|end| file.ends_with(end)),
            };
            if wanted {
                return layer(Box::new(entry), None, take, depth - 1);
            }
            if seen.len() < 5 {
                seen.push(format!("`{}`", name.chars().take(80).collect::<String>()));
            }
        }
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        left.set(MAX_TAR_HEADERS);
    }
    let wanted = member.map_or("disk image".to_owned(), |member| format!("file `{member}`"));
    let error = FetchError::user(format!("the archive holds no {wanted}"));
    Err(if seen.is_empty() { error } else { error.hint(format!("it holds {}", seen.join(", "))) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn whole(packed: &[u8], member: Option<&str>) -> Result<Vec<u8>> {
        unpack(Box::new(packed), member, &mut |stream| {
            let mut out = Vec::new();
            stream.take(64 << 20).read_to_end(&mut out).map_err(damaged)?;
            Ok(out)
        })
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Packs with the tool of that name; a dash for what goes in and out.
    fn packed_by(tool: &[&str], bytes: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, bytes).unwrap();
        let output = std::process::Command::new(tool[0]).args(&tool[1..]).arg("-c").arg(&path).output();
        let output = output.unwrap_or_else(|error| panic!("{} is needed: {error}", tool[0]));
        assert!(output.status.success());
        output.stdout
    }

    fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn plain() -> Vec<u8> {
        (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn what_the_tools_pack_comes_back() {
        let plain = plain();
        for tool in [&["gzip"][..], &["xz", "-T0", "--block-size=100000"], &["zstd", "-q"], &["bzip2"]] {
            let packed = packed_by(tool, &plain);
            assert!(is_packed(&packed), "{tool:?}");
            assert!(whole(&packed, None).unwrap() == plain, "{tool:?}");
            let twice = [packed.clone(), packed].concat();
            assert!(whole(&twice, None).unwrap() == [&plain[..], &plain].concat(), "two streams of {tool:?}");
        }
        assert!(whole(&plain, None).unwrap() == plain);
        assert_eq!(whole(b"", None).unwrap(), b"");
    }

    #[test]
    fn skippable_frames_of_zstandard_are_skipped() {
        let frame = packed_by(&["zstd", "-q"], b"after it");
        // RFC 8878 section 3.1.2; the stream begins with a frame, or it would not be told as Zstandard.
        let skippable = [&0x184d_2a50u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
        assert_eq!(whole(&[&frame[..], &skippable, &frame].concat(), None).unwrap(), b"after itafter it");
    }

    #[test]
    fn a_packed_stream_cut_short_or_changed_is_an_error() {
        let plain = plain();
        for tool in ["gzip", "xz", "zstd", "bzip2"] {
            let packed = packed_by(&[tool], &plain);
            let error = whole(&packed[..packed.len() - 20], None).unwrap_err();
            assert_eq!(error.to_string(), "the packed file is damaged", "{tool}");
        }
    }

    #[test]
    fn the_wanted_member_of_an_archive_is_found_under_its_layers() {
        let archive = tar_of(&[("README", b"read me"), ("./boot/disk.raw", b"the disk"), ("other.img", b"no")]);
        assert_eq!(whole(&gzip(&archive), None).unwrap(), b"the disk");
        assert_eq!(whole(&archive, Some("other.img")).unwrap(), b"no");
        let nested = tar_of(&[("disk.img", &gzip(b"packed inside"))]);
        assert_eq!(whole(&nested, None).unwrap(), b"packed inside");
    }

    #[test]
    fn an_archive_without_the_member_says_what_it_holds() {
        let archive = tar_of(&[("README", b"x"), ("a/b", b"y")]);
        let error = whole(&archive, Some("disk.raw")).unwrap_err();
        assert_eq!(error.to_string(), "the archive holds no file `disk.raw`");
        assert_eq!(error.next_step(), Some("it holds `README`, `a/b`"));
    }

    #[test]
    fn an_archive_whose_names_have_no_end_takes_no_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_size(1 << 40);
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_cksum();
        let stream = (&header.as_bytes()[..]).chain(io::repeat(b'a'));
        let error = unpack(Box::new(stream), None, &mut |_| Ok(())).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("longer than 1 MiB"));
    }

    #[test]
    fn what_is_packed_again_and_again_is_given_up() {
        let packed = (0..8).fold(b"core".to_vec(), |inner, _| gzip(&inner));
        assert!(whole(&packed, None).unwrap_err().to_string().contains("more than four times"));
    }
}
