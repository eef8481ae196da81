//! Packed streams, read to their last byte: gzip (RFC 1952), xz and lzma (XZ Utils), Zstandard (RFC 8878), bzip2.
//!
//! A stream is accepted or refused exactly as the usual tool does (`gzip -t`, `xz -t`, `zstd -t`, `bzip2 -t`): streams
//! one after the other, the padding that the format allows and skippable frames are accepted; a wrong checksum, length
//! or end is an error. The tests compare this with the tools.
//!
//! **Hostile file**: a decoder takes at most [`MAX_WINDOW_KIB`] of memory, whatever the stream's header asks for.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::contents::Packing;

/// Maximum memory that a decoder may need for its window: 256 MiB (`xz -9` needs 65 MiB).
pub const MAX_WINDOW_KIB: u32 = 256 << 10;
const BUFFER: usize = 128 << 10;

/// Returns the unpacked bytes of a stream. Returns `None` for an archive, which is not a stream.
pub fn unpacked<'a>(packing: Packing, packed: Box<dyn Read + 'a>) -> Option<Box<dyn Read + 'a>> {
    let source = Source::new(packed);
    Some(match packing {
        Packing::Gzip => Box::new(GzipMembers { member: Some(flate2::bufread::GzDecoder::new(source)) }),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, MAX_WINDOW_KIB)),
        Packing::Lzma => Box::new(Lzma::Unread(source)),
        Packing::Zstd => Box::new(ZstdFrames::new(source)),
        Packing::Bzip2 => Box::new(Bzip2Streams { stream: Some(bzip2::bufread::BzDecoder::new(source)) }),
        Packing::Tar => return None,
    })
}

fn invalid(words: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early")
}

/// A buffered stream with look-ahead.
struct Source<'a> {
    inner: Box<dyn Read + 'a>,
    buffer: Vec<u8>,
    at: usize,
    len: usize,
}

impl<'a> Source<'a> {
    fn new(inner: Box<dyn Read + 'a>) -> Self {
        Self { inner, buffer: vec![0; BUFFER], at: 0, len: 0 }
    }

    /// Returns the next `count` bytes, or fewer at the end.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.len - self.at < count {
            self.buffer.copy_within(self.at..self.len, 0);
            (self.at, self.len) = (0, self.len - self.at);
            while self.len < count {
                match self.inner.read(&mut self.buffer[self.len..]) {
                    Ok(0) => break,
                    Ok(n) => self.len += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(&self.buffer[self.at..self.len.min(self.at + count)])
    }

    /// Reads the rest and returns whether it is all zero.
    fn rest_is_zero(&mut self) -> io::Result<bool> {
        let mut zero = true;
        loop {
            let bytes = self.fill_buf()?;
            let n = bytes.len();
            if n == 0 {
                return Ok(zero);
            }
            zero &= bytes.iter().all(|byte| *byte == 0);
            self.consume(n);
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)?;
        Ok(&self.buffer[self.at..self.len])
    }
    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.len);
    }
}

/// Members one after the other, and zeros that fill the last block of a tape, as gzip(1) accepts them.
struct GzipMembers<'a> {
    member: Option<flate2::bufread::GzDecoder<Source<'a>>>,
}

impl Read for GzipMembers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let mut source = self.member.take().expect("looked at above").into_inner();
            if source.peek(2)? == [0x1f, 0x8b] {
                self.member = Some(flate2::bufread::GzDecoder::new(source));
            } else if !source.rest_is_zero()? {
                return Err(invalid("garbage follows the end of the gzip stream"));
            }
        }
        Ok(0)
    }
}

/// Streams one after the other. Other bytes after them are ignored, as by bzip2(1).
struct Bzip2Streams<'a> {
    stream: Option<bzip2::bufread::BzDecoder<Source<'a>>>,
}

impl Read for Bzip2Streams<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(stream) = &mut self.stream {
            let n = stream.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let mut source = self.stream.take().expect("looked at above").into_inner();
            match source.peek(4)? {
                [] => {}
                [b'B', b'Z', b'h', b'1'..=b'9'] => self.stream = Some(bzip2::bufread::BzDecoder::new(source)),
                short if short.len() < 4 && b"BZh".starts_with(short) => return Err(cut()),
                // Read to the end, so that the checksum of the outer stream is verified.
                _ => {
                    source.rest_is_zero()?;
                }
            }
        }
        Ok(0)
    }
}

/// The older format of LZMA: one stream, and nothing after it.
enum Lzma<'a> {
    Unread(Source<'a>),
    Running(Box<lzma_rust2::LzmaReader<Source<'a>>>),
    Over,
}

impl Read for Lzma<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Over) {
                Self::Unread(source) => {
                    let mut reader = lzma_rust2::LzmaReader::new_mem_limit(source, MAX_WINDOW_KIB, None)?;
                    // There is no checksum. Only the state of the range coder at the end shows damage.
                    reader.set_relaxed_end_condition(false);
                    *self = Self::Running(Box::new(reader));
                }
                Self::Running(mut reader) => {
                    let n = reader.read(buffer)?;
                    if n > 0 || buffer.is_empty() {
                        *self = Self::Running(reader);
                        return Ok(n);
                    }
                    let (mut source, unread) = reader.into_parts();
                    if !unread.is_empty() || !source.fill_buf()?.is_empty() {
                        return Err(invalid("garbage follows the end of the lzma stream"));
                    }
                }
                Self::Over => return Ok(0),
            }
        }
    }
}

