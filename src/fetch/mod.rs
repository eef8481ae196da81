//! Images, installation media and firmware: found by name, fetched, verified, unpacked, kept.
//!
//! [`Fetcher::obtain`] is the way in: from a name of the catalogue, a URL or a path it makes the path of a raw disk image
//! (an ISO, a firmware) that was held to its checksum, with what the catalogue knows of it. In reading order:
pub mod error; // what went wrong, and what to do about it
pub mod progress; // what is told meanwhile, and how it is broken off

pub mod digest; // SHA-256 and SHA-512
pub mod signify; // OpenBSD's signatures
pub mod sums; // publishers' checksum files

pub mod catalogue; // what can be fetched by name

pub mod download; // resumed, from mirrors in turn
pub mod net; // one answer of an HTTP server
pub mod space; // free space, known before it is used
pub mod tap; // unpacks a download while it comes

pub mod archive; // the disk in a tar archive, with its holes
pub mod contents; // what a file is, by its bytes
pub mod image; // qcow2, VMDK, VHD: read and written as raw files with holes
pub mod sparse; // raw files with holes
pub mod streams; // gzip, xz, lzma, zstd, bzip2: to the last byte
pub mod unpack; // layer by layer, while they come

pub mod build; // images built here of a system's packages
pub mod cache; // what is kept, and shared by guests
pub mod obtain; // all of it together

pub use cache::{Cache, Lease, Stored};
pub use catalogue::{Catalogue, Entry, Facts, Kind};
pub use digest::Digest;
pub use error::{Fault, FetchError, Result};
pub use obtain::{CatalogueSource, Fetcher, Obtained, Request};
pub use progress::{Event, Progress, Silent};
