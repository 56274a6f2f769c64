//! The sample file: every key with its default and what it means.

use std::fmt::Write as _;

use super::section::Section;
use super::{Cdi, Cgroup, Cni, Config, Images, Metrics, Pod, Streaming, Tracing, Vm};

const HEADER: &str = "\
# hartpod's configuration: /etc/hartpod/config.toml. Every key is here with its default; a missing key or file means
# the default, an unknown key is an error. `hartpod config --check FILE` reports all problems of a file.
";

/// The sample file as text.
pub fn render() -> Result<String, toml::ser::Error> {
    let toml::Value::Table(values) = toml::Value::try_from(Config::default())? else {
        unreachable!("a struct is a table");
    };
    let mut out = String::from(HEADER);
    keys::<Config>(&mut out, &values);
    section::<Cni>(&mut out, "cni", &values);
    section::<Images>(&mut out, "images", &values);
    section::<Streaming>(&mut out, "streaming", &values);
    section::<Metrics>(&mut out, "metrics", &values);
    section::<Tracing>(&mut out, "tracing", &values);
    section::<Cgroup>(&mut out, "cgroup", &values);
    section::<Pod>(&mut out, "pod", &values);
    section::<Vm>(&mut out, "vm", &values);
    section::<Cdi>(&mut out, "cdi", &values);
    Ok(out)
}

fn section<S: Section>(out: &mut String, name: &str, values: &toml::Table) {
    let Some(toml::Value::Table(values)) = values.get(name) else { return };
    out.push('\n');
    comment(out, S::ABOUT);
    let _ = writeln!(out, "[{name}]");
    keys::<S>(out, values);
}

fn keys<S: Section>(out: &mut String, values: &toml::Table) {
    for (key, about) in S::KEYS {
        let Some(value) = values.get(*key).filter(|v| !v.is_table()) else { continue };
        out.push('\n');
        comment(out, about);
        let _ = writeln!(out, "{key} = {value}");
    }
}

fn comment(out: &mut String, lines: &[&str]) {
    for line in lines {
        let _ = writeln!(out, "#{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `HARTPOD_BLESS=1 cargo test -p hartpod sample` writes the file anew.
    #[test]
    fn the_sample_file_is_what_the_structs_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config.toml");
        let rendered = render().unwrap();
        if std::env::var_os("HARTPOD_BLESS").is_some() {
            std::fs::write(path, &rendered).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), rendered);
    }

    #[test]
    fn the_sample_file_says_every_key_and_nothing_but_defaults() {
        let rendered = render().unwrap();
        assert_eq!(toml::from_str::<Config>(&rendered).unwrap(), Config::default());
        let in_file: toml::Table = rendered.parse().unwrap();
        let toml::Value::Table(of_structs) = toml::Value::try_from(Config::default()).unwrap() else {
            panic!()
        };
        assert_eq!(in_file, of_structs);
    }

    #[test]
    fn every_key_has_a_comment() {
        let keys = [
            Cni::KEYS,
            Images::KEYS,
            Streaming::KEYS,
            Metrics::KEYS,
            Tracing::KEYS,
            Cgroup::KEYS,
            Pod::KEYS,
            Vm::KEYS,
        ]
        .concat();
        for (key, about) in keys {
            assert!(!about.is_empty(), "{key} has no comment");
        }
    }
}
