//! Unpacking of a stream while it arrives, layer by layer: a `.tar.xz` is xz, then tar.
//!
//! The first bytes of a layer identify it ([`super::contents`]). Each layer is read to its end, even if only a part is
//! wanted, since a checksum comes after the bytes that it covers.
//!
//! **Hostile file**: at most [`MAX_LAYERS`] layers; [`super::streams`] and [`super::archive`] bound the memory of each;
//! the writer bounds the output.

use std::io::{self, Read};

use super::archive::{self, Choice};
use super::contents::{Contents, HEAD, Packing};
use super::error::{FetchError, Result};
use super::streams;

/// Maximum number of layers. Archives within archives are not followed any further.
pub const MAX_LAYERS: usize = 4;

fn packing_of(head: &[u8]) -> Option<Packing> {
    match Contents::of_head(head) {
        Contents::Packed(packing) => Some(packing),
        _ => None,
    }
}

/// Returns whether these first bytes of a file belong to a packed file. [`HEAD`] are enough.
pub fn is_packed(head: &[u8]) -> bool {
    packing_of(head).is_some()
}

/// Removes every layer from `stream` and gives the contents to `take`; from a tar archive, the chosen member. If a
/// better member follows in the archive, calls `take` again, and the last result counts.
pub fn unpack<T>(stream: Box<dyn Read + '_>, choice: &Choice, take: &mut dyn FnMut(&mut dyn Read) -> Result<T>) -> Result<T> {
    layer(stream, choice, take, MAX_LAYERS)
}

fn layer<T>(
    stream: Box<dyn Read + '_>,
    choice: &Choice,
    take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
    depth: usize,
) -> Result<T> {
    let mut stream = Head::of(stream).map_err(damaged)?;
    let Some(packing) = packing_of(stream.seen()) else { return take(&mut stream) };
    if depth == 0 {
        return Err(FetchError::user("it is packed more than four times over"));
    }
    if packing == Packing::Tar {
        let within = Choice::any(choice.kind);
        return archive::member(stream, choice, &mut |member| layer(Box::new(member), &within, take, depth - 1));
    }
    let mut inner = streams::unpacked(packing, Box::new(stream)).expect("all but archives are streams");
    let taken = layer(Box::new(&mut inner), choice, take, depth - 1)?;
    // Either nothing is left of it, or the layer above was not read to its end.
    io::copy(&mut inner, &mut io::sink()).map_err(damaged)?;
    Ok(taken)
}

/// Creates the error for a packed stream that does not unpack. An error of the stream itself is passed on.
pub fn damaged(error: io::Error) -> FetchError {
    match error.downcast::<FetchError>() {
        Ok(error) => error,
        Err(error) => FetchError::user("the packed file is damaged").because(error),
    }
}

/// A stream with its first bytes put back.
struct Head<R> {
    head: [u8; HEAD],
    len: usize,
    at: usize,
    rest: R,
}

impl<R: Read> Head<R> {
    fn of(mut rest: R) -> io::Result<Self> {
        let (mut head, mut len) = ([0; HEAD], 0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::fetch::catalogue::Kind;

    fn whole(packed: &[u8], member: Option<&str>) -> Result<Vec<u8>> {
        let choice = Choice { kind: Kind::Image, member: member.map(str::to_owned) };
        unpack(Box::new(packed), &choice, &mut |stream| {
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

    /// Packs with the tool of this name. A dash stands for input and output.
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
        // RFC 8878 section 3.1.2. The stream begins with a frame, or it would not be detected as Zstandard.
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
        let archive = tar_of(&[("README", b"read me"), ("./boot/disk.raw", b"the disk"), ("README.img.txt", b"no")]);
        assert_eq!(whole(&gzip(&archive), None).unwrap(), b"the disk");
        assert_eq!(whole(&archive, Some("README.img.txt")).unwrap(), b"no");
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
        let error = unpack(Box::new(stream), &Choice::any(Kind::Image), &mut |_| Ok(())).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("longer than 8 MiB"));
    }

    #[test]
    fn what_is_packed_again_and_again_is_given_up() {
        let packed = (0..8).fold(b"core".to_vec(), |inner, _| gzip(&inner));
        assert!(whole(&packed, None).unwrap_err().to_string().contains("more than four times"));
    }
}
