//! DHCP server for one guest: RFC 2131 and the options of RFC 2132.
//!
//! Every client gets the only address that there is. A request for another one is refused with DHCPNAK.
//!
//! **Hostile guest**: options are read within the message; a message that makes no sense gets no answer.

use std::net::Ipv4Addr;

use super::packet::Mac;

/// The server's port.
pub const SERVER_PORT: u16 = 67;
/// The client's port.
pub const CLIENT_PORT: u16 = 68;
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const LEASE_S: u32 = 86_400;
/// Shortest BOOTP message, which some clients insist on.
const MIN_BYTES: usize = 300;

const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const END: u8 = 255;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// The lease of the guest.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Router and server.
    pub gateway: Ipv4Addr,
    /// Name server.
    pub dns: Ipv4Addr,
    /// Network mask.
    pub mask: Ipv4Addr,
    /// Whether the gateway leads out and the name server answers. Without it, DHCP announces neither.
    pub leads_out: bool,
    /// The host name that DHCP gives the guest, if any.
    pub host_name: Option<String>,
}

/// An answer: its destination and its bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Ethernet address of the client.
    pub mac: Mac,
    /// IP address that it is sent to.
    pub destination: Ipv4Addr,
    /// The message.
    pub message: Vec<u8>,
}

fn option(options: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = options;
    loop {
        match *rest.first()? {
            PAD => rest = &rest[1..],
            END => return None,
            code => {
                let len = usize::from(*rest.get(1)?);
                let value = rest.get(2..2 + len)?;
                if code == wanted {
                    return Some(value);
                }
                rest = &rest[2 + len..];
            }
        }
    }
}

fn option_address(options: &[u8], wanted: u8) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = option(options, wanted)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

/// Answers a message of a client. Returns `None` if there is no answer.
pub fn answer(lease: &Lease, message: &[u8]) -> Option<Reply> {
    let (fixed, options) = message.split_at_checked(FIXED_BYTES)?;
    let options = options.strip_prefix(&COOKIE)?;
    // Ethernet with six-byte addresses.
    if fixed[0] != BOOTREQUEST || fixed[1] != 1 || fixed[2] != 6 {
        return None;
    }
    let field = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    let client = field(12);
    let kind = match *option(options, MESSAGE_TYPE)? {
        [DISCOVER] => OFFER,
        [INFORM] => ACK,
        [REQUEST] => {
            if option_address(options, SERVER_ID).is_some_and(|server| server != lease.gateway) {
                return None;
            }
            let wanted = option_address(options, REQUESTED_ADDRESS).unwrap_or(client);
            if wanted == lease.guest { ACK } else { NAK }
        }
        _ => return None,
    };
    let informs = option(options, MESSAGE_TYPE) == Some(&[INFORM]);
    let mac: Mac = fixed[28..34].try_into().expect("six bytes");
    let broadcast = kind == NAK || fixed[10] & 0x80 != 0;
    let destination = match (broadcast, client.is_unspecified()) {
        (true, _) => Ipv4Addr::BROADCAST,
        (false, false) => client,
        (false, true) => lease.guest,
    };
    let given = if kind == NAK || informs { Ipv4Addr::UNSPECIFIED } else { lease.guest };
    let message = build(lease, fixed, kind, given, informs);
    Some(Reply { mac: if broadcast { [0xff; 6] } else { mac }, destination, message })
}

