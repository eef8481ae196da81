//! One HTTP request: sent on a thread of its own, with the answer taken in pieces.
//!
//! So the caller can check the clock and the user meanwhile. A request for the rest of a file carries `If-Range` where
//! it can (RFC 9110 section 13.1.5), so that a server whose file has changed sends all of it.
//!
//! **Hostile server**: at most [`MAX_REDIRECTS`] redirects and none from https to http; a server that sends nothing for
//! [`Patience::stall`], or repeatedly less than [`LEAST_BYTES`] in that time, is given up; a range that was not
//! requested is not used.

use std::error::Error;
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ureq::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader, ResponseExt};

use super::error::{FetchError, Result};
use super::progress::Job;

/// Maximum number of redirects that are followed.
pub const MAX_REDIRECTS: usize = 10;
/// A server that sends fewer bytes than this in [`Patience::stall`] counts as silent.
pub const LEAST_BYTES: u64 = 1024;
/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// Maximum number of pieces that wait for the caller.
const PIECES_WAITING: usize = 8;
/// Interval at which the user is asked while nothing arrives.
const TICK: Duration = Duration::from_millis(100);

/// Time-outs and retries for a server.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Silence after which a connection is abandoned.
    pub stall: Duration,
    /// Number of tries of one server without progress.
    pub tries: u32,
    /// Wait before the second try. It doubles with each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stall: Duration::from_secs(30), tries: 3, pause: Duration::from_secs(1) }
    }
}

/// An HTTP client.
#[derive(Debug, Clone)]
pub struct Net {
    agent: Agent,
    /// Time-outs and retries.
    pub patience: Patience,
}

/// The part of a file that exists already.
#[derive(Debug, Clone, Default)]
pub struct Have {
    /// Number of its first bytes.
    pub bytes: u64,
    /// The strong entity tag or the date that the server gave with them.
    pub validator: Option<String>,
    /// Whether the rest may come without a validator, because a digest will decide.
    pub trusting: bool,
}

/// The header of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Offset of the bytes that follow.
    pub start: u64,
    /// The whole file's length, if the server reports it.
    pub total: Option<u64>,
    /// The validator for a request for the rest of the same file.
    pub validator: Option<String>,
    /// Whether the server can send a part.
    pub ranges: bool,
}

/// Reason why an answer did not come, or not completely.
#[derive(Debug)]
pub enum Trouble {
    /// Another try may succeed: the connection was cut, or the server was silent or had an internal error.
    Passing(FetchError),
    /// The file is not the one that was begun. It must be fetched from its start.
    Changed(FetchError),
    /// This server cannot be used.
    Lasting(FetchError),
    /// The user interrupted it, or the host is the cause.
    Ours(FetchError),
}

/// A receiver of an answer.
pub trait Taker {
    /// Receives the header, before the first piece.
    fn begin(&mut self, head: &Head) -> std::result::Result<(), Trouble>;
    /// Receives the next piece.
    fn piece(&mut self, piece: &[u8]) -> std::result::Result<(), Trouble>;
}

/// A file that is kept in memory, up to a size.
struct Small<'a> {
    url: &'a str,
    max: usize,
    bytes: Vec<u8>,
}

impl Taker for Small<'_> {
    fn begin(&mut self, _head: &Head) -> std::result::Result<(), Trouble> {
        Ok(())
    }
    fn piece(&mut self, piece: &[u8]) -> std::result::Result<(), Trouble> {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() <= self.max {
            return Ok(());
        }
        Err(Trouble::Lasting(FetchError::host(format!("`{}` is longer than {} bytes", self.url, self.max))))
    }
}

enum Message {
    Head(Head),
    Piece(Vec<u8>),
    End,
    Trouble(Trouble),
}

