//! ISO 9660 (ECMA-119) with Rock Ridge (IEEE P1282, over SUSP) and Joliet; the El Torito boot catalogue is only
//! reported.
//!
//! Rock Ridge is used if it is present, else Joliet, else the plain names, which are compared without case, version and
//! final stop. Relocated directories are found at their Rock Ridge position.
//!
//! **Not modelled**: zisofs, interleaved files, the contents of extended attribute records.
//!
//! **Hostile guest**: descriptors, continuation areas and sections of a file are counted; a directory has a maximum
//! size.

use super::number::{be16, le16, le32};
use super::{MAX_ENTRIES, Medium, NodeKind, Result, Tree, VolumeError, room};

const KIND: &str = "iso9660";
const SECTOR: u64 = 2048;
const MAX_DESCRIPTORS: u64 = 32;
const MAX_DIRECTORY_BYTES: u32 = 32 << 20;
const MAX_CONTINUATIONS: usize = 32;
const MAX_SECTIONS: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Names {
    /// Rock Ridge, with the number of bytes before the system use area of each record.
    RockRidge {
        skip: usize,
    },
    Joliet,
    Plain,
}

/// An ISO 9660 volume.
pub struct Iso {
    medium: Medium,
    names: Names,
    root: IsoFile,
    label: String,
    uuid: String,
}

/// A file, directory or link.
#[derive(Clone, Debug)]
pub struct IsoFile {
    kind: NodeKind,
    /// First sector and bytes of each section.
    sections: Vec<(u32, u32)>,
    link: String,
}

/// A system for which El Torito has a boot image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootImage {
    /// 80x86 with a BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// Another platform number.
    Other(u8),
}

fn damaged(why: &str) -> VolumeError {
    VolumeError::Damaged { kind: KIND, why: why.to_string() }
}

/// Rock Ridge fields of one record.
#[derive(Default)]
struct RockRidge {
    name: Option<String>,
    link: Option<String>,
    mode: Option<u32>,
    child: Option<u32>,
    relocated: bool,
}

/// Strips version and final stop from the name of a plain record.
fn plain_name(text: &str) -> &str {
    let text = text.split(';').next().unwrap_or(text);
    text.strip_suffix('.').unwrap_or(text)
}

fn utf16_be(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| be16(pair, 0)).collect();
    String::from_utf16_lossy(&units)
}

impl Iso {
    /// Returns whether the first descriptor is present.
    pub fn is_here(medium: &Medium) -> bool {
        medium.bytes(16 * SECTOR + 1, 5).is_ok_and(|id| id == *b"CD001")
    }

    /// Opens the volume.
    pub fn open(medium: &Medium) -> Result<Iso> {
        let (mut primary, mut joliet) = (None, None);
        for sector in 16..16 + MAX_DESCRIPTORS {
            let descriptor = medium.bytes(sector * SECTOR, SECTOR as usize)?;
            if descriptor[1..6] != *b"CD001" {
                break;
            }
            match descriptor[0] {
                1 if primary.is_none() => primary = Some(descriptor),
                2 if descriptor[88..90] == *b"%/" && matches!(descriptor[90], b'@' | b'C' | b'E') => joliet = Some(descriptor),
                255 => break,
                _ => {}
            }
        }
        let primary = primary.ok_or_else(|| damaged("it has no primary descriptor"))?;
        if u64::from(le16(&primary, 128)) != SECTOR {
            let feature = format!("blocks of {} bytes", le16(&primary, 128));
            return Err(VolumeError::Unsupported { kind: KIND, feature });
        }
        let root = |descriptor: &[u8]| {
            let sections = vec![(le32(descriptor, 156 + 2), le32(descriptor, 156 + 10))];
            IsoFile { kind: NodeKind::Directory, sections, link: String::new() }
        };
        let date = [&primary[830..846], &primary[813..829]].into_iter().find(|date| date.iter().all(u8::is_ascii_digit));
        let digits = date.map(|date| String::from_utf8_lossy(date).into_owned()).filter(|date| date.contains(|c| c != '0'));
        let uuid = digits.map_or(String::new(), |d| {
            format!("{}-{}-{}-{}-{}-{}-{}", &d[..4], &d[4..6], &d[6..8], &d[8..10], &d[10..12], &d[12..14], &d[14..16])
        });
        let label = String::from_utf8_lossy(&primary[40..72]).trim_end_matches([' ', '\0']).to_string();
        let mut iso = Iso { medium: medium.clone(), names: Names::Plain, root: root(&primary), label, uuid };
        if let Some(skip) = iso.rock_ridge()? {
            iso.names = Names::RockRidge { skip };
        } else if let Some(joliet) = joliet {
            iso.names = Names::Joliet;
            iso.root = root(&joliet);
            let label = utf16_be(&joliet[40..72]);
            iso.label = label.trim_end_matches([' ', '\0']).to_string();
        }
        Ok(iso)
    }

