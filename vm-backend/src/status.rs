//! What becomes of a guest, as lines of JSON that its VMM appends to a descriptor.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// A line. `running` comes at most once, `ready` at most once after it, and `exited` is the last line and there once, unless the VMM was
/// killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs run.
    Running,
    /// The guest's agent has said that it is up.
    Ready,
    Exited(Exit),
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub reason: ExitReason,
    /// For people; at most [`MAX_DETAIL`] bytes. Of a panic its line on the console, which is the guest's word.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off, or its parent asked the VMM to end it.
    PowerOff,
    /// The guest asked for a reboot.
    Reset,
    /// The guest's kernel has panicked.
    Panic,
    /// KVM, or this VMM, could not go on.
    KvmFailure,
    /// The guest never ran: what it was to boot from, or a device, was refused.
    SetUpFailure,
    /// The VMM was killed before it could say why; only its parent says this.
    Killed,
}

/// Bytes of a detail at most.
pub const MAX_DETAIL: usize = 1024;

/// Writes the lines, in the VMM.
#[derive(Debug)]
pub struct StatusWriter {
    /// Until `exited` was written.
    file: Mutex<Option<File>>,
}

impl StatusWriter {
    /// Appends to `file`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file: Mutex::new(Some(file)) }
    }

    /// Writes a line; after `exited` nothing is written any more.
    pub fn write(&self, event: &Event) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = file.as_mut() {
            write_line(open, event);
        }
        if matches!(event, Event::Exited(_)) {
            *file = None;
        }
    }
}

/// One write, so that a reader never sees half a line of a file. Nobody is left to tell of an error but the log.
fn write_line(file: &mut File, event: &Event) {
    let line = serde_json::to_string(event).map(|line| line + "\n");
    let written = line.map_err(std::io::Error::from).and_then(|line| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("hartpod-vmm: write {event:?} to the status descriptor: {error}");
    }
}

impl Exit {
    /// With a detail that is cut to [`MAX_DETAIL`] bytes.
    #[must_use]
    pub fn new(reason: ExitReason, detail: &str) -> Self {
        Self { reason, detail: cut(detail).to_owned() }
    }
}

/// The first [`MAX_DETAIL`] bytes, less what would be half a character.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_DETAIL);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    fn written(events: &[Event]) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let writer = StatusWriter::new(file.try_clone().unwrap());
        events.iter().for_each(|event| writer.write(event));
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn each_event_is_a_line_and_nothing_follows_exited() {
        let exited = Event::Exited(Exit::new(ExitReason::Panic, "Kernel panic - not syncing: \"x\"\n"));
        let text = written(&[Event::Running, Event::Ready, exited.clone(), exited, Event::Ready]);
        assert_eq!(
            text,
            concat!(
                r#"{"event":"running"}"#,
                "\n",
                r#"{"event":"ready"}"#,
                "\n",
                r#"{"event":"exited","reason":"panic","detail":"Kernel panic - not syncing: \"x\"\n"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn reasons_have_the_agreed_names() {
        let names = [
            (ExitReason::PowerOff, "power_off"),
            (ExitReason::Reset, "reset"),
            (ExitReason::Panic, "panic"),
            (ExitReason::KvmFailure, "kvm_failure"),
            (ExitReason::SetUpFailure, "set_up_failure"),
            (ExitReason::Killed, "killed"),
        ];
        for (reason, name) in names {
            assert_eq!(serde_json::to_value(reason).unwrap(), name);
        }
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let exit = Exit::new(ExitReason::Reset, &"ä".repeat(MAX_DETAIL));
        assert_eq!(exit.detail.len(), MAX_DETAIL);
        let exit = Exit::new(ExitReason::Reset, &format!("x{}", "ä".repeat(MAX_DETAIL)));
        assert_eq!(exit.detail.len(), MAX_DETAIL - 1);
    }
}
