//! FAT12, FAT16 and FAT32 with long names (Microsoft, "FAT: General Overview of On-Disk Format", 1.03).
//!
//! **Hostile guest**: a chain has at most as many clusters as the volume; a directory at most [`MAX_ENTRIES`] entries.

use super::number::{le16, le32};
use super::{MAX_ENTRIES, Medium, NodeKind, Result, Tree, VolumeError, room};

const KIND: &str = "fat";
const ENTRY: usize = 32;
/// Maximum number of clusters for the 28 bits of an entry of FAT32.
const MAX_CLUSTERS: u64 = 0x0fff_fff5;
const ATTR_VOLUME: u8 = 0x08;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// A FAT volume.
pub struct Fat {
    medium: Medium,
    width: Width,
    cluster_bytes: u64,
    fat_at: u64,
    fat_bytes: u64,
    root_at: u64,
    root_bytes: u64,
    root_cluster: u32,
    data_at: u64,
    clusters: u32,
    volume_id: u32,
    boot_label: String,
}

/// A file or directory.
#[derive(Clone)]
pub struct FatFile {
    kind: NodeKind,
    /// First cluster; 0 for the root of FAT12 and FAT16, and for an empty file.
    cluster: u32,
    size: u32,
}

fn damaged(why: &str) -> VolumeError {
    VolumeError::Damaged { kind: KIND, why: why.to_string() }
}

impl Fat {
    /// Opens the volume. Returns `None` if the boot sector is not one of FAT.
    pub fn open(medium: &Medium) -> Result<Option<Fat>> {
        if medium.len() < 512 {
            return Ok(None);
        }
        let boot = medium.bytes(0, 512)?;
        let sector_bytes = u64::from(le16(&boot, 11));
        let per_cluster = u64::from(boot[13]);
        let (reserved, fats, root_entries) = (u64::from(le16(&boot, 14)), u64::from(boot[16]), u64::from(le16(&boot, 17)));
        let sane = boot[510..] == [0x55, 0xaa]
            && matches!(boot[0], 0xeb | 0xe9)
            && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=4).contains(&fats)
            && matches!(boot[21], 0xf0 | 0xf8..=0xff);
        if !sane {
            return Ok(None);
        }
        let pick = |short: u16, long: u32| if short != 0 { u64::from(short) } else { u64::from(long) };
        let fat_sectors = pick(le16(&boot, 22), le32(&boot, 36));
        let sectors = pick(le16(&boot, 19), le32(&boot, 32));
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(sector_bytes);
        let data_sector = reserved + fats * fat_sectors + root_sectors;
        let Some(data_sectors) = sectors.checked_sub(data_sector).filter(|_| fat_sectors > 0) else { return Ok(None) };
        // FAT32 has no 16-bit size of its tables, however few clusters it has: Linux (`fs/fat/inode.c`,
        // fat_fill_super), GRUB and mkfs.fat recognise it by that. Between FAT12 and FAT16 the number of clusters
        // decides.
        let is_32 = le16(&boot, 22) == 0;
        let clusters = data_sectors / per_cluster;
        let (width, bits) = match clusters {
            _ if is_32 => (Width::Fat32, 32),
            0..4085 => (Width::Fat12, 12),
            _ => (Width::Fat16, 16),
        };
        // Clusters without an entry in the table do not exist. The first two entries belong to no cluster.
        let in_table = (fat_sectors * sector_bytes * 8 / bits).saturating_sub(2);
        let clusters = clusters.min(in_table).min(MAX_CLUSTERS) as u32;
        let extended = if is_32 { 64 } else { 36 };
        let boot_label = String::from_utf8_lossy(&boot[extended + 7..extended + 18]).trim_end().to_string();
        Ok(Some(Fat {
            medium: medium.clone(),
            width,
            cluster_bytes: per_cluster * sector_bytes,
            fat_at: reserved * sector_bytes,
            fat_bytes: fat_sectors * sector_bytes,
            root_at: (reserved + fats * fat_sectors) * sector_bytes,
            root_bytes: root_entries * ENTRY as u64,
            root_cluster: if is_32 { le32(&boot, 44) & 0x0fff_ffff } else { 0 },
            data_at: data_sector * sector_bytes,
            clusters,
            volume_id: le32(&boot, extended + 3),
            boot_label,
        }))
    }

    /// Returns the cluster after `cluster`, or `None` at the end of the chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = match self.width {
            Width::Fat12 => u64::from(cluster) + u64::from(cluster / 2),
            Width::Fat16 => u64::from(cluster) * 2,
            Width::Fat32 => u64::from(cluster) * 4,
        };
        let len = if self.width == Width::Fat32 { 4 } else { 2 };
        if at + len > self.fat_bytes {
            return Err(damaged("a cluster is beyond the table"));
        }
        let raw = self.medium.bytes(self.fat_at + at, len as usize)?;
        let (value, end) = match self.width {
            Width::Fat12 if cluster % 2 == 1 => (u32::from(le16(&raw, 0) >> 4), 0xff8),
            Width::Fat12 => (u32::from(le16(&raw, 0) & 0xfff), 0xff8),
            Width::Fat16 => (u32::from(le16(&raw, 0)), 0xfff8),
            Width::Fat32 => (le32(&raw, 0) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    /// Reads the bytes of a chain: `size` of them, or all up to `limit`.
    fn chain(&self, first: u32, size: Option<u64>, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        let wanted = size.unwrap_or(limit);
        if let Some(size) = size {
            bytes = room(&self.medium, size)?;
            bytes.clear();
        }
        for _ in 0..=self.clusters {
            if bytes.len() as u64 >= wanted {
                break;
            }
            if !(2..self.clusters.saturating_add(2)).contains(&cluster) {
                return Err(damaged("a chain leads to a cluster that is not there"));
            }
            let at = self.data_at + u64::from(cluster - 2) * self.cluster_bytes;
            let part = self.cluster_bytes.min(wanted - bytes.len() as u64) as usize;
            bytes.extend(self.medium.bytes(at, part)?);
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => break,
            }
        }
        match size {
            Some(size) if (bytes.len() as u64) < size => Err(damaged("a file's chain ends early")),
            _ => Ok(bytes),
        }
    }

    fn directory(&self, node: &FatFile) -> Result<Vec<u8>> {
        if node.cluster == 0 {
            return Ok(self.medium.bytes(self.root_at, self.root_bytes as usize)?);
        }
        self.chain(node.cluster, None, (MAX_ENTRIES * ENTRY) as u64)
    }
}

