//! The files that every container of a pod sees unless the kubelet mounts its own: resolv.conf, hostname, hosts.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as pod;
use rustix::io::Errno;

use super::info::uses_host_network;
use crate::spec::pod_hostname;

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
const HOST_HOSTS: &str = "/etc/hosts";

/// A file of the pod could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub(crate) struct FileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is tried with the folder of the pod's logs, the only one that the request names.
const MAKE_LOG_FOLDER: &str = "make the log folder";

impl FileError {
    /// The request names a folder that cannot be one: there is a file, a loop of links, a name that is too long.
    pub(crate) fn is_the_requests_fault(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        let impossible =
            matches!(errno, Some(Errno::EXIST | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG));
        self.what == MAKE_LOG_FOLDER && impossible
    }
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { what, path, source }
}

/// The host name that the pod's containers see.
fn hostname(config: &cri::PodSandboxConfig) -> String {
    pod_hostname(config).unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Writes the files that do not depend on the network.
pub(super) fn write_blocking(dir: &Path, config: &cri::PodSandboxConfig) -> Result<(), FileError> {
    let path = dir.join("hostname");
    std::fs::write(&path, format!("{}\n", hostname(config))).map_err(fail("write", &path))?;
    let path = dir.join("resolv.conf");
    let text = match config.dns_config.as_ref().map(resolv_conf) {
        Some(text) => text.into_bytes(),
        None => read_or_empty(Path::new(HOST_RESOLV_CONF))?,
    };
    std::fs::write(&path, text).map_err(fail("write", &path))
}

/// Writes hosts: the node's for its own network, else one that knows the pod.
pub(super) fn write_hosts_blocking(
    dir: &Path,
    config: &cri::PodSandboxConfig,
    ips: &[IpAddr],
) -> Result<(), FileError> {
    let path = dir.join("hosts");
    let text = if uses_host_network(config) {
        read_or_empty(Path::new(HOST_HOSTS))?
    } else {
        hosts(&hostname(config), ips).into_bytes()
    };
    std::fs::write(&path, text).map_err(fail("write", &path))
}

/// The same files for a guest, whose agent writes them anew.
pub(super) fn guest_files_blocking(
    dir: &Path,
    config: &cri::PodSandboxConfig,
    ips: &[IpAddr],
) -> Result<Vec<pod::PodFile>, FileError> {
    write_hosts_blocking(dir, config, ips)?;
    let read = |name: &str| {
        let path = dir.join(name);
        let content = std::fs::read(&path).map_err(fail("read", &path))?;
        Ok(pod::PodFile { name: name.to_owned(), content, ..pod::PodFile::default() })
    };
    ["hostname", "hosts", "resolv.conf"].into_iter().map(read).collect()
}

/// Makes the folder of the pod's logs, as containerd and CRI-O do for callers that did not.
pub(super) fn make_log_dir_blocking(config: &cri::PodSandboxConfig) -> Result<(), FileError> {
    if config.log_directory.is_empty() {
        return Ok(());
    }
    let path = Path::new(&config.log_directory);
    std::fs::create_dir_all(path).map_err(fail(MAKE_LOG_FOLDER, path))
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>, FileError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(fail("read", path)),
    }
}

/// As resolv.conf(5) has it.
fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// The same fixed entries as in the file that the kubelet writes for pods.
fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        text += &format!("{ip}\t{hostname}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_a_resolv_conf() {
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&cri::DnsConfig::default()), "");
    }

    #[test]
    fn hosts_knows_the_pod_by_each_of_its_addresses() {
        let text = hosts("web-0", &["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()]);
        assert!(text.ends_with("10.1.2.3\tweb-0\nfd00::3\tweb-0\n"), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn a_log_folder_that_cannot_be_one_is_the_requests_fault() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let make = |path: PathBuf| {
            let log_directory = path.to_str().unwrap().to_owned();
            make_log_dir_blocking(&cri::PodSandboxConfig { log_directory, ..Default::default() })
        };
        for bad in [file.clone(), file.join("logs"), dir.path().join("x".repeat(300))] {
            let error = make(bad).unwrap_err();
            assert!(error.is_the_requests_fault(), "{error:?}");
        }
        make(dir.path().join("a/b")).unwrap();
    }

    #[test]
    fn the_files_of_a_pod_with_its_own_network() {
        let dir = tempfile::tempdir().unwrap();
        let config = cri::PodSandboxConfig {
            hostname: "web-0".into(),
            dns_config: Some(cri::DnsConfig { servers: vec!["9.9.9.9".into()], ..Default::default() }),
            ..Default::default()
        };
        write_blocking(dir.path(), &config).unwrap();
        write_hosts_blocking(dir.path(), &config, &["10.1.2.3".parse().unwrap()]).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("hostname"), "web-0\n");
        assert_eq!(read("resolv.conf"), "nameserver 9.9.9.9\n");
        assert!(read("hosts").contains("10.1.2.3\tweb-0\n"));
    }
}
