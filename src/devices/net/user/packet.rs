//! Ethernet, IPv4, UDP and ICMP headers: RFC 894, RFC 791, RFC 768, RFC 792. smoltcp handles TCP and ARP.
//!
//! **Hostile guest**: every length is checked against the bytes that exist. Fragments have no content here: see
//! [`fragments`](super::fragments).

use std::net::{Ipv4Addr, SocketAddrV4};

use super::fragments::Key;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Length of a frame's header.
pub const ETHERNET_BYTES: usize = 14;
/// Length of a header without options.
pub const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_ECHO: u8 = 8;

/// Codes of "destination unreachable": RFC 792, and RFC 1812, section 5.2.7.1.
pub mod unreachable {
    /// No route to the network.
    pub const NETWORK: u8 = 0;
    /// The host does not answer.
    pub const HOST: u8 = 1;
    /// The port is closed.
    pub const PORT: u8 = 3;
    /// A rule forbids it.
    pub const PROHIBITED: u8 = 13;
}

/// Content of a frame from the guest, as far as this network handles it.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// An ARP packet for the address.
    Arp {
        /// The address whose Ethernet address is asked for or announced.
        target: Ipv4Addr,
    },
    /// A TCP segment.
    Tcp {
        /// Sender.
        source: SocketAddrV4,
        /// Receiver.
        destination: SocketAddrV4,
        /// Whether it opens a connection: SYN without ACK or RST.
        opens: bool,
    },
    /// A UDP datagram.
    Udp {
        /// Sender.
        source: SocketAddrV4,
        /// Receiver.
        destination: SocketAddrV4,
        /// Its data.
        payload: &'a [u8],
    },
    /// An ICMP echo request.
    Echo {
        /// Sender.
        source: Ipv4Addr,
        /// Receiver.
        destination: Ipv4Addr,
        /// Identifier of the sender's program.
        identifier: u16,
        /// The ICMP message.
        message: &'a [u8],
    },
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Returns the sender's Ethernet address and the content of a frame, if this network handles it.
pub fn parse(frame: &[u8]) -> Option<(Mac, Content<'_>)> {
    let (header, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
    let source: Mac = header[6..12].try_into().expect("six bytes");
    let content = match [header[12], header[13]] {
        ETHERTYPE_ARP if packet.len() >= 28 => Content::Arp { target: address(packet, 24) },
        ETHERTYPE_IPV4 => parse_ipv4(packet)?,
        _ => return None,
    };
    Some((source, content))
}

/// Returns the data after an IPv4 header, if it is complete.
fn ipv4_data(packet: &[u8]) -> Option<&[u8]> {
    if packet.len() < IPV4_BYTES || packet[0] >> 4 != 4 {
        return None;
    }
    let header_bytes = usize::from(packet[0] & 0xf) * 4;
    let total = usize::from(be16(packet, 2));
    let fits = header_bytes >= IPV4_BYTES && header_bytes <= total && total <= packet.len();
    fits.then(|| &packet[header_bytes..total])
}

/// A part of an IPv4 datagram.
pub struct Fragment<'a> {
    /// Key of the datagram.
    pub key: Key,
    /// Offset of its data.
    pub offset: usize,
    /// Whether more fragments follow.
    pub more: bool,
    /// Its data.
    pub data: &'a [u8],
}

/// Returns the fragment that a frame carries, if it carries one.
pub fn fragment(frame: &[u8]) -> Option<Fragment<'_>> {
    let (header, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
    let data = ipv4_data(packet).filter(|_| header[12..14] == ETHERTYPE_IPV4)?;
    let word = be16(packet, 6);
    let (source, destination) = (address(packet, 12), address(packet, 16));
    let key = Key { source, destination, protocol: packet[9], identification: be16(packet, 4) };
    let (offset, more) = (usize::from(word & FRAGMENT_OFFSET) * 8, word & MORE_FRAGMENTS != 0);
    (more || offset != 0).then_some(Fragment { key, offset, more, data })
}

/// Builds a frame with a whole datagram, between the same Ethernet addresses as `frame`.
pub fn whole(frame: &[u8], key: &Key, data: &[u8]) -> Vec<u8> {
    let header = ipv4_header(key, 0, data.len());
    [&frame[..ETHERNET_BYTES], &header, data].concat()
}

