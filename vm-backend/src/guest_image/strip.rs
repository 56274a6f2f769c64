//! Takes from modules what loading does not need; that is three quarters of them.

use std::fs;
use std::path::{Path, PathBuf};

use super::BuildError;
use super::file_error::At as _;
use super::initramfs::Module;
use super::tool;

/// Programs that strip riscv64 files, the plain one only where that is this machine's own kind.
const CROSS: [&str; 2] = ["riscv64-linux-gnu-strip", "llvm-strip"];
const NATIVE: &str = "strip";

/// A program that can do it, if one is installed.
pub(super) fn program() -> Option<PathBuf> {
    let native = if cfg!(target_arch = "riscv64") { tool::find(&[NATIVE]) } else { None };
    native.or_else(|| tool::find(&CROSS))
}

/// Strips `modules` by way of files in the new folder `dir`, which goes again. Their signatures go too: the guest's kernel is tainted by that,
/// which concerns nobody.
pub(super) fn strip(program: &Path, modules: &mut [Module], dir: &Path) -> Result<(), BuildError> {
    fs::create_dir(dir).at("make", dir)?;
    let files: Vec<PathBuf> = modules.iter().map(|module| dir.join(format!("{}.ko", module.name))).collect();
    for (module, file) in modules.iter().zip(&files) {
        fs::write(file, &module.contents).at("write", file)?;
    }
    tool::run(
        program,
        std::iter::once(Path::new("--strip-unneeded")).chain(files.iter().map(PathBuf::as_path)),
    )?;
    for (module, file) in modules.iter_mut().zip(&files) {
        module.contents = fs::read(file).at("read", file)?;
    }
    Ok(fs::remove_dir_all(dir).at("remove", dir)?)
}
