//! Programs of this machine, with the libraries that they need, as a layer of an image.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layer::{Layer, LayerBuilder, Packing};

/// Where Debian has what a program may be, and what iptables loads by name.
const EXTENSIONS: &str = "xtables";

/// A layer with these programs at their paths. Those of iptables bring their extensions.
pub fn layer(programs: &[&str]) -> Result<Layer> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in programs {
        let program = Path::new(program);
        files.extend(libraries(program)?);
        files.insert(program.to_owned());
    }
    for dir in library_folders(&files) {
        let entries = std::fs::read_dir(dir.join(EXTENSIONS)).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| entry.path()).filter(|path| path.is_file()));
    }
    let mut layer = LayerBuilder::new();
    for file in &files {
        let content = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let inside = file.display().to_string();
        layer = layer.file(inside.trim_start_matches('/'), 0o755, &content)?;
    }
    layer.build(Packing::Gzip)
}

/// What the dynamic loader would load, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "ldd {}: {text}", program.display());
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

fn library_folders(files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let folders = files.iter().filter_map(|file| file.parent().map(Path::to_owned));
    // /lib is a link to /usr/lib, and the extensions are named by the latter.
    let in_usr = |dir: PathBuf| match dir.strip_prefix("/lib") {
        Ok(rest) => Path::new("/usr/lib").join(rest),
        Err(_) => dir,
    };
    folders.map(in_usr).collect()
}
