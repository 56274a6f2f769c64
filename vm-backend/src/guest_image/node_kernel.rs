//! Which kernel of this node guests boot, and where its modules are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders of a node that hold kernels and modules; tests have others.
#[derive(Debug, Clone)]
pub struct NodePaths {
    /// /boot
    pub boot: PathBuf,
    /// Folders with a folder per release, e.g. /lib/modules.
    pub modules: Vec<PathBuf>,
}

impl Default for NodePaths {
    fn default() -> Self {
        // Both, for nodes without a merged /usr.
        Self { boot: "/boot".into(), modules: vec!["/lib/modules".into(), "/usr/lib/modules".into()] }
    }
}

/// A kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeKernel {
    pub(super) kernel: PathBuf,
    /// The folder with `modules.dep`.
    pub(super) modules: PathBuf,
}

/// Why no kernel was chosen.
#[derive(Debug, thiserror::Error)]
pub enum NoKernel {
    #[error("no kernel with modules on this node ({} and {}): name them with --kernel and --modules",
        boot.display(), list(modules))]
    None { boot: PathBuf, modules: Vec<PathBuf> },
    #[error("no kernel for the modules {}: name it with --kernel", modules.display())]
    NoImage { modules: PathBuf },
    #[error("no modules of kernel {release} in {}: name their folder with --modules", list(modules))]
    NoModules { release: String, modules: Vec<PathBuf> },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl NodePaths {
    /// The running kernel (`uname -r`), if it and its modules are on disk, or else the newest that is.
    pub(super) fn choose(&self, running: &str) -> Result<NodeKernel, NoKernel> {
        let mut releases = self.releases();
        releases.sort_by(|a, b| compare(b, a));
        let running_first = std::iter::once(running.to_owned()).chain(releases);
        let mut both = running_first.filter_map(|release| {
            let modules = self.modules_of(&release)?;
            Some(NodeKernel { kernel: self.kernel_of(&release, &modules)?, modules })
        });
        both.next().ok_or_else(|| NoKernel::None { boot: self.boot.clone(), modules: self.modules.clone() })
    }

    /// The kernel that belongs to a folder of modules, which is named by its release.
    pub(super) fn kernel_for(&self, modules: &Path) -> Result<PathBuf, NoKernel> {
        let release = modules.file_name().unwrap_or_default().to_string_lossy();
        let none = || NoKernel::NoImage { modules: modules.to_owned() };
        self.kernel_of(&release, modules).ok_or_else(none)
    }

    pub(super) fn modules_for(&self, release: &str) -> Result<PathBuf, NoKernel> {
        let none = || NoKernel::NoModules { release: release.to_owned(), modules: self.modules.clone() };
        self.modules_of(release).ok_or_else(none)
    }

    fn releases(&self) -> Vec<String> {
        let folders = self.modules.iter().filter_map(|folder| fs::read_dir(folder).ok());
        let entries = folders.flatten().filter_map(io::Result::ok);
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn modules_of(&self, release: &str) -> Option<PathBuf> {
        let folders = self.modules.iter().map(|folder| folder.join(release));
        // A package that was removed leaves the folder behind.
        folders.into_iter().find(|folder| folder.join("kernel").is_dir())
    }

    fn kernel_of(&self, release: &str, modules: &Path) -> Option<PathBuf> {
        let named = ["vmlinux", "vmlinuz", "Image"].map(|name| self.boot.join(format!("{name}-{release}")));
        let beside = ["vmlinuz", "vmlinux", "Image"].map(|name| modules.join(name));
        named.into_iter().chain(beside).find(|path| path.is_file())
    }
}

/// Orders releases as people do: numbers in them by value.
fn compare(a: &str, b: &str) -> std::cmp::Ordering {
    parts(a).cmp(parts(b))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Text(&'a str),
    /// Without leading zeros, the longer one is larger.
    Number(usize, &'a str),
}

fn parts(release: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = release;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let same = |c: char| c.is_ascii_digit() == first.is_ascii_digit();
        let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        rest = after;
        Some(if first.is_ascii_digit() {
            let digits = part.trim_start_matches('0');
            Part::Number(digits.len(), digits)
        } else {
            Part::Text(part)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(releases: &[(&str, &str)]) -> (tempfile::TempDir, NodePaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = NodePaths {
            boot: dir.path().join("boot"),
            modules: vec![dir.path().join("none"), dir.path().join("modules")],
        };
        fs::create_dir(&paths.boot).unwrap();
        for (release, kernel) in releases {
            fs::create_dir_all(paths.modules[1].join(release).join("kernel")).unwrap();
            if !kernel.is_empty() {
                fs::write(paths.boot.join(format!("{kernel}-{release}")), "").unwrap();
            }
        }
        (dir, paths)
    }

    #[test]
    fn the_running_kernel_comes_first_then_the_newest_that_is_complete() {
        let (_dir, paths) =
            node(&[("6.9.1", "vmlinux"), ("6.12.10", "vmlinuz"), ("6.12.9", "vmlinux"), ("7.0.0", "")]);
        let chosen = |running| paths.choose(running).unwrap().kernel.file_name().unwrap().to_owned();
        assert_eq!(chosen("6.9.1"), "vmlinux-6.9.1");
        assert_eq!(chosen("5.0.0"), "vmlinuz-6.12.10");
        assert_eq!(chosen("7.0.0"), "vmlinuz-6.12.10");
    }

    #[test]
    fn a_kernel_may_lie_beside_its_modules() {
        let (_dir, paths) = node(&[("6.12.1", "")]);
        fs::write(paths.modules[1].join("6.12.1/vmlinuz"), "").unwrap();
        assert_eq!(paths.choose("x").unwrap().kernel, paths.modules[1].join("6.12.1/vmlinuz"));
    }

    #[test]
    fn a_node_without_one_is_told_what_to_do() {
        let (_dir, paths) = node(&[]);
        let error = paths.choose("6.18.44").unwrap_err().to_string();
        assert!(error.contains("--kernel") && error.contains("boot"), "{error}");
        let modules = Path::new("/x/6.12.1");
        assert!(paths.kernel_for(modules).unwrap_err().to_string().contains("/x/6.12.1"));
    }

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        for (small, large) in
            [("6.9.1", "6.12.1"), ("6.12.9+deb13-riscv64", "6.12.107+deb13-riscv64"), ("6.12", "6.12.1")]
        {
            assert_eq!(compare(small, large), std::cmp::Ordering::Less, "{small} {large}");
        }
        assert_eq!(compare("6.012", "6.12"), std::cmp::Ordering::Equal);
    }
}
