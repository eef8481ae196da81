//! A client of the QEMU guest agent's protocol (QEMU, qga/qapi-schema.json).
//!
//! Requests and answers are JSON objects, a line each: `{"execute": ..., "arguments": ...}`, and `{"return": ...}` or
//! `{"error": {"class": ..., "desc": ...}}`. A session begins with `guest-sync-delimited`, which the client sends after a
//! byte 0xFF; the agent's answer follows a byte 0xFF and repeats a number, so that both know that nothing of an earlier
//! session is in the way. After every time-out a new one begins.
//!
//! **Hostile guest**: each call has a time limit and a limit for its answer's length. What comes before the answer to the
//! synchronisation is dropped as it comes. An answer that is not of the protocol is an error. The agent's words are shown
//! in part and without control characters.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

/// Maximum length of the answer to a synchronisation, and of what the agent's errors are shown of.
const SHORT: usize = 256;
/// The byte that no JSON text has.
const SENTINEL: u8 = 0xff;

/// The error of a call.
#[derive(Debug)]
pub enum AgentError {
    /// There was no answer within this time.
    Silent(Duration),
    /// The answer has more than this number of bytes.
    TooLong(usize),
    /// The answer is not one of the protocol, for this reason.
    Malformed(&'static str),
    /// The agent refused the command, in its own words.
    Refused(String),
    /// The port is closed or broken.
    Lost(io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::Silent(limit) => write!(f, "the guest's agent did not answer within {} s", limit.as_secs_f32().ceil()),
            AgentError::TooLong(most) => write!(f, "the guest's agent answered with more than {most} bytes"),
            AgentError::Malformed(why) => write!(f, "the guest's agent answered with something else than asked for: {why}"),
            AgentError::Refused(words) => write!(f, "the guest's agent refused: {words}"),
            AgentError::Lost(error) => write!(f, "the connection to the guest's agent is lost: {error}"),
        }
    }
}

impl std::error::Error for AgentError {}

/// Result of a call.
pub type Result<T> = std::result::Result<T, AgentError>;

#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// A connection to an agent.
pub struct AgentClient {
    stream: UnixStream,
    /// Bytes that have arrived after those that were used.
    arrived: Vec<u8>,
    /// Number of the present synchronisation. It changes when it was answered.
    session: u32,
    /// Whether the agent has answered it, and every call since then.
    is_synced: bool,
}

impl AgentClient {
    /// Creates a client on a stream to the port.
    pub fn over(stream: UnixStream) -> io::Result<AgentClient> {
        stream.set_nonblocking(false)?;
        // Not the number of the last client on this port, whose answers may still be on their way.
        let session = std::process::id().wrapping_mul(2_654_435_761) ^ since_epoch_ms();
        Ok(AgentClient { stream, arrived: Vec::new(), session: session & 0x3fff_ffff, is_synced: false })
    }

    /// Makes sure that the agent is there and in step, within `limit`.
    pub fn sync(&mut self, limit: Duration) -> Result<()> {
        if self.is_synced {
            return Ok(());
        }
        let until = Instant::now() + limit;
        self.arrived.clear();
        let mut request = vec![SENTINEL];
        request.extend(line("guest-sync-delimited", Some(json!({ "id": self.session }))));
        self.send(&request, until, limit)?;
        loop {
            // What comes before the sentinel is of an earlier session.
            self.skip_to_sentinel(until, limit)?;
            match self.read_line(SHORT, until, limit) {
                Ok(answer) if parse(&answer).is_ok_and(|value| value == json!(self.session)) => {
                    (self.is_synced, self.session) = (true, (self.session + 1) & 0x3fff_ffff);
                    return Ok(());
                }
                Ok(_) | Err(AgentError::TooLong(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command and returns its result, which has at most `most` bytes and comes within `limit`.
    pub fn call(&mut self, command: &str, arguments: Option<Value>, most: usize, limit: Duration) -> Result<Value> {
        self.sync(limit)?;
        let until = Instant::now() + limit;
        self.is_synced = false;
        self.send(&line(command, arguments), until, limit)?;
        let answer = loop {
            let answer = self.read_line(most, until, limit)?;
            // A second answer to an earlier synchronisation, which was sent again because the first was late.
            if answer.first() != Some(&SENTINEL) {
                break answer;
            }
        };
        let outcome = parse(&answer);
        self.is_synced = matches!(outcome, Ok(_) | Err(AgentError::Refused(_)));
        outcome
    }

    /// Sends a command that has no answer when it succeeds.
    pub fn tell(&mut self, command: &str, arguments: Option<Value>, limit: Duration) -> Result<()> {
        self.sync(limit)?;
        self.is_synced = false;
        self.send(&line(command, arguments), Instant::now() + limit, limit)
    }

    fn send(&mut self, mut bytes: &[u8], until: Instant, limit: Duration) -> Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(until, limit)?)).map_err(AgentError::Lost)?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(AgentError::Lost(error)),
            }
        }
        Ok(())
    }

