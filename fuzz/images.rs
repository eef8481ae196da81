//! What is read of images, archives and checksum files that anybody may have made.

use std::io::Read;

use vmctl::testing::fetch::archive::Choice;
use vmctl::testing::fetch::image::{self, Format, Sink, Storage};
use vmctl::testing::fetch::progress::{Job, Silent};
use vmctl::testing::fetch::space::Room;
use vmctl::testing::fetch::{Catalogue, Kind, signify, sums, unpack};

use super::Bytes;

/// A sink that holds writes to the disk's bounds.
struct Bounded {
    size: u64,
}

impl Sink for Bounded {
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        assert!(offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.size), "a write past the disk's end");
        Ok(())
    }
}

/// Opens and reads whatever it is taken for.
fn read_as(format: Format, file: &[u8]) {
    let _ = image::probe(&file);
    let storage: Box<dyn Storage + '_> = Box::new(file);
    let Ok(disk) = image::open(format, storage, None) else { return };
    let size = disk.size();
    assert!(size <= image::MAX_DISK && disk.unit() <= image::MAX_UNIT);
    // However it ends: within bounds, and soon.
    let _ = image::convert(disk.as_ref(), &Bounded { size }, 1, &Room::unbounded(), &Job::new("fuzz", &Silent));
}

/// A file of `len` bytes that is `head` and then the fuzzer's bytes over and over.
fn file_of(head: &[u8], bytes: &[u8], len: usize) -> Vec<u8> {
    let mut file = head.to_vec();
    file.extend(bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { len.saturating_sub(head.len()) }));
    file.resize(len, 0);
    file
}

/// A qcow2 header that is nearly right, and tables that the fuzzer makes.
pub fn qcow2(data: &[u8]) {
    read_as(Format::Qcow2, data);
    let mut bytes = Bytes::new(data);
    let kind = bytes.byte();
    let cluster_bits = 9 + u32::from(bytes.byte() % 8);
    let cluster = 1u64 << cluster_bits;
    let mut head = vec![0u8; 512];
    let put = |head: &mut Vec<u8>, at: usize, value: &[u8]| head[at..at + value.len()].copy_from_slice(value);
    put(&mut head, 0, b"QFI\xfb");
    put(&mut head, 4, &(2 + u32::from(kind & 1)).to_be_bytes());
    put(&mut head, 20, &cluster_bits.to_be_bytes());
    let size = if kind & 2 == 0 { bytes.quad() % (64 << 20) } else { bytes.quad() };
    put(&mut head, 24, &size.to_be_bytes());
    put(&mut head, 36, &(bytes.long() % 4096).to_be_bytes());
    put(&mut head, 40, &(cluster * u64::from(bytes.byte() % 4)).to_be_bytes());
    let features = if kind & 4 == 0 { 0 } else { 8 } | if kind & 8 == 0 { 0 } else { 16 };
    put(&mut head, 72, &u64::to_be_bytes(features));
    put(&mut head, 100, &112u32.to_be_bytes());
    head[104] = u8::from(kind & 4 != 0);
    // L1 entries and L2 entries that point at the first few clusters.
    let mut tables = Vec::new();
    while !bytes.is_empty() && tables.len() < 4096 {
        let entry = match bytes.byte() % 4 {
            0 => cluster * u64::from(bytes.byte() % 16) | 1 << 63,
            1 => 1 << 62 | u64::from(bytes.long()),
            2 => bytes.quad(),
            _ => 0,
        };
        tables.extend(entry.to_be_bytes());
    }
    read_as(Format::Qcow2, &file_of(&head, &tables, (8 * cluster as usize).min(256 << 10)));
}

/// A sparse extent's header that is nearly right.
pub fn vmdk(data: &[u8]) {
    read_as(Format::Vmdk, data);
    let mut bytes = Bytes::new(data);
    let kind = bytes.byte();
    let mut head = vec![0u8; 512];
    let put = |head: &mut Vec<u8>, at: usize, value: &[u8]| head[at..at + value.len()].copy_from_slice(value);
    put(&mut head, 0, b"KDMV");
    put(&mut head, 4, &u32::from(1 + kind % 3).to_le_bytes());
    put(&mut head, 8, &(if kind & 4 == 0 { 3u32 } else { 0x3_0007 }).to_le_bytes());
    put(&mut head, 12, &(if kind & 8 == 0 { bytes.quad() % (1 << 17) } else { bytes.quad() }).to_le_bytes());
    put(&mut head, 20, &(1u64 << (bytes.byte() % 10)).to_le_bytes());
    put(&mut head, 44, &(1 + u32::from(bytes.word() % 600)).to_le_bytes());
    put(&mut head, 56, &(if kind & 16 == 0 { u64::from(bytes.byte() % 8) } else { u64::MAX }).to_le_bytes());
    head[77] = kind & 1;
    let mut tables = Vec::new();
    while !bytes.is_empty() && tables.len() < 4096 {
        let entry = if bytes.byte() % 3 == 0 { bytes.long() } else { u32::from(bytes.byte() % 64) };
        tables.extend(entry.to_le_bytes());
    }
    read_as(Format::Vmdk, &file_of(&head, &tables, 64 << 10));
    let text = format!("# Disk DescriptorFile\n{}", String::from_utf8_lossy(data));
    read_as(Format::Vmdk, text.as_bytes());
}