/// All frames of a Zstandard stream, one after the other. Skippable frames are skipped.
struct ZstdFrames<'a> {
    source: Source<'a>,
    decoder: FrameDecoder,
    frame: Option<ZstdFrame>,
}

/// Promises of a frame's header (RFC 8878, 3.1.1.1).
struct ZstdFrame {
    content_bytes: Option<u64>,
    has_checksum: bool,
    read_bytes: u64,
}

impl<'a> ZstdFrames<'a> {
    fn new(source: Source<'a>) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(u64::from(MAX_WINDOW_KIB) << 10);
        Self { source, decoder, frame: None }
    }

    /// Opens the next frame. Returns false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            // Magic number and descriptor.
            let head = self.source.peek(5)?;
            if head.is_empty() {
                return Ok(false);
            }
            let descriptor = head.get(4).copied().ok_or_else(cut)?;
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    // A size of one byte exists only for a frame in one segment.
                    let has_size = descriptor & 0xe0 != 0;
                    self.frame = Some(ZstdFrame {
                        content_bytes: has_size.then(|| self.decoder.content_size()),
                        has_checksum: descriptor & 4 != 0,
                        read_bytes: 0,
                    });
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(cut());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
    }

    /// Verifies the header's promises at the end of a frame.
    fn finish(&mut self, frame: &ZstdFrame) -> io::Result<()> {
        if frame.content_bytes.is_some_and(|bytes| bytes != frame.read_bytes) {
            return Err(invalid("a frame is not as long as its header says"));
        }
        match frame.has_checksum && self.decoder.get_checksum_from_data() != self.decoder.get_calculated_checksum() {
            true => Err(invalid("the checksum of a frame is wrong")),
            false => Ok(()),
        }
    }
}

