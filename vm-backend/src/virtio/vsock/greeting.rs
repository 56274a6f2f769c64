//! How a client says which port of the guest it wants: `CONNECT <port>\n`.

use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, recv};

/// The longest line, with room to spare: `CONNECT 4294967295` and a newline are 19 bytes.
const MAX_LINE: usize = 32;

/// A client that has connected and not yet said what it wants.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) socket: OwnedFd,
}

/// What a client has said so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The line is not complete.
    Waiting,
    /// It wants this port of the guest.
    Port(u32),
    /// Something else than a request.
    Malformed,
    /// It has gone.
    Hangup,
}

impl Greeting {
    /// Looks at what has come. Of the socket no more is taken than the line: what follows it is for the guest.
    pub(super) fn hear(&self) -> Heard {
        let mut line = [0; MAX_LINE];
        let seen = match self.take(&mut line, RecvFlags::PEEK) {
            Ok(0) => return Heard::Hangup,
            Ok(count) => &line[..count],
            Err(rustix::io::Errno::AGAIN) => return Heard::Waiting,
            Err(_) => return Heard::Hangup,
        };
        let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
            return if seen.len() < MAX_LINE { Heard::Waiting } else { Heard::Malformed };
        };
        let heard = match port(&seen[..end]) {
            Some(port) => Heard::Port(port),
            None => return Heard::Malformed,
        };
        match self.take(&mut [0; MAX_LINE][..=end], RecvFlags::empty()) {
            Ok(count) if count == end + 1 => heard,
            _ => Heard::Hangup,
        }
    }

    fn take(&self, buffer: &mut [u8], flags: RecvFlags) -> rustix::io::Result<usize> {
        loop {
            match recv(&self.socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The port of a line without its newline.
fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // parse() would take a sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What a client is answered once the guest has accepted.
pub(super) fn accepted(port: u32) -> String {
    format!("OK {port}\n")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, Greeting) {
        let (client, ours) = UnixStream::pair().unwrap();
        (client, Greeting { socket: ours.into() })
    }

    #[test]
    fn a_line_is_a_port_or_it_is_malformed() {
        for (line, expected) in [
            ("CONNECT 1024\n", Heard::Port(1024)),
            ("CONNECT 0\n", Heard::Port(0)),
            ("CONNECT 4294967295\n", Heard::Port(u32::MAX)),
            ("CONNECT 4294967296\n", Heard::Malformed),
            ("CONNECT +1\n", Heard::Malformed),
            ("CONNECT -1\n", Heard::Malformed),
            ("CONNECT 1 \n", Heard::Malformed),
            ("CONNECT 1\r\n", Heard::Malformed),
            ("CONNECT \n", Heard::Malformed),
            ("CONNECT\n", Heard::Malformed),
            ("connect 1\n", Heard::Malformed),
            ("\n", Heard::Malformed),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Heard::Malformed),
            ("CONNECT 1024", Heard::Waiting),
            ("CONNECT 00000000000000000000001\n", Heard::Port(1)),
            ("CONNECT 000000000000000000000001\n", Heard::Malformed),
        ] {
            let (mut client, greeting) = pair();
            client.write_all(line.as_bytes()).unwrap();
            assert_eq!(greeting.hear(), expected, "{line:?}");
        }
    }

    #[test]
    fn what_follows_the_line_is_left_for_the_guest() {
        let (mut client, greeting) = pair();
        assert_eq!(greeting.hear(), Heard::Waiting);
        client.write_all(b"CONN").unwrap();
        assert_eq!(greeting.hear(), Heard::Waiting);
        client.write_all(b"ECT 7\nhello\n").unwrap();
        assert_eq!(greeting.hear(), Heard::Port(7));
        drop(client);
        let mut rest = String::new();
        UnixStream::from(greeting.socket).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello\n");
    }

    #[test]
    fn a_client_that_leaves_or_never_ends_its_line_is_told_apart() {
        let (client, greeting) = pair();
        drop(client);
        assert_eq!(greeting.hear(), Heard::Hangup);
        let (mut client, greeting) = pair();
        client.set_nonblocking(true).unwrap();
        let sent = client.write(&[b'x'; 1 << 20]).unwrap();
        assert!(sent > MAX_LINE);
        assert_eq!(greeting.hear(), Heard::Malformed);
    }
}