/// Returns a short name: base and extension, in lower case where the entry says so.
fn short_name(entry: &[u8]) -> String {
    const LOWER_BASE: u8 = 8;
    const LOWER_EXTENSION: u8 = 16;
    let part = |bytes: &[u8], lower: bool| {
        let text: String = bytes.iter().map(|&b| if b.is_ascii() { char::from(b) } else { '_' }).collect();
        if lower { text.trim_end().to_ascii_lowercase() } else { text.trim_end().to_string() }
    };
    let base = part(&entry[..8], entry[12] & LOWER_BASE != 0);
    let extension = part(&entry[8..11], entry[12] & LOWER_EXTENSION != 0);
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// Returns the 13 characters of a long-name entry.
fn long_part(entry: &[u8]) -> [u16; 13] {
    let mut part = [0; 13];
    for (i, unit) in part.iter_mut().enumerate() {
        let at = match i {
            0..5 => 1 + 2 * i,
            5..11 => 14 + 2 * (i - 5),
            _ => 28 + 2 * (i - 11),
        };
        *unit = le16(entry, at);
    }
    part
}

impl Tree for Fat {
    type File = FatFile;

    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> String {
        let root = self.root().and_then(|root| self.directory(&root)).unwrap_or_default();
        let volume = root
            .chunks_exact(ENTRY)
            .take_while(|entry| entry[0] != 0)
            .find(|entry| entry[0] != 0xe5 && entry[11] & ATTR_LONG_NAME != ATTR_LONG_NAME && entry[11] & ATTR_VOLUME != 0);
        match volume {
            Some(entry) => String::from_utf8_lossy(&entry[..11]).trim_end().to_string(),
            None if self.boot_label == "NO NAME" => String::new(),
            None => self.boot_label.clone(),
        }
    }

    fn uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.volume_id >> 16, self.volume_id & 0xffff)
    }
    fn medium(&self) -> &Medium {
        &self.medium
    }
    fn root(&self) -> Result<FatFile> {
        Ok(FatFile { kind: NodeKind::Directory, cluster: self.root_cluster, size: 0 })
    }
    fn node_kind(&self, node: &FatFile) -> NodeKind {
        node.kind
    }

    fn visit(&self, directory: &FatFile, each: &mut dyn FnMut(&str, FatFile) -> bool) -> Result<()> {
        let entries = self.directory(directory)?;
        let mut long: Vec<u16> = Vec::new();
        for entry in entries.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0) {
            if entry[0] == 0xe5 {
                long.clear();
                continue;
            }
            if entry[11] & ATTR_LONG_NAME == ATTR_LONG_NAME {
                // The last part comes first.
                if entry[0] & 0x40 != 0 {
                    long.clear();
                }
                long.splice(0..0, long_part(entry));
                long.truncate(13 * 20);
                continue;
            }
            let units: Vec<u16> = std::mem::take(&mut long).into_iter().take_while(|&unit| unit != 0).collect();
            if entry[11] & ATTR_VOLUME != 0 {
                continue;
            }
            let name = if units.is_empty() { short_name(entry) } else { String::from_utf16_lossy(&units) };
            let kind = if entry[11] & ATTR_DIRECTORY != 0 { NodeKind::Directory } else { NodeKind::File };
            let high = if self.width == Width::Fat32 { u32::from(le16(entry, 20)) << 16 } else { 0 };
            let cluster = high | u32::from(le16(entry, 26));
            if !each(&name, FatFile { kind, cluster, size: le32(entry, 28) }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn same_name(&self, entry: &str, name: &str) -> bool {
        entry.eq_ignore_ascii_case(name) || entry.to_lowercase() == name.to_lowercase()
    }

    fn pinned(&self, _: &FatFile) -> Result<Option<&'static str>> {
        Ok(None)
    }

    fn content(&self, node: &FatFile, limit: u64) -> Result<Vec<u8>> {
        let size = u64::from(node.size);
        if size > limit {
            return Err(VolumeError::TooLarge { size, limit });
        }
        self.chain(node.cluster, Some(size), size)
    }

    fn link(&self, _: &FatFile) -> Result<String> {
        Err(damaged("it has no links"))
    }
}
