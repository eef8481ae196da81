//! Extraction of one file from a tar archive (POSIX pax, ustar, GNU tar), as it was before it was packed: holes
//! included.
//!
//! The whole archive is read to its end. An archive that is incomplete, or that holds several candidates, is refused
//! with the names that were seen. Sparse members of GNU tar are read in its old format and in those of pax archives,
//! 0.0, 0.1 and 1.0 (GNU tar manual, appendix "Storing Sparse Files"), which bsdtar writes too; others are refused by
//! name.
//!
//! **Hostile file**: the headers of a member are at most [`MAX_HEADERS`] long, its map of holes has at most
//! [`MAX_STRETCHES`] entries, and the extracted file is at most [`MAX_DISK`] long.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::catalogue::Kind;
use super::error::{FetchError, Result};
use super::image::MAX_DISK;
use super::unpack::damaged;

/// Maximum size of names and attributes before a member: 8 MiB, the map of a sparse file with 350,000 stretches.
pub const MAX_HEADERS: u64 = 8 << 20;
/// Maximum number of stretches of data of a sparse file.
pub const MAX_STRETCHES: usize = 4 << 20;
/// Number of names in an error.
const MAX_NAMES: usize = 5;

/// Selects the wanted member.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The kind that it must be.
    pub kind: Kind,
    /// Its name, or its name without its directories.
    pub member: Option<String>,
}

/// Endings of the names of disks. Formats that are not supported are included, so that they are refused by name.
const DISKS: [&str; 11] = [".raw", ".img", ".qcow2", ".qcow", ".vmdk", ".vhd", ".vhdx", ".vdi", ".qed", ".hds", ".dd"];
const MEDIA: [&str; 1] = [".iso"];
const FIRMWARE: [&str; 3] = [".fd", ".bin", ".rom"];
/// Further endings of a packed file's name.
const PACKED: [&str; 6] = [".gz", ".xz", ".zst", ".bz2", ".lzma", ".tar"];

impl Choice {
    /// Selects any member that looks like the kind.
    pub fn any(kind: Kind) -> Self {
        Self { kind, member: None }
    }

    /// Returns how well a name fits: not at all (0), perhaps (1), well (2).
    fn fit(&self, name: &str) -> u8 {
        let base = name.rsplit('/').next().unwrap_or(name);
        if let Some(member) = &self.member {
            return if name == member { 2 } else { u8::from(base == member) };
        }
        // The attributes of another file, in archives made on macOS (RFC 1740, "AppleDouble").
        if base.starts_with("._") || name.split('/').any(|part| part == "__MACOSX") {
            return 0;
        }
        let name = base.to_lowercase();
        let plain = PACKED.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        let ends = |list: &[&str]| list.iter().any(|end| plain.ends_with(end));
        let (well, perhaps) = match self.kind {
            Kind::Image => (ends(&DISKS), ends(&MEDIA) || ends(&FIRMWARE)),
            Kind::Iso => (ends(&MEDIA), ends(&DISKS)),
            Kind::Firmware => (ends(&FIRMWARE), ends(&DISKS)),
        };
        if well { 2 } else { u8::from(perhaps) }
    }

    fn words(&self) -> String {
        match (&self.member, self.kind) {
            (Some(member), _) => format!("file `{member}`"),
            (None, Kind::Image) => "disk image".into(),
            (None, kind) => kind.name().into(),
        }
    }
}

/// A stream that gives an error when more than a budget is read.
struct Budgeted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other("the headers of an archive member are longer than 8 MiB"));
        }
        let n = buffer.len().min(usize::try_from(self.left.get()).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buffer[..n])?;
        self.left.set(self.left.get() - n as u64);
        Ok(n)
    }
}

/// Names that were seen in an archive.
struct Seen {
    best: u8,
    /// The members that fit best.
    chosen: Vec<String>,
    /// The first of all members.
    all: Vec<String>,
}

