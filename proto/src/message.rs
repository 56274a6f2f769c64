//! Texts of gRPC statuses.

/// Longest message: gRPC clients drop a whole status whose metadata exceeds some 8 KiB, and it is percent-encoded on the way.
pub const MESSAGE_MAX: usize = 2048;

/// Cuts in the middle: a message begins with what was tried and ends with the cause, and in between callers hear their own words.
#[must_use]
pub fn shorten(text: String) -> String {
    if text.len() <= MESSAGE_MAX {
        return text;
    }
    let (mut head, mut tail) = (MESSAGE_MAX / 2, text.len() - MESSAGE_MAX / 2);
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} [{} bytes left out] {}", &text[..head], tail - head, &text[tail..])
}
