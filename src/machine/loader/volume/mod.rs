//! The guest's disks as a loader reads them: media, partition tables, file systems. Everything is read-only except for
//! [`in_place`].
//!
//! **Hostile guest**: the bytes are the guest's own. [`Medium::allow`] bounds the reads of each operation, and the
//! caller its bytes; directories, symbolic links, chains of clusters and trees of extents have their own bounds.
pub mod ext; // ext2, ext3, ext4
pub mod fat; // FAT12, FAT16, FAT32
pub mod in_place; // replaces the bytes of a small file in place
pub mod iso9660; // ISO 9660 with Rock Ridge and Joliet, El Torito
pub mod medium; // a window of a disk, cached and with a budget
pub mod partition; // MBR and GPT
pub mod probe; // detection of a partition's contents
pub mod xfs; // XFS versions 4 and 5

use std::io;

pub use medium::Medium;

/// Maximum number of entries of one directory that are read.
pub const MAX_ENTRIES: usize = 65_536;
/// Maximum number of symbolic links followed in one path.
const MAX_LINKS: usize = 40;
/// Maximum number of components of one path, including links.
const MAX_COMPONENTS: usize = 512;
/// Maximum length of a path in bytes.
const MAX_PATH: usize = 4096;

/// The error for a file or file system that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no such file.
    #[error("file `{0}` not found")]
    NotFound(String),
    /// It is a directory, but a file was asked for.
    #[error("`{0}` is not a regular file")]
    NotAFile(String),
    /// It is a file, but a directory was asked for.
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
    /// The links form a circle, or the path has no end.
    #[error("`{0}` has too many symbolic links or components")]
    TooDeep(String),
    /// It is larger than the caller's limit.
    #[error("the file has {size} bytes, more than the {limit} that there is room for")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A file claims more bytes than its medium has.
    #[error("the file claims {size} bytes, and the disk or partition has {medium}")]
    BeyondMedium {
        /// Its size.
        size: u64,
        /// Size of the medium.
        medium: u64,
    },
    /// The host has no memory for it.
    #[error("the host has no memory for the {0} bytes of the file")]
    NoMemory(u64),
    /// The file system contradicts itself.
    #[error("the {kind} file system is damaged: {why}")]
    Damaged {
        /// Kind of the file system.
        kind: &'static str,
        /// Description of the damage.
        why: String,
    },
    /// The file system uses a feature that this reader does not know.
    #[error("the {kind} file system uses {feature}, which this loader cannot read")]
    Unsupported {
        /// Kind of the file system.
        kind: &'static str,
        /// The feature.
        feature: String,
    },
    /// The disk cannot be read, or was read too often.
    #[error("cannot read the disk: {0}")]
    Io(#[from] io::Error),
}

impl VolumeError {
    /// Returns whether the error means that there is no such file, rather than that it is not known.
    pub fn is_absence(&self) -> bool {
        matches!(self, VolumeError::NotFound(_) | VolumeError::NotAFile(_) | VolumeError::NotADirectory(_))
    }
}

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a socket, a pipe.
    Other,
}

/// A file system that can be read by path.
pub trait FileSystem {
    /// Returns the name of the kind as in GRUB's drivers: `ext2`, `xfs`, `fat`, `iso9660`.
    fn kind(&self) -> &'static str;
    /// Returns the volume's label, which may be empty.
    fn label(&self) -> String;
    /// Returns the volume's UUID as GRUB prints it, which may be empty.
    fn uuid(&self) -> String;
    /// Returns the kind of the node at `path`, with symbolic links followed.
    fn kind_of(&self, path: &str) -> Result<NodeKind>;
    /// Reads the file at `path`, if it has at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>>;
    /// Returns the names in the directory at `path`, without `.` and `..`.
    fn list(&self, path: &str) -> Result<Vec<(String, NodeKind)>>;
    /// Returns the reason why the bytes of the file at `path` must not be changed in place, if there is one.
    fn pinned(&self, path: &str) -> Result<Option<&'static str>>;
    /// Returns the part of the disk that it is on.
    fn window(&self) -> &Medium;
}

/// The parts that are specific to a file system: nodes, and the way from one to the next. Paths and links are built on
/// top of it.
pub trait Tree {
    /// A file or directory.
    type File: Clone;
    /// Returns the same as [`FileSystem::kind`].
    fn kind(&self) -> &'static str;
    /// Returns the same as [`FileSystem::label`].
    fn label(&self) -> String;
    /// Returns the same as [`FileSystem::uuid`].
    fn uuid(&self) -> String;
    /// Returns the medium that it is on.
    fn medium(&self) -> &Medium;
    /// Returns the root directory.
    fn root(&self) -> Result<Self::File>;
    /// Returns the kind of a node.
    fn node_kind(&self, node: &Self::File) -> NodeKind;
    /// Calls `each` with every entry of a directory until it returns `false`.
    fn visit(&self, directory: &Self::File, each: &mut dyn FnMut(&str, Self::File) -> bool) -> Result<()>;
    /// Returns whether the requested `name` matches the entry `entry`.
    fn same_name(&self, entry: &str, name: &str) -> bool {
        entry == name
    }
    /// Returns the same as [`FileSystem::pinned`].
    fn pinned(&self, node: &Self::File) -> Result<Option<&'static str>>;
    /// Reads the contents of a file.
    fn content(&self, node: &Self::File, limit: u64) -> Result<Vec<u8>>;
    /// Returns the target of a link.
    fn link(&self, node: &Self::File) -> Result<String>;
}