fn parse_ipv4(packet: &[u8]) -> Option<Content<'_>> {
    let payload = ipv4_data(packet)?;
    if be16(packet, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return None;
    }
    let (source, destination) = (address(packet, 12), address(packet, 16));
    let ports = |bytes: &[u8]| (SocketAddrV4::new(source, be16(bytes, 0)), SocketAddrV4::new(destination, be16(bytes, 2)));
    match packet[9] {
        PROTOCOL_TCP if payload.len() >= 20 => {
            let (source, destination) = ports(payload);
            // FIN 1, SYN 2, RST 4, ACK 16.
            Some(Content::Tcp { source, destination, opens: payload[13] & 0x16 == 0x02 })
        }
        PROTOCOL_UDP if payload.len() >= UDP_BYTES => {
            let (source, destination) = ports(payload);
            let bytes = usize::from(be16(payload, 4));
            Some(Content::Udp { source, destination, payload: payload.get(UDP_BYTES..bytes)? })
        }
        PROTOCOL_ICMP if payload.len() >= 8 && payload[0] == ICMP_ECHO && payload[1] == 0 => {
            Some(Content::Echo { source, destination, identifier: be16(payload, 4), message: payload })
        }
        _ => None,
    }
}

/// Returns the Internet checksum of some pieces, each of an even length except the last: RFC 1071.
fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for piece in pieces {
        let pairs = piece.chunks_exact(2);
        let odd = pairs.remainder().first().map_or(0, |&byte| u64::from(byte) << 8);
        sum += pairs.map(|pair| u64::from(be16(pair, 0))).sum::<u64>() + odd;
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Source and destination of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Our Ethernet address.
    pub source_mac: Mac,
    /// The guest's Ethernet address.
    pub destination_mac: Mac,
    /// Identification of the datagram, which its fragments share.
    pub identification: u16,
    /// Length of the longest packet that the link takes.
    pub mtu: usize,
}

