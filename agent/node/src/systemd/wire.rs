//! D-Bus messages, as far as systemd is talked to (<https://dbus.freedesktop.org/doc/dbus-specification.html>, "Message Protocol").
//!
//! A message is a header, padded to 8 bytes, and a body. Every value is aligned to its own size, counted from the message's first byte.
//! Little-endian both ways: systemd answers in the order of its machine, and hartpod runs on little-endian ones.

/// Longest message that is read; systemd's answers here have some hundred bytes.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// Before the header's fields.
pub(super) const FIXED: usize = 16;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Return,
    Error,
    Signal,
    Other,
}

/// A value that a call has.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Bool(bool),
    Number(u64),
    Bytes(&'a [u8]),
    Pids(&'a [u32]),
}

impl Value<'_> {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Bool(_) => "b",
            Self::Number(_) => "t",
            Self::Bytes(_) => "ay",
            Self::Pids(_) => "au",
        }
    }
}

/// Writes values behind one another.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn variant(&mut self, value: &Value<'_>) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Bool(value) => self.bool(*value),
            Value::Number(value) => {
                self.align(8);
                self.bytes.extend(value.to_le_bytes());
            }
            Value::Bytes(bytes) => {
                self.u32(length(bytes.len()));
                self.bytes.extend(*bytes);
            }
            Value::Pids(pids) => {
                self.u32(length(pids.len() * 4));
                pids.iter().for_each(|pid| self.u32(*pid));
            }
        }
    }

    /// An array whose elements are aligned to 8: its length does not count the padding before the first.
    fn array(&mut self, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len();
        self.align(8);
        let start = self.bytes.len();
        fill(self);
        let size = length(self.bytes.len() - start);
        if let Some(place) = self.bytes.get_mut(at - 4..at) {
            place.copy_from_slice(&size.to_le_bytes());
        }
    }

    /// `a(sv)`.
    pub(super) fn properties(&mut self, properties: &[(&str, Value<'_>)]) {
        self.array(|writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }

    /// `a(sa(sv))` with nothing in it.
    pub(super) fn no_units(&mut self) {
        self.array(|_| {});
    }
}

fn length(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A call of systemd's manager.
pub(super) fn call(serial: u32, method: &str, signature: &str, body: Writer) -> Vec<u8> {
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", method),
        (6, "s", "org.freedesktop.systemd1"),
    ];
    message(1, serial, None, &fields, signature, body)
}

/// A message of a kind, in answer to another or not, with fields of text.
pub(super) fn message(
    kind: u8,
    serial: u32,
    reply_to: Option<u32>,
    fields: &[(u8, &str, &str)],
    signature: &str,
    body: Writer,
) -> Vec<u8> {
    let mut message = Writer { bytes: vec![b'l', kind, 0, 1] };
    message.u32(length(body.bytes.len()));
    message.u32(serial);
    message.array(|writer| {
        for (code, kind, text) in fields {
            writer.align(8);
            writer.bytes.push(*code);
            writer.signature(kind);
            writer.text(text);
        }
        if let Some(reply_to) = reply_to {
            writer.align(8);
            writer.bytes.push(5);
            writer.signature("u");
            writer.u32(reply_to);
        }
        writer.align(8);
        writer.bytes.push(8);
        writer.signature("g");
        writer.signature(signature);
    });
    message.align(8);
    message.bytes.extend(body.bytes);
    message.bytes
}

/// What is of use in a message of systemd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) reply_to: u32,
    /// Of a signal its name, of an error its name.
    pub(super) name: String,
    body: Vec<u8>,
}

/// How long a message is, by its first bytes; none when they are not those of one.
pub(super) fn size(fixed: &[u8; FIXED]) -> Option<usize> {
    let number = |at: usize| fixed.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (body, fields) = (number(4)? as usize, number(12)? as usize);
    let size = FIXED.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
    (fixed.first() == Some(&b'l') && size <= MESSAGE_MAX).then_some(size)
}

/// Reads a whole message.
pub(super) fn parse(message: &[u8]) -> Option<Message> {
    let kind = match message.get(1)? {
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => Kind::Other,
    };
    let mut reader = Reader { bytes: message, at: 12 };
    let end = reader.u32()? as usize + FIXED;
    let mut found = Message { kind, reply_to: 0, name: String::new(), body: Vec::new() };
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (5, "u") => found.reply_to = reader.u32()?,
            (3 | 4, "s") => found.name = reader.text()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    reader.align(8);
    found.body = message.get(reader.at..)?.to_vec();
    Some(found)
}

impl Message {
    /// The text that the body begins with: the path of a job, or an error in words.
    pub(super) fn first_text(&self) -> Option<String> {
        Reader { bytes: &self.body, at: 0 }.text()
    }

    /// Job and result of a `JobRemoved` (`uoss`).
    pub(super) fn removed_job(&self) -> Option<(String, String)> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        reader.u32()?;
        let job = reader.text()?;
        reader.text()?;
        Some((job, reader.text()?))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.words(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        self.words(length)
    }

    fn words(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.byte()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Writer::default();
        body.text("a.scope");
        body.bool(true);
        body.properties(&[
            ("TasksMax", Value::Number(7)),
            ("PIDs", Value::Pids(&[1, 2])),
            ("X", Value::Bytes(&[9])),
        ]);
        let message = call(3, "SetUnitProperties", "sba(sv)", body);
        assert_eq!(&message[..4], b"l\x01\0\x01");
        let fixed: [u8; FIXED] = message[..FIXED].try_into().unwrap();
        assert_eq!(size(&fixed), Some(message.len()));
        // The reader agrees with the writer on where everything is.
        let parsed = parse(&message).unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.first_text().as_deref()),
            ("SetUnitProperties", Some("a.scope"))
        );
        assert_eq!(&parsed.body[..16], b"\x07\0\0\0a.scope\0\x01\0\0\0");
        assert_eq!(&parsed.body[24..40], b"\x08\0\0\0TasksMax\0\x01t\0");
        assert_eq!(&parsed.body[40..48], 7_u64.to_le_bytes());
    }

    #[test]
    fn broken_messages_are_none() {
        assert_eq!(size(b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0"), None, "big-endian");
        assert_eq!(size(&[b'l', 1, 0, 1, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        let mut message = call(3, "X", "s", Writer::default());
        for cut in 0..message.len() {
            let _ = parse(&message[..cut]);
        }
        for at in 0..message.len() {
            message[at] ^= 0xff;
            let _ = parse(&message);
            message[at] ^= 0xff;
        }
    }
}
