//! A kernel's modules as depmod(8) lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::compression::Compression;
use super::file_error::{At as _, FileError, read_file};

/// Larger than any module.
const MODULE_MAX: usize = 128 << 20;

/// Why a module cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has no modules.dep: run `depmod {release}`", root.display())]
    NoIndex { root: PathBuf, release: String },
    #[error("kernel {release} has no module {name}, neither as a file nor built in")]
    Missing { name: String, release: String },
    #[error("unpack module {}", path.display())]
    Unpack { path: PathBuf, source: io::Error },
    #[error("{} is no kernel module", path.display())]
    NotElf { path: PathBuf },
    #[error("modules.dep in {} names {path}, which is not below it: run `depmod {release}`", root.display())]
    Outside { root: PathBuf, path: String, release: String },
}

/// A file of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Below the root, e.g. `kernel/net/vmw_vsock/vsock.ko.xz`.
    path: String,
    /// Files that it needs, the last first to be loaded.
    needs: Vec<String>,
}

/// /lib/modules/<release>
#[derive(Debug)]
pub(super) struct ModuleTree {
    root: PathBuf,
    release: String,
    entries: BTreeMap<String, Entry>,
    builtin: BTreeSet<String>,
    /// What has to be loaded before a module although it does not use its symbols.
    soft: BTreeMap<String, Vec<String>>,
    /// Modules by another name; those with wildcards are for hardware.
    aliases: BTreeMap<String, Vec<String>>,
}

/// The name by which the kernel knows the module in a file: it has no dashes.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

impl ModuleTree {
    /// Reads the lists of the tree at `root`, whose last part is the kernel's release.
    pub(super) fn read(root: &Path, release: &str) -> Result<Self, ModuleError> {
        let list = |name: &str| {
            let path = root.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).at("read", path),
            }
        };
        let none = || ModuleError::NoIndex { root: root.to_owned(), release: release.to_owned() };
        let entries = parse_dep(&list("modules.dep")?.ok_or_else(none)?);
        // They are copied from below one folder to below another: an absolute one would be copied onto itself.
        let inside = |path: &str| {
            !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
        };
        if let Some(Entry { path, .. }) = entries.values().find(|entry| !inside(&entry.path)) {
            let (path, release) = (path.clone(), release.to_owned());
            return Err(ModuleError::Outside { root: root.to_owned(), path, release });
        }
        let builtin = list("modules.builtin")?.unwrap_or_default().lines().map(name_of).collect();
        let soft = parse_softdep(&list("modules.softdep")?.unwrap_or_default());
        let aliases = parse_alias(&list("modules.alias")?.unwrap_or_default());
        let (root, release) = (root.to_owned(), release.to_owned());
        Ok(Self { root, release, entries, builtin, soft, aliases })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Names of `wanted` and of all that they need, in the order in which they can be loaded. What is built in is left out.
    pub(super) fn load_order(&self, wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let mut order = Order { tree: self, seen: BTreeSet::new(), names: Vec::new() };
        for name in wanted {
            order.visit(name, Need::Hard)?;
        }
        Ok(order.names)
    }

    /// Where the file of a module is below the root.
    pub(super) fn path_of(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| entry.path.as_str())
    }

    /// Paths below the root of everything that `chosen` takes, and of what that needs.
    pub(super) fn select(&self, chosen: impl Fn(&str) -> bool) -> Result<BTreeSet<&str>, ModuleError> {
        let names: Vec<&str> = self
            .entries
            .iter()
            .filter(|(_, entry)| chosen(&entry.path))
            .map(|(name, _)| name.as_str())
            .collect();
        let order = self.load_order(&names)?;
        Ok(order.iter().filter_map(|name| self.path_of(name)).collect())
    }

    /// What to load for each name by which these modules may be asked for, aliases without wildcards included: a line with the name and the files in
    /// load order. Dashes in names are underscores.
    pub(super) fn index(&self, paths: &BTreeSet<&str>) -> Result<String, ModuleError> {
        let is_chosen = |name: &&String| self.path_of(name).is_some_and(|path| paths.contains(path));
        let own = self.entries.keys().filter(is_chosen).map(|name| (name.as_str(), vec![name.as_str()]));
        let aliases = self.aliases.iter().map(|(alias, names)| {
            (alias.as_str(), names.iter().filter(is_chosen).map(String::as_str).collect::<Vec<_>>())
        });
        let mut lines = String::new();
        for (asked_for, names) in own.chain(aliases).filter(|(_, names)| !names.is_empty()) {
            lines.push_str(asked_for);
            for name in self.load_order(&names)? {
                lines.push(' ');
                lines.push_str(self.path_of(&name).unwrap_or_default());
            }
            lines.push('\n');
        }
        Ok(lines)
    }

    /// The module itself, unpacked.
    pub(super) fn unpack(&self, name: &str) -> Result<Vec<u8>, ModuleError> {
        let missing = || ModuleError::Missing { name: name.to_owned(), release: self.release.clone() };
        let path = self.root.join(self.path_of(name).ok_or_else(missing)?);
        let bytes = read_file(&path, MODULE_MAX)?;
        let module = match Compression::of(&bytes) {
            Some(compression) => compression
                .unpack(&bytes, MODULE_MAX)
                .map_err(|source| ModuleError::Unpack { path: path.clone(), source })?,
            None => bytes,
        };
        if module.starts_with(b"\x7fELF") { Ok(module) } else { Err(ModuleError::NotElf { path }) }
    }

    /// The module that a softdep means, which may be an alias such as `crc32c`. Of several the portable one: those for special
    /// instructions do not load everywhere.
    fn resolve<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        if self.entries.contains_key(name) {
            return Some(name);
        }
        let names = self.aliases.get(name)?;
        let generic = names.iter().find(|name| name.ends_with("_generic"));
        generic.or_else(|| names.first()).map(String::as_str)
    }
}