impl Seen {
    fn verdict<T>(self, choice: &Choice, taken: Option<T>) -> Result<T> {
        let list = |names: &[String]| {
            let list: Vec<String> = names.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
            let more = if names.len() > MAX_NAMES { " and more" } else { "" };
            format!("{}{more}", list.join(", "))
        };
        match taken {
            Some(taken) if self.chosen.len() == 1 => Ok(taken),
            Some(_) => {
                Err(FetchError::user(format!("the archive holds more than one {}: {}", choice.words(), list(&self.chosen)))
                    .hint("unpack it with tar(1), and use the one that you want"))
            }
            None => {
                let error = FetchError::user(format!("the archive holds no {}", choice.words()));
                Err(if self.all.is_empty() { error } else { error.hint(format!("it holds {}", list(&self.all))) })
            }
        }
    }
}

/// Gives the wanted member to `take`, more than once if a better one follows. The last result counts.
pub fn member<T>(stream: impl Read, choice: &Choice, take: &mut dyn FnMut(&mut dyn Read) -> Result<T>) -> Result<T> {
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let mut archive = tar::Archive::new(Budgeted { inner: stream, left: left.clone() });
    let (mut seen, mut taken) = (Seen { best: 0, chosen: Vec::new(), all: Vec::new() }, None);
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        // The bytes of a member are not bounded here, but the headers up to the next one are.
        left.set(u64::MAX);
        let mut member = Member::open(entry)?;
        let fit = if member.is_file { choice.fit(&member.name) } else { 0 };
        if fit > seen.best {
            (seen.best, seen.chosen) = (fit, vec![member.display_name()]);
            member.refuse_what_is_not_whole()?;
            taken = Some(take(&mut member)?);
        } else if fit > 0 && fit == seen.best && seen.chosen.len() <= MAX_NAMES {
            seen.chosen.push(member.display_name());
        }
        if !member.is_directory && seen.all.len() <= MAX_NAMES {
            seen.all.push(member.display_name());
        }
        member.skip().map_err(damaged)?;
        left.set(MAX_HEADERS);
    }
    // Bytes after the archive's end belong to the stream that contains it, which has a checksum at its own end.
    left.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    seen.verdict(choice, taken)
}

/// A member of an archive. Its bytes end where its header says, or in an error.
struct Member<'a, R: Read> {
    entry: tar::Entry<'a, R>,
    name: String,
    is_file: bool,
    is_directory: bool,
    /// Reason why it cannot be read completely.
    partial: Option<&'static str>,
    /// Bytes of `entry` that are still to come.
    left: u64,
    holes: Option<Holes>,
}

impl<'a, R: Read> Member<'a, R> {
    fn open(mut entry: tar::Entry<'a, R>) -> Result<Self> {
        let records = Records::read(&mut entry)?;
        let kind = entry.header().entry_type();
        let name = records.name.clone().unwrap_or_else(|| String::from_utf8_lossy(&entry.path_bytes()).into_owned());
        let name = name.trim_start_matches("./").trim_start_matches('/').to_owned();
        let partial = match kind.as_byte() {
            b'M' => Some("continues on another volume"),
            _ if records.star => Some("is sparse in the form of star(1) or Solaris, which is not read"),
            _ => None,
        };
        let is_file = kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous() || kind.as_byte() == b'M';
        if kind.is_pax_global_extensions() && !records.is_empty() {
            return Err(FetchError::user("the archive has attributes for all its files at once, which are not read"));
        }
        let left = entry.size().saturating_sub(records.consumed);
        if left > MAX_DISK {
            return Err(FetchError::user(format!("the archive has a file of {left} bytes, more than 64 TiB")));
        }
        let mut member = Self { entry, name, is_file, is_directory: kind.is_dir(), partial, left, holes: None };
        if is_file && partial.is_none() {
            member.holes = member.read_map(records)?;
        }
        Ok(member)
    }

    fn display_name(&self) -> String {
        self.name.chars().filter(|c| !c.is_control()).take(80).collect()
    }

    fn refuse_what_is_not_whole(&self) -> Result<()> {
        match self.partial {
            Some(why) => Err(FetchError::user(format!("`{}` in the archive {why}", self.display_name()))
                .hint("unpack it with the tar(1) that made it, and take the file")),
            None => Ok(()),
        }
    }