    fn skip_to_sentinel(&mut self, until: Instant, limit: Duration) -> Result<()> {
        loop {
            match self.arrived.iter().position(|byte| *byte == SENTINEL) {
                Some(at) => {
                    self.arrived.drain(..=at);
                    return Ok(());
                }
                None => self.arrived.clear(),
            }
            self.fill(until, limit)?;
        }
    }

    /// Returns the next line, without its end.
    fn read_line(&mut self, most: usize, until: Instant, limit: Duration) -> Result<Vec<u8>> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = self.arrived[looked_at..].iter().position(|byte| *byte == b'\n') {
                let rest = self.arrived.split_off(looked_at + at + 1);
                let mut answer = std::mem::replace(&mut self.arrived, rest);
                answer.pop();
                return Ok(answer);
            }
            looked_at = self.arrived.len();
            if looked_at > most {
                self.arrived.clear();
                return Err(AgentError::TooLong(most));
            }
            self.fill(until, limit)?;
        }
    }

    fn fill(&mut self, until: Instant, limit: Duration) -> Result<()> {
        let mut chunk = [0u8; 16 * 1024];
        loop {
            self.stream.set_read_timeout(Some(left(until, limit)?)).map_err(AgentError::Lost)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(AgentError::Lost(ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.arrived.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(AgentError::Lost(error)),
            }
        }
    }
}

/// Returns the time that is left, which is not zero.
fn left(until: Instant, limit: Duration) -> Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(AgentError::Silent(limit)) } else { Ok(left) }
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn since_epoch_ms() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u32)
}

fn line(command: &str, arguments: Option<Value>) -> Vec<u8> {
    let request = match arguments {
        Some(arguments) => json!({ "execute": command, "arguments": arguments }),
        None => json!({ "execute": command }),
    };
    let mut bytes = serde_json::to_vec(&request).expect("plain fields");
    bytes.push(b'\n');
    bytes
}

fn parse(answer: &[u8]) -> Result<Value> {
    let no_object = AgentError::Malformed("no JSON object");
    // serde would also take an array for the object.
    if answer.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(no_object);
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| no_object)?;
    match (answer.returned, answer.error) {
        (_, Some(refusal)) => {
            let words = if refusal.desc.is_empty() { refusal.class } else { refusal.desc };
            Err(AgentError::Refused(printable(&words)))
        }
        (Some(value), None) => Ok(value),
        // `"return": null` is no answer of the protocol either.
        (None, None) => Err(AgentError::Malformed("neither a result nor an error")),
    }
}

