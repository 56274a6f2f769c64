//! What the daemon has a URL made for.

/// Which streams a client is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; not together with `tty`.
    pub stderr: bool,
    /// A terminal: errors come with the output, and the client tells its size.
    pub tty: bool,
}

/// A command to run in a container, as CRI's `ExecRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Where.
    pub container_id: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Which streams.
    pub streams: Streams,
}

/// A container to attach to, as CRI's `AttachRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Which one.
    pub container_id: String,
    /// Which streams.
    pub streams: Streams,
}

/// A sandbox to whose ports a client is to connect, as CRI's `PortForwardRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Which one.
    pub sandbox_id: String,
    /// Only what WebSocket clients of version 4 want; others name a port with each connection.
    pub ports: Vec<i32>,
}

/// Why a request gets no URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Invalid argument.
    #[error("no container or sandbox is named")]
    NoId,
    /// Invalid argument.
    #[error("one of stdin, stdout and stderr must be set")]
    NoStreams,
    /// Invalid argument.
    #[error("tty and stderr cannot both be set")]
    TtyWithStderr,
    /// Invalid argument.
    #[error("port {0} is not from 1 to 65535")]
    Port(i64),
    /// Invalid argument.
    #[error("{0} ports are more than {MAX_PORTS}")]
    ManyPorts(usize),
    /// Resource exhausted: redeemed or expired URLs make place.
    #[error("{0} requests wait for their clients, which is the most")]
    ManyPending(usize),
    /// Internal.
    #[error("take random bytes: {0}")]
    Random(String),
}

/// Ports of one WebSocket connection, each of which has two channels. One byte tells the channel, a printable one with base64.
pub(crate) const MAX_PORTS: usize = 32;

impl Streams {
    fn check(self) -> Result<(), RequestError> {
        if self.tty && self.stderr {
            return Err(RequestError::TtyWithStderr);
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err(RequestError::NoStreams);
        }
        Ok(())
    }
}

/// What a URL stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Plan {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let id = match self {
            Self::Exec(request) => &request.container_id,
            Self::Attach(request) => &request.container_id,
            Self::PortForward(request) => &request.sandbox_id,
        };
        if id.is_empty() {
            return Err(RequestError::NoId);
        }
        match self {
            Self::Exec(ExecRequest { streams, .. }) | Self::Attach(AttachRequest { streams, .. }) => {
                streams.check()
            }
            Self::PortForward(request) => {
                checked_ports(request.ports.iter().map(|port| i64::from(*port))).map(drop)
            }
        }
    }

    /// The first part of its URL's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// The ports that the numbers are.
pub(crate) fn checked_ports(numbers: impl Iterator<Item = i64>) -> Result<Vec<u16>, RequestError> {
    let ports = numbers
        .map(|number| match u16::try_from(number) {
            Ok(port @ 1..) => Ok(port),
            _ => Err(RequestError::Port(number)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if ports.len() > MAX_PORTS {
        return Err(RequestError::ManyPorts(ports.len()));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(streams: Streams) -> Plan {
        Plan::Exec(ExecRequest { container_id: "c".to_owned(), cmd: vec![], streams })
    }

    #[test]
    fn requests_are_checked_as_cri_demands() {
        let all = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        for (plan, expected) in [
            (exec(all), Ok(())),
            (exec(Streams { tty: true, ..all }), Err(RequestError::TtyWithStderr)),
            (exec(Streams { tty: true, stderr: false, ..all }), Ok(())),
            (exec(Streams { tty: true, ..Streams::default() }), Err(RequestError::NoStreams)),
            (
                Plan::Attach(AttachRequest { container_id: String::new(), streams: all }),
                Err(RequestError::NoId),
            ),
            (
                Plan::Attach(AttachRequest {
                    container_id: "c".to_owned(),
                    streams: Streams { tty: true, ..all },
                }),
                Err(RequestError::TtyWithStderr),
            ),
        ] {
            assert_eq!(plan.check(), expected, "{plan:?}");
        }
    }

    #[test]
    fn ports_are_from_1_to_65535() {
        for (ports, expected) in [
            (vec![], Ok(())),
            (vec![1, 65535], Ok(())),
            (vec![80, 0], Err(RequestError::Port(0))),
            (vec![65536], Err(RequestError::Port(65536))),
            (vec![-1], Err(RequestError::Port(-1))),
            (vec![80; 33], Err(RequestError::ManyPorts(33))),
        ] {
            let plan = Plan::PortForward(PortForwardRequest { sandbox_id: "s".to_owned(), ports });
            assert_eq!(plan.check(), expected, "{plan:?}");
        }
    }
}