    /// Returns the systems for which the boot catalogue of El Torito has images. It is empty if there is none.
    pub fn boot_images(medium: &Medium) -> Vec<BootImage> {
        let Ok(record) = medium.bytes(17 * SECTOR, SECTOR as usize) else { return Vec::new() };
        if record[0] != 0 || record[1..6] != *b"CD001" || !record[7..].starts_with(b"EL TORITO SPECIFICATION") {
            return Vec::new();
        }
        let Ok(catalogue) = medium.bytes(u64::from(le32(&record, 71)) * SECTOR, SECTOR as usize) else { return Vec::new() };
        let platform = |number: u8| match number {
            0 => BootImage::Bios,
            0xef => BootImage::Uefi,
            other => BootImage::Other(other),
        };
        let mut images = Vec::new();
        // The validation entry, then the initial entry, then sections with their headers.
        if catalogue[0] == 1 && catalogue[32] == 0x88 {
            images.push(platform(catalogue[1]));
        }
        for header in catalogue[64..].chunks_exact(32).filter(|entry| matches!(entry[0], 0x90 | 0x91)) {
            let image = platform(header[1]);
            if !images.contains(&image) {
                images.push(image);
            }
        }
        images
    }

    /// Returns the number of bytes to skip if the root's own record begins with SUSP's `SP`.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let Some(&(sector, _)) = self.root.sections.first() else { return Ok(None) };
        let first = self.medium.bytes(u64::from(sector) * SECTOR, SECTOR as usize)?;
        let record = &first[..usize::from(first[0]).max(34).min(first.len())];
        let area = record.get(34..).unwrap_or_default();
        let is_susp = area.len() >= 7 && area[..2] == *b"SP" && area[4..6] == [0xbe, 0xef];
        Ok(is_susp.then(|| usize::from(area[6])))
    }

    fn system_use(&self, area: &[u8]) -> Result<RockRidge> {
        let mut found = RockRidge::default();
        let (mut name, mut link) = (String::new(), String::new());
        let (mut has_name, mut has_link, mut glue) = (false, false, true);
        let mut next = Some(area.to_vec());
        for _ in 0..MAX_CONTINUATIONS {
            let Some(area) = next.take() else { break };
            let mut at = 0;
            while at + 4 <= area.len() {
                let len = usize::from(area[at + 2]);
                let Some(field) = area.get(at..at + len).filter(|field| field.len() >= 4) else { break };
                at += len;
                match &field[..2] {
                    b"NM" if len >= 5 => {
                        has_name = true;
                        // Bits 1 and 2 are `.` and `..`.
                        match field[4] & 6 {
                            0 => name.push_str(&String::from_utf8_lossy(&field[5..])),
                            2 => name.push('.'),
                            _ => name.push_str(".."),
                        }
                    }
                    b"SL" if len >= 5 => {
                        has_link = true;
                        add_link(&mut link, &mut glue, &field[5..]);
                    }
                    b"PX" if len >= 8 => found.mode = Some(le32(field, 4)),
                    b"CL" if len >= 8 => found.child = Some(le32(field, 4)),
                    b"RE" => found.relocated = true,
                    b"CE" if len >= 28 => {
                        let (sector, offset, bytes) = (le32(field, 4), le32(field, 12), le32(field, 20));
                        if bytes <= 2 * SECTOR as u32 {
                            next = Some(self.medium.bytes(u64::from(sector) * SECTOR + u64::from(offset), bytes as usize)?);
                        }
                    }
                    b"ST" => break,
                    _ => {}
                }
            }
        }
        found.name = has_name.then_some(name);
        found.link = has_link.then_some(link);
        Ok(found)
    }

    /// Returns the name and node of a directory record, or `None` for one that is hidden.
    fn record(&self, record: &[u8]) -> Result<Option<(String, IsoFile)>> {
        let name_len = usize::from(record[32]);
        let Some(raw) = record.get(33..33 + name_len) else { return Ok(None) };
        if matches!(raw, [0] | [1]) {
            return Ok(None);
        }
        let mut kind = if record[25] & 2 != 0 { NodeKind::Directory } else { NodeKind::File };
        let mut sections = vec![(le32(record, 2).saturating_add(record[1].into()), le32(record, 10))];
        let mut link = String::new();
        let name = match self.names {
            Names::Joliet => plain_name(&utf16_be(raw)).to_string(),
            Names::Plain => plain_name(&String::from_utf8_lossy(raw)).to_string(),
            Names::RockRidge { skip } => {
                let start = (33 + name_len + (name_len + 1) % 2 + skip).min(record.len());
                let more = self.system_use(&record[start..])?;
                if more.relocated {
                    return Ok(None);
                }
                if let Some(target) = more.link {
                    (kind, link) = (NodeKind::Link, target);
                } else if more.mode.is_some_and(|mode| !matches!(mode & 0o170_000, 0o100_000 | 0o040_000 | 0)) {
                    kind = NodeKind::Other;
                }
                if let Some(sector) = more.child {
                    let first = self.medium.bytes(u64::from(sector) * SECTOR, 34)?;
                    (kind, sections) = (NodeKind::Directory, vec![(sector, le32(&first, 10))]);
                }
                more.name.unwrap_or_else(|| plain_name(&String::from_utf8_lossy(raw)).to_ascii_lowercase())
            }
        };
        Ok(Some((name, IsoFile { kind, sections, link })))
    }
}

