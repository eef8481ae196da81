//! The guest's disks as a loader reads them: media, partition tables, file systems. Everything is read-only, save for
//! [`in_place`].
//!
//! **Hostile guest**: the bytes are the guest's own. Each operation may read so many times ([`Medium::allow`]) and
//! return so many bytes; directories, symbolic links, chains of clusters and trees of extents are bounded one by one.
pub mod ext; // ext2, ext3, ext4
pub mod fat; // FAT12, FAT16, FAT32
pub mod in_place; // other bytes for a small file, where it is
pub mod iso9660; // ISO 9660 with Rock Ridge and Joliet, El Torito
pub mod medium; // a window of a disk, cached and with a budget
pub mod partition; // MBR and GPT
pub mod probe; // what stands in a partition
pub mod xfs; // XFS versions 4 and 5

use std::io;

pub use medium::Medium;

/// Entries of one directory that are looked at.
pub const MAX_ENTRIES: usize = 65_536;
/// Symbolic links followed in one path.
const MAX_LINKS: usize = 40;
/// Components of one path, links included.
const MAX_COMPONENTS: usize = 512;
/// Bytes of a path.
const MAX_PATH: usize = 4096;

/// A file or file system that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such file.
    #[error("file `{0}` not found")]
    NotFound(String),
    /// A directory, where a file was asked for.
    #[error("`{0}` is not a regular file")]
    NotAFile(String),
    /// A file, where a directory was asked for.
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
    /// Links that lead in circles, or a path without an end.
    #[error("`{0}` has too many symbolic links or components")]
    TooDeep(String),
    /// More than the caller has room for.
    #[error("the file has {size} bytes, more than the {limit} that there is room for")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The most that was allowed.
        limit: u64,
    },
    /// A file that claims more bytes than there are on what it is on.
    #[error("the file claims {size} bytes, and the disk or partition has {medium}")]
    BeyondMedium {
        /// Its size.
        size: u64,
        /// The medium's.
        medium: u64,
    },
    /// The host has no memory for it.
    #[error("the host has no memory for the {0} bytes of the file")]
    NoMemory(u64),
    /// The file system contradicts itself.
    #[error("the {kind} file system is damaged: {why}")]
    Damaged {
        /// Which kind it is.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The file system uses something that this reader does not know.
    #[error("the {kind} file system uses {what}, which this loader cannot read")]
    Unsupported {
        /// Which kind it is.
        kind: &'static str,
        /// The feature.
        what: String,
    },
    /// The disk cannot be read, or was read too often.
    #[error("cannot read the disk: {0}")]
    Io(#[from] io::Error),
}

impl VolumeError {
    /// Whether it says that there is no such file, rather than that nobody knows.
    pub fn is_absence(&self) -> bool {
        matches!(self, VolumeError::NotFound(_) | VolumeError::NotAFile(_) | VolumeError::NotADirectory(_))
    }
}

/// Short for results of this part.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// What a directory entry is.
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
    /// As GRUB's drivers are called: `ext2`, `xfs`, `fat`, `iso9660`.
    fn kind(&self) -> &'static str;
    /// The volume's label; empty if it has none.
    fn label(&self) -> String;
    /// The volume's UUID as GRUB prints it; empty if it has none.
    fn uuid(&self) -> String;
    /// What is at `path`, symbolic links followed.
    fn kind_of(&self, path: &str) -> Result<NodeKind>;
    /// The file at `path`, if it has at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>>;
    /// The names in the directory at `path`, without `.` and `..`.
    fn list(&self, path: &str) -> Result<Vec<(String, NodeKind)>>;
    /// Why the bytes of the file at `path` must not be changed where they are on the disk, if they must not.
    fn pinned(&self, path: &str) -> Result<Option<&'static str>>;
    /// The part of the disk that it is on.
    fn window(&self) -> &Medium;
}

/// What a reader of this part's own knows: nodes and how to get from one to the next. Paths and links come for free.
pub trait Tree {
    /// A file or directory.
    type Node: Clone;
    /// As [`FileSystem::kind`].
    fn kind(&self) -> &'static str;
    /// As [`FileSystem::label`].
    fn label(&self) -> String;
    /// As [`FileSystem::uuid`].
    fn uuid(&self) -> String;
    /// The medium that it is on.
    fn medium(&self) -> &Medium;
    /// The root directory.
    fn root(&self) -> Result<Self::Node>;
    /// What a node is.
    fn node_kind(&self, node: &Self::Node) -> NodeKind;
    /// Calls `each` with every entry of a directory until it returns `false`.
    fn visit(&self, directory: &Self::Node, each: &mut dyn FnMut(&str, Self::Node) -> bool) -> Result<()>;
    /// Whether `name`, as asked for, means the entry `entry`.
    fn same_name(&self, entry: &str, name: &str) -> bool {
        entry == name
    }
    /// As [`FileSystem::pinned`].
    fn pinned(&self, node: &Self::Node) -> Result<Option<&'static str>>;
    /// The content of a file.
    fn content(&self, node: &Self::Node, limit: u64) -> Result<Vec<u8>>;
    /// Where a link leads.
    fn link(&self, node: &Self::Node) -> Result<String>;
}

/// Zeros for `bytes` bytes of a file on `medium`. The caller has held `bytes` against what it was allowed; a file has no
/// more than its medium, whatever it claims, and what the host has no memory for is an error and no end of the process.
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

fn resolve<T: Tree>(tree: &T, path: &str) -> Result<T::Node> {
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

/// The parts of a path, last one first.
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

/// Little-endian and big-endian numbers out of bytes whose length was checked; zeros beyond the end.
mod number {
    /// `N` bytes at `at`.
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
    /// A UUID in its usual form; empty if it is all zeros.
    pub fn uuid(bytes: [u8; 16]) -> String {
        if bytes == [0; 16] {
            return String::new();
        }
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}
