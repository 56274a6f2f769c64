//! Devices that files of vendors describe.

use std::fs;
use std::path::Path;

use anyhow::Result;
use hartpod_tests::{Lab, Need, Node, Refused, cri, tests, world};
use tonic::Code;

tests![
    a_device_brings_what_its_file_says needs Need::OfNode("devices"),
    a_device_that_cannot_be_had_is_told needs Need::OfNode("devices"),
    a_guest_has_none_of_the_nodes_cdi_devices needs Need::Kvm,
];

/// A node that reads CDI files below the test's own folder.
async fn node(lab: &Lab) -> Result<Node> {
    let (low, high) = (lab.dir().join("cdi-low"), lab.dir().join("cdi-high"));
    for folder in [&low, &high] {
        fs::create_dir(folder)?;
    }
    let settings = format!("[cdi]\nspec_dirs = [{low:?}, {high:?}]\n");
    lab.node_with(&settings).await
}

fn write(path: &Path, edits: &str) -> Result<()> {
    let text = format!(
        "cdiVersion: 0.7.0\nkind: vendor.com/gpu\ndevices:\n- name: gpu0\n  containerEdits:\n{edits}"
    );
    Ok(fs::write(path, text)?)
}

fn device(name: &str) -> Vec<cri::CdiDevice> {
    vec![cri::CdiDevice { name: name.into() }]
}

async fn a_device_brings_what_its_file_says(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let library = lab.dir().join("library");
    fs::create_dir(&library)?;
    fs::write(library.join("so"), "library\n")?;
    write(&lab.dir().join("cdi-low/gpu.yaml"), "    env: [GPU=low]\n")?;
    let edits = format!(
        "    env: [GPU=high]\n    additionalGids: [4242]\n    deviceNodes:\n    - path: /dev/gpu0\n      hostPath: /dev/full\n      fileMode: 384\n    mounts:\n    - hostPath: {}\n      containerPath: /usr/lib/gpu\n      options: [ro, nosuid, nodev]\n",
        library.display()
    );
    write(&lab.dir().join("cdi-high/gpu.yaml"), &edits)?;
    let pod = node.pod("web").run().await?;
    let field =
        pod.container("field").idle().with(|config| config.cdi_devices = device("vendor.com/gpu=gpu0"));
    let annotation = pod.container("annotation").idle().with(|config| {
        config.annotations.insert("cdi.k8s.io/plugin".into(), "vendor.com/gpu=gpu0".into());
    });
    for main in [field.run().await?, annotation.run().await?] {
        assert_eq!(
            main.sh("echo $GPU; stat -c '%F %a %t,%T' /dev/gpu0").await?,
            "high\ncharacter special file 600 1,7\n"
        );
        assert!(main.sh("id -G").await?.split_whitespace().any(|gid| gid == "4242"));
        // The device cgroup lets it be used.
        let full = main.exec(["sh", "-c", "echo x >/dev/gpu0"]).await?;
        assert!(full.stderr.contains("No space left"), "{full:?}");
        let written = main.exec(["sh", "-c", "cat /usr/lib/gpu/so; echo x >/usr/lib/gpu/so"]).await?;
        assert_eq!(written.stdout, "library\n");
        assert!(written.stderr.contains("Read-only file system"), "{written:?}");
    }
    // A file that changes is read again.
    fs::remove_file(lab.dir().join("cdi-high/gpu.yaml"))?;
    let later =
        pod.container("later").idle().with(|config| config.cdi_devices = device("vendor.com/gpu=gpu0"));
    assert_eq!(later.run().await?.sh("echo $GPU; ls /dev/gpu0 2>/dev/null || true").await?, "low\n");
    Ok(())
}

async fn a_device_that_cannot_be_had_is_told(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    write(
        &lab.dir().join("cdi-low/gpu.yaml"),
        "    hooks:\n    - {hookName: createContainer, path: bin/true}\n",
    )?;
    fs::write(lab.dir().join("cdi-low/broken.json"), "{")?;
    let pod = node.pod("web").run().await?;
    let before = lab.look(&node)?;
    for (name, expected) in [
        ("vendor.com/gpu=none", "no CDI device vendor.com/gpu=none; files that are no specs: "),
        ("vendor.com/gpu=gpu0", "config.CDI_devices: createContainer hook: path bin/true is not absolute"),
        ("gpu0", "\"gpu0\" is not VENDOR/CLASS=DEVICE"),
    ] {
        let main = pod.container("main").idle().with(|config| config.cdi_devices = device(name));
        let status = main.create().await.refused(name)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(expected), "{status:?}");
    }
    world::must_return_to(&before, || lab.look(&node)).await
}

async fn a_guest_has_none_of_the_nodes_cdi_devices(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let main = pod.container("main").idle().with(|config| config.cdi_devices = device("vendor.com/gpu=0"));
    let status = main.create().await.refused("a CDI device in a guest")?;
    assert!(status.message().contains("config.CDI_devices"), "{status:?}");
    Ok(())
}