/// Appends the components of an `SL` field: flags, length, text. With `glue` the next component begins a new name.
fn add_link(link: &mut String, glue: &mut bool, mut components: &[u8]) {
    while let [flags, len, rest @ ..] = components {
        let len = usize::from(*len).min(rest.len());
        if *glue && !link.is_empty() && !link.ends_with('/') {
            link.push('/');
        }
        match flags & 0x0e {
            2 => link.push('.'),
            4 => link.push_str(".."),
            8 => link.push('/'),
            _ => link.push_str(&String::from_utf8_lossy(&rest[..len])),
        }
        *glue = flags & 1 == 0;
        components = &rest[len..];
    }
}

impl Tree for Iso {
    type File = IsoFile;

    fn kind(&self) -> &'static str {
        KIND
    }
    fn label(&self) -> String {
        self.label.clone()
    }
    fn uuid(&self) -> String {
        self.uuid.clone()
    }
    fn medium(&self) -> &Medium {
        &self.medium
    }
    fn root(&self) -> Result<IsoFile> {
        Ok(self.root.clone())
    }
    fn node_kind(&self, node: &IsoFile) -> NodeKind {
        node.kind
    }

    fn visit(&self, directory: &IsoFile, each: &mut dyn FnMut(&str, IsoFile) -> bool) -> Result<()> {
        let Some(&(first, bytes)) = directory.sections.first() else { return Ok(()) };
        if bytes > MAX_DIRECTORY_BYTES {
            return Err(damaged("a directory is very long"));
        }
        // A file of several sections has several records of one name. Each except the last has a mark.
        let mut pending: Option<(String, IsoFile)> = None;
        let mut entries = 0;
        for sector in 0..u64::from(bytes).div_ceil(SECTOR) {
            let block = self.medium.bytes((u64::from(first) + sector) * SECTOR, SECTOR as usize)?;
            let mut at = 0;
            while at + 34 <= block.len() {
                let len = usize::from(block[at]);
                let Some(record) = block.get(at..at + len).filter(|record| record.len() >= 34) else { break };
                at += len;
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(damaged("a directory has too many entries"));
                }
                let Some((name, mut node)) = self.record(record)? else { continue };
                if let Some((earlier, mut whole)) = pending.take()
                    && earlier == name
                    && whole.sections.len() < MAX_SECTIONS
                {
                    whole.sections.append(&mut node.sections);
                    node = whole;
                }
                if record[25] & 0x80 != 0 {
                    pending = Some((name, node));
                } else if !each(&name, node) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn same_name(&self, entry: &str, name: &str) -> bool {
        match self.names {
            Names::RockRidge { .. } => entry == name,
            Names::Joliet => entry.eq_ignore_ascii_case(name),
            Names::Plain => entry.eq_ignore_ascii_case(plain_name(name)),
        }
    }

    fn pinned(&self, _: &IsoFile) -> Result<Option<&'static str>> {
        Ok(Some("its file system can only be read"))
    }

    fn content(&self, node: &IsoFile, limit: u64) -> Result<Vec<u8>> {
        let size = node.sections.iter().map(|&(_, bytes)| u64::from(bytes)).sum();
        if size > limit {
            return Err(VolumeError::TooLarge { size, limit });
        }
        let mut content = room(&self.medium, size)?;
        let mut done = 0;
        for &(sector, bytes) in &node.sections {
            let part = &mut content[done..done + bytes as usize];
            self.medium.read(u64::from(sector) * SECTOR, part)?;
            done += bytes as usize;
        }
        Ok(content)
    }

    fn link(&self, node: &IsoFile) -> Result<String> {
        Ok(node.link.clone())
    }
}
