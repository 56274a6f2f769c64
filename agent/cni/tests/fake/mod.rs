//! A network whose plugins are shell scripts that write down how they were called.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hartpod_cni::{Attachment, Capabilities, Cni, CniConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A network namespace that exists wherever tests run.
pub(crate) const NETNS: &str = "/proc/self/ns/net";

pub(crate) struct Fake {
    dir: TempDir,
}

/// How a plugin was called.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    /// Verb and plugin: `ADD bridge`.
    pub(crate) name: String,
    /// Its `CNI_` variables, one a line, sorted.
    pub(crate) env: String,
    pub(crate) stdin: Value,
}

impl Fake {
    /// A network of these plugins, each with what it does after it wrote its call down.
    pub(crate) fn new(version: &str, plugins: &[(Value, &str)]) -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap() };
        for folder in ["calls", "bin", "conf"] {
            fs::create_dir(fake.path(folder)).unwrap();
        }
        for (conf, body) in plugins {
            fake.install(conf["type"].as_str().unwrap(), body);
        }
        fake.configure(version, plugins.iter().map(|(conf, _)| conf.clone()).collect());
        fake
    }

    pub(crate) fn configure(&self, version: &str, plugins: Vec<Value>) {
        let conf = json!({"cniVersion": version, "name": "pods", "plugins": plugins});
        fs::write(self.path("conf/10-pods.conflist"), conf.to_string()).unwrap();
    }

    pub(crate) fn install(&self, name: &str, body: &str) {
        let script = format!(
            r#"#!/bin/sh
dir='{dir}'
n=$(printf '%s/calls/%03d' "$dir" "$(ls "$dir/calls" | wc -l)")
env | grep '^CNI_' | sort > "$n-$CNI_COMMAND {name}.env"
cat > "$n-$CNI_COMMAND {name}.json"
{body}
"#,
            dir = self.dir.path().display()
        );
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// A client as a fresh daemon would make it.
    pub(crate) fn client(&self) -> Cni {
        Cni::new(CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs: vec![self.path("none"), self.path("bin")],
            cache_dir: self.path("cache"),
            plugin_timeout: Duration::from_secs(20),
            foreign_caches: vec![self.path("foreign/results")],
        })
    }

    pub(crate) fn hasty_client(&self) -> Cni {
        Cni::new(CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs: vec![self.path("bin")],
            cache_dir: self.path("cache"),
            plugin_timeout: Duration::from_millis(500),
            foreign_caches: Vec::new(),
        })
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        let mut paths: Vec<_> =
            fs::read_dir(self.path("calls")).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|path| path.extension().unwrap() == "env");
        paths.sort();
        paths.iter().map(|path| Call::read(path)).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.name).collect()
    }

    pub(crate) fn forget_calls(&self) {
        fs::remove_dir_all(self.path("calls")).unwrap();
        fs::create_dir(self.path("calls")).unwrap();
    }

    pub(crate) fn cache_files(&self) -> usize {
        fs::read_dir(self.path("cache")).map_or(0, Iterator::count)
    }
}

impl Call {
    fn read(path: &Path) -> Self {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        Self {
            name: stem.split_once('-').unwrap().1.to_owned(),
            env: fs::read_to_string(path).unwrap(),
            stdin: serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap(),
        }
    }
}

pub(crate) fn pod(id: &str) -> Attachment {
    Attachment {
        container_id: id.to_owned(),
        netns: Some(NETNS.into()),
        ifname: "eth0".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: "web-0".to_owned(),
        pod_uid: "1234-5678".to_owned(),
        capabilities: Capabilities::default(),
    }
}

/// An error with its causes.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
