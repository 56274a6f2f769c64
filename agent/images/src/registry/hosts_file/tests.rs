use std::time::Duration;

use super::*;

fn hosts(folder: &str, text: &str, registry: &str) -> Result<Vec<Host>, SettingsError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(folder)).unwrap();
    std::fs::write(dir.path().join(folder).join("hosts.toml"), text).unwrap();
    hosts_blocking(dir.path(), registry)
}

fn bases(hosts: &[Host]) -> Vec<(&str, bool)> {
    hosts.iter().map(|host| (host.base.as_str(), host.is_upstream)).collect()
}

#[test]
fn without_settings_there_is_the_registry() {
    let found = hosts_blocking(Path::new("/nonexistent"), "docker.io").unwrap();
    assert_eq!(found, [Host::upstream("docker.io")]);
}

#[test]
fn a_file_as_containerd_documents_it_is_understood() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."https://z-mirror.example"]
          capabilities = ["pull", "resolve"]
          ca = "ca.pem"
          client = [["client.cert", "client.key"], ["both.pem", ""]]
          dial_timeout = "3s"
        [host."https://a-mirror.example/v2/library"]
          capabilities = ["pull"]
          override_path = true
          skip_verify = true
          ca = ["/etc/a.pem", "b.pem"]
          client = "both.pem"
          [host."https://a-mirror.example/v2/library".header]
            x-custom = ["1", "2"]
        [host."mirror.example:5000/sub"]
    "#;
    let found = hosts("docker.io", text, "docker.io").unwrap();
    assert_eq!(
        bases(&found),
        [
            ("https://z-mirror.example/v2", false),
            ("https://a-mirror.example/v2/library", false),
            ("https://mirror.example:5000/sub/v2", false),
            ("https://registry-1.docker.io/v2", true),
        ]
    );
    let (first, second) = (&found[0], &found[1]);
    assert_eq!(
        (first.can_pull, first.can_resolve, second.can_pull, second.can_resolve),
        (true, true, true, false)
    );
    assert_eq!(first.dial_timeout, Duration::from_secs(3));
    let names = |paths: &[PathBuf]| {
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&first.tls.authorities), ["ca.pem"]);
    assert!(
        first.tls.authorities[0].is_absolute()
            && first.tls.authorities[0].parent().unwrap().ends_with("docker.io")
    );
    assert_eq!(first.tls.identities.len(), 2);
    assert!(
        first.tls.identities[0].1.as_ref().unwrap().ends_with("client.key")
            && first.tls.identities[1].1.is_none()
    );
    assert_eq!(second.tls.authorities[0], Path::new("/etc/a.pem"));
    assert!(second.tls.skip_verify && !first.tls.skip_verify);
    assert_eq!(second.headers.len(), 2);
}

#[test]
fn settings_of_the_registry_itself_stand_at_the_top_or_in_a_table() {
    let top = hosts("reg.example", "ca = \"ca.pem\"\nskip_verify = true", "reg.example").unwrap();
    assert_eq!(bases(&top), [("https://reg.example/v2", true)]);
    assert!(top[0].tls.skip_verify && top[0].tls.authorities.len() == 1);

    let text = "server = \"http://reg.example\"\n[host.\"http://reg.example\"]\nskip_verify = true";
    let table = hosts("reg.example", text, "reg.example").unwrap();
    assert_eq!(bases(&table), [("http://reg.example/v2", true)]);
    assert!(table[0].tls.skip_verify);
}

#[test]
fn folders_are_looked_for_in_containerds_order() {
    for (folder, registry, found) in [
        ("reg.example_5000_", "reg.example:5000", true),
        ("reg.example:5000", "reg.example:5000", true),
        ("_default", "reg.example:5000", true),
        ("reg.example", "reg.example:5000", false),
        ("reg.example", "reg.example", true),
    ] {
        let hosts = hosts(folder, "server = \"https://here.example\"", registry).unwrap();
        assert_eq!(hosts[0].base == "https://here.example/v2", found, "{folder} for {registry}");
    }
}

#[test]
fn dockers_layout_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("reg.example");
    std::fs::create_dir(&folder).unwrap();
    for name in ["ca.crt", "me.cert", "me.key", "README"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let found = hosts_blocking(dir.path(), "reg.example").unwrap();
    assert_eq!(
        found[0].tls,
        TlsSettings {
            authorities: vec![folder.join("ca.crt")],
            identities: vec![(folder.join("me.cert"), Some(folder.join("me.key")))],
            skip_verify: false,
        }
    );
}

#[test]
fn nonsense_is_an_error_that_names_the_key() {
    for (text, part) in [
        ("server = 5", "parse "),
        ("server = \"ftp://x\"", "server: \"ftp://x\" is no http or https URL"),
        ("server = \"https://\"", "is no URL"),
        ("server = \"https://me:pw@x\"", "credentials in it"),
        (
            "[host.\"https://m\"]\ndial_timeout = \"soon\"",
            "host.\"https://m\".dial_timeout: \"soon\" is no duration",
        ),
        ("[host.\"https://m\"]\nclient = [[\"a\", \"b\", \"c\"]]", "neither a file nor a pair"),
        ("[host.\"https://m\".header]\nx = \"a\\nb\"", "cannot be sent"),
    ] {
        let error = hosts("reg.example", text, "reg.example").unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}
