//! Whether guests can run: pods with the runtime handler `vm`. Nothing here keeps other pods from running.

use std::fs;
use std::path::{Path, PathBuf};

use hartpod_vm::boot::Interrupts;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::jail::landlock_abi;
use hartpod_vm::launcher::choose_interrupts;
use hartpod_vm::tap;

use super::Finding::{self, Note, Ok as Fine, Warn};
use super::place::{in_one_line, judge_program};
use crate::config::{Config, Vm};

const KVM: &str = "/dev/kvm";

/// All that guests need; on a node that cannot have any, one line that says why.
pub(super) fn look(config: &Config) -> Vec<(&'static str, Finding)> {
    if let Some(obstacle) = obstacle(std::env::consts::ARCH, &read("/proc/cpuinfo"), Path::new(KVM).exists())
    {
        return vec![("guests", Note(obstacle))];
    }
    vec![
        ("kvm", kvm()),
        ("interrupts", interrupts()),
        ("vmm", vmm(config)),
        ("landlock", landlock(landlock_abi())),
        ("guest image", image(&config.root)),
        ("guest disks", tools()),
        ("guest network", network()),
        ("vmm users", users(config.vm.uid_range)),
        ("guest size", size(&config.vm)),
    ]
}

/// A file that may be missing.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Why this node can have no guest, whatever is installed.
fn obstacle(architecture: &str, cpuinfo: &str, has_kvm: bool) -> Option<String> {
    if architecture != "riscv64" {
        return Some(format!("not on {architecture}: they need a riscv64 processor with the H extension"));
    }
    let isa = isa(cpuinfo);
    // The kernel knows better than what it prints.
    (!has_kvm && !has_h(isa)).then(|| format!("not here: the processor has no H extension ({isa})"))
}

/// Of the first processor: `rv64imafdch_zicbom_..` (Documentation/arch/riscv/uabi.rst of Linux).
fn isa(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("isa")?.trim_start().strip_prefix(':'));
    line.map_or("isa unknown", str::trim)
}

fn has_h(isa: &str) -> bool {
    let single = isa.split('_').next().unwrap_or_default();
    single.strip_prefix("rv64").is_some_and(|letters| letters.contains('h'))
}

fn kvm() -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => Fine(format!("{KVM}, by the H extension")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Warn(format!("no {KVM}: `modprobe kvm` makes it where the kernel has KVM"))
        }
        Err(error) => Warn(format!("open {KVM}: {error}")),
    }
}

/// As the daemon chooses, by trying.
fn interrupts() -> Finding {
    match choose_interrupts() {
        Ok(Interrupts::Aia) => Fine("the kernel's AIA: it was tried and works".to_owned()),
        Ok(Interrupts::Plic) => Fine(
            "hartpod-vmm's PLIC, somewhat slower: the kernel's AIA is missing or does not work".to_owned(),
        ),
        Err(error) => Warn(format!("cannot be told: {}", in_one_line(&error))),
    }
}

fn vmm(config: &Config) -> Finding {
    match config.vm.vmm_path() {
        Ok(path) => no_blocker(judge_program(&path)),
        Err(error) => Warn(in_one_line(&error)),
    }
}

/// Without guests there are still other pods.
fn no_blocker(finding: Finding) -> Finding {
    match finding {
        Finding::Fail(text) => Warn(text),
        other => other,
    }
}

/// One lock of several around a VMM. Versions: Documentation/userspace-api/landlock.rst of Linux.
fn landlock(version: Option<u32>) -> Finding {
    match version {
        Some(version @ 6..) => {
            Fine(format!("version {version}: VMMs are kept from files, TCP, others' sockets and signals"))
        }
        Some(version @ 4..) => {
            Fine(format!("version {version}: VMMs are kept from files and TCP; 6 adds sockets and signals"))
        }
        Some(version) => {
            Fine(format!("version {version}: VMMs are kept from files; 4 adds TCP, 6 sockets and signals"))
        }
        None => Warn("not on in this kernel: the jail of VMMs has a lock less".to_owned()),
    }
}

fn image(root: &Path) -> Finding {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    match GuestImage::current(root) {
        Ok(image) => {
            judge_image(&image.manifest.release, &running, image.manifest.on_demand_modules, &image.dir)
        }
        Err(error) => Warn(in_one_line(&error)),
    }
}

fn judge_image(release: &str, running: &str, modules: usize, dir: &Path) -> Finding {
    if release != running {
        return Warn(format!(
            "its kernel is {release}, the node's is {running}: `hartpod guest build` makes one of that"
        ));
    }
    if modules == 0 {
        return Warn(format!("{release}, without modules to load on demand: {}", dir.display()));
    }
    Fine(format!("{release}, {modules} modules to load on demand: {}", dir.display()))
}

