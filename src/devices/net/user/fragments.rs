//! Puts together the IPv4 datagrams that the guest sent in fragments: RFC 791, section 3.2, and RFC 815.
//!
//! Fragments that overlap are an attack or a mistake: the datagram is dropped, with the fragments of it that come
//! later, as in RFC 5722 for IPv6. A fragment that came twice is no overlap.
//!
//! **Hostile guest**: at most [`MAX_DATAGRAMS`] are being assembled, each of at most 65,535 bytes in at most
//! [`MAX_PIECES`] pieces. One that is not complete after [`PATIENCE`] is dropped, and the oldest one makes room for a
//! new one.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::packet::{self, Fragment};

/// Maximum number of datagrams that are being assembled.
pub const MAX_DATAGRAMS: usize = 32;
/// Maximum number of fragments of one datagram. The longest datagram takes 119 on a link with the smallest MTU that a
/// guest can have.
pub const MAX_PIECES: usize = 256;
/// Time-out of an incomplete datagram, as in Linux (ip_frag_time).
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST: usize = 65_535 - packet::IPV4_BYTES;

/// Key that the fragments of one datagram share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Identification.
    pub identification: u16,
}

struct Datagram {
    since: Instant,
    /// Data that has arrived, with gaps.
    data: Vec<u8>,
    /// The pieces that have arrived, by their first byte.
    pieces: Vec<(usize, usize)>,
    /// Total length, known once the last fragment has arrived.
    total: Option<usize>,
    /// Fragments overlapped: the datagram will never be complete.
    spoilt: bool,
}

/// Datagrams that are not complete yet.
#[derive(Default)]
pub struct Fragments {
    datagrams: HashMap<Key, Datagram>,
}

impl Fragments {
    /// Takes a frame and returns one with a complete packet: this one, or the one that this fragment completes.
    pub fn take(&mut self, frame: Vec<u8>, now: Instant) -> Option<Vec<u8>> {
        let Some(fragment) = packet::fragment(&frame) else { return Some(frame) };
        self.expire(now);
        let key = fragment.key;
        if !self.datagrams.contains_key(&key) && self.datagrams.len() >= MAX_DATAGRAMS {
            let oldest = *self.datagrams.iter().min_by_key(|(_, datagram)| datagram.since)?.0;
            self.datagrams.remove(&oldest);
        }
        let datagram = self.datagrams.entry(key).or_insert_with(|| Datagram::new(now));
        if datagram.spoilt || !datagram.add(&fragment) {
            *datagram = Datagram { spoilt: true, ..Datagram::new(datagram.since) };
            return None;
        }
        if !datagram.is_whole() {
            return None;
        }
        let data = self.datagrams.remove(&key)?.data;
        Some(packet::whole(&frame, &key, &data))
    }

    /// Drops the datagrams that were not complete in time.
    pub fn expire(&mut self, now: Instant) {
        self.datagrams.retain(|_, datagram| now.duration_since(datagram.since) < PATIENCE);
    }

    /// Returns the number of incomplete datagrams.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Returns whether there is anything to expire.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.datagrams.values().map(|datagram| datagram.data.len()).sum()
    }
}

impl Datagram {
    fn new(since: Instant) -> Datagram {
        Datagram { since, data: vec![], pieces: vec![], total: None, spoilt: false }
    }

    /// Takes a piece. Returns false if it cannot belong to this datagram.
    fn add(&mut self, fragment: &Fragment<'_>) -> bool {
        let (start, end) = (fragment.offset, fragment.offset + fragment.data.len());
        let last = !fragment.more;
        let odd = fragment.data.is_empty() || !last && fragment.data.len() % 8 != 0;
        let beyond = self.total.is_some_and(|total| end > total || last && end != total);
        let cut = last && self.pieces.last().is_some_and(|&(_, known)| known > end);
        if odd || end > LONGEST || beyond || cut {
            return false;
        }
        let at = self.pieces.partition_point(|&(other, _)| other < start);
        if self.pieces.get(at) == Some(&(start, end)) {
            return self.data[start..end] == *fragment.data;
        }
        let before = at.checked_sub(1).is_some_and(|at| self.pieces[at].1 > start);
        let after = self.pieces.get(at).is_some_and(|&(other, _)| other < end);
        if before || after || self.pieces.len() >= MAX_PIECES {
            return false;
        }
        self.pieces.insert(at, (start, end));
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[start..end].copy_from_slice(fragment.data);
        if last {
            self.total = Some(end);
        }
        true
    }

    fn is_whole(&self) -> bool {
        // The pieces do not overlap: when their lengths sum to the total, they are all of it.
        self.total.is_some_and(|total| self.pieces.iter().map(|(start, end)| end - start).sum::<usize>() == total)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Content, Route, parse, udp};
    use super::*;
    use std::net::SocketAddrV4;