impl Net {
    /// Creates a client that trusts the platform's certificates, and `SSL_CERT_FILE` if it is set.
    pub fn new(patience: Patience) -> Self {
        static PROVIDER: Once = Once::new();
        // This fails only if another part of the process has chosen a provider. Then that one is used.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .user_agent(concat!("vmctl/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS as u32)
            .save_redirect_history(true)
            .timeout_connect(Some(patience.stall))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall))
            .build();
        Self { agent: config.into(), patience }
    }

    /// Requests `url`, or its missing part, and gives the answer to `taker`.
    pub fn get(&self, url: &str, have: &Have, job: &Job<'_>, taker: &mut dyn Taker) -> std::result::Result<(), Trouble> {
        // A thread of its own asks, since a blocked read cannot be interrupted: this one stays free to stop and to
        // notice a stall.
        let (sender, receiver) = sync_channel(PIECES_WAITING);
        let (net, owned_url, owned_have) = (self.clone(), url.to_owned(), have.clone());
        let asked = std::thread::Builder::new().name("fetch".into()).spawn(move || net.ask(&owned_url, &owned_have, &sender));
        asked.map_err(|error| Trouble::Ours(FetchError::host("cannot start a thread").because(error)))?;
        let (mut window, mut in_window) = (Instant::now(), 0u64);
        loop {
            job.check().map_err(Trouble::Ours)?;
            match receive(&receiver) {
                Some(Message::Head(head)) => taker.begin(&head)?,
                Some(Message::Piece(piece)) => {
                    in_window += piece.len() as u64;
                    taker.piece(&piece)?;
                }
                Some(Message::End) => return Ok(()),
                Some(Message::Trouble(trouble)) => return Err(trouble),
                None => {}
            }
            if window.elapsed() > self.patience.stall.saturating_mul(2) {
                // Bytes that trickle in keep the client's time-out from firing.
                if in_window < LEAST_BYTES {
                    return Err(Trouble::Passing(FetchError::host(format!("`{url}`: the server has stalled"))));
                }
                (window, in_window) = (Instant::now(), 0);
            }
        }
    }

    /// Requests a small file: a checksum file, a catalogue.
    pub fn small(&self, url: &str, max: usize, job: &Job<'_>) -> Result<String> {
        let mut tries = 0;
        loop {
            let mut small = Small { url, max, bytes: Vec::new() };
            let got = self.get(url, &Have::default(), job, &mut small);
            match got {
                Ok(()) => return String::from_utf8(small.bytes).map_err(|_| FetchError::host(format!("`{url}` is not a text"))),
                Err(Trouble::Lasting(error) | Trouble::Ours(error)) => return Err(error),
                Err(Trouble::Passing(error) | Trouble::Changed(error)) => {
                    tries += 1;
                    if tries >= self.patience.tries {
                        return Err(error);
                    }
                    self.pause(tries, job)?;
                }
            }
        }
    }

    /// Waits before a further try.
    pub fn pause(&self, tries: u32, job: &Job<'_>) -> Result<()> {
        let until = Instant::now() + self.patience.pause.saturating_mul(1 << (tries - 1).min(5));
        while Instant::now() < until {
            job.check()?;
            std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Runs the thread, which sends an answer as messages. It ends when nothing receives them any more.
    fn ask(&self, url: &str, have: &Have, sender: &SyncSender<Message>) {
        let mut body = match self.send(url, have) {
            Ok((head, body)) => {
                if sender.send(Message::Head(head)).is_err() {
                    return;
                }
                body
            }
            Err(trouble) => return drop(sender.send(Message::Trouble(trouble))),
        };
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let ended = fill(&mut body, &mut piece);
            if !piece.is_empty() && sender.send(Message::Piece(piece)).is_err() {
                return;
            }
            match ended {
                Ok(false) => {}
                Ok(true) => return drop(sender.send(Message::End)),
                Err(error) => {
                    let cut = FetchError::host(format!("`{url}`: the connection was cut")).because(innermost(&error));
                    return drop(sender.send(Message::Trouble(Trouble::Passing(cut))));
                }
            }
        }
    }

    fn send(&self, url: &str, have: &Have) -> std::result::Result<(Head, BodyReader<'static>), Trouble> {
        let no_url = || Trouble::Lasting(FetchError::user(format!("`{url}` is no URL that can be fetched")));
        let asked: Uri = url.parse().map_err(|_| no_url())?;
        let secure = match asked.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(no_url()),
        };
        let mut request = self.agent.get(asked).config().https_only(secure).build();
        let partial = have.bytes > 0 && (have.validator.is_some() || have.trusting);
        if partial {
            request = request.header(RANGE, format!("bytes={}-", have.bytes));
            if let Some(validator) = &have.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = request.call().map_err(|error| connection_trouble(url, &error))?;
        if downgrades(&response) {
            return Err(leads_nowhere(url, "the server redirects from https to http"));
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().into_reader();
        let length = number(headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()));
        let head = |start, total| Head {
            start,
            total,
            validator: validator(&headers),
            ranges: headers.get(ACCEPT_RANGES).is_some_and(|value| value != "none"),
        };
        match status {
            StatusCode::OK => Ok((head(0, length), body)),
            StatusCode::PARTIAL_CONTENT if partial => match content_range(&headers) {
                Some((start, total)) if start == have.bytes => Ok((Head { ranges: true, ..head(start, total) }, body)),
                _ => Err(Trouble::Changed(FetchError::host(format!("`{url}`: the server sent another range than asked for")))),
            },
            StatusCode::RANGE_NOT_SATISFIABLE if partial => Err(Trouble::Changed(FetchError::host(format!(
                "`{url}`: the file is shorter than the part that is here already"
            )))),
            status => Err(status_trouble(url, status)),
        }
    }
}

