//! How a session ended, as clients of Kubernetes want to be told.

use serde::Serialize;

use super::Outbound;
use crate::spdy::SendError;
use crate::wire::{End, Frame};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Exec,
    Attach,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    /// Not 0.
    ExitCode(i32),
    /// It could not be begun, or it failed.
    Error(Verb, String),
}

/// How the error stream is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// A message, and nothing at success: before v4.
    Text,
    /// A `metav1.Status`.
    Json,
}

/// The stream that tells how a session ended.
#[derive(Debug)]
pub(crate) struct StatusStream {
    pub(crate) outbound: Outbound,
    pub(crate) format: StatusFormat,
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Empty,
    status: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Error(Verb::Exec, error) => {
                format!("Internal error occurred: error executing command in container: {error}")
            }
            Self::Error(Verb::Attach, error) => {
                format!("Internal error occurred: error attaching to container: {error}")
            }
        }
    }

    fn encode(&self, format: StatusFormat) -> Vec<u8> {
        let message = self.message();
        if format == StatusFormat::Text {
            return message.into_bytes();
        }
        let (status, reason, details, code) = match self {
            Self::Success => ("Success", "", None, None),
            Self::ExitCode(code) => {
                let causes = [Cause { reason: "ExitCode", message: code.to_string() }];
                ("Failure", "NonZeroExitCode", Some(Details { causes }), None)
            }
            Self::Error(..) => ("Failure", "InternalError", None, Some(500)),
        };
        let status = Status { metadata: Empty {}, status, message: &message, reason, details, code };
        // Strings and numbers always become JSON.
        serde_json::to_vec(&status).unwrap_or_default()
    }
}

impl StatusStream {
    /// Tells the client, and ends the stream.
    pub(crate) async fn send(&self, verdict: &Verdict) -> Result<(), End> {
        let bytes = verdict.encode(self.format);
        if !bytes.is_empty() {
            match self.outbound.send(&mut Frame::of(&bytes)).await {
                Ok(()) | Err(SendError::Closed) => {}
                Err(SendError::Lost(error)) => return Err(End::Lost(error)),
            }
        }
        self.outbound.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_what_kubectl_reads() {
        let error = Verdict::Error(Verb::Attach, "it is \"gone\"".to_owned());
        for (verdict, json, text) in [
            (Verdict::Success, r#"{"metadata":{},"status":"Success"}"#, ""),
            (
                Verdict::ExitCode(137),
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 137","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#,
                "command terminated with non-zero exit code: exit status 137",
            ),
            (
                error,
                r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error attaching to container: it is \"gone\"","reason":"InternalError","code":500}"#,
                "Internal error occurred: error attaching to container: it is \"gone\"",
            ),
        ] {
            assert_eq!(String::from_utf8(verdict.encode(StatusFormat::Json)).unwrap(), json);
            assert_eq!(String::from_utf8(verdict.encode(StatusFormat::Text)).unwrap(), text);
        }
    }
}
