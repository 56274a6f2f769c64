use oci_spec::image::ConfigBuilder;

use super::*;

fn strings(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

fn container(command: &str, args: &str) -> cri::ContainerConfig {
    cri::ContainerConfig { command: strings(command), args: strings(args), ..Default::default() }
}

#[test]
fn command_and_args_follow_kubernetes_table() {
    // https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
    let image =
        ConfigBuilder::default().entrypoint(strings("/ep-1")).cmd(strings("foo bar")).build().unwrap();
    for (command, arguments, expected) in [
        ("", "", "/ep-1 foo bar"),
        ("/ep-2", "", "/ep-2"),
        ("", "zoo boo", "/ep-1 zoo boo"),
        ("/ep-2", "zoo boo", "/ep-2 zoo boo"),
    ] {
        assert_eq!(args(&container(command, arguments), &image).unwrap(), strings(expected));
    }
}

#[test]
fn an_image_may_have_only_arguments_or_a_cleared_entrypoint() {
    let only_cmd = ConfigBuilder::default().cmd(strings("sh")).build().unwrap();
    assert_eq!(args(&container("", ""), &only_cmd).unwrap(), ["sh"]);
    let cleared =
        ConfigBuilder::default().entrypoint(vec![String::new()]).cmd(strings("sh")).build().unwrap();
    assert_eq!(args(&container("", ""), &cleared).unwrap(), ["sh"]);
}

#[test]
fn no_command_at_all_is_an_error() {
    let image = ImageConfig::default();
    assert!(args(&container("", ""), &image).unwrap_err().to_string().contains("names a command"));
    let empty = cri::ContainerConfig { command: vec![String::new()], ..Default::default() };
    assert!(args(&empty, &image).unwrap_err().to_string().contains("is empty"));
    let nul = cri::ContainerConfig { command: vec!["a\0b".into()], ..Default::default() };
    assert!(args(&nul, &image).unwrap_err().to_string().contains("NUL"));
}

fn with_env(pairs: &[(&str, &[u8])]) -> cri::ContainerConfig {
    let envs = pairs.iter().map(|(k, v)| cri::KeyValue { key: (*k).into(), value: v.to_vec() }).collect();
    cri::ContainerConfig { envs, ..Default::default() }
}

#[test]
fn the_request_overrides_the_image_and_the_image_the_defaults() {
    let image =
        ConfigBuilder::default().env(strings("PATH=/bin A=image B=image HOSTNAME=x")).build().unwrap();
    let env = env(&with_env(&[("B", b"request=1"), ("C", b"")]), &image, "pod-1").unwrap();
    assert_eq!(env, ["PATH=/bin", "HOSTNAME=x", "A=image", "B=request=1", "C="]);
}

#[test]
fn a_terminal_brings_term_and_every_container_path_and_hostname() {
    let config = cri::ContainerConfig { tty: true, ..Default::default() };
    let env = env(&config, &ImageConfig::default(), "pod-1").unwrap();
    assert_eq!(env, [DEFAULT_PATH, "TERM=xterm", "HOSTNAME=pod-1"]);
}

#[test]
fn an_image_entry_without_a_value_unsets_the_default() {
    let image = ConfigBuilder::default().env(strings("HOSTNAME")).build().unwrap();
    assert_eq!(env(&with_env(&[]), &image, "pod-1").unwrap(), [DEFAULT_PATH]);
}

#[test]
fn names_and_values_that_cannot_be_an_environment_are_errors() {
    for (pair, expected) in [
        (("", &b"x"[..]), "config.envs[\"\"]: a name must not be empty or contain ="),
        (("A=B", b"x"), "config.envs[\"A=B\"]: a name must not be empty or contain ="),
        (("A", b"\xff"), "config.envs[\"A\"] cannot be honoured: the value is not UTF-8"),
        (("A", b"a\0"), "config.envs[\"A\"]: contains a NUL"),
    ] {
        let error = env(&with_env(&[pair]), &ImageConfig::default(), "h").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_working_directory_is_the_requests_then_the_images_then_the_root() {
    let image = |dir: &str| ConfigBuilder::default().working_dir(dir).build().unwrap();
    let asks = |dir: &str| cri::ContainerConfig { working_dir: dir.into(), ..Default::default() };
    assert_eq!(cwd(&asks("/a"), &image("/b")).unwrap(), PathBuf::from("/a"));
    assert_eq!(cwd(&asks(""), &image("/b")).unwrap(), PathBuf::from("/b"));
    assert_eq!(cwd(&asks(""), &image("b")).unwrap(), PathBuf::from("/b"));
    assert_eq!(cwd(&asks(""), &ImageConfig::default()).unwrap(), PathBuf::from("/"));
    assert!(cwd(&asks("a"), &image("/b")).is_err());
}

/// Name, uid, gid of a request.
fn who(name: &str, uid: Option<i64>, gid: Option<i64>) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        run_as_username: name.into(),
        run_as_user: uid.map(|value| cri::Int64Value { value }),
        run_as_group: gid.map(|value| cri::Int64Value { value }),
        ..Default::default()
    }
}

#[test]
fn the_user_is_the_requests_then_the_images_then_root() {
    for (security, of_image, expected, uid, gid) in [
        (who("", None, None), "", "0", 0, 0),
        (who("", None, None), "nginx:web", "nginx:web", 0, 0),
        (who("", None, None), "101:102", "101:102", 101, 102),
        (who("", Some(1000), None), "nginx", "1000", 1000, 0),
        (who("", Some(1000), Some(2000)), "nginx", "1000:2000", 1000, 2000),
        (who("app", Some(1000), None), "nginx", "app", 0, 0),
        (who("app", None, Some(5)), "nginx", "app:5", 0, 5),
    ] {
        let image = ConfigBuilder::default().user(of_image).build().unwrap();
        let identity = identity(&security, &image).unwrap();
        assert_eq!(identity.user, expected);
        assert_eq!((identity.spec.uid(), identity.spec.gid()), (uid, gid), "{expected}");
    }
}

#[test]
fn users_that_cannot_be_are_errors() {
    for (security, of_image, expected) in [
        (who("", None, Some(5)), "", "config.linux.security_context.run_as_group: is given without a user"),
        (
            who("a:b", None, Some(5)),
            "",
            "config.linux.security_context.run_as_group: \"a:b\" has a group already",
        ),
        (
            who("", Some(-1), None),
            "",
            "config.linux.security_context.run_as_user: -1 is not in 0 to 2147483647",
        ),
        (
            who("", Some(1), Some(1 << 31)),
            "",
            "config.linux.security_context.run_as_group: 2147483648 is not in",
        ),
        (
            who("a:b:c", None, None),
            "",
            "config.linux.security_context.run_as_username: \"a:b:c\" is not USER",
        ),
        (who("", None, None), "4294967296", "the image's user: \"4294967296\" is out of range"),
        (who("", None, None), "-1", "the image's user: \"-1\" is out of range"),
        (who("", None, None), "a\nb", "the image's user: \"a\\nb\" contains a control character"),
    ] {
        let image = ConfigBuilder::default().user(of_image).build().unwrap();
        let error = identity(&security, &image).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn further_groups_are_sorted_once_each_and_the_policy_is_kept() {
    let security = cri::LinuxContainerSecurityContext {
        supplemental_groups: vec![30, 10, 30],
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
        ..Default::default()
    };
    let identity = identity(&security, &ImageConfig::default()).unwrap();
    assert_eq!(identity.spec.additional_gids().as_deref(), Some(&[10, 30][..]));
    assert!(identity.strict_groups);
}