    /// Reads the map of a sparse file in a pax archive.
    fn read_map(&mut self, records: Records) -> Result<Option<Holes>> {
        let name = self.display_name();
        let bad = |words: &str| FetchError::user(format!("the map of the sparse file `{name}` {words}"));
        let (size, stretches) = match (records.version, records.size) {
            (None, None) => return Ok(None),
            (None | Some((0, _)), Some(size)) => (size, records.stretches.ok_or_else(|| bad("cannot be read"))?),
            (Some((1, 0)), Some(size)) => (size, self.read_map_in_data().map_err(damaged)?.ok_or_else(|| bad("cannot be read"))?),
            (Some((major, minor)), _) => return Err(bad(&format!("is of the unknown version {major}.{minor}"))),
        };
        let mut end = 0u64;
        let mut data = 0u64;
        for (offset, len) in &stretches {
            let until = offset.checked_add(*len).filter(|until| *offset >= end && *until <= size);
            end = until.ok_or_else(|| bad("has stretches that overlap, or reach past its end"))?;
            data += len;
        }
        if size > MAX_DISK {
            return Err(bad("is of more than 64 TiB"));
        }
        if data != self.left {
            return Err(bad(&format!("has {data} bytes, and the archive has {} of them", self.left)));
        }
        Ok(Some(Holes { size, stretches: stretches.into(), at: 0 }))
    }

    /// Reads the map of version 1.0: decimal numbers, each with a line end: how many stretches, and offset and length
    /// of each; zeros up to the next block.
    fn read_map_in_data(&mut self) -> io::Result<Option<Vec<(u64, u64)>>> {
        let (mut block, mut at) = ([0u8; 512], 512);
        let mut numbers = || -> io::Result<Option<u64>> {
            let mut number: Option<u64> = None;
            loop {
                if at == block.len() {
                    if self.left < block.len() as u64 {
                        return Ok(None);
                    }
                    self.entry.read_exact(&mut block)?;
                    self.left -= block.len() as u64;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(number),
                    b'0'..=b'9' => {
                        let next = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        number = match next {
                            Some(next) => Some(next),
                            None => return Ok(None),
                        };
                    }
                    _ => return Ok(None),
                }
            }
        };
        let Some(count) = numbers()?.and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= MAX_STRETCHES) else {
            return Ok(None);
        };
        let mut stretches = Vec::new();
        for _ in 0..count {
            match (numbers()?, numbers()?) {
                (Some(offset), Some(len)) => stretches.push((offset, len)),
                _ => return Ok(None),
            }
        }
        Ok(Some(stretches))
    }

    /// Reads bytes of the archive. It is an error if there are fewer than promised.
    fn stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.entry.read(&mut buffer[..most])? {
            0 => {
                let words = format!("the archive ends within `{}`: {} bytes are missing", self.display_name(), self.left);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, words))
            }
            n => {
                self.left -= n as u64;
                Ok(n)
            }
        }
    }

    /// Skips the rest of the member in the archive.
    fn skip(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while self.stored(&mut buffer)? > 0 {}
        Ok(())
    }
}

/// Positions of the data of a sparse file.
struct Holes {
    size: u64,
    /// Offset and length, in order.
    stretches: std::collections::VecDeque<(u64, u64)>,
    at: u64,
}

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(holes) = &mut self.holes else { return self.stored(buffer) };
        while holes.stretches.front().is_some_and(|(offset, len)| offset + len <= holes.at) {
            holes.stretches.pop_front();
        }
        let (start, end) = holes.stretches.front().map_or((holes.size, holes.size), |(offset, len)| (*offset, offset + len));
        let is_hole = holes.at < start;
        let most = if is_hole { start - holes.at } else { end - holes.at };
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let n = match is_hole {
            true => {
                buffer[..most].fill(0);
                most
            }
            false => self.stored(&mut buffer[..most])?,
        };
        if let Some(holes) = &mut self.holes {
            holes.at += n as u64;
        }
        Ok(n)
    }
}

/// Information of a member's pax records about its holes.
#[derive(Default)]
struct Records {
    name: Option<String>,
    size: Option<u64>,
    version: Option<(u64, u64)>,
    /// Stretches of versions 0.0 and 0.1.
    stretches: Option<Vec<(u64, u64)>>,
    star: bool,
    /// There is a record that changes how a file is read.
    any: bool,
    /// Bytes of the member that were read for it.
    consumed: u64,
}

impl Records {
    fn is_empty(&self) -> bool {
        !self.any
    }

