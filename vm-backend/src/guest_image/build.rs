//! Builds the image of a node's guests, unless it is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::agent_program::{self, AgentError};
use super::cpio::TooLarge;
use super::file_error::{At as _, FileError};
use super::initramfs::{self, Module, Stage};
use super::kernel::{Kernel, KernelError};
use super::module_choice::{EARLY, LATE, on_demand};
use super::module_tree::{ModuleError, ModuleTree};
use super::node_kernel::{NoKernel, NodePaths};
use super::store::{
    FORMAT, GuestImage, INITRAMFS, KERNEL, MODULES, Manifest, NAME_DIGITS, OpenError, SCRATCH, Store,
};
use super::tool::{self, ToolError};
use super::{modules_disk, scratch_disk, strip};

/// What to build from.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The daemon's root folder; images are in `guest` below it.
    pub root: PathBuf,
    /// `hartpod-pod`, static, for riscv64.
    pub agent: PathBuf,
    /// A kernel instead of the node's own.
    pub kernel: Option<PathBuf>,
    /// A folder of modules (with `modules.dep`) instead of the node's own.
    pub modules: Option<PathBuf>,
    /// Where the node's own are.
    pub node: NodePaths,
    /// `uname -r`
    pub running: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Built {
    pub image: GuestImage,
    /// How long building took; nothing when the image was there.
    pub took: Option<Duration>,
    /// Names of older images and left-overs that are gone now.
    pub removed: Vec<String>,
    /// What is missing, with what that means.
    pub warnings: Vec<String>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    #[error("kernel {}", path.display())]
    Kernel { path: PathBuf, source: KernelError },
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error("module {name} was built for another kernel than {release}")]
    Mismatch { name: String, release: String },
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("{program} is needed: install {package}")]
    NoTool { program: &'static str, package: &'static str },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] OpenError),
}

/// Builds what `request` asks for and makes it the current image. `waiting` is called when another build has to end first. Blocks.
///
/// # Errors
/// See [`BuildError`]; the current image is then what it was.
pub fn build_blocking(request: &BuildRequest, waiting: impl FnOnce()) -> Result<Built, BuildError> {
    let store = Store::at(&request.root);
    let lock = store.lock(waiting)?;
    let begun = Instant::now();
    let inputs = Inputs::read(request)?;
    let name = inputs.name()?;
    let warnings = inputs.tools.warnings();
    let (image, took) = match existing(&store, &name) {
        Some(image) => (image, None),
        None => {
            make(&store, &name, inputs)?;
            let image = store.open(&name)?;
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            (
                image.ok_or_else(gone).at("open", request.root.join("guest").join(&name))?,
                Some(begun.elapsed()),
            )
        }
    };
    store.make_current(&name)?;
    let removed = store.prune(&name, &lock)?;
    Ok(Built { image, took, removed, warnings })
}

/// A damaged image, or one of another format, is built again.
fn existing(store: &Store, name: &str) -> Option<GuestImage> {
    store.open(name).ok().flatten().filter(|image| image.manifest.format == FORMAT)
}

/// Programs that are installed.
#[derive(Debug)]
struct Tools {
    strip: Option<PathBuf>,
    erofs: Option<PathBuf>,
    ext4: PathBuf,
}

