//! Images, installation media and firmware: finding them by name, fetching, verifying, unpacking and keeping them.
//!
//! [`Fetcher::obtain`] is the entry point. From a name of the catalogue, a URL or a path it makes the path of a raw
//! disk image (an ISO, a firmware) that was verified with its checksum, with the catalogue's facts about it. The
//! modules, in reading order:
pub mod error; // errors, and what to do about them
pub mod progress; // events of a fetch, and its cancellation

pub mod digest; // SHA-256 and SHA-512
pub mod signify; // OpenBSD's signatures
pub mod sums; // publishers' checksum files

pub mod catalogue; // names that can be fetched

pub mod download; // resumed, from mirrors in turn
pub mod net; // one answer of an HTTP server
pub mod space; // free space, checked before it is used
pub mod tap; // unpacks a download while it arrives

pub mod archive; // the disk in a tar archive, with its holes
pub mod contents; // detection of a file's format
pub mod image; // qcow2, VMDK, VHD: read and written as raw files with holes
pub mod sparse; // raw files with holes
pub mod streams; // gzip, xz, lzma, zstd, bzip2: to the last byte
pub mod unpack; // unpacks layer by layer

pub mod build; // images built here from a system's packages
pub mod cache; // files that are kept, and shared by guests
pub mod obtain; // all of it combined

pub use cache::{Cache, Stored};
pub use catalogue::{Catalogue, Entry, Facts, Kind};
pub use digest::Digest;
pub use error::{Fault, FetchError};
pub use obtain::{CatalogueSource, Fetcher, Obtained, Request};
pub use progress::{Event, Progress, Silent};