/// Whether it is an error that a module is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Hard,
    Soft,
}

struct Order<'a> {
    tree: &'a ModuleTree,
    seen: BTreeSet<String>,
    names: Vec<String>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str, need: Need) -> Result<(), ModuleError> {
        let tree = self.tree;
        if tree.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(entry) = tree.entries.get(name) else {
            let missing = || ModuleError::Missing { name: name.to_owned(), release: tree.release.clone() };
            return if need == Need::Hard { Err(missing()) } else { Ok(()) };
        };
        for before in tree.soft.get(name).into_iter().flatten() {
            if let Some(before) = tree.resolve(before) {
                self.visit(before, Need::Soft)?;
            }
        }
        for path in entry.needs.iter().rev() {
            self.visit(&name_of(path), Need::Hard)?;
        }
        self.names.push(name.to_owned());
        Ok(())
    }
}

/// `kernel/a.ko: kernel/b.ko kernel/c.ko`
fn parse_dep(text: &str) -> BTreeMap<String, Entry> {
    let entries = text.lines().filter_map(|line| {
        let (path, needs) = line.split_once(':')?;
        let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
        Some((name_of(path), Entry { path: path.to_owned(), needs }))
    });
    entries.collect()
}

/// `softdep ext4 pre: crc32c post: other`
fn parse_softdep(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut soft: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("softdep") {
            continue;
        }
        let Some(name) = words.next() else { continue };
        let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
        soft.entry(name_of(name)).or_default().extend(before.map(|word| word.replace('-', "_")));
    }
    soft
}

