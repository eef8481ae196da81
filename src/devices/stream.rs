//! A console over a stream socket: the back end of COM1, and of a named port, in the engine child.
//!
//! Output is put into a bounded buffer, which a thread writes to the stream. It pauses after each write, so that a guest
//! which writes byte by byte costs a system call for many bytes and not for each. When the buffer is full the device must
//! wait. A thread of its own reads input into a bounded queue and wakes the device.
//!
//! **Hostile guest**: output beyond [`OUTPUT_LIMIT`] is not taken; the chip then holds its transmitter busy.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::serial::CharBackend;
use crate::hypervisor::waking::Waker;

/// Maximum number of bytes of output that wait.
pub const OUTPUT_LIMIT: usize = 64 * 1024;
/// Maximum number of bytes of input that wait. Then the reader waits for the guest.
const INPUT_LIMIT: usize = 16 * 1024;
/// Time between two writes to the stream. It is short for the eye, and long beside the time in which a guest writes a byte.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Input {
    bytes: Mutex<VecDeque<u8>>,
    taken: Condvar,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Number of bytes that the pump writes at the moment. They count towards the limit.
    in_flight: usize,
    /// The pump waits for bytes. Only then does a writer have to wake it.
    pump_sleeps: bool,
}

impl Waiting {
    fn len(&self) -> usize {
        self.bytes.len() + self.in_flight
    }
}

struct Output {
    stream: UnixStream,
    waiting: Mutex<Waiting>,
    more: Condvar,
    written: Condvar,
}

impl Output {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic happens under this lock")
    }
}

/// A console stream that several devices may write to and one reads from.
#[derive(Clone)]
pub struct StreamConsole {
    output: Arc<Output>,
    input: Arc<Input>,
}

impl StreamConsole {
    /// Starts a console on `stream`, with threads called after `name`. Input wakes `reader`; a full buffer that has room
    /// again wakes `writers`.
    pub fn new(name: &str, stream: UnixStream, reader: Waker, writers: Vec<Waker>) -> std::io::Result<StreamConsole> {
        let mut source = stream.try_clone()?;
        let input = Arc::new(Input::default());
        let queue = Arc::clone(&input);
        std::thread::Builder::new().name(format!("{name}-in")).spawn(move || {
            let mut chunk = [0u8; 4096];
            loop {
                match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(n) => {
                        let held = queue.bytes.lock().expect("no panic happens under this lock");
                        let mut held = queue.taken.wait_while(held, |held| held.len() + n > INPUT_LIMIT).expect("as above");
                        held.extend(&chunk[..n]);
                        drop(held);
                        queue.arrived.notify_all();
                        reader.wake();
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
        let output = Arc::new(Output { stream, waiting: Mutex::default(), more: Condvar::new(), written: Condvar::new() });
        let pump = Arc::clone(&output);
        std::thread::Builder::new().name(format!("{name}-out")).spawn(move || pump_output(&pump, &writers))?;
        Ok(StreamConsole { output, input })
    }

    /// Returns a handle that only writes: for COM2 to COM4.
    pub fn write_only(&self) -> StreamConsole {
        StreamConsole { output: Arc::clone(&self.output), input: Arc::default() }
    }

    /// Waits until there is input, at most `limit`: for a loader, which runs before the guest's devices do.
    pub fn wait_for_input(&self, limit: Duration) {
        let held = self.input.bytes.lock().expect("no panic happens under this lock");
        drop(self.input.arrived.wait_timeout_while(held, limit, |held| held.is_empty()));
    }

    /// Waits until all output has been handed over, at most `limit`, so that the guest's last output is not lost.
    pub fn flush(&self, limit: Duration) {
        drop(self.output.written.wait_timeout_while(self.output.waiting(), limit, |waiting| waiting.len() > 0));
    }
}

/// Writes the queued output, blocking. Once the other end is gone, output is dropped.
fn pump_output(output: &Output, writers: &[Waker]) {
    let mut gone = false;
    let mut chunk = Vec::new();
    loop {
        let mut waiting = output.waiting();
        waiting.pump_sleeps = waiting.bytes.is_empty();
        let mut waiting = output.more.wait_while(waiting, |waiting| waiting.bytes.is_empty()).expect("as above");
        waiting.pump_sleeps = false;
        std::mem::swap(&mut chunk, &mut waiting.bytes);
        waiting.in_flight = chunk.len();
        drop(waiting);
        gone = gone || (&output.stream).write_all(&chunk).is_err();
        chunk.clear();
        let mut waiting = output.waiting();
        let was_full = waiting.len() >= OUTPUT_LIMIT;
        waiting.in_flight = 0;
        output.written.notify_all();
        if was_full {
            writers.iter().for_each(Waker::wake);
        } else {
            // Nobody wakes the pump here: it does not sleep for lack of bytes.
            drop(output.more.wait_timeout(waiting, PAUSE));
        }
    }
}

impl CharBackend for StreamConsole {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut waiting = self.output.waiting();
        let n = bytes.len().min(OUTPUT_LIMIT - waiting.len());
        waiting.bytes.extend_from_slice(&bytes[..n]);
        if std::mem::take(&mut waiting.pump_sleeps) {
            drop(waiting);
            self.output.more.notify_one();
        }
        n
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut held = self.input.bytes.lock().expect("no panic happens under this lock");
        let n = buf.len().min(held.len());
        for (slot, byte) in buf.iter_mut().zip(held.drain(..n)) {
            *slot = byte;
        }
        drop(held);
        if n > 0 {
            self.input.taken.notify_all();
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::waking::Attention;

    fn pair() -> (StreamConsole, UnixStream, Waker) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let waker = Waker::new(Attention::new(1));
        (StreamConsole::new("console", ours, waker.clone(), vec![waker.clone()]).unwrap(), theirs, waker)
    }

    #[test]
    fn bytes_pass_both_ways_and_input_wakes_the_device() {
        let (mut console, mut peer, waker) = pair();
        assert_eq!(console.write(b"login: "), 7);
        let mut buf = [0; 7];
        peer.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"login: ");
        peer.write_all(b"root\n").unwrap();
        while !waker.take() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut buf = [0; 16];
        assert_eq!(console.read(&mut buf), 5);
        assert_eq!(&buf[..5], b"root\n");
    }

    #[test]
    fn bytes_that_are_written_one_by_one_all_arrive_in_their_order() {
        let (mut console, mut peer, _) = pair();
        let said: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
        for byte in &said {
            assert_eq!(console.write(&[*byte]), 1);
        }
        let mut heard = vec![0; said.len()];
        peer.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said);
    }

    #[test]
    fn a_stalled_peer_bounds_the_buffer_and_a_vanished_one_does_not_stall_the_guest() {
        let (mut console, peer, _) = pair();
        let mut taken = 0;
        for _ in 0..10_000 {
            taken += console.write(&[b'x'; 1000]);
        }
        assert!(taken < 10_000_000);
        drop(peer);
        console.flush(Duration::from_secs(10));
        assert_eq!(console.write(&[b'y'; 1000]), 1000);
    }
}
