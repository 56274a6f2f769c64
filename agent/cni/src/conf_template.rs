//! A network configuration made from a template and the pod address ranges that the kubelet tells.
//!
//! For clusters whose network is nothing but the kubelet's ranges, routed by the cloud: there is no installer that would write the
//! configuration. The file is made again whenever it is asked for, so it need not be kept elsewhere.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::conf::Network;
use crate::conf_dir::{ConfDir, MAX_FILE, read_file};
use crate::error::InvalidConf;
use crate::file_error::{At as _, FileError};
use crate::pod_cidrs::PodCidrs;
use crate::template::{SyntaxError, Template, Values};

/// Name of the file that is made; containerd's is `10-containerd-net.conflist`.
const FILE: &str = "10-hartpod-net.conflist";
/// Its name until it is whole: no extension of a configuration.
const TEMPORARY: &str = ".10-hartpod-net.conflist.tmp";

/// Ranges that a template is tried with when it is read: those for documentation.
const SAMPLES: [&str; 3] = ["192.0.2.0/24", "2001:db8::/64", "192.0.2.0/24,2001:db8::/64"];

/// A template of a `.conflist` file, and where that is to be.
#[derive(Debug)]
pub struct ConfTemplate {
    path: PathBuf,
    conf_dir: PathBuf,
    template: Template,
    /// Guards the temporary file.
    writing: Mutex<()>,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It cannot be read.
    #[error("network configuration template {}", path.display())]
    Read {
        /// The template.
        path: PathBuf,
        /// Why.
        #[source]
        source: InvalidConf,
    },
    /// It is not text.
    #[error("network configuration template {} is not UTF-8", path.display())]
    Encoding {
        /// The template.
        path: PathBuf,
    },
    /// It has something that is not understood.
    #[error("network configuration template {}", path.display())]
    Syntax {
        /// The template.
        path: PathBuf,
        /// What.
        #[source]
        source: SyntaxError,
    },
    /// What it becomes is no configuration.
    #[error("network configuration template {}, filled with {ranges}", path.display())]
    Conflist {
        /// The template.
        path: PathBuf,
        /// With which it was filled.
        ranges: String,
        /// What is wrong.
        #[source]
        source: InvalidConf,
    },
}

/// Why no configuration was made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The template does not fit these ranges.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The folder or the file cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Generated {
    /// The configuration was written.
    Written(PathBuf),
    /// It was there already, the same.
    Unchanged(PathBuf),
    /// Somebody else's configuration is there: nothing was changed.
    Other(PathBuf),
}

impl ConfTemplate {
    /// Reads the template of a file in `conf_dir`, and tries it.
    ///
    /// # Errors
    /// It cannot be read, has something that is not understood, or does not make a configuration.
    pub fn read_blocking(path: &Path, conf_dir: &Path) -> Result<Self, TemplateError> {
        let (path, conf_dir) = (path.to_owned(), conf_dir.to_owned());
        let text = read_file(&path).map_err(|source| TemplateError::Read { path: path.clone(), source })?;
        let text = String::from_utf8(text).map_err(|_| TemplateError::Encoding { path: path.clone() })?;
        let template =
            Template::parse(&text).map_err(|source| TemplateError::Syntax { path: path.clone(), source })?;
        let this = Self { path, conf_dir, template, writing: Mutex::new(()) };
        for ranges in SAMPLES.iter().filter_map(|sample| PodCidrs::parse(sample).ok()) {
            this.fill(&ranges)?;
        }
        Ok(this)
    }

    /// Makes the configuration of these ranges, unless another valid one is in the folder. Doing it again changes nothing.
    ///
    /// # Errors
    /// What stands in the folder stays as it is.
    pub fn write_blocking(&self, cidrs: &PodCidrs) -> Result<Generated, GenerateError> {
        let text = self.fill(cidrs)?;
        let conf_dir = self.conf_dir.as_path();
        let file = conf_dir.join(FILE);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = ConfDir::new(conf_dir.to_owned());
        if let Some(other) = dir.valid_but_blocking(&file).at("list", conf_dir)? {
            return Ok(Generated::Other(other));
        }
        if read_file(&file).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(Generated::Unchanged(file));
        }
        write(conf_dir, &file, &text)?;
        Ok(Generated::Written(file))
    }

    fn fill(&self, cidrs: &PodCidrs) -> Result<String, TemplateError> {
        let ranges = cidrs.ranges();
        let pod_cidr = ranges.first().map_or("", String::as_str);
        let text = self.template.render(Values { pod_cidr, ranges, routes: cidrs.routes() });
        let checked = match u64::try_from(text.len()) {
            Ok(length) if length <= MAX_FILE => Network::parse_list(text.as_bytes()).map(drop),
            _ => Err(InvalidConf::TooLarge { limit: MAX_FILE }),
        };
        match checked {
            Ok(()) => Ok(text),
            Err(source) => {
                Err(TemplateError::Conflist { path: self.path.clone(), ranges: ranges.join(", "), source })
            }
        }
    }
}