/// `alias net-pf-40 vsock`
fn parse_alias(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some("alias"), Some(alias), Some(name)) = (words.next(), words.next(), words.next()) {
            if !alias.contains(['*', '?', '[']) {
                aliases.entry(alias.replace('-', "_")).or_default().push(name_of(name));
            }
        }
    }
    aliases
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A tree of modules with the shape of Debian's, each an ELF header followed by its name.
    pub(in super::super) fn tree(dir: &Path, release: &str) -> PathBuf {
        let root = dir.join(release);
        let dep = "\
            kernel/drivers/virtio/virtio_mmio.ko:\n\
            kernel/drivers/virtio/virtio_balloon.ko:\n\
            kernel/drivers/block/virtio_blk.ko:\n\
            kernel/net/core/failover.ko:\n\
            kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n\
            kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko\n\
            kernel/net/vmw_vsock/vsock.ko:\n\
            kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko: kernel/net/vmw_vsock/vsock.ko\n\
            kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: \
              kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko kernel/net/vmw_vsock/vsock.ko\n\
            kernel/fs/overlayfs/overlay.ko:\n\
            kernel/crypto/crc32c_generic.ko:\n\
            kernel/arch/crypto/crc32c-special.ko:\n\
            kernel/lib/libcrc32c.ko:\n\
            kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko\n\
            kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n\
            kernel/fs/jbd2/jbd2.ko:\n\
            kernel/net/netfilter/nf_tables.ko: kernel/lib/libcrc32c.ko\n\
            kernel/net/netfilter/xt_conntrack.ko:\n\
            kernel/drivers/net/tun.ko:\n\
            kernel/drivers/gpu/huge.ko:\n";
        for path in dep.lines().filter_map(|line| line.split(':').next()) {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("\x7fELF{}", name_of(path))).unwrap();
        }
        for (name, text) in [
            ("modules.dep", dep),
            ("modules.builtin", "kernel/fs/fuse/fuse.ko\n"),
            (
                "modules.softdep",
                "# comment\nsoftdep libcrc32c pre: crc32c\nsoftdep ext4 pre: nothing post: x\n",
            ),
            (
                "modules.alias",
                "alias crc32c crc32c_special\nalias crc32c crc32c_generic\nalias nft-chain nf_tables\n\
                 alias virtio:d00000001v* virtio_net\nalias char-major-10-200 tun\n",
            ),
        ] {
            fs::write(root.join(name), text).unwrap();
        }
        root
    }

    fn read() -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        let root = tree(dir.path(), "6.12.1");
        let tree = ModuleTree::read(&root, "6.12.1").unwrap();
        (dir, tree)
    }

    #[test]
    fn what_is_needed_is_loaded_before_once() {
        let (_dir, tree) = read();
        let order = tree.load_order(&["virtio_net", "vmw_vsock_virtio_transport", "virtio_net"]).unwrap();
        assert_eq!(
            order,
            [
                "failover",
                "net_failover",
                "virtio_net",
                "vsock",
                "vmw_vsock_virtio_transport_common",
                "vmw_vsock_virtio_transport"
            ]
        );
    }

    #[test]
    fn a_softdep_by_alias_takes_the_portable_module() {
        let (_dir, tree) = read();
        assert_eq!(tree.load_order(&["erofs"]).unwrap(), ["crc32c_generic", "libcrc32c", "erofs"]);
        // One that does not exist is nobody's loss.
        assert_eq!(tree.load_order(&["ext4"]).unwrap(), ["jbd2", "ext4"]);
    }

    #[test]
    fn built_in_is_fine_and_missing_is_named() {
        let (_dir, tree) = read();
        assert!(tree.load_order(&["fuse"]).unwrap().is_empty());
        let error = tree.load_order(&["virtio_gone"]).unwrap_err().to_string();
        assert!(error.contains("virtio_gone") && error.contains("6.12.1"), "{error}");
    }

    #[test]
    fn a_tree_that_depmod_has_not_seen_is_told_so() {
        let (dir, _) = read();
        let root = dir.path().join("6.12.1");
        fs::remove_file(root.join("modules.dep")).unwrap();
        let error = ModuleTree::read(&root, "6.12.1").unwrap_err().to_string();
        assert!(error.contains("depmod 6.12.1"), "{error}");
    }

    #[test]
    fn files_outside_of_the_tree_are_refused() {
        let (dir, _) = read();
        let root = dir.path().join("6.12.1");
        for path in ["/lib/modules/6.12.1/kernel/x.ko", "kernel/../../x.ko", ""] {
            fs::write(root.join("modules.dep"), format!("kernel/a.ko:\n{path}:\n")).unwrap();
            let read = ModuleTree::read(&root, "6.12.1").map(drop);
            assert!(
                matches!(&read, Err(ModuleError::Outside { path: named, .. }) if named == path),
                "{read:?}"
            );
        }
    }

    #[test]
    fn the_index_of_a_part_has_every_name_with_its_files_in_order() {
        let (_dir, tree) = read();
        let paths = tree.select(|path| path.contains("/netfilter/") || path.ends_with("/tun.ko")).unwrap();
        let expected = [
            "kernel/crypto/crc32c_generic.ko",
            "kernel/drivers/net/tun.ko",
            "kernel/lib/libcrc32c.ko",
            "kernel/net/netfilter/nf_tables.ko",
            "kernel/net/netfilter/xt_conntrack.ko",
        ];
        assert_eq!(paths.iter().copied().collect::<Vec<_>>(), expected);
        let index = tree.index(&paths).unwrap();
        let files = |name: &str| {
            let line = index.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(|files| files.replace("kernel/", ""))
        };
        assert_eq!(files("char_major_10_200").unwrap(), "drivers/net/tun.ko");
        let needed = "crypto/crc32c_generic.ko lib/libcrc32c.ko net/netfilter/nf_tables.ko";
        assert_eq!(
            (files("nf_tables").unwrap(), files("nft_chain").unwrap()),
            (needed.into(), needed.into())
        );
        // It exists, but not for guests.
        assert_eq!((files("huge"), files("virtio_net")), (None, None));
    }

    #[test]
    fn dashes_and_packings_are_no_part_of_a_name() {
        for path in ["kernel/x/nf-tables.ko.xz", "nf_tables", "nf-tables.ko", "a/nf_tables.ko.zst"] {
            assert_eq!(name_of(path), "nf_tables");
        }
    }

    #[test]
    fn a_packed_module_is_unpacked_and_garbage_is_refused() {
        let (dir, tree) = read();
        let file = dir.path().join("6.12.1/kernel/drivers/net/tun.ko");
        fs::write(&file, zstd::encode_all(&b"\x7fELFtun"[..], 1).unwrap()).unwrap();
        assert_eq!(tree.unpack("tun").unwrap(), b"\x7fELFtun");
        fs::write(&file, "tun").unwrap();
        assert!(matches!(tree.unpack("tun"), Err(ModuleError::NotElf { .. })));
    }
}