impl Read for ZstdFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.frame.is_none() && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)).map_err(invalid)?;
            }
            match self.decoder.read(buffer)? {
                0 => {
                    if let Some(frame) = self.frame.take() {
                        self.finish(&frame)?;
                    }
                }
                n => {
                    if let Some(frame) = &mut self.frame {
                        frame.read_bytes += n as u64;
                    }
                    return Ok(n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::contents::Contents;
    use std::process::{Command, Stdio};

    const TOOLS: [(&str, Packing); 5] = [
        ("gzip", Packing::Gzip),
        ("xz", Packing::Xz),
        ("zstd", Packing::Zstd),
        ("bzip2", Packing::Bzip2),
        ("xz --format=lzma", Packing::Lzma),
    ];

    /// Runs a tool on standard input. Returns `None` if it fails.
    fn tool(words: &str, input: &[u8]) -> Option<Vec<u8>> {
        use std::io::Write;
        let words: Vec<&str> = words.split(' ').collect();
        let child =
            Command::new(words[0]).args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{} is needed: {error}", words[0]));
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("does not panic");
        output.status.success().then_some(output.stdout)
    }

    fn ours(packing: Packing, packed: &[u8]) -> io::Result<Vec<u8>> {
        if Contents::of_head(packed) != Contents::Packed(packing) {
            return Err(invalid("it does not begin as such a stream does"));
        }
        let mut bytes = Vec::new();
        unpacked(packing, Box::new(packed)).expect("a stream").read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Checks that we treat the bytes as the tool does.
    fn compare(name: &str, packing: Packing, packed: &[u8], what: &str) {
        let unpack = name.split(' ').next().expect("a word");
        let theirs = match packing {
            Packing::Zstd => tool("zstd -q -d -c", packed),
            _ => tool(&format!("{unpack} -d -c"), packed),
        };
        let found = ours(packing, packed);
        match (&found, &theirs) {
            (Ok(ours), Some(theirs)) => assert!(ours == theirs, "{name}, {what}: other bytes"),
            (Err(_), None) => {}
            (Ok(ours), None) => panic!("{name}, {what}: the tool refuses it, and we made {} bytes of it", ours.len()),
            (Err(error), Some(_)) => panic!("{name}, {what}: the tool takes it, and we do not: {error}"),
        }
    }

    fn plain() -> Vec<u8> {
        (0..700u32).flat_map(|n| (n.wrapping_mul(0x9e37_79b9) >> (n % 30)).to_le_bytes()).collect()
    }

    #[test]
    fn what_follows_a_stream_is_judged_as_the_tool_judges_it() {
        for (name, packing) in TOOLS {
            let (one, empty) =
                (tool(&format!("{name} -c"), &plain()).expect("packs"), tool(&format!("{name} -c"), b"").expect("packs"));
            let zeros = |n: usize| vec![0; n];
            let skip = [&0x184d_2a53u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
            for (what, packed) in [
                ("one stream", one.clone()),
                ("an empty stream", empty.clone()),
                ("two streams", [&one[..], &one].concat()),
                ("a stream and an empty one", [&one[..], &empty].concat()),
                ("an empty stream and one", [&empty[..], &one].concat()),
                ("garbage behind", [&one[..], b"garbage"].concat()),
                ("a byte behind", [&one[..], b"\x01"].concat()),
                ("three zeros behind", [one.clone(), zeros(3)].concat()),
                ("four zeros behind", [one.clone(), zeros(4)].concat()),
                ("many zeros behind", [one.clone(), zeros(200_000)].concat()),
                ("zeros and garbage behind", [one.clone(), zeros(16), b"garbage".to_vec()].concat()),
                ("zeros between two streams", [one.clone(), zeros(8), one.clone()].concat()),
                ("odd zeros between two streams", [one.clone(), zeros(7), one.clone()].concat()),
                ("garbage between two streams", [&one[..], b"garbage", &one].concat()),
                ("the first byte of a stream behind", [&one[..], &one[..1]].concat()),
                ("two bytes of a stream behind", [&one[..], &one[..2]].concat()),
                ("half a stream behind", [&one[..], &one[..one.len() / 2]].concat()),
                ("a skippable frame behind", [&one[..], &skip].concat()),
                ("a skippable frame between", [&one[..], &skip, &one].concat()),
                ("half a skippable frame behind", [&one[..], &skip[..9]].concat()),
            ] {
                compare(name, packing, &packed, what);
            }
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_refused_as_the_tool_refuses_it() {
        for (name, packing) in TOOLS {
            let packed = tool(&format!("{name} -c"), &plain()).expect("packs");
            // The ends of a stream, where its headers, checksums and lengths are.
            let cuts = (1..24).chain(packed.len() - 36..packed.len()).chain((24..packed.len() - 36).step_by(97));
            for at in cuts {
                compare(name, packing, &packed[..at], &format!("cut at {at} of {}", packed.len()));
            }
        }
    }

    #[test]
    fn a_stream_of_which_a_bit_has_changed_is_judged_as_the_tool_judges_it() {
        for (name, packing) in TOOLS {
            let packed = tool(&format!("{name} -c"), &plain()).expect("packs");
            let places = (0..18).chain(packed.len() - 32..packed.len()).chain((18..packed.len() - 32).step_by(211));
            for at in places {
                let mut changed = packed.clone();
                changed[at] ^= 1 << (at % 8);
                compare(name, packing, &changed, &format!("byte {at} of {} changed", packed.len()));
            }
        }
    }

    #[test]
    fn streams_made_with_other_options_come_back() {
        for (words, packing) in [
            ("gzip -1 -c", Packing::Gzip),
            ("xz --check=none -c", Packing::Xz),
            ("xz --check=sha256 --block-size=1000 -c", Packing::Xz),
            ("xz --x86 --lzma2 -c", Packing::Xz),
            ("xz --delta=dist=4 --lzma2 -c", Packing::Xz),
            ("xz -9e -c", Packing::Xz),
            ("zstd -q -19 --no-check -c", Packing::Zstd),
            ("zstd -q --ultra -22 -c", Packing::Zstd),
            ("zstd -q --stream-size=2800 -c", Packing::Zstd),
            ("bzip2 -1 -c", Packing::Bzip2),
            ("xz --format=lzma -0 -c", Packing::Lzma),
        ] {
            let packed = tool(words, &plain()).unwrap_or_else(|| panic!("`{words}` packs"));
            assert!(ours(packing, &packed).unwrap_or_else(|error| panic!("{words}: {error}")) == plain(), "{words}");
        }
    }

    #[test]
    fn a_window_larger_than_the_bound_is_refused_before_its_memory_is_taken() {
        // A frame with a window of 2^41 bytes (RFC 8878, 3.1.1.1.2), and an .lzma header with a dictionary of 3 GiB.
        let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8][..], &[1, 0, 0]].concat();
        assert!(ours(Packing::Zstd, &zstd).is_err());
        let lzma = [&[0x5d][..], &(3u32 << 30).to_le_bytes(), &[0xff; 8], &[0; 5]].concat();
        assert!(ours(Packing::Lzma, &lzma).is_err());
        // An xz block whose LZMA2 filter wants one byte less than 4 GiB (xz-file-format, 5.3.1: property 40). The CRC
        // of its header is right.
        let mut packed = tool("xz -c", b"core").expect("packs");
        packed[16] = 40;
        let crc = crc32fast::hash(&packed[12..20]).to_le_bytes();
        packed[20..24].copy_from_slice(&crc);
        assert!(ours(Packing::Xz, &packed).is_err());
    }
}