    fn at(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, last), port)
    }

    fn sent(identification: u16, payload: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let route = Route { source_mac: [2; 6], destination_mac: [4; 6], identification, mtu };
        udp(&route, at(15, 4000), at(2, 53), payload)
    }

    fn payload(frame: &[u8]) -> Vec<u8> {
        match parse(frame) {
            Some((_, Content::Udp { payload, .. })) => payload.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fragments_in_any_order_make_the_datagram_whatever_the_mtu() {
        let now = Instant::now();
        let data: Vec<u8> = (0..65_507u32).map(|n| (n * 7 >> 3) as u8).collect();
        for (len, mtu) in [(1472, 1500), (1473, 1500), (4000, 1500), (65_507, 1500), (65_507, 576), (9000, 9000)] {
            for turned in [false, true] {
                let mut fragments = Fragments::default();
                let mut frames = sent(7, &data[..len], mtu);
                if turned {
                    frames.reverse();
                }
                let last = frames.pop().unwrap();
                for frame in &frames {
                    assert_eq!(fragments.take(frame.clone(), now), None);
                    assert_eq!(fragments.take(frame.clone(), now), None, "once more is no overlap");
                }
                let whole = fragments.take(last, now).unwrap();
                assert!(payload(&whole) == data[..len], "{len} {mtu}");
                assert!(fragments.is_empty());
            }
        }
    }

    #[test]
    fn datagrams_that_come_mixed_are_kept_apart() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let (one, two) = (sent(1, &[1; 3000], 1500), sent(2, &[2; 3000], 1500));
        let mut got = vec![];
        for (a, b) in one.into_iter().zip(two) {
            got.extend([fragments.take(a, now), fragments.take(b, now)].into_iter().flatten());
        }
        assert_eq!(got.iter().map(|frame| payload(frame)).collect::<Vec<_>>(), [vec![1; 3000], vec![2; 3000]]);
    }

    /// Returns the frame with a fragment's offset and "more" flag set.
    fn moved(frame: &[u8], offset: usize, more: bool) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        frame
    }

    #[test]
    fn fragments_that_overlap_or_contradict_each_other_drop_the_datagram_and_what_comes_later() {
        let now = Instant::now();
        let frames = sent(1, &[1; 4000], 1500);
        let mut other = frames[0].clone();
        *other.last_mut().unwrap() ^= 1;
        let wrong: [(&str, Vec<u8>); 6] = [
            ("it overlaps the one before", moved(&frames[0], 1472, true)),
            ("other bytes in the same place", other),
            ("the last one ends before another", moved(&frames[2], 8, false)),
            ("beyond the longest datagram", moved(&frames[0], 65_528, true)),
            ("no multiple of eight", moved(&frames[2], 1480, true)),
            ("no data", frames[0][..34].to_vec()),
        ];
        for (why, mut frame) in wrong {
            if frame.len() == 34 {
                frame[16..18].copy_from_slice(&20u16.to_be_bytes());
            }
            let mut fragments = Fragments::default();
            assert_eq!(fragments.take(frames[0].clone(), now), None);
            assert_eq!(fragments.take(frame, now), None, "{why}");
            for frame in &frames {
                assert_eq!(fragments.take(frame.clone(), now), None, "{why}");
            }
            assert_eq!(fragments.bytes(), 0, "{why}");
            fragments.expire(now + PATIENCE);
            let whole: Vec<_> = frames.iter().filter_map(|frame| fragments.take(frame.clone(), now + PATIENCE)).collect();
            assert_eq!(whole.len(), 1, "{why}: the next of that number is another one");
        }
    }

    #[test]
    fn what_is_being_put_together_is_bounded_in_number_in_bytes_and_in_time() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let first = |n: u16| sent(n, &[1; 3000], 1500).remove(0);
        for n in 0..2000u16 {
            // The farthest piece makes the longest buffer.
            assert_eq!(fragments.take(moved(&first(n), 64_000, true), now + Duration::from_millis(n.into())), None);
        }
        assert_eq!(fragments.datagrams.len(), MAX_DATAGRAMS);
        assert!(fragments.bytes() <= MAX_DATAGRAMS * 65_535);
        assert!(fragments.datagrams.keys().all(|key| key.identification >= 2000 - MAX_DATAGRAMS as u16), "the oldest went");
        fragments.expire(now + Duration::from_secs(40));
        assert!(fragments.is_empty());
        let mut pieces = sent(1, &[1; 8], 1500).remove(0);
        pieces[16..18].copy_from_slice(&28u16.to_be_bytes());
        pieces.truncate(14 + 28);
        for n in 0..4000 {
            fragments.take(moved(&pieces, 16 * n, true), now);
        }
        assert_eq!(fragments.bytes(), 0, "too many pieces");
    }
}
