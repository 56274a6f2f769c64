//! AppArmor profiles. They are the machine's: names here are no other test's.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Container, Lab, Need, Refused, cri, tests};
use tonic::Code;

tests![
    containers_are_confined_by_default needs Need::AppArmor,
    the_default_profile_keeps_from_what_is_the_nodes needs Need::AppArmor,
    a_profile_of_the_node_is_enforced needs Need::AppArmor,
    a_profile_that_is_not_loaded_is_told needs Need::AppArmor,
    privileged_containers_are_confined_only_when_asked needs Need::AppArmor,
    a_guest_has_none_of_the_nodes_profiles needs Need::Kvm,
];

/// Under which profile the container's main process and its execs run.
const CURRENT: &str = "cat /proc/1/attr/current /proc/self/attr/current";

fn profile(typ: cri::security_profile::ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: typ.into(), localhost_ref: name.into() })
}

fn localhost(name: &str) -> Option<cri::SecurityProfile> {
    profile(cri::security_profile::ProfileType::Localhost, name)
}

/// Loads a profile of this name that allows everything but writing.
fn load(name: &str) -> Result<()> {
    let mut parser = Command::new("apparmor_parser").args(["-K", "-r"]).stdin(Stdio::piped()).spawn()?;
    let text = format!(
        "profile {name} flags=(attach_disconnected) {{ file, capability, network, unix, signal, ptrace, deny /** w, }}\n"
    );
    parser.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    ensure!(parser.wait()?.success(), "apparmor_parser cannot load {name}");
    Ok(())
}

async fn runs_under(container: &Container, expected: &str) -> Result<()> {
    assert_eq!(container.sh(CURRENT).await?, format!("{expected}\n").repeat(2));
    Ok(())
}

async fn containers_are_confined_by_default(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let plain = pod.container("plain").idle().run().await?;
    runs_under(&plain, "hartpod-default (enforce)").await?;
    let asked = pod.container("asked").idle().with_security(|security| {
        security.apparmor = profile(cri::security_profile::ProfileType::RuntimeDefault, "");
    });
    runs_under(&asked.run().await?, "hartpod-default (enforce)").await?;
    let free = pod.container("free").idle().with_security(|security| {
        security.apparmor = profile(cri::security_profile::ProfileType::Unconfined, "");
    });
    runs_under(&free.run().await?, "unconfined").await?;
    // With a filter, no new privileges and another user the profile is the same.
    let strict = pod.container("strict").idle().with_security(|security| {
        security.no_new_privs = true;
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.seccomp = profile(cri::security_profile::ProfileType::RuntimeDefault, "");
    });
    runs_under(&strict.run().await?, "hartpod-default (enforce)").await?;
    // Its processes are stopped, and stop one another.
    plain.sh("sleep 1000 & kill $! && ! wait $!").await?;
    plain.stop(std::time::Duration::from_secs(60)).await?;
    assert_eq!(plain.exited().await?.exit_code, 0);
    Ok(())
}

/// With procMount Unmasked and all capabilities, nothing but the profile is in the way.
async fn the_default_profile_keeps_from_what_is_the_nodes(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (name, typ, kept) in [
        ("kept", cri::security_profile::ProfileType::RuntimeDefault, true),
        ("free", cri::security_profile::ProfileType::Unconfined, false),
    ] {
        let main = pod.container(name).idle().with_security(|security| {
            security.apparmor = profile(typ, "");
            security.masked_paths.clear();
            security.readonly_paths.clear();
            security.capabilities =
                Some(cri::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
        });
        let main = main.run().await?;
        for attempt in [
            // Opened only: what a test does to this machine should be nothing.
            "exec 3>/proc/sysrq-trigger",
            "exec 3>/proc/sys/kernel/core_pattern",
            "exec 3>/proc/sys/vm/swappiness",
            "mount -t tmpfs none /tmp",
        ] {
            let output = main.exec(["sh", "-c", attempt]).await?;
            assert_eq!(output.exit_code != 0, kept, "{name}: {attempt}: {output:?}");
        }
        main.sh("exec 3>/proc/self/oom_score_adj; exec 3>/proc/sys/kernel/shmmni; echo x >/root/file")
            .await?;
    }
    Ok(())
}

#[allow(deprecated)]
async fn a_profile_of_the_node_is_enforced(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    load("hartpod-e2e-enforced")?;
    let pod = node.pod("web").run().await?;
    let new = pod.container("new").idle().with_security(|security| {
        security.apparmor = localhost("hartpod-e2e-enforced");
        // The newer field wins.
        security.apparmor_profile = "localhost/hartpod-e2e-none".into();
    });
    let old = pod.container("old").idle().with_security(|security| {
        security.apparmor_profile = "localhost/hartpod-e2e-enforced".into();
    });
    for main in [new.run().await?, old.run().await?] {
        runs_under(&main, "hartpod-e2e-enforced (enforce)").await?;
        let output = main.exec(["touch", "/tmp/x"]).await?;
        assert!(output.exit_code != 0 && output.stderr.contains("Permission denied"), "{output:?}");
    }
    Ok(())
}

async fn a_profile_that_is_not_loaded_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.apparmor = localhost("localhost/hartpod-e2e-none");
    });
    let status = main.create().await.refused("a profile that is not loaded")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("\"hartpod-e2e-none\" is not loaded"), "{status:?}");
    assert!(node.client().containers().await?.is_empty());
    Ok(())
}

async fn privileged_containers_are_confined_only_when_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    load("hartpod-e2e-privileged")?;
    let pod = node.pod("web").with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
    });
    let pod = pod.run().await?;
    let free = pod.container("free").idle().with_security(|security| security.privileged = true);
    runs_under(&free.run().await?, "unconfined").await?;
    let kept = pod.container("kept").idle().with_security(|security| {
        security.privileged = true;
        security.apparmor = localhost("hartpod-e2e-privileged");
    });
    runs_under(&kept.run().await?, "hartpod-e2e-privileged (enforce)").await
}

async fn a_guest_has_none_of_the_nodes_profiles(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.apparmor = localhost("hartpod-e2e-none");
    });
    let status = main.create().await.refused("a profile in a guest")?;
    assert!(status.message().contains("a guest has none of the node's AppArmor profiles"), "{status:?}");
    let main = pod.container("main").idle().with_security(|security| {
        security.apparmor = profile(cri::security_profile::ProfileType::RuntimeDefault, "");
    });
    main.run().await?.sh("true").await?;
    Ok(())
}