fn build(lease: &Lease, request: &[u8], kind: u8, given: Ipv4Addr, informs: bool) -> Vec<u8> {
    let mut out = vec![0; FIXED_BYTES];
    out[0] = BOOTREPLY;
    out[1..3].copy_from_slice(&[1, 6]);
    // Transaction, flags, the client's address in use; relay and hardware address.
    out[4..8].copy_from_slice(&request[4..8]);
    out[10..16].copy_from_slice(&request[10..16]);
    out[16..20].copy_from_slice(&given.octets());
    out[20..24].copy_from_slice(&lease.gateway.octets());
    out[24..44].copy_from_slice(&request[24..44]);
    out.extend_from_slice(&COOKIE);
    let mut put = |code: u8, value: &[u8]| {
        out.extend_from_slice(&[code, value.len() as u8]);
        out.extend_from_slice(value);
    };
    put(MESSAGE_TYPE, &[kind]);
    put(SERVER_ID, &lease.gateway.octets());
    if kind != NAK {
        if !informs {
            put(LEASE_TIME, &LEASE_S.to_be_bytes());
        }
        put(SUBNET_MASK, &lease.mask.octets());
        if lease.leads_out {
            put(ROUTER, &lease.gateway.octets());
            put(DNS, &lease.dns.octets());
        }
        if let Some(name) = lease.host_name.as_deref().filter(|name| (1..=63).contains(&name.len())) {
            put(HOST_NAME, name.as_bytes());
        }
    }
    out.push(END);
    out.resize(out.len().max(MIN_BYTES), PAD);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            leads_out: true,
            host_name: Some("demo".into()),
        }
    }

    fn request(options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; FIXED_BYTES];
        message[..3].copy_from_slice(&[BOOTREQUEST, 1, 6]);
        message[4..8].copy_from_slice(&[1, 2, 3, 4]);
        message[28..34].copy_from_slice(&[0x52, 1, 2, 3, 4, 5]);
        message.extend_from_slice(&COOKIE);
        message.extend_from_slice(options);
        message
    }

    fn options(reply: &Reply) -> &[u8] {
        &reply.message[FIXED_BYTES + 4..]
    }

    #[test]
    fn a_discover_is_offered_the_one_address() {
        let reply = answer(&lease(), &request(&[53, 1, DISCOVER, END])).unwrap();
        assert_eq!(option(options(&reply), MESSAGE_TYPE), Some(&[OFFER][..]));
        assert_eq!(&reply.message[16..20], &[10, 0, 2, 15]);
        assert_eq!(&reply.message[4..8], &[1, 2, 3, 4]);
        assert_eq!(option_address(options(&reply), DNS), Some(lease().dns));
        assert_eq!(option(options(&reply), HOST_NAME), Some(&b"demo"[..]));
        assert_eq!((reply.mac, reply.destination), ([0x52, 1, 2, 3, 4, 5], lease().guest));
    }

    #[test]
    fn where_nothing_leads_out_the_guest_hears_of_no_router_and_no_name_server() {
        let reply = answer(&Lease { leads_out: false, ..lease() }, &request(&[53, 1, DISCOVER, END])).unwrap();
        assert_eq!([option(options(&reply), ROUTER), option(options(&reply), DNS)], [None, None]);
        assert_eq!(&reply.message[16..20], &[10, 0, 2, 15]);
    }

    #[test]
    fn a_request_for_the_address_is_acknowledged_and_for_another_refused() {
        let ok = answer(&lease(), &request(&[53, 1, REQUEST, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2, END])).unwrap();
        assert_eq!(option(options(&ok), MESSAGE_TYPE), Some(&[ACK][..]));
        let no = answer(&lease(), &request(&[53, 1, REQUEST, 50, 4, 192, 168, 1, 9, END])).unwrap();
        assert_eq!(option(options(&no), MESSAGE_TYPE), Some(&[NAK][..]));
        assert_eq!(no.destination, Ipv4Addr::BROADCAST);
        assert_eq!(answer(&lease(), &request(&[53, 1, REQUEST, 54, 4, 10, 0, 2, 9, END])), None, "another server's");
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        let good = request(&[53, 1, DISCOVER, 55, 3, 1, 3, 6, END]);
        for cut in 0..FIXED_BYTES + 7 {
            assert_eq!(answer(&lease(), &good[..cut]), None);
        }
        assert_eq!(answer(&lease(), &request(&[53, 9, DISCOVER])), None);
        assert_eq!(answer(&lease(), &request(&[12, 200, 0])), None);
        assert_eq!(answer(&lease(), &request(&[53, 1, 7, END])), None, "a release");
    }
}
