//! Requests about streams and terminals.

use hartpod_container::TerminalSize;
use hartpod_proto::pod::v1::{AttachRequest, ResizeTerminalRequest};

use super::{InvalidRequest, token};
use crate::stream::Token;

/// Whom to attach.
#[derive(Debug)]
pub(crate) struct AttachPlan {
    pub(crate) stdin: Option<Token>,
    /// stdout and stderr.
    pub(crate) outputs: [Option<Token>; 2],
}

impl TryFrom<AttachRequest> for AttachPlan {
    type Error = InvalidRequest;

    fn try_from(request: AttachRequest) -> Result<Self, InvalidRequest> {
        let stdin = token("stdin", &request.stdin_token)?;
        let outputs = [token("stdout", &request.stdout_token)?, token("stderr", &request.stderr_token)?];
        if stdin.is_none() && outputs.iter().all(Option::is_none) {
            return Err(InvalidRequest::NoTokens);
        }
        Ok(Self { stdin, outputs })
    }
}

/// Whose terminal to resize.
#[derive(Debug)]
pub(crate) struct ResizePlan {
    /// Nothing: the container's own.
    pub(crate) exec: Option<String>,
    pub(crate) size: TerminalSize,
}

impl TryFrom<ResizeTerminalRequest> for ResizePlan {
    type Error = InvalidRequest;

    fn try_from(request: ResizeTerminalRequest) -> Result<Self, InvalidRequest> {
        let size = terminal_size(request.columns.into(), request.rows.into())?;
        Ok(Self { exec: Some(request.exec_id).filter(|id| !id.is_empty()), size })
    }
}

pub(super) fn terminal_size(columns: u64, rows: u64) -> Result<TerminalSize, InvalidRequest> {
    match (u16::try_from(columns), u16::try_from(rows)) {
        (Ok(columns), Ok(rows)) => Ok(TerminalSize { columns, rows }),
        _ => Err(InvalidRequest::TerminalSize { columns, rows }),
    }
}

/// A port that somebody can listen on.
pub(crate) fn port(number: u32) -> Result<u16, InvalidRequest> {
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or(InvalidRequest::Port(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attacher_wants_something_and_its_tokens_are_tokens() {
        let text = "0123456789abcdef0123456789abcdef".to_owned();
        let plan = AttachPlan::try_from(AttachRequest { stderr_token: text, ..AttachRequest::default() });
        let plan = plan.unwrap();
        assert!(plan.stdin.is_none() && matches!(plan.outputs, [None, Some(_)]));
        let nothing = AttachPlan::try_from(AttachRequest::default()).unwrap_err();
        assert_eq!(nothing.to_string(), "attach to what: there is no token");
        let short = AttachRequest { stdin_token: "short".to_owned(), ..AttachRequest::default() };
        assert_eq!(AttachPlan::try_from(short).unwrap_err().to_string(), "stdin_token");
    }

    #[test]
    fn ports_and_sizes_have_16_bits() {
        assert_eq!((port(1).unwrap(), port(65535).unwrap()), (1, 65535));
        for number in [0, 65536, u32::MAX] {
            assert_eq!(port(number).unwrap_err().to_string(), format!("port {number} is not 1 to 65535"));
        }
        assert_eq!(terminal_size(80, 24).unwrap(), TerminalSize { columns: 80, rows: 24 });
        assert_eq!(terminal_size(0, 0).unwrap(), TerminalSize::default());
        let error = terminal_size(65536, 24).unwrap_err();
        assert_eq!(error.to_string(), "a terminal of 65536 by 24 characters: at most 65535 each");
    }
}