/// Allocates zeros for `bytes` bytes of a file on `medium`. The caller has compared `bytes` with its limit. A file has
/// no more bytes than its medium, whatever it claims, and a lack of memory on the host is an error and does not end the
/// process.
fn room(medium: &Medium, bytes: u64) -> Result<Vec<u8>> {
    if bytes > medium.len() {
        return Err(VolumeError::BeyondMedium { size: bytes, medium: medium.len() });
    }
    let mut content = Vec::new();
    let len = usize::try_from(bytes).map_err(|_| VolumeError::NoMemory(bytes))?;
    content.try_reserve_exact(len).map_err(|_| VolumeError::NoMemory(bytes))?;
    content.resize(len, 0);
    Ok(content)
}

fn resolve<T: Tree>(tree: &T, path: &str) -> Result<T::File> {
    let deep = || VolumeError::TooDeep(path.chars().take(80).collect());
    if path.len() > MAX_PATH {
        return Err(deep());
    }
    let missing = || VolumeError::NotFound(path.to_string());
    let mut left: Vec<String> = components(path);
    let mut way = vec![tree.root()?];
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = left.pop() {
        steps += 1;
        if steps > MAX_COMPONENTS {
            return Err(deep());
        }
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        let here = way.last().expect("the root stays");
        if tree.node_kind(here) != NodeKind::Directory {
            return Err(missing());
        }
        let mut found = None;
        tree.visit(here, &mut |entry, node| {
            if tree.same_name(entry, &name) {
                found = Some(node);
            }
            found.is_none()
        })?;
        let node = found.ok_or_else(missing)?;
        if tree.node_kind(&node) != NodeKind::Link {
            way.push(node);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(deep());
        }
        let target = tree.link(&node)?;
        if target.starts_with('/') {
            way.truncate(1);
        }
        left.extend(components(&target));
        if left.len() > MAX_COMPONENTS {
            return Err(deep());
        }
    }
    Ok(way.pop().expect("the root stays"))
}

/// Returns the parts of a path, last one first.
fn components(path: &str) -> Vec<String> {
    path.split('/').rev().map(str::to_string).collect()
}

impl<T: Tree> FileSystem for T {
    fn kind(&self) -> &'static str {
        Tree::kind(self)
    }
    fn label(&self) -> String {
        Tree::label(self)
    }
    fn uuid(&self) -> String {
        Tree::uuid(self)
    }
    fn kind_of(&self, path: &str) -> Result<NodeKind> {
        self.medium().allow(0);
        Ok(self.node_kind(&resolve(self, path)?))
    }
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.medium().allow(limit);
        let node = resolve(self, path)?;
        match self.node_kind(&node) {
            NodeKind::File => self.content(&node, limit),
            _ => Err(VolumeError::NotAFile(path.to_string())),
        }
    }
    fn list(&self, path: &str) -> Result<Vec<(String, NodeKind)>> {
        self.medium().allow(0);
        let node = resolve(self, path)?;
        if self.node_kind(&node) != NodeKind::Directory {
            return Err(VolumeError::NotADirectory(path.to_string()));
        }
        let mut names = Vec::new();
        self.visit(&node, &mut |name, node| {
            if !matches!(name, "." | "..") {
                names.push((name.to_string(), self.node_kind(&node)));
            }
            names.len() < MAX_ENTRIES
        })?;
        Ok(names)
    }
    fn pinned(&self, path: &str) -> Result<Option<&'static str>> {
        self.medium().allow(0);
        Tree::pinned(self, &resolve(self, path)?)
    }
    fn window(&self) -> &Medium {
        self.medium()
    }
}

/// Little-endian and big-endian numbers from bytes whose length was checked, with zeros beyond the end.
mod number {
    /// Returns `N` bytes at `at`.
    pub fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        let mut out = [0; N];
        if let Some(found) = at.checked_add(N).and_then(|end| bytes.get(at..end)) {
            out.copy_from_slice(found);
        }
        out
    }
    pub fn le16(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(array(bytes, at))
    }
    pub fn le32(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(array(bytes, at))
    }
    pub fn le64(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(array(bytes, at))
    }
    pub fn be16(bytes: &[u8], at: usize) -> u16 {
        u16::from_be_bytes(array(bytes, at))
    }
    pub fn be32(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(array(bytes, at))
    }
    pub fn be64(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(array(bytes, at))
    }
    /// Returns a UUID in its usual form, or an empty text if it is all zeros.
    pub fn uuid(bytes: [u8; 16]) -> String {
        if bytes == [0; 16] {
            return String::new();
        }
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}
