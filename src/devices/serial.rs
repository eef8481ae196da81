//! 16550A UART.

/// What stands behind a serial line or a console port: bytes out, bytes in. No method blocks; input that arrives
/// wakes the device through the waker that the back end was built with.
pub trait CharBackend: Send {
    /// Takes bytes from the guest and returns how many; the rest is offered again at the next poll.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Fills `buf` with input for the guest and returns how many bytes.
    fn read(&mut self, buf: &mut [u8]) -> usize;
}