    fn read<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Self> {
        let mut found = Self::default();
        if entry.header().entry_type().is_pax_global_extensions() {
            let mut bytes = Vec::new();
            entry.take(MAX_HEADERS).read_to_end(&mut bytes).map_err(damaged)?;
            found.consumed = bytes.len() as u64;
            for record in tar::PaxExtensions::new(&bytes) {
                let record = record.map_err(damaged)?;
                let key = record.key_bytes();
                found.any |=
                    key.starts_with(b"GNU.sparse.") || key.starts_with(b"GNU.volume.") || matches!(key, b"path" | b"size");
            }
            return Ok(found);
        }
        let mut numbers = Vec::new();
        for record in entry.pax_extensions().map_err(damaged)?.into_iter().flatten() {
            let record = record.map_err(damaged)?;
            let text = String::from_utf8_lossy(record.value_bytes());
            let number = || text.parse::<u64>().ok();
            match record.key_bytes() {
                b"GNU.sparse.name" => found.name = Some(text.into_owned()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => found.size = number(),
                b"GNU.sparse.major" => found.version = Some((number().unwrap_or(u64::MAX), found.version.map_or(0, |it| it.1))),
                b"GNU.sparse.minor" => found.version = Some((found.version.map_or(0, |it| it.0), number().unwrap_or(u64::MAX))),
                // 0.0 repeats these two for each stretch, and 0.1 has them all in one.
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => numbers.push(number()),
                b"GNU.sparse.map" => numbers = text.split(',').map(|number| number.parse().ok()).collect(),
                b"SUN.holesdata" | b"SCHILY.realsize" => found.star = true,
                _ => {}
            }
        }
        let pairs = numbers.chunks_exact(2).map(|pair| Some((pair[0]?, pair[1]?)));
        found.stretches =
            pairs.collect::<Option<Vec<_>>>().filter(|_| numbers.len() % 2 == 0 && numbers.len() / 2 <= MAX_STRETCHES);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::unpack::unpack;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    fn whole(archive: &[u8], choice: &Choice) -> Result<Vec<u8>> {
        unpack(Box::new(archive), choice, &mut |stream| {
            let mut out = Vec::new();
            stream.take(64 << 20).read_to_end(&mut out).map_err(damaged)?;
            Ok(out)
        })
    }

    fn image(archive: &[u8]) -> Result<Vec<u8>> {
        whole(archive, &Choice::any(Kind::Image))
    }

    /// Returns the message of an error and of its cause.
    fn said(error: &FetchError) -> String {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        format!("{error}{source}; {}", error.next_step().unwrap_or_default())
    }

    fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).expect("packs");
        }
        builder.into_inner().expect("packs")
    }

    /// Creates a file of 3 MiB with holes at its start, in between and at its end that the file system knows.
    fn sparse_file(path: &Path) -> Vec<u8> {
        let file = std::fs::File::create(path).expect("makes");
        file.set_len(3 << 20).expect("grows");
        for (at, len) in [(128 << 10, 70_000), (1 << 20, 512), (2 << 20, 4096)] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8 + 1).collect();
            file.write_all_at(&bytes, at).expect("writes");
        }
        file.sync_all().expect("syncs");
        std::fs::read(path).expect("reads")
    }

    fn packed_by_tar(dir: &Path, words: &[&str]) -> Vec<u8> {
        let output = Command::new("tar").args(words).args(["-cf", "-", "-C"]).arg(dir).arg("disk.raw").output();
        let output = output.unwrap_or_else(|error| panic!("tar is needed: {error}"));
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    fn a_sparse_file_comes_out_of_every_format_of_tar_as_it_went_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = sparse_file(&dir.path().join("disk.raw"));
        for words in [
            &["--format=gnu", "-S"][..],
            &["--format=oldgnu", "-S"],
            &["--format=posix", "-S", "--sparse-version=0.0"],
            &["--format=posix", "-S", "--sparse-version=0.1"],
            &["--format=posix", "-S", "--sparse-version=1.0"],
            &["--format=posix"],
            &["--format=ustar"],
            &["--format=v7"],
        ] {
            let archive = packed_by_tar(dir.path(), words);
            let sparse = words.contains(&"-S");
            assert_eq!(archive.len() < 1 << 20, sparse, "{words:?}: the archive itself is sparse");
            let found = image(&archive).unwrap_or_else(|error| panic!("{words:?}: {}", said(&error)));
            assert!(found == disk, "{words:?}");
        }
    }

    #[test]
    fn a_map_of_many_stretches_is_read_over_its_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.raw");
        let file = std::fs::File::create(&path).expect("makes");
        file.set_len(16 << 20).expect("grows");
        (0..1000).for_each(|n| file.write_all_at(&[n as u8 | 1; 4096], n * 16384).expect("writes"));
        let disk = std::fs::read(&path).expect("reads");
        for version in ["0.0", "0.1", "1.0"] {
            let archive = packed_by_tar(dir.path(), &["--format=posix", "-S", &format!("--sparse-version={version}")]);
            assert!(image(&archive).unwrap_or_else(|error| panic!("{version}: {}", said(&error))) == disk, "{version}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_is_refused_wherever_that_is() {
        let dir = tempfile::tempdir().expect("a directory");
        sparse_file(&dir.path().join("disk.raw"));
        let plain = tar_of(&[("disk.raw", &[7; 5000]), ("README", &[b'x'; 3000])]);
        let sparse = packed_by_tar(dir.path(), &["--format=posix", "-S"]);
        for archive in [plain, sparse] {
            // The last 1024 bytes and more are the end of the archive and the padding of its last record.
            let end = archive.iter().rposition(|byte| *byte != 0).expect("not empty");
            for at in (513..end).step_by(333) {
                assert!(image(&archive[..at]).is_err(), "cut at {at} of {end}");
            }
        }
        let error = image(&tar_of(&[("disk.raw", &[7; 5000])])[..3000]).expect_err("is cut");
        assert!(said(&error).contains("the archive ends within `disk.raw`: 2512 bytes are missing"), "{}", said(&error));
    }

    #[test]
    fn a_header_that_promises_more_than_there_is_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("disk.raw").expect("fits");
        header.set_size(1 << 45);
        header.set_cksum();
        let archive = [header.as_bytes(), &[1; 1024][..]].concat();
        assert!(said(&image(&archive).expect_err("is cut")).contains("the archive ends within `disk.raw`"));
        header.set_size(1 << 50);
        header.set_cksum();
        let archive = [header.as_bytes(), &[1; 1024][..]].concat();
        assert!(said(&image(&archive).expect_err("is too long")).contains("more than 64 TiB"));
    }

    #[test]
    fn attributes_of_macos_and_small_firmware_are_not_taken_for_the_disk() {
        for members in [
            &[("./._disk.raw", &[0, 5, 22, 7][..]), ("./disk.raw", b"the disk")][..],
            &[("disk.raw", b"the disk"), ("__MACOSX/disk.raw", b"no")],
            &[("firmware.bin", b"no"), ("disk.raw", b"the disk")],
            &[("disk.raw", b"the disk"), ("firmware.bin", b"no"), ("tools.iso", b"no")],
            &[("tools.iso", b"a longer one"), ("a/DISK.IMG", b"the disk")],
            &[("disk.raw.sha256", b"no"), ("disk.raw", b"the disk")],
            &[("only.bin", b"the disk")],
        ] {
            let found = image(&tar_of(members)).unwrap_or_else(|error| panic!("{members:?}: {}", said(&error)));
            assert_eq!(found, b"the disk", "{members:?}");
        }
        assert_eq!(whole(&tar_of(&[("disk.raw", b"no"), ("code.fd", b"it")]), &Choice::any(Kind::Firmware)).expect("one"), b"it");
    }

    #[test]
    fn an_archive_with_several_disks_says_which() {
        for (members, names) in [
            (&[("box.ovf", &b"x"[..]), ("disk1.vmdk", b"1"), ("disk2.vmdk", b"2")][..], "`disk1.vmdk`, `disk2.vmdk`"),
            (&[("a.raw", b"1"), ("b.qcow2", b"2"), ("c.bin", b"3")], "`a.raw`, `b.qcow2`"),
            (&[("disk.raw", b"old"), ("disk.raw", b"new")], "`disk.raw`, `disk.raw`"),
            (&[("disk.raw", b"1"), ("disk.raw.xz", b"2")], "`disk.raw`, `disk.raw.xz`"),
        ] {
            let error = image(&tar_of(members)).expect_err("are several");
            assert_eq!(error.to_string(), format!("the archive holds more than one disk image: {names}"));
        }
        let chosen = Choice { kind: Kind::Image, member: Some("a/disk.raw".into()) };
        let archive = tar_of(&[("b/disk.raw", b"no"), ("a/disk.raw", b"it"), ("disk.raw", b"no")]);
        assert_eq!(whole(&archive, &chosen).expect("the one of that path"), b"it");
    }

    /// Returns a pax header with these records, and a member of this size.
    fn pax(records: &[(&str, &str)], size: u64, data: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let len = (1..9).map(|digits| rest.len() + digits).find(|len| len.to_string().len() + rest.len() == *len);
            text.extend(format!("{}{rest}", len.expect("a length fits itself")).bytes());
        }
        let mut archive = Vec::new();
        for (kind, name, len, bytes) in
            [(b'x', "PaxHeaders/disk.raw", text.len() as u64, &text[..]), (b'0', "GNUSparseFile.0/disk.raw", size, data)]
        {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).expect("fits");
            header.set_size(len);
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_cksum();
            archive.extend(header.as_bytes());
            archive.extend(bytes);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    }

    #[test]
    fn a_map_that_is_not_right_is_refused_and_takes_no_memory() {
        let block = |map: &str| {
            let mut data = map.as_bytes().to_vec();
            data.resize(512, 0);
            data.extend([b'd'; 512]);
            data
        };
        let version_1 = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "disk.raw")];
        let one = |map: &str, size: &str| {
            let records = [&version_1[..], &[("GNU.sparse.realsize", size)]].concat();
            image(&pax(&records, 1024, &block(map)))
        };
        assert_eq!(one("1\n512\n512\n", "2048").expect("is right").len(), 2048);
        for (map, size, words) in [
            ("4000000000\n", "2048", "cannot be read"),
            ("1\n512\n", "2048", "cannot be read"),
            ("1\nx\n512\n", "2048", "cannot be read"),
            ("99999999999999999999999\n", "2048", "cannot be read"),
            ("1\n2000\n512\n", "2048", "reach past its end"),
            ("2\n512\n256\n600\n256\n", "2048", "overlap"),
            ("1\n18446744073709551615\n512\n", "18446744073709551615", "reach past its end"),
            ("1\n512\n500\n", "2048", "has 500 bytes, and the archive has 512 of them"),
            ("1\n512\n512\n", "99999999999999999", "more than 64 TiB"),
        ] {
            let error = one(map, size).expect_err(map);
            assert!(said(&error).contains(words), "{map:?}: {}", said(&error));
        }
        for (records, words) in [
            (&[("GNU.sparse.size", "2048"), ("GNU.sparse.map", "0,512,1")][..], "cannot be read"),
            (&[("GNU.sparse.size", "2048"), ("GNU.sparse.offset", "0")], "cannot be read"),
            (&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "7"), ("GNU.sparse.realsize", "9")], "unknown version 2.7"),
            (&[("SCHILY.realsize", "4096")], "sparse in the form of star(1)"),
            (&[("SUN.holesdata", " 0 512")], "sparse in the form of star(1)"),
        ] {
            let error = image(&pax(records, 512, &[1; 512])).expect_err("is refused");
            assert!(said(&error).contains(words), "{records:?}: {}", said(&error));
        }
    }

    #[test]
    fn what_continues_on_another_volume_is_refused_by_name() {
        let mut archive = tar_of(&[("disk.raw", &[1; 512])]);
        archive[156] = b'M';
        archive[148..156].fill(b' ');
        let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(said(&image(&archive).expect_err("is no whole file")).contains("continues on another volume"));
    }

    #[test]
    fn the_checksum_behind_an_archive_is_looked_at_though_the_file_is_found_before() {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar_of(&[("disk.raw", &[3; 100_000]), ("README", b"x")])).expect("packs");
        let mut packed = encoder.finish().expect("packs");
        image(&packed).expect("is whole");
        let at = packed.len() - 8;
        packed[at] ^= 1;
        assert_eq!(image(&packed).expect_err("has a wrong checksum").to_string(), "the packed file is damaged");
    }
}
