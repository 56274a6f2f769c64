//! What is on the node: disk, programs, network configuration.

use std::error::Error;
use std::path::{Path, PathBuf};

use hartpod_cni::{Cni, CniConfig, NotReady};
use hartpod_container::UserNamespace;

use super::super::units;
use super::Finding::{self, Fail, Note, Ok as Fine, Warn};
use crate::config::Config;
use crate::streaming::settings_blocking;

/// Below this no image of use fits.
const SPACE_NEEDED: u64 = 256 << 20;

/// Below this the kubelet soon collects images (its imageGCHighThreshold is 85 %).
const SPACE_WANTED: u64 = 4 << 30;

/// The nearest folder that exists.
pub(super) fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|p| p.is_dir()).map(Path::to_owned)
}

/// An error and its causes, for one line.
pub(super) fn in_one_line(error: &dyn Error) -> String {
    crate::chain(error).replace('\n', " ")
}

/// Whether pods can have user namespaces on the file system that `root` is or will be on.
pub(super) fn user_namespaces(root: &Path) -> Finding {
    let Some(base) = existing(root) else {
        return Note(format!("{} is on no file system", root.display()));
    };
    match UserNamespace::probe_blocking(&base) {
        Ok(()) => Fine("pods can have them (hostUsers: false)".to_owned()),
        Err(error) => Note(format!("pods cannot have them: {}", in_one_line(&error))),
    }
}

pub(super) fn space(root: &Path) -> Finding {
    let Some(free) = existing(root).and_then(|p| rustix::fs::statvfs(p).ok()) else {
        return Warn(format!("cannot be told for {}", root.display()));
    };
    judge_space(free.f_bavail.saturating_mul(free.f_frsize), root)
}

fn judge_space(free: u64, root: &Path) -> Finding {
    let text = format!("{} free for {}", units::bytes(free), root.display());
    match free {
        f if f < SPACE_NEEDED => Fail(text),
        f if f < SPACE_WANTED => Warn(text),
        _ => Fine(text),
    }
}

pub(super) fn pod_agent(config: &Config) -> Finding {
    match config.pod.agent_path() {
        Ok(path) => judge_program(&path),
        Err(error) => Fail(in_one_line(&error)),
    }
}

/// Class, byte order and machine of an ELF header: the agent's must be those of the running program.
pub(super) fn judge_program(path: &Path) -> Finding {
    const IDENT: usize = 6;
    const MACHINE: std::ops::Range<usize> = 18..20;
    let header = |path: &Path| -> std::io::Result<[u8; 20]> {
        let mut header = [0; 20];
        std::io::Read::read_exact(&mut std::fs::File::open(path)?, &mut header)?;
        Ok(header)
    };
    let own = header(Path::new("/proc/self/exe"));
    match (header(path), own) {
        (Ok(agent), Ok(own)) if agent[..IDENT] == own[..IDENT] && agent[MACHINE] == own[MACHINE] => {
            Fine(path.display().to_string())
        }
        (Err(error), _) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            Fail(format!("read {}: {error}", path.display()))
        }
        _ => Fail(format!("{} is not a program for this machine", path.display())),
    }
}

/// Without a network only pods on the node's own network run; a cluster's network plugin often comes later.
pub(super) fn network(config: &Config) -> Finding {
    let cni = Cni::new(CniConfig {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        plugin_timeout: config.cni.plugin_timeout(),
        ..CniConfig::default()
    });
    // With one that is no good the daemon does not start.
    let template = match config.cni.template_blocking() {
        Ok(template) => template,
        Err(error) => return Fail(in_one_line(&error)),
    };
    match cni.status() {
        Err(NotReady::NoConf { .. }) if template.is_some() => {
            let made = config.cni.conf_template.display();
            Warn(format!("only pods on the node's network, until the kubelet tells the ranges for {made}"))
        }
        Ok(name) => Fine(format!("{name}, from {}", config.cni.conf_dir.display())),
        Err(error) => Warn(format!("only pods on the node's network: {}", in_one_line(&error))),
    }
}

/// Pods on a bridge reach nothing else without it.
pub(super) fn forwarding() -> Finding {
    match std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward") {
        Ok(text) if text.trim() == "1" => Fine("net.ipv4.ip_forward is 1".to_owned()),
        Ok(_) => Warn("net.ipv4.ip_forward is 0: pods reach no other network".to_owned()),
        Err(_) => Warn("net.ipv4.ip_forward cannot be read".to_owned()),
    }
}

/// With a certificate or key that is no good the daemon does not start.
pub(super) fn streaming(config: &Config) -> Finding {
    match settings_blocking(&config.streaming) {
        Ok(settings) if settings.tls.is_some() => {
            Fine(format!("TLS with {}", config.streaming.tls_cert.display()))
        }
        Ok(_) => Note(format!("without TLS, on {}", config.streaming.listen)),
        Err(error) => Fail(in_one_line(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_judged_by_what_fits() {
        let root = Path::new("/var/lib/hartpod");
        assert_eq!(judge_space(10 << 30, root), Fine("10.0 GiB free for /var/lib/hartpod".into()));
        assert!(matches!(judge_space(1 << 30, root), Warn(_)));
        assert!(matches!(judge_space(1 << 20, root), Fail(_)));
    }

    #[test]
    fn a_folder_that_is_not_there_yet_counts_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing(&dir.path().join("a/b")).as_deref(), Some(dir.path()));
    }

    #[test]
    fn an_agent_that_is_no_program_is_a_blocker() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "#!/bin/sh\nexec true # longer than a header"] {
            let path = dir.path().join("agent");
            std::fs::write(&path, text).unwrap();
            let Fail(told) = judge_program(&path) else { panic!("{text:?}") };
            assert!(told.ends_with("is not a program for this machine"), "{told}");
        }
        assert!(matches!(judge_program(Path::new("/proc/self/exe")), Fine(_)));
        assert!(matches!(judge_program(Path::new("/nonexistent")), Fail(_)));
    }

    #[test]
    fn no_network_is_no_blocker() {
        let mut config = Config::default();
        config.cni.conf_dir = "/nonexistent".into();
        let Warn(text) = network(&config) else { panic!() };
        assert!(text.starts_with("only pods on the node's network: "), "{text}");
    }

    #[test]
    fn a_certificate_that_the_daemon_would_not_start_with_is_a_blocker() {
        let mut config = Config::default();
        assert!(matches!(streaming(&config), Note(_)));
        config.streaming.tls_cert = "/nonexistent.pem".into();
        config.streaming.tls_key = "/nonexistent.key".into();
        let Fail(text) = streaming(&config) else { panic!() };
        assert!(text.starts_with("read /nonexistent.pem: "), "{text}");
    }
}