/// A footer and a header with right checksums around the fuzzer's table.
pub fn vhd(data: &[u8]) {
    read_as(Format::Vhd, data);
    let mut bytes = Bytes::new(data);
    let kind = bytes.byte();
    let sealed = |head: &mut [u8], at: usize| {
        head[at..at + 4].fill(0);
        let sum: u32 = head.iter().fold(0, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        head[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    let mut footer = vec![0u8; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[16..24].copy_from_slice(&512u64.to_be_bytes());
    footer[28..32].copy_from_slice(if kind & 1 == 0 { b"win " } else { b"vpc " });
    footer[48..56].copy_from_slice(&(if kind & 2 == 0 { bytes.quad() % (64 << 20) } else { bytes.quad() }).to_be_bytes());
    footer[56..60].copy_from_slice(&bytes.long().to_be_bytes());
    footer[60..64].copy_from_slice(&u32::from(2 + kind / 4 % 3).to_be_bytes());
    sealed(&mut footer, 64);
    let mut header = vec![0u8; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[28..32].copy_from_slice(&(bytes.long() % 20_000).to_be_bytes());
    header[32..36].copy_from_slice(&(512u32 << (bytes.byte() % 18)).to_be_bytes());
    sealed(&mut header, 36);
    let mut tables = Vec::new();
    while !bytes.is_empty() && tables.len() < 4096 {
        let entry = if bytes.byte() % 3 == 0 { bytes.long() } else { u32::from(bytes.byte() % 200) };
        tables.extend(entry.to_be_bytes());
    }
    let mut file = file_of(&[footer.clone(), header].concat(), &tables, 96 << 10);
    file.extend(footer);
    read_as(Format::Vhd, &file);
}

/// The header of a member `disk.img`, with a right checksum; the size is twelve octal characters.
fn tar_header(kind: u8, size: &str) -> [u8; 512] {
    let mut header = [0u8; 512];
    header[..8].copy_from_slice(b"disk.img");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(size.as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\0\x30\x30");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Takes off what is packed, and looks for members of archives.
pub fn archive(data: &[u8]) {
    let take = |stream: Box<dyn Read + '_>, member: Option<&str>| {
        let choice = Choice { kind: Kind::Image, member: member.map(str::to_owned) };
        let _ = unpack::unpack(stream, &choice, &mut |stream| {
            let copied = std::io::copy(&mut stream.take(4 << 20), &mut std::io::sink());
            copied.map_err(unpack::damaged)
        });
    };
    take(Box::new(data), None);
    let lzma = b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0";
    for magic in [&b"\x1f\x8b\x08\0"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x53\x2a\x4d\x18", b"BZh9", lzma] {
        take(Box::new(magic.chain(data)), None);
    }
    // A sparse member of a pax archive, whose map the fuzzer makes.
    let mut bytes = Bytes::new(data);
    let mut number = || u64::from(bytes.word()) << (bytes.byte() % 48);
    let map = [number(), number(), number(), number()].map(|number| number.to_string());
    let size = number();
    let records = match size % 3 {
        0 => vec![format!("GNU.sparse.size={size}"), format!("GNU.sparse.map={}", map.join(","))],
        1 => vec![
            format!("GNU.sparse.size={size}"),
            format!("GNU.sparse.offset={}", map[0]),
            format!("GNU.sparse.numbytes={}", map[1]),
        ],
        _ => vec!["GNU.sparse.major=1".into(), "GNU.sparse.minor=0".into(), format!("GNU.sparse.realsize={size}")],
    };
    let mut text = Vec::new();
    for record in records {
        // The length counts itself: three digits are enough for all of these.
        text.extend(format!("{:03} {record}\n", record.len() + 5).bytes());
    }
    let len = text.len();
    text.resize(len.next_multiple_of(512), 0);
    let [pax, file] = [(b'x', len), (b'0', data.len())].map(|(kind, len)| tar_header(kind, &format!("{len:011o}\0")));
    take(Box::new((&pax[..]).chain(&text[..]).chain(&file[..]).chain(data)), None);
    // A member with the fuzzer's size and kind, then its bytes as further headers.
    let mut bytes = Bytes::new(data);
    let size = if bytes.byte() % 2 == 0 { format!("{:011o}\0", bytes.word()) } else { "77777777777\0".to_owned() };
    let header = tar_header(b"05LKxgS7"[usize::from(bytes.byte() % 8)], &size);
    take(Box::new((&header[..]).chain(data)), None);
    take(Box::new((&header[..]).chain(&header[..]).chain(data)), Some("other.img"));
}

/// Checksum files, signatures and catalogues.
pub fn checksums(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = sums::find(&text, "disk.img");
    let hex = |len: usize| {
        data.iter().cycle().take(len.min(data.len() * len)).map(|byte| format!("{:x}", byte % 16)).collect::<String>()
    };
    let lines = format!("SHA256 (disk.img) = {}\n{} *disk.img\n{text}\n{}", hex(64), hex(128), hex(64));
    let _ = sums::find(&lines, "disk.img");
    let key = "RWSMSt0erHTctUxq2JDAgQRo64ztikp8JvQeiSPte3NZ0Geou0TkTEiE";
    let _ = signify::open(&text, key);
    assert!(signify::open(&format!("untrusted comment: x\n{text}"), key).is_err(), "a signature out of nothing");
    let _ = Catalogue::default().add("fuzz.toml", &text);
    let _ = Catalogue::default().add("fuzz.toml", &format!("[[image]]\nname = 'x'\n{text}"));
}
