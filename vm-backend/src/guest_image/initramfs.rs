//! The first root of a guest: the agent as /init, and the modules that it boots with.
//!
//! ```text
//! /init                    hartpod-pod
//! /sbin                    the agent makes its link `modprobe` here
//! /modules/NN-name.ko      in load order
//! /modules/index           `early NN-name.ko` or `late NN-name.ko` a line, in load order
//! /dev/console, /dev/null  until /dev is mounted; Rust's runtime aborts without a /dev/null when there is no console
//! ```
//!
//! Not packed: the host keeps one copy in its page cache for all guests, and the guest need not unpack it.

use super::cpio::{Cpio, Device, TooLarge};

/// Mount points, and what the kernel and the agent want to find.
const FOLDERS: [&str; 10] =
    ["dev", "proc", "sys", "run", "etc", "root", "sbin", "lib", "lib/modules", "modules"];

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before the agent says that it is ready.
    Early,
    /// After that.
    Late,
}

/// A module as it is loaded.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) stage: Stage,
    pub(super) contents: Vec<u8>,
}

/// The archive of `agent` and of `modules`, which are in load order.
pub(super) fn pack(agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, TooLarge> {
    let mut cpio = Cpio::default();
    for folder in FOLDERS {
        cpio.folder(folder, 0o755)?;
    }
    // Documentation/admin-guide/devices.txt
    cpio.character_device("dev/console", 0o600, Device { major: 5, minor: 1 })?;
    cpio.character_device("dev/null", 0o666, Device { major: 1, minor: 3 })?;
    cpio.file("init", 0o755, agent)?;
    let mut index = String::new();
    for (number, module) in modules.iter().enumerate() {
        let name = format!("{number:02}-{}.ko", module.name);
        let stage = match module.stage {
            Stage::Early => "early",
            Stage::Late => "late",
        };
        index.push_str(&format!("{stage} {name}\n"));
        cpio.file(&format!("modules/{name}"), 0o400, &module.contents)?;
    }
    cpio.file("modules/index", 0o400, index.as_bytes())?;
    cpio.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_image::cpio::tests::read;

    #[test]
    fn the_agent_is_init_and_modules_are_in_order() {
        let module = |name: &str, stage| Module { name: name.to_owned(), stage, contents: name.into() };
        let modules = [module("virtio_mmio", Stage::Early), module("erofs", Stage::Late)];
        let entries = read(&pack(b"agent", &modules).unwrap());
        let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!((find("init").mode, &find("init").contents[..]), (0o100_755, &b"agent"[..]));
        // The kernel would call it, for ciphers that it has itself, before there is an agent.
        assert!(entries.iter().all(|entry| !entry.name.contains("modprobe")));
        assert_eq!(find("modules/00-virtio_mmio.ko").contents, b"virtio_mmio");
        assert_eq!(find("modules/index").contents, b"early 00-virtio_mmio.ko\nlate 01-erofs.ko\n");
        assert_eq!((find("dev/console").device, find("dev/null").device), ((5, 1), (1, 3)));
        // The kernel unpacks in order: a file before its folder would be lost.
        for (at, entry) in entries.iter().enumerate() {
            if let Some((folder, _)) = entry.name.rsplit_once('/') {
                assert!(entries[..at].iter().any(|before| before.name == folder), "{}", entry.name);
            }
        }
    }
}