/// What makes disks of layers, and a guest's image.
fn tools() -> Finding {
    const TOOLS: [(&str, &str); 2] = [("mkfs.erofs", "erofs-utils"), ("mke2fs", "e2fsprogs")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let there = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<String> = TOOLS
        .iter()
        .filter(|(program, _)| !there(program))
        .map(|(program, package)| format!("{program} ({package})"))
        .collect();
    match missing.is_empty() {
        true => Fine("mkfs.erofs, mke2fs".to_owned()),
        false => Warn(format!("not in $PATH: {}", missing.join(", "))),
    }
}

fn network() -> Finding {
    match tap::probe_blocking() {
        Ok(()) => Fine("tap, and tc to join it to a pod's interface".to_owned()),
        Err(error) => Warn(in_one_line(&error)),
    }
}

fn users(range: [u32; 2]) -> Finding {
    judge_users(range, &read("/etc/passwd"), &read("/etc/subuid"))
}

/// Whoever else had such a user could end a VMM and read its memory.
fn judge_users([first, last]: [u32; 2], passwd: &str, subuid: &str) -> Finding {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |field: Option<&String>| field.and_then(|text| text.trim().parse::<u64>().ok());
    let single = passwd.lines().map(fields).filter_map(|entry| {
        let uid = number(entry.get(2))?;
        Some((entry.first()?.clone(), uid, uid, "/etc/passwd"))
    });
    let several = subuid.lines().map(fields).filter_map(|entry| {
        let (from, count) = (number(entry.get(1))?, number(entry.get(2))?.max(1));
        Some((entry.first()?.clone(), from, from.saturating_add(count - 1), "/etc/subuid"))
    });
    let mut taken = single.chain(several);
    match taken.find(|(_, from, to, _)| *from <= u64::from(last) && *to >= u64::from(first)) {
        Some((name, from, to, file)) => Warn(format!(
            "{first} to {last} (vm.uid_range) are not free: {file} gives {} to {name}",
            if from == to { from.to_string() } else { format!("{from} to {to}") }
        )),
        None => Fine(format!("{first} to {last}, which are nobody else's")),
    }
}

fn size(config: &Vm) -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    judge_size(config, &read("/proc/meminfo"), cpus)
}

fn judge_size(config: &Vm, meminfo: &str, cpus: u64) -> Finding {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let Some(node) = kib.map(|kib| kib >> 10) else {
        return Warn("the node's memory cannot be told".to_owned());
    };
    let Vm { default_memory_mib: memory, default_vcpus: vcpus, .. } = config;
    let text = format!(
        "at most {memory} MiB and {vcpus} vCPUs without limits; of limits, {} MiB more; the node has {node} MiB and {cpus} CPUs",
        config.guest_base_mib
    );
    if memory + config.overhead_mib > node {
        return Warn(format!("{text}: set vm.default_memory_mib to less than it has"));
    }
    Fine(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_H: &str = "processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdch_zicbom_zicsr\nmmu\t\t: sv57\n";
    const WITHOUT: &str = "processor\t: 0\nisa\t\t: rv64imafdc_zicbom_zihpm\n";

    #[test]
    fn a_node_that_can_have_no_guests_says_why() {
        let x86 = obstacle("x86_64", "", true).unwrap();
        assert_eq!(x86, "not on x86_64: they need a riscv64 processor with the H extension");
        let plain = obstacle("riscv64", WITHOUT, false).unwrap();
        assert_eq!(plain, "not here: the processor has no H extension (rv64imafdc_zicbom_zihpm)");
        assert_eq!(obstacle("riscv64", WITH_H, false), None, "KVM may only have to be loaded");
        assert_eq!(obstacle("riscv64", WITHOUT, true), None, "the kernel knows better");
        assert!(obstacle("riscv64", "", false).unwrap().ends_with("(isa unknown)"));
    }

    #[test]
    fn an_image_of_another_kernel_is_told() {
        let dir = Path::new("/var/lib/hartpod/guest/0123");
        let Fine(text) = judge_image("6.12.1", "6.12.1", 40, dir) else { panic!() };
        assert_eq!(text, "6.12.1, 40 modules to load on demand: /var/lib/hartpod/guest/0123");
        let Warn(text) = judge_image("6.12.1", "6.12.2", 40, dir) else { panic!() };
        assert!(text.contains("6.12.1") && text.contains("6.12.2") && text.contains("hartpod guest build"));
        assert!(matches!(judge_image("6.12.1", "6.12.1", 0, dir), Warn(_)));
    }

    #[test]
    fn users_of_others_are_found() {
        let range = [100_000, 100_009];
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n";
        let judged = |passwd: &str, subuid: &str| match judge_users(range, passwd, subuid) {
            Warn(text) => text,
            Fine(_) => String::new(),
            other => panic!("{other:?}"),
        };
        assert_eq!(judged(passwd, "web:200000:65536\nbroken\n"), "");
        assert_eq!(judged(passwd, "web:90000:10000\n"), "", "up to 99999");
        assert!(judged(passwd, "web:90000:10001\n").ends_with("/etc/subuid gives 90000 to 100000 to web"));
        assert!(judged("eve:x:100009:0::/:/bin/sh\n", "").ends_with("/etc/passwd gives 100009 to eve"));
    }

    #[test]
    fn a_guest_is_not_larger_than_its_node() {
        let config = Vm { default_memory_mib: 2048, ..Vm::default() };
        assert!(matches!(judge_size(&config, "MemTotal:        8000000 kB\n", 4), Fine(_)));
        assert!(matches!(judge_size(&config, "MemTotal:        2000000 kB\n", 4), Warn(_)));
        assert!(matches!(judge_size(&config, "", 4), Warn(_)));
    }
}