fn receive(receiver: &Receiver<Message>) -> Option<Message> {
    match receiver.recv_timeout(TICK) {
        Ok(message) => Some(message),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            Some(Message::Trouble(Trouble::Ours(FetchError::host("the thread that asks the server has died"))))
        }
    }
}

/// Reads a whole piece. Returns true at the end of the answer. Bytes before an error are kept.
fn fill(body: &mut BodyReader<'_>, piece: &mut Vec<u8>) -> std::io::Result<bool> {
    use std::io::Read;
    piece.resize(PIECE, 0);
    let mut filled = 0;
    let ended = loop {
        if filled == PIECE {
            break Ok(false);
        }
        match body.read(&mut piece[filled..]) {
            Ok(0) => break Ok(true),
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    piece.truncate(filled);
    ended
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}

/// Returns a strong entity tag, or the date of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    // Weak tags promise the same meaning, not the same bytes (RFC 9110, 8.8.1).
    let tag = headers.get(ETAG).and_then(|value| value.to_str().ok()).filter(|tag| tag.starts_with('"'));
    tag.or_else(|| headers.get(LAST_MODIFIED)?.to_str().ok()).map(str::to_owned)
}

/// Parses `bytes 5-9/10`: where the range begins, and the length of the whole if it is known.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    let whole = start <= end && total.is_none_or(|total: u64| end + 1 == total);
    whole.then_some((start, total))
}

fn status_trouble(url: &str, status: StatusCode) -> Trouble {
    let error = FetchError::host(format!("`{url}`: the server answers {status}"));
    // Other statuses will not change by asking again.
    let passing = status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    if passing { Trouble::Passing(error) } else { Trouble::Lasting(error) }
}

/// Whether a redirect on the way led from https to http. From an https URL none does: the agent is told so.
fn downgrades(response: &Response<Body>) -> bool {
    let schemes = response.get_redirect_history().unwrap_or_default().iter().map(Uri::scheme_str);
    schemes.skip_while(|scheme| *scheme != Some("https")).any(|scheme| scheme != Some("https"))
}

fn leads_nowhere(url: &str, reason: &str) -> Trouble {
    Trouble::Lasting(FetchError::host(format!("`{url}` leads nowhere")).because(reason))
}

fn connection_trouble(url: &str, error: &ureq::Error) -> Trouble {
    let reason = innermost(error);
    let said = |message: String| FetchError::host(message).because(reason.clone());
    match error {
        ureq::Error::TooManyRedirects => return leads_nowhere(url, "the server redirects without end"),
        ureq::Error::RequireHttpsOnly(_) => return leads_nowhere(url, "the server redirects from https to http"),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::RedirectFailed => return leads_nowhere(url, &reason),
        ureq::Error::Timeout(_) => {
            return Trouble::Passing(FetchError::host(format!("`{url}`: the server does not answer")));
        }
        _ => {}
    }
    let certificate = chain(error).any(|cause| cause.to_string().contains("certificate"));
    if certificate {
        let error = said(format!("`{url}`: the server's certificate is not trusted"));
        return Trouble::Lasting(
            error.hint("if the authority that signed it is your own, name its certificates in `SSL_CERT_FILE`"),
        );
    }
    Trouble::Passing(said(format!("`{url}`: cannot connect")))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

/// Returns the message of the innermost cause, since the outer ones repeat the URL.
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::HeaderValue;

    #[test]
    fn only_a_range_up_to_the_end_is_taken() {
        let range = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, HeaderValue::from_static(text));
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["bytes 5-8/10", "bytes 9-5/10", "bytes */10", "items 5-9/10", "bytes 5-99999999999999999999/10", ""] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_weak_entity_tag_is_no_validator() {
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, HeaderValue::from_static("W/\"1\""));
        assert_eq!(validator(&headers), None);
        headers.insert(LAST_MODIFIED, HeaderValue::from_static("Tue, 15 Nov 1994 12:45:26 GMT"));
        assert_eq!(validator(&headers).as_deref(), Some("Tue, 15 Nov 1994 12:45:26 GMT"));
        headers.insert(ETAG, HeaderValue::from_static("\"1\""));
        assert_eq!(validator(&headers).as_deref(), Some("\"1\""));
    }
}
