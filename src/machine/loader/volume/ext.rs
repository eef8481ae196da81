//! ext2, ext3 and ext4, by the crate ext4-view. A journal that was not replayed is looked through, so that an unclean
//! file system reads as it would after recovery.
//!
//! **Hostile guest**: what the crate takes on trust is checked here first: the number of block groups, which it
//! reserves memory for, and the length of directories, which it walks to their end.

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::number::{le16, le32};
use super::{Medium, NodeKind, Result, Tree, VolumeError};

const KIND: &str = "ext2";
const SUPERBLOCK: u64 = 1024;
/// Block groups of 128 MiB make 128 TiB.
const MAX_GROUPS: u64 = 1 << 20;
const MAX_DIRECTORY_BYTES: u64 = 32 << 20;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
/// Read-only compatible features under which a file's blocks are its own and may change: those of Linux's ext4
/// (`fs/ext4/ext4.h`) without snapshots, `readonly`, blocks that files share, and files with a hash tree.
const RO_COMPAT_WRITABLE: u32 = 0x1_277f;

struct Reader(Medium);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(start_byte, dst)?)
    }
}

/// A file system of the ext family.
pub struct Ext {
    fs: Ext4,
    medium: Medium,
    pinned: Option<&'static str>,
}

/// A file or directory: its path without links, and what it is.
#[derive(Clone)]
pub struct Node {
    path: Vec<u8>,
    kind: NodeKind,
}

fn damaged(why: impl Into<String>) -> VolumeError {
    VolumeError::Damaged { kind: KIND, why: why.into() }
}

fn failed(error: Ext4Error) -> VolumeError {
    match error {
        Ext4Error::Incompatible(what) => VolumeError::Unsupported { kind: KIND, what: what.to_string() },
        Ext4Error::Encrypted => VolumeError::Unsupported { kind: KIND, what: "encryption".into() },
        other => damaged(other.to_string()),
    }
}

impl Ext {
    /// Whether the superblock's magic is there.
    pub fn is_here(medium: &Medium) -> bool {
        medium.bytes(SUPERBLOCK + 56, 2).is_ok_and(|magic| magic == [0x53, 0xef])
    }

    /// Opens the file system; reads its superblock, group descriptors and journal.
    pub fn open(medium: &Medium) -> Result<Ext> {
        let superblock = medium.bytes(SUPERBLOCK, 1024)?;
        let block_bytes = 1024u64.checked_shl(le32(&superblock, 24)).filter(|bytes| (1024..=65_536).contains(bytes));
        let block_bytes = block_bytes.ok_or_else(|| damaged("its block size is none"))?;
        let high = if le32(&superblock, 96) & INCOMPAT_64BIT != 0 { le32(&superblock, 336) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(le32(&superblock, 4));
        let per_group = u64::from(le32(&superblock, 32)).max(1);
        if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > medium.len()) {
            return Err(damaged(format!("its {blocks} blocks go beyond the end of the partition")));
        }
        if blocks / per_group > MAX_GROUPS || le16(&superblock, 88) as u64 > block_bytes {
            return Err(damaged("its group or inode sizes make no sense"));
        }
        let fs = Ext4::load(Box::new(Reader(medium.clone()))).map_err(failed)?;
        let pinned = match (le32(&superblock, 96) & INCOMPAT_RECOVER, le32(&superblock, 100) & !RO_COMPAT_WRITABLE) {
            // The block may be in the journal, which is not written to, and what is there would be laid over it.
            (INCOMPAT_RECOVER, _) => Some("its file system was not unmounted"),
            (_, 0) => None,
            _ => Some("its file system has features with which this loader only reads it"),
        };
        Ok(Ext { fs, medium: medium.clone(), pinned })
    }
}

fn kind(file_type: ext4_view::FileType) -> NodeKind {
    if file_type.is_dir() {
        NodeKind::Directory
    } else if file_type.is_regular_file() {
        NodeKind::File
    } else if file_type.is_symlink() {
        NodeKind::Link
    } else {
        NodeKind::Other
    }
}

impl Tree for Ext {
    type Node = Node;

    fn kind(&self) -> &'static str {
        KIND
    }
    fn label(&self) -> String {
        self.fs.label().to_str().unwrap_or("").to_string()
    }
    fn uuid(&self) -> String {
        super::number::uuid(*self.fs.uuid().as_bytes())
    }
    fn medium(&self) -> &Medium {
        &self.medium
    }
    fn root(&self) -> Result<Node> {
        Ok(Node { path: b"/".to_vec(), kind: NodeKind::Directory })
    }
    fn node_kind(&self, node: &Node) -> NodeKind {
        node.kind
    }

    fn visit(&self, directory: &Node, each: &mut dyn FnMut(&str, Node) -> bool) -> Result<()> {
        let path = directory.path.as_slice();
        if self.fs.symlink_metadata(path).map_err(failed)?.len() > MAX_DIRECTORY_BYTES {
            return Err(damaged("a directory is very long"));
        }
        for entry in self.fs.read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Ok(name) = name.as_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let mut path = directory.path.clone();
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let kind = kind(entry.file_type().map_err(failed)?);
            if !each(name, Node { path, kind }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn pinned(&self, _: &Node) -> Result<Option<&'static str>> {
        Ok(self.pinned)
    }

    fn content(&self, node: &Node, limit: u64) -> Result<Vec<u8>> {
        let mut file = self.fs.open(node.path.as_slice()).map_err(failed)?;
        let size = file.metadata().len();
        if size > limit {
            return Err(VolumeError::TooLarge { size, limit });
        }
        let mut bytes = vec![0; size as usize];
        let mut done = 0;
        while done < bytes.len() {
            match file.read_bytes(&mut bytes[done..]).map_err(failed)? {
                0 => return Err(damaged("a file ends early")),
                count => done += count,
            }
        }
        Ok(bytes)
    }

    fn link(&self, node: &Node) -> Result<String> {
        let target = self.fs.read_link(node.path.as_slice()).map_err(failed)?;
        String::from_utf8(AsRef::<[u8]>::as_ref(&target).to_vec()).map_err(|_| damaged("a link is no text"))
    }
}