/// Survives a power loss as the old file or the new one; which of them does not matter, the kubelet tells its ranges again.
fn write(conf_dir: &Path, file: &Path, text: &str) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(conf_dir);
    made.at("create", conf_dir)?;
    let temporary = conf_dir.join(TEMPORARY);
    // One that a crash has left may be a link by now.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.at("remove", &temporary)?,
    }
    let mut open = OpenOptions::new();
    let mut whole =
        open.write(true).create_new(true).mode(0o644).open(&temporary).at("create", &temporary)?;
    let written = whole.write_all(text.as_bytes()).and_then(|()| whole.sync_all()).at("write", &temporary);
    let renamed = written.and_then(|()| fs::rename(&temporary, file).at("rename to", file));
    renamed.inspect_err(|_| {
        // The error that led here says more.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As clusters of one big cloud have it.
    const TEMPLATE: &str = r#"{
        "name": "k8s-pod-network", "cniVersion": "0.3.1",
        "plugins": [
            {"type": "ptp", "mtu": 1460, "ipam": {
                "type": "host-local", "subnet": "{{.PodCIDR}}",
                "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
                "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn template(dir: &Path, conf_dir: &Path, text: &str) -> Result<ConfTemplate, String> {
        let path = dir.join("template");
        fs::write(&path, text).unwrap();
        ConfTemplate::read_blocking(&path, conf_dir).map_err(|error| crate::error::chain(&error))
    }

    fn cidrs(text: &str) -> PodCidrs {
        PodCidrs::parse(text).unwrap()
    }

    #[test]
    fn the_file_follows_the_ranges_and_is_made_once_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("etc/cni/net.d");
        let template = template(dir.path(), &conf, TEMPLATE).unwrap();
        let file = conf.join("10-hartpod-net.conflist");
        let one = cidrs("10.1.0.0/24");
        assert_eq!(template.write_blocking(&one).unwrap(), Generated::Written(file.clone()));
        assert_eq!(template.write_blocking(&one).unwrap(), Generated::Unchanged(file.clone()));
        let both = cidrs("10.2.0.0/24,fd00::/64");
        assert_eq!(template.write_blocking(&both).unwrap(), Generated::Written(file.clone()));
        let text: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let ipam = &text["plugins"][0]["ipam"];
        assert_eq!(ipam["subnet"], "10.2.0.0/24");
        assert_eq!(ipam["ranges"].to_string(), r#"[[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd00::/64"}]]"#);
        assert_eq!(ipam["routes"].to_string(), r#"[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]"#);
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1, "no temporary file");
    }

    #[test]
    fn what_a_crash_has_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join(TEMPORARY)).unwrap();
        fs::write(dir.path().join(FILE), "").unwrap();
        let template = template(dir.path(), dir.path(), TEMPLATE).unwrap();
        let made = template.write_blocking(&cidrs("10.1.0.0/24")).unwrap();
        assert_eq!(made, Generated::Written(dir.path().join(FILE)));
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_network_of_somebody_elses_stays_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("conf");
        let template = template(dir.path(), &conf, TEMPLATE).unwrap();
        fs::create_dir(&conf).unwrap();
        let other = conf.join("20-other.conf");
        fs::write(&other, r#"{"cniVersion": "1.0.0", "name": "o", "type": "ptp"}"#).unwrap();
        let one = cidrs("10.1.0.0/24");
        assert_eq!(template.write_blocking(&one).unwrap(), Generated::Other(other.clone()));
        assert!(!conf.join(FILE).exists());
        fs::write(&other, "half wri").unwrap();
        assert_eq!(template.write_blocking(&one).unwrap(), Generated::Written(conf.join(FILE)));
    }

    #[test]
    fn a_template_that_cannot_work_is_refused_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            template(dir.path(), dir.path(), text).unwrap_err().replace(&dir.path().display().to_string(), "")
        };
        assert_eq!(
            error(r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "ptp"},]}"#),
            "network configuration template /template, filled with 192.0.2.0/24: not JSON: trailing comma at line 1 column 66"
        );
        // With two ranges a comma is missing.
        let comma = r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{{range .PodCIDRRanges}}{"type": "ptp", "range": "{{.}}"}{{end}}]}"#;
        let text = error(comma);
        assert!(text.contains("filled with 192.0.2.0/24, 2001:db8::/64: not JSON: "), "{text}");
        assert!(
            error("{{.Gateway}}")
                .starts_with("network configuration template /template: line 1: {{.Gateway}}")
        );
        assert!(error("{}").ends_with("no `name`"));
        fs::write(dir.path().join("bytes"), [0xff, 0xfe]).unwrap();
        let encoding = ConfTemplate::read_blocking(&dir.path().join("bytes"), dir.path());
        assert!(matches!(encoding, Err(TemplateError::Encoding { .. })), "{encoding:?}");
        let missing = ConfTemplate::read_blocking(&dir.path().join("missing"), dir.path());
        assert!(matches!(missing, Err(TemplateError::Read { .. })), "{missing:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let template = template(dir.path(), &file, TEMPLATE).unwrap();
        fs::write(&file, "").unwrap();
        let error = template.write_blocking(&cidrs("10.1.0.0/24")).unwrap_err();
        assert!(matches!(&error, GenerateError::Io(FileError { path, .. }) if *path == file), "{error:?}");
    }
}