/// Returns the beginning of the guest's words, without what a terminal would obey.
pub fn printable(words: &str) -> String {
    let clean: String = words.chars().take(SHORT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const LIMIT: Duration = Duration::from_secs(20);
    const AT_ONCE: Duration = Duration::from_millis(100);

    /// A client, and an agent whose thread does what `part` does with each request.
    fn with_agent(mut part: impl FnMut(&Value, &mut UnixStream) + Send + 'static) -> AgentClient {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || {
            let lines = BufReader::new(theirs.try_clone().expect("cloned")).split(b'\n');
            for line in lines.map_while(io::Result::ok) {
                let text: Vec<u8> = line.into_iter().filter(|byte| *byte != SENTINEL).collect();
                part(&serde_json::from_slice(&text).expect("a request"), &mut theirs);
            }
        });
        AgentClient::over(ours).expect("a client")
    }

    /// Answers as an agent does.
    fn answer(request: &Value, stream: &mut UnixStream) {
        let text = match request["execute"].as_str() {
            Some("guest-sync-delimited") => return sync(request, stream),
            Some("guest-ping") => r#"{"return": {}}"#.to_owned(),
            _ => r#"{"error": {"class": "CommandNotFound", "desc": "no such\u001b[31m command"}}"#.to_owned(),
        };
        say(stream, text.as_bytes());
    }

    fn sync(request: &Value, stream: &mut UnixStream) {
        let text = format!("{{\"return\": {}}}", request["arguments"]["id"]);
        say(stream, &[&[SENTINEL], text.as_bytes()].concat());
    }

    fn say(stream: &mut UnixStream, text: &[u8]) {
        // A client that has given up is no reason to fail.
        let _ = stream.write_all(&[text, b"\n"].concat());
    }

    #[test]
    fn an_agent_answers_and_its_refusals_are_told_without_control_characters() {
        let mut client = with_agent(answer);
        assert_eq!(client.call("guest-ping", None, 100, LIMIT).expect("answers"), json!({}));
        let refused = client.call("guest-dance", None, 1000, LIMIT).expect_err("refuses").to_string();
        assert_eq!(refused, "the guest's agent refused: no such [31m command");
        assert_eq!(client.call("guest-ping", None, 100, LIMIT).expect("answers"), json!({}));
    }

    #[test]
    fn what_an_earlier_session_left_is_skipped() {
        let mut client = with_agent(|request, stream| {
            if request["execute"] == "guest-sync-delimited" {
                say(stream, br#"{"return": "old"}"#);
                say(stream, b"\xff{\"return\": 1}");
                say(stream, b"\xff{\"ret\xff");
                sync(request, stream);
                // The first one was late, and the client had asked again.
                sync(request, stream);
            } else {
                answer(request, stream);
            }
        });
        assert_eq!(client.call("guest-ping", None, 100, LIMIT).expect("answers"), json!({}));
    }

    #[test]
    fn an_agent_that_never_answers_costs_its_time_limit_and_one_that_comes_later_is_found() {
        let mut silent = true;
        let mut client = with_agent(move |request, stream| {
            if !std::mem::take(&mut silent) {
                answer(request, stream);
            }
        });
        let error = client.call("guest-ping", None, 100, AT_ONCE).expect_err("nothing comes");
        assert_eq!(error.to_string(), "the guest's agent did not answer within 1 s");
        client.call("guest-ping", None, 100, LIMIT).expect("answers now");
    }

    #[test]
    fn a_flood_ends_at_a_limit_of_bytes_or_of_time() {
        let mut client = with_agent(|request, stream| match request["execute"].as_str() {
            Some("guest-sync-delimited") => sync(request, stream),
            _ => drop(stream.write_all(&vec![b'x'; 1 << 20])),
        });
        let error = client.call("guest-ping", None, 1000, LIMIT).expect_err("too long");
        assert_eq!(error.to_string(), "the guest's agent answered with more than 1000 bytes");
        // Without end and without a sentinel.
        let mut client = with_agent(|_, stream| while stream.write_all(&[b'\n'; 4096]).is_ok() {});
        assert!(matches!(client.sync(AT_ONCE), Err(AgentError::Silent(_))));
        assert!(client.arrived.len() <= 16 * 1024);
    }

    #[test]
    fn an_answer_that_is_none_is_an_error_and_the_next_call_begins_anew() {
        for lie in ["[]", "[{}, null]", "{", "{}", "null", "{\"return\": null}", "\u{fffd}", &"[".repeat(500)] {
            let text = lie.to_owned();
            let mut told = false;
            let mut client = with_agent(move |request, stream| match request["execute"].as_str() {
                Some("guest-ping") if !std::mem::replace(&mut told, true) => say(stream, text.as_bytes()),
                _ => answer(request, stream),
            });
            let error = client.call("guest-ping", None, 1000, LIMIT).expect_err("no answer");
            assert!(matches!(error, AgentError::Malformed(_)), "{lie}: {error}");
            client.call("guest-ping", None, 1000, LIMIT).expect("answers");
        }
    }

    #[test]
    fn a_port_that_closes_is_lost_at_once() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut client = AgentClient::over(ours).expect("a client");
        drop(theirs);
        assert!(matches!(client.sync(LIMIT), Err(AgentError::Lost(_))));
    }
}
