//! A connection to systemd itself: its private socket takes root without a bus daemon in between, also while that is not up yet or is restarted.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::wire::{self, FIXED, Kind, Message, Writer};

/// For an answer of systemd. It is busy for seconds at most, while it reloads.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of the greeting.
const LINE_MAX: u64 = 256;

/// systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    #[error("connect to systemd at {socket}")]
    Connect { socket: String, source: io::Error },
    #[error("systemd does not take root's word: {0:?}")]
    Refused(String),
    #[error("talk to systemd")]
    Talk(#[source] io::Error),
    #[error("{method}: {name}: {text}")]
    Answered { method: &'static str, name: String, text: String },
    #[error("systemd's job for {unit} ended with {result:?}")]
    Job { unit: String, result: String },
}

/// One conversation.
pub(super) struct Bus {
    socket: BufReader<UnixStream>,
    serial: u32,
    deadline: Instant,
}

impl Bus {
    pub(super) fn open_blocking(path: &Path) -> Result<Self, BusError> {
        let socket = connect_blocking(path, PATIENCE)
            .map_err(|source| BusError::Connect { socket: path.display().to_string(), source })?;
        let mut bus = Self { socket: BufReader::new(socket), serial: 0, deadline: Instant::now() + PATIENCE };
        bus.greet().map_err(BusError::Talk)?.map_or(Ok(bus), |line| Err(BusError::Refused(line)))
    }

    /// EXTERNAL: the kernel says who we are. Answers what systemd said if it was not yes.
    fn greet(&mut self) -> io::Result<Option<String>> {
        let uid: String =
            rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        self.be_patient()?;
        self.socket.get_mut().write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut line = String::new();
        (&mut self.socket).take(LINE_MAX).read_line(&mut line)?;
        if !line.starts_with("OK ") {
            return Ok(Some(line.trim().to_owned()));
        }
        self.socket.get_mut().write_all(b"BEGIN\r\n")?;
        Ok(None)
    }

    fn be_patient(&mut self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.get_ref().set_read_timeout(Some(left))?;
        self.socket.get_ref().set_write_timeout(Some(left))
    }

    /// Calls a method of the manager and waits for its answer. Signals in between are handed to `heard`.
    pub(super) fn call_blocking(
        &mut self,
        method: &'static str,
        signature: &str,
        body: Writer,
        mut heard: impl FnMut(Message),
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let message = wire::call(self.serial, method, signature, body);
        self.be_patient().and_then(|()| self.socket.get_mut().write_all(&message)).map_err(BusError::Talk)?;
        loop {
            let message = self.next_blocking()?;
            match message.kind {
                Kind::Return if message.reply_to == self.serial => return Ok(message),
                Kind::Error if message.reply_to == self.serial => {
                    let text = message.first_text().unwrap_or_default();
                    return Err(BusError::Answered { method, name: message.name, text });
                }
                Kind::Signal => heard(message),
                Kind::Return | Kind::Error | Kind::Other => {}
            }
        }
    }

    pub(super) fn next_blocking(&mut self) -> Result<Message, BusError> {
        self.read().map_err(BusError::Talk)
    }

    fn read(&mut self) -> io::Result<Message> {
        let garbled = || io::Error::from(io::ErrorKind::InvalidData);
        self.be_patient()?;
        let mut fixed = [0; FIXED];
        self.socket.read_exact(&mut fixed)?;
        let size = wire::size(&fixed).ok_or_else(garbled)?;
        let mut message = fixed.to_vec();
        message.resize(size.max(FIXED), 0);
        self.socket.read_exact(message.get_mut(FIXED..).unwrap_or_default())?;
        wire::parse(&message).ok_or_else(garbled)
    }
}

/// connect(2) waits while the listener's queue is full, for as long as sending may take.
pub(super) fn connect_blocking(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
