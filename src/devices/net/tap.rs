//! A tap of Linux: frames to and from the network stack of the host, with the header for offloads (virtio 1.2, 5.1.6) before
//! each (Documentation/networking/tuntap.rst of the kernel, IFF_VNET_HDR).
//!
//! The device reads and writes the tap itself, without blocking. A thread only waits until there is something to read, and
//! wakes the device; then it sleeps until the device has read all of it.
//!
//! **Hostile guest**: the kernel bounds the frames that wait in the tap, and drops those that it cannot take. It checks
//! each header that the device passes on.
//!
//! An unsafe island: ioctl(2) with a number.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{HEADER_BYTES, Nic, Offloads};
use crate::hypervisor::waking::Waker;
use crate::poll::{Poll, PollFlags};

/// The longest frame, with its header: an IPv4 packet of 64 KiB with its Ethernet and VLAN headers.
const PACKET_MAX: usize = HEADER_BYTES + 65535 + 18;

/// State that the device's side and the thread share.
struct Shared {
    device: File,
    waker: Waker,
    stop: AtomicBool,
    gone: AtomicBool,
}

/// The device's end of a tap.
pub struct Tap {
    shared: Arc<Shared>,
    /// Tells the thread that all was read.
    bell: UnixStream,
    buffer: Vec<u8>,
    /// The thread waits for frames, and will wake the device.
    waits: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Starts on an open tap that does not block. Its device is woken through `waker`.
    pub fn new(device: OwnedFd, waker: Waker) -> io::Result<Tap> {
        let (bell, heard) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { device: device.into(), waker, stop, gone });
        let waits = Arc::new(AtomicBool::new(true));
        let (thread_shared, thread_waits) = (Arc::clone(&shared), Arc::clone(&waits));
        let watch = move || watch(&thread_shared, &heard, &thread_waits);
        let thread = std::thread::Builder::new().name("tap".into()).spawn(watch)?;
        Ok(Tap { shared, bell, buffer: vec![0; PACKET_MAX], waits, thread: Some(thread) })
    }

    /// Lets the thread wait for frames again.
    fn wait_again(&self) {
        if !self.waits.swap(true, Ordering::AcqRel) {
            // A full socket has a byte in it already.
            let _ = (&self.bell).write(&[1]);
        }
    }
}

/// Wakes the device when there are frames, once until it has read them all.
fn watch(shared: &Shared, mut heard: &UnixStream, waits: &AtomicBool) {
    while !shared.stop.load(Ordering::Acquire) {
        let mut ends = Poll::new();
        ends.add_reader(true, shared.device.as_fd());
        ends.add_reader(false, heard.as_fd());
        // Nothing is asked of the device now, so that the bell only rings at its end.
        let Ok(ready) = ends.wait(None) else { continue };
        let Some((_, flags)) = ready.into_iter().find(|(is_tap, _)| *is_tap) else { continue };
        if flags.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL | PollFlags::POLLHUP) {
            // The interface was removed (`drivers/net/tun.c`, tun_chr_poll).
            shared.gone.store(true, Ordering::Release);
            shared.waker.wake();
            return;
        }
        waits.store(false, Ordering::Release);
        shared.waker.wake();
        if !matches!(heard.read(&mut [0; 64]), Ok(1..)) {
            return;
        }
    }
}

impl Nic for Tap {
    fn transmit(&mut self, packet: &[u8]) {
        // What the kernel does not take now, or at all, is lost, as on a wire.
        let _ = (&self.shared.device).write(packet);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            match (&self.shared.device).read(&mut self.buffer) {
                Ok(count) if count > HEADER_BYTES => return Some(self.buffer[..count].to_vec()),
                // No frame at all; the kernel gives none like it.
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // All is read, or the interface was removed, which the thread finds out.
                Ok(0) | Err(_) => {
                    self.wait_again();
                    return None;
                }
            }
        }
    }

    fn link_up(&self) -> bool {
        !self.shared.gone.load(Ordering::Acquire)
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn accept(&mut self, offloads: Offloads) {
        let Offloads { checksum, tso4, tso6, ecn } = offloads;
        let bits = [
            (checksum, libc::TUN_F_CSUM),
            (checksum && tso4, libc::TUN_F_TSO4),
            (checksum && tso6, libc::TUN_F_TSO6),
            (checksum && ecn && (tso4 || tso6), libc::TUN_F_TSO_ECN),
        ];
        let bits: libc::c_uint = bits.iter().filter(|(has, _)| *has).map(|(_, bit)| bit).sum();
        // Without them the kernel computes checksums and cuts frames itself, so that a refusal costs only time.
        // SAFETY: TUNSETOFFLOAD of linux/if_tun.h takes a number and touches no memory of this process.
        unsafe { libc::ioctl(self.shared.device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) };
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.bell.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::waking::Attention;
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    /// A pair of sockets keeps frames apart, as a tap does.
    fn tap() -> (Tap, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        ours.set_nonblocking(true).expect("sets");
        (Tap::new(ours.into(), Waker::new(Attention::new(1))).expect("starts"), theirs)
    }

    #[test]
    fn packets_pass_with_their_headers_and_the_thread_sleeps_in_between() {
        let (mut tap, host) = tap();
        let packet = [&[7u8; HEADER_BYTES][..], b"frame"].concat();
        tap.transmit(&packet);
        let mut buffer = [0; 100];
        assert_eq!(host.recv(&mut buffer).expect("arrives"), packet.len());
        for _ in 0..3 {
            assert_eq!(tap.receive(), None);
            host.send(&packet).expect("sends");
            let started = Instant::now();
            while tap.waits.load(Ordering::Acquire) {
                assert!(started.elapsed() < Duration::from_secs(60), "the thread does not notice the frame");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(tap.receive(), Some(packet.clone()));
        }
        // Shorter than its header: no frame.
        host.send(&packet[..3]).expect("sends");
        assert_eq!(tap.receive(), None);
        assert!(tap.link_up());
    }
}
