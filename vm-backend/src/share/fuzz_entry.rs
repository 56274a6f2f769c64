//! What a hostile guest can ask of a file server, played from a string of bytes, as in `virtio::fuzz_entry`.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::fuse::{IN_HEADER, OUT_HEADER, ROOT, op};
use super::server::{Limits, Server, Share};
use super::wire::{MAX_ANSWER, MAX_DATA};
use crate::virtio::fuzz_entry::Input;

/// A folder that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let template = std::env::temp_dir().join("hartpod-fuzz-XXXXXX");
        Self(nix::unistd::mkdtemp(&template).expect("a folder"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LIMITS: Limits = Limits { nodes: 24, handles: 12 };
/// Names that are there, that are not, and that none may be.
const NAMES: [&str; 14] =
    ["a", "b", "folder", "link", "pipe", "new", "..", ".", "", "../outside", "folder/a", "0", "1", "user.x"];

/// Requests of any kind on a volume that may be written, and one that may not.
pub fn requests(data: &[u8]) {
    let mut input = Input::new(data);
    let folder = Folder::new();
    let outside = folder.0.join("outside");
    fs::write(&outside, "untouched").expect("a file");
    let server = Server::new(LIMITS);
    for (name, read_only) in [("kept", true), ("given", false)] {
        fill(&folder.0.join(name), &outside);
        let root = rustix::fs::open(folder.0.join(name), OFlags::PATH, Mode::empty()).expect("a folder");
        let share = Share { root, read_only, identity: name.to_owned(), owner: name.to_owned() };
        server.share(share).expect("a volume");
    }
    let before = look(&folder.0.join("kept"));
    while !input.is_over() {
        let request = request(&mut input);
        let room = usize::from(input.u16());
        let mut answer = Vec::new();
        let _ = server.volume_of(&request);
        server.handle(&request, room, &mut answer);
        assert!(answer.len() <= room.min(MAX_ANSWER), "{} bytes into {room}", answer.len());
        assert!(answer.is_empty() || answer.len() >= OUT_HEADER);
        let (nodes, handles) = server.open_now();
        // Those that are being closed may be counted still.
        assert!(nodes <= LIMITS.nodes && handles <= LIMITS.handles, "{nodes} nodes, {handles} handles");
        if input.u8() == 0 {
            server.release("given");
        }
    }
    assert_eq!(fs::read(&outside).expect("it is there"), b"untouched");
    assert_eq!(look(&folder.0.join("kept")), before, "what is read-only was changed");
    let names = fs::read_dir(&folder.0).expect("it is there").count();
    assert_eq!(names, 3, "something was made outside of the volumes");
}

fn fill(volume: &Path, outside: &Path) {
    fs::create_dir_all(volume.join("folder")).expect("a folder");
    for name in ["a", "b", "folder/a"] {
        fs::write(volume.join(name), name).expect("a file");
    }
    std::os::unix::fs::symlink(outside, volume.join("link")).expect("a link");
}

/// Names and contents.
fn look(volume: &Path) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(volume).expect("a folder").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind");
        let content = match (kind.is_dir(), kind.is_symlink()) {
            (true, _) => look(&path).into_iter().flat_map(|(name, _)| name.into_bytes()).collect(),
            (_, true) => Vec::new(),
            _ => fs::read(&path).expect("a file"),
        };
        seen.push((entry.file_name().to_string_lossy().into_owned(), content));
    }
    seen.sort();
    seen
}

fn request(input: &mut Input<'_>) -> Vec<u8> {
    let opcode = match input.u8() % 8 {
        0 => input.u32(),
        _ => u32::from(input.u8()) % 54,
    };
    let mut body: Vec<u8> = Vec::new();
    // As FUSE has it: numbers first, then names or data; small ones mean something.
    for _ in 0..input.u8() % 14 {
        match input.u8() % 4 {
            0 => body.extend(input.u32().to_ne_bytes()),
            1 => body.extend(u64::from(input.u8() % 16).to_ne_bytes()),
            2 => body.extend(u32::from(input.u8()).to_ne_bytes()),
            _ => body.extend(0_u64.to_ne_bytes()),
        }
    }
    for _ in 0..input.u8() % 3 {
        body.extend(input.one_of(&NAMES).as_bytes());
        body.push(0);
    }
    if input.u8() % 8 == 0 {
        let more = usize::from(input.u8()) * 64;
        body.resize((body.len() + more).min(MAX_DATA), 0xaa);
    }
    let node = match input.u8() % 8 {
        0 => ROOT,
        1 => input.u64(),
        _ => u64::from(input.u8() % 16),
    };
    let length = u32::try_from(IN_HEADER + body.len()).expect("short");
    let mut request = Vec::with_capacity(IN_HEADER + body.len());
    request.extend((if input.u8() == 0 { input.u32() } else { length }).to_ne_bytes());
    request.extend(opcode.to_ne_bytes());
    request.extend(input.u64().to_ne_bytes());
    request.extend(node.to_ne_bytes());
    // Root, so that what is refused is not refused for want of a right.
    request.extend([0; 16]);
    request.extend(body);
    // A volume that hangs would be no finding.
    if opcode == op::FSYNC || opcode == op::FSYNCDIR {
        request.truncate(IN_HEADER);
    }
    request
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_requests_stay_inside() {
        crate::virtio::fuzz_entry::tests::run("requests", 400, super::requests);
    }
}
