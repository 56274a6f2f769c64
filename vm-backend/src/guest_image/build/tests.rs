use super::*;
use crate::guest_image::{agent_program, cpio, kernel, module_tree};

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        for folder in ["boot", "modules"] {
            fs::create_dir(node.path(folder)).unwrap();
        }
        module_tree::tests::tree(&node.path("modules"), "6.12.1");
        fs::write(node.path("boot/vmlinux-6.12.1"), kernel::tests::image("6.12.1")).unwrap();
        fs::write(node.path("hartpod-pod"), agent_program::tests::elf(243, 1)).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn request(&self) -> BuildRequest {
        BuildRequest {
            root: self.path("root"),
            agent: self.path("hartpod-pod"),
            kernel: None,
            modules: None,
            node: NodePaths { boot: self.path("boot"), modules: vec![self.path("modules")] },
            running: "6.12.1".to_owned(),
        }
    }

    /// Builds with what is installed but `strip`, to which the modules of tests mean nothing.
    fn inputs(&self) -> Result<Inputs, BuildError> {
        let mut inputs = Inputs::read(&self.request())?;
        inputs.tools.strip = None;
        Ok(inputs)
    }
}

fn has_ext4() -> bool {
    let has = tool::find(&[scratch_disk::PROGRAM]).is_some();
    if !has {
        eprintln!("skipped: needs {}", scratch_disk::PROGRAM);
    }
    has
}

#[test]
fn an_image_boots_the_nodes_kernel_with_the_agent_and_its_modules() {
    if !has_ext4() {
        return;
    }
    let node = Node::new();
    let store = Store::at(&node.path("root"));
    let lock = store.lock(|| ()).unwrap();
    let inputs = node.inputs().unwrap();
    let name = inputs.name().unwrap();
    make(&store, &name, inputs).unwrap();
    store.make_current(&name).unwrap();
    drop(lock);
    let image = GuestImage::current(&node.path("root")).unwrap();
    assert_eq!(fs::read(image.kernel()).unwrap(), kernel::tests::image("6.12.1"));
    let initramfs = cpio::tests::read(&fs::read(image.initramfs()).unwrap());
    let index = initramfs.iter().find(|entry| entry.name == "modules/index").unwrap();
    let index = std::str::from_utf8(&index.contents).unwrap();
    assert!(index.starts_with("early 00-virtio_mmio.ko\nearly 01-vsock.ko\n"), "{index}");
    assert!(index.contains("late 04-virtio_blk.ko\n") && index.ends_with("virtio_balloon.ko\n"), "{index}");
    assert_eq!(index.lines().count(), image.manifest.boot_modules);
    assert_eq!(image.modules().is_some(), tool::find(&[modules_disk::PROGRAM]).is_some());
    let left: Vec<_> = fs::read_dir(&image.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), image.manifest.files.len() + 1, "{left:?}");
}

#[test]
fn only_what_an_image_is_made_of_gives_it_another_name() {
    if !has_ext4() {
        return;
    }
    let node = Node::new();
    let name = || node.inputs().unwrap().name().unwrap();
    let first = name();
    assert_eq!(first.len(), NAME_DIGITS);
    fs::write(node.path("modules/6.12.1/kernel/drivers/gpu/huge.ko"), "new").unwrap();
    assert_eq!(name(), first);
    let mut names = BTreeSet::from([first]);
    let mut agent = agent_program::tests::elf(243, 1);
    agent.push(1);
    fs::write(node.path("hartpod-pod"), agent).unwrap();
    names.insert(name());
    fs::write(node.path("modules/6.12.1/kernel/fs/jbd2/jbd2.ko"), "\x7fELF new").unwrap();
    names.insert(name());
    let mut kernel = kernel::tests::image("6.12.1");
    kernel.push(1);
    fs::write(node.path("boot/vmlinux-6.12.1"), kernel).unwrap();
    names.insert(name());
    assert_eq!(names.len(), 4);
}

#[test]
fn a_build_that_fails_leaves_nothing() {
    if !has_ext4() {
        return;
    }
    let node = Node::new();
    let store = Store::at(&node.path("root"));
    let _lock = store.lock(|| ()).unwrap();
    let mut inputs = node.inputs().unwrap();
    inputs.tools.ext4 = tool::find(&["false"]).unwrap();
    let name = inputs.name().unwrap();
    assert!(matches!(make(&store, &name, inputs), Err(BuildError::Tool(_))));
    let left: Vec<_> =
        fs::read_dir(node.path("root/guest")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let node = Node::new();
    let module = "\x7fELF vermagic=6.12.10 SMP\0";
    fs::write(node.path("modules/6.12.1/kernel/fs/overlayfs/overlay.ko"), module).unwrap();
    match node.inputs() {
        Err(BuildError::Mismatch { name, release }) => assert_eq!((&*name, &*release), ("overlay", "6.12.1")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_without_kernels_and_an_agent_of_another_kind_are_clear_errors() {
    let node = Node::new();
    fs::remove_dir_all(node.path("boot")).unwrap();
    assert!(matches!(node.inputs(), Err(BuildError::NoKernel(_))));
    fs::write(node.path("hartpod-pod"), agent_program::tests::elf(62, 1)).unwrap();
    assert!(matches!(node.inputs(), Err(BuildError::Agent(_))));
    assert!(!node.path("root").exists());
}

#[test]
fn a_kernel_by_hand_finds_its_modules_by_its_release() {
    let node = Node::new();
    let mut request = node.request();
    fs::rename(node.path("boot/vmlinux-6.12.1"), node.path("mine")).unwrap();
    request.kernel = Some(node.path("mine"));
    assert_eq!(find_kernel(&request).unwrap().2, node.path("modules/6.12.1"));
    request.kernel = None;
    request.modules = Some(node.path("modules/6.12.1"));
    assert!(matches!(find_kernel(&request), Err(BuildError::NoKernel(NoKernel::NoImage { .. }))));
}