/// Builds an IPv4 header without options. `fragment` has the offset and the "more" flag.
fn ipv4_header(key: &Key, fragment: u16, data_bytes: usize) -> [u8; IPV4_BYTES] {
    let mut header = [0u8; IPV4_BYTES];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((IPV4_BYTES + data_bytes) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&key.identification.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = 64;
    header[9] = key.protocol;
    header[12..16].copy_from_slice(&key.source.octets());
    header[16..20].copy_from_slice(&key.destination.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Builds the frames of one IPv4 datagram: several if it is longer than the link's MTU.
fn ipv4(route: &Route, protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<Vec<u8>> {
    // Offsets are in units of eight bytes.
    let chunk = (route.mtu.saturating_sub(IPV4_BYTES) & !7).max(8);
    let key = Key { source, destination, protocol, identification: route.identification };
    let pieces = payload.len().div_ceil(chunk).max(1);
    (0..pieces)
        .map(|piece| {
            let data = &payload[piece * chunk..payload.len().min((piece + 1) * chunk)];
            let more = if piece + 1 < pieces { MORE_FRAGMENTS } else { 0 };
            let header = ipv4_header(&key, more | (piece * chunk / 8) as u16, data.len());
            [&route.destination_mac[..], &route.source_mac, &ETHERTYPE_IPV4, &header, data].concat()
        })
        .collect()
}

/// Builds the frames of a UDP datagram of at most 65,507 bytes. A longer one gives none.
pub fn udp(route: &Route, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<Vec<u8>> {
    let Ok(bytes) = u16::try_from(UDP_BYTES + payload.len()) else { return vec![] };
    if usize::from(bytes) + IPV4_BYTES > usize::from(u16::MAX) {
        return vec![];
    }
    let mut header = [0u8; UDP_BYTES];
    header[0..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&destination.port().to_be_bytes());
    header[4..6].copy_from_slice(&bytes.to_be_bytes());
    let pseudo = [0, PROTOCOL_UDP, header[4], header[5]];
    let sum = checksum(&[&source.ip().octets(), &destination.ip().octets(), &pseudo, &header, payload]);
    // Zero would mean that there is no checksum.
    header[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    ipv4(route, PROTOCOL_UDP, *source.ip(), *destination.ip(), &[&header, payload].concat())
}

/// Builds the echo reply to the guest, from a message whose first eight bytes are an ICMP header. `identifier` replaces
/// its own.
pub fn echo_reply(route: &Route, source: Ipv4Addr, guest: Ipv4Addr, identifier: u16, message: &[u8]) -> Vec<Vec<u8>> {
    if message.len() < 8 || message.len() > usize::from(u16::MAX) - IPV4_BYTES {
        return vec![];
    }
    let mut reply = message.to_vec();
    reply[0] = ICMP_ECHO_REPLY;
    reply[2..4].fill(0);
    reply[4..6].copy_from_slice(&identifier.to_be_bytes());
    let sum = checksum(&[&reply]);
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(route, PROTOCOL_ICMP, source, guest, &reply)
}

/// Builds the guest's echo request as a raw socket sends it: with `identifier` instead of its own, and a checksum.
pub fn echo_request(identifier: u16, message: &[u8]) -> Vec<u8> {
    let mut request = message.to_vec();
    request[2..4].fill(0);
    request[4..6].copy_from_slice(&identifier.to_be_bytes());
    let sum = checksum(&[&request]);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    request
}

/// Returns the echo reply to `identifier` in a packet from a raw socket, which begins with its IP header.
pub fn echo_answer(packet: &[u8], identifier: u16) -> Option<&[u8]> {
    let header_bytes = usize::from(packet.first()? & 0xf) * 4;
    let message = packet.get(header_bytes..).filter(|message| message.len() >= 8 && header_bytes >= IPV4_BYTES)?;
    (message[0] == ICMP_ECHO_REPLY && message[1] == 0 && be16(message, 4) == identifier).then_some(message)
}

/// Builds the frame that reports with `code` why a datagram from `guest` to `remote` could not be delivered.
pub fn udp_unreachable(route: &Route, code: u8, guest: SocketAddrV4, remote: SocketAddrV4) -> Vec<Vec<u8>> {
    // The message quotes the IP header and the first eight bytes of the datagram.
    let [a, b] = guest.port().to_be_bytes();
    let [c, d] = remote.port().to_be_bytes();
    unreachable(route, code, PROTOCOL_UDP, (*guest.ip(), *remote.ip()), [a, b, c, d, 0, UDP_BYTES as u8, 0, 0])
}

/// Builds the same for an ICMP message, which begins with eight bytes of header.
pub fn echo_unreachable(route: &Route, code: u8, guest: Ipv4Addr, remote: Ipv4Addr, message: &[u8]) -> Vec<Vec<u8>> {
    let begin = message.first_chunk::<8>().copied().unwrap_or_default();
    unreachable(route, code, PROTOCOL_ICMP, (guest, remote), begin)
}

fn unreachable(route: &Route, code: u8, protocol: u8, (guest, remote): (Ipv4Addr, Ipv4Addr), begin: [u8; 8]) -> Vec<Vec<u8>> {
    let key = Key { source: guest, destination: remote, protocol, identification: route.identification };
    let quoted = ipv4_header(&key, 0, begin.len());
    let mut message = [&[ICMP_UNREACHABLE, code, 0, 0, 0, 0, 0, 0][..], &quoted, &begin].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(route, PROTOCOL_ICMP, remote, guest, &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route = Route { source_mac: [2; 6], destination_mac: [4; 6], identification: 7, mtu: 1500 };

    fn at(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, last), port)
    }

    #[test]
    fn a_datagram_that_was_built_is_read_back() {
        let frames = udp(&ROUTE, at(3, 53), at(15, 4000), b"hello");
        let (mac, content) = parse(&frames[0]).unwrap();
        assert_eq!(mac, [2; 6]);
        assert_eq!(content, Content::Udp { source: at(3, 53), destination: at(15, 4000), payload: b"hello" });
        assert_eq!(checksum(&[&frames[0][14..34]]), 0, "a header with its checksum sums to zero");
    }

    #[test]
    fn a_long_datagram_is_sent_in_fragments_of_which_none_is_longer_than_the_link_allows() {
        let frames = udp(&ROUTE, at(3, 53), at(15, 4000), &[1; 4000]);
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|frame| frame.len() <= 1514));
        assert_eq!(frames.iter().map(|frame| frame.len() - 34).sum::<usize>(), 4008);
        assert!(parse(&frames[1]).is_none(), "fragments are not for us");
        assert!(udp(&ROUTE, at(3, 53), at(15, 4000), &[1; 65508]).is_empty());
    }

    #[test]
    fn an_echo_through_a_raw_socket_is_told_by_its_identifier() {
        let request = echo_request(0x1234, &[8, 0, 0xff, 0xff, 0, 77, 0, 1, b'x']);
        assert_eq!(checksum(&[&request]), 0);
        assert_eq!(request[4..], [0x12, 0x34, 0, 1, b'x']);
        let mut answer = ipv4(&ROUTE, PROTOCOL_ICMP, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, &request).remove(0).split_off(14);
        assert_eq!(echo_answer(&answer, 0x1234), None, "the request itself, which the loopback interface shows too");
        answer[20] = ICMP_ECHO_REPLY;
        assert_eq!(echo_answer(&answer, 0x1234), Some(&answer[20..]));
        assert_eq!(echo_answer(&answer, 0x1235), None);
        for cut in 0..answer.len() {
            let _ = echo_answer(&answer[..cut], 0x1234);
        }
    }

    #[test]
    fn frames_cut_anywhere_are_refused_without_a_panic() {
        for frame in [
            udp(&ROUTE, at(3, 53), at(15, 4000), b"hello").remove(0),
            udp_unreachable(&ROUTE, unreachable::PORT, at(15, 1), at(2, 2)).remove(0),
        ] {
            for cut in 0..frame.len() {
                assert!(parse(&frame[..cut]).is_none() && fragment(&frame[..cut]).is_none(), "{cut}");
                for byte in 0..=255 {
                    let mut broken = frame.clone();
                    broken[cut] = byte;
                    let _ = (parse(&broken), fragment(&broken));
                }
            }
        }
    }
}