impl Tools {
    fn find() -> Result<Self, BuildError> {
        let none = BuildError::NoTool { program: scratch_disk::PROGRAM, package: "e2fsprogs" };
        Ok(Self {
            strip: strip::program(),
            erofs: tool::find(&[modules_disk::PROGRAM]),
            ext4: tool::find(&[scratch_disk::PROGRAM]).ok_or(none)?,
        })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.erofs.is_none() {
            warnings.push(
                "mkfs.erofs is not installed (erofs-utils): guests can load no modules on demand, so iptables, \
                 nftables and tun do not work in them"
                    .to_owned(),
            );
        }
        if self.strip.is_none() {
            warnings.push(
                "strip is not installed (binutils): guests boot with modules of four times the size"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Everything that an image is made of, read and checked.
#[derive(Debug)]
struct Inputs {
    kernel: Kernel,
    kernel_from: PathBuf,
    agent: Vec<u8>,
    tree: ModuleTree,
    /// In load order, as they are on the node.
    boot: Vec<Module>,
    on_demand: BTreeSet<String>,
    tools: Tools,
}

impl Inputs {
    fn read(request: &BuildRequest) -> Result<Self, BuildError> {
        let agent = agent_program::read(&request.agent)?;
        let (kernel_from, kernel, modules_from) = find_kernel(request)?;
        let tree = ModuleTree::read(&modules_from, &kernel.release)?;
        let boot = boot_modules(&tree, &kernel.release)?;
        let on_demand = tree.select(on_demand)?.into_iter().map(str::to_owned).collect();
        Ok(Self { kernel, kernel_from, agent, tree, boot, on_demand, tools: Tools::find()? })
    }

    /// The image's name: a hash of all that has a part in it.
    fn name(&self) -> Result<String, FileError> {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(&FORMAT.to_le_bytes());
        field(&scratch_disk::SCRATCH_BYTES.to_le_bytes());
        field(&[u8::from(self.tools.strip.is_some()), u8::from(self.tools.erofs.is_some())]);
        field(&self.kernel.image);
        field(&self.agent);
        for module in &self.boot {
            field(module.name.as_bytes());
            field(&module.contents);
        }
        for path in self.on_demand.iter().filter(|_| self.tools.erofs.is_some()) {
            let file = self.tree.root().join(path);
            field(path.as_bytes());
            field(&fs::read(&file).at("read", &file)?);
        }
        let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(digits.chars().take(NAME_DIGITS).collect())
    }
}

/// The kernel's file, the kernel, and the folder of its modules.
fn find_kernel(request: &BuildRequest) -> Result<(PathBuf, Kernel, PathBuf), BuildError> {
    let read = |path: &Path| {
        Kernel::read(path).map_err(|source| BuildError::Kernel { path: path.to_owned(), source })
    };
    let node = &request.node;
    let (kernel, modules) = match (&request.kernel, &request.modules) {
        (Some(kernel), Some(modules)) => (kernel.clone(), modules.clone()),
        (None, Some(modules)) => (node.kernel_for(modules)?, modules.clone()),
        (Some(kernel), None) => {
            let read = read(kernel)?;
            let modules = node.modules_for(&read.release)?;
            return Ok((kernel.clone(), read, modules));
        }
        (None, None) => {
            let chosen = node.choose(&request.running)?;
            (chosen.kernel, chosen.modules)
        }
    };
    let read = read(&kernel)?;
    Ok((kernel, read, modules))
}

fn boot_modules(tree: &ModuleTree, release: &str) -> Result<Vec<Module>, BuildError> {
    let early = tree.load_order(&EARLY)?;
    let all: Vec<&str> = EARLY.into_iter().chain(LATE).collect();
    let order = tree.load_order(&all)?;
    let mut modules = Vec::with_capacity(order.len());
    for name in order {
        let contents = tree.unpack(&name)?;
        if !is_built_for(&contents, release) {
            return Err(BuildError::Mismatch { name, release: release.to_owned() });
        }
        let stage = if early.contains(&name) { Stage::Early } else { Stage::Late };
        modules.push(Module { name, stage, contents });
    }
    Ok(modules)
}

/// A module says what it was built for (include/linux/vermagic.h); the kernel would refuse any other.
fn is_built_for(module: &[u8], release: &str) -> bool {
    const MAGIC: &[u8] = b"vermagic=";
    let Some(at) = memchr::memmem::find(module, MAGIC) else { return true };
    let said = module.get(at + MAGIC.len()..).unwrap_or_default();
    said.strip_prefix(release.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '))
}

fn make(store: &Store, name: &str, inputs: Inputs) -> Result<(), BuildError> {
    let dir = store.begin(name)?;
    let made = fill(&dir, inputs).and_then(|manifest| Ok(store.commit(&dir, name, &manifest)?));
    if made.is_err() {
        // The disk may be full. Where this fails as well it goes at the next build.
        let _ = fs::remove_dir_all(&dir);
    }
    made
}

/// Puts everything of an image but the manifest into its folder.
fn fill(dir: &Path, inputs: Inputs) -> Result<Manifest, BuildError> {
    let Inputs { kernel, kernel_from, agent, tree, boot: mut modules, on_demand, tools } = inputs;
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).at("write", dir.join(name));
    write(KERNEL, &kernel.image)?;
    if let Some(program) = &tools.strip {
        strip::strip(program, &mut modules, &dir.join("stripped"))?;
    }
    write(INITRAMFS, &initramfs::pack(&agent, &modules)?)?;
    if let Some(program) = &tools.erofs {
        let paths = on_demand.iter().map(String::as_str).collect();
        modules_disk::make(program, &tree, &paths, &dir.join("modules"), &dir.join(MODULES))?;
    }
    scratch_disk::make(&tools.ext4, &dir.join(SCRATCH))?;
    Ok(Manifest {
        format: FORMAT,
        release: kernel.release,
        kernel_from,
        modules_from: tree.root().to_owned(),
        boot_modules: modules.len(),
        stripped: tools.strip.is_some(),
        on_demand_modules: tools.erofs.map_or(0, |_| on_demand.len()),
        files: sizes(dir)?,
    })
}

fn sizes(dir: &Path) -> Result<BTreeMap<String, u64>, FileError> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let size = entry.metadata().at("look at", entry.path())?.len();
        sizes.insert(entry.file_name().to_string_lossy().into_owned(), size);
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests;
