//! Images as volumes.

use std::fs;
use std::os::unix::fs::symlink;

use hartpod_container::{VolumeImage, VolumeLayers};
use serde_json::{Value, json};

use crate::kit::{Agent, Outcome, add, agent, home, shell};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("an_image_is_mounted_read_only", mounted),
    ("an_image_is_mounted_read_only_on_an_old_kernel", mounted),
    ("a_sub_path_stays_in_the_image", sub_paths),
    ("a_sub_path_stays_in_the_image_on_an_old_kernel", sub_paths),
    ("an_image_volume_that_cannot_be_is_told", refusals),
];

/// Two layers, the upper of which changes and hides what the lower has.
fn make_layers() -> Agent {
    let layers = home().join("layers");
    for (layer, files) in
        [("one", &["only-one", "both", "dir/deep"][..]), ("two", &["only-two", "both", "gone-not"])]
    {
        for file in files {
            let path = layers.join(layer).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{file} of {layer}\n")).unwrap();
        }
    }
    fs::copy("/bin/busybox", layers.join("one/busybox")).unwrap();
    symlink("/dir", layers.join("one/absolute")).unwrap();
    symlink("../../../../..", layers.join("one/dir/up")).unwrap();
    fs::create_dir(layers.join("one/etc")).unwrap();
    // From here on this process does not see its home any more.
    agent()
}

fn image(name: &str, layers: &[&str]) -> VolumeImage {
    let layers = VolumeLayers::Folders(layers.iter().map(ToString::to_string).collect());
    VolumeImage { name: name.into(), layers }
}

fn images() -> Vec<VolumeImage> {
    vec![image("sha256:1", &["one"]), image("sha256:2", &["one", "two"]), image("sha256:0", &[])]
}

fn volume(spec: &mut Value, source: &str, destination: &str, options: &[&str]) {
    add(
        spec,
        "/mounts",
        json!({"destination": destination, "type": "image", "source": source, "options": options}),
    );
}

fn run(agent: &Agent, spec: Value) -> Outcome {
    agent.start_with(spec, |request| request.images = images()).unwrap().end()
}

fn mounted() {
    let agent = make_layers();
    let mut spec = shell(
        "cd /v; cat one/both two/both two/only-one two/dir/deep; ls none | wc -l; \
         for d in one two none; do touch $d/new || echo no; rm -r $d/both; echo x >$d/both; done 2>/dev/null; \
         two/busybox echo runs; cat two/both; grep -c ' /v/' /proc/self/mountinfo; ls -d /layers /rootfs 2>/dev/null",
    );
    // As root, and however it is asked for.
    for (source, destination) in [("sha256:1", "/v/one"), ("sha256:2", "/v/two"), ("sha256:0", "/v/none")] {
        volume(&mut spec, source, destination, &["rw", "rprivate"]);
    }
    // One image twice.
    volume(&mut spec, "sha256:2", "/v/again", &["ro", "subpath=dir"]);
    let outcome = run(&agent, spec);
    assert_eq!(
        outcome.out,
        "both of one\nboth of two\nonly-one of one\ndir/deep of one\n0\nno\nno\nno\nruns\nboth of two\n4\n",
        "{outcome:?}"
    );
    // What the pod's next container gets is whole.
    assert_eq!(agent.sh("ls /"), "bin\ndev\netc\nproc\nroot\nsys\ntmp\n");
}

fn sub_paths() {
    let agent = make_layers();
    for name in ["sha256:1", "sha256:2"] {
        for (sub_path, shown) in [
            ("dir", "deep"),
            ("dir/../dir/.", "deep"),
            // Links mean what they mean in the image.
            ("absolute", "deep"),
            ("dir/up", "only-one"),
            ("dir/up/dir", "deep"),
        ] {
            let mut spec = shell(&format!("ls /v/{shown}; ls -d /v/etc/shadow /v/bin"));
            volume(&mut spec, name, "/v", &["ro", &format!("subpath={sub_path}")]);
            let outcome = run(&agent, spec);
            assert_eq!(outcome.out, format!("/v/{shown}\n"), "{sub_path}: {outcome:?}");
        }
    }
}

fn refusals() {
    let agent = make_layers();
    for (name, sub_path, expected, errno) in [
        ("sha256:2", "none", "ImageVolumeMountFailed: sha256:2 on /v: sub path \"none\"", libc::ENOENT),
        ("sha256:1", "both", "ImageVolumeMountFailed: sha256:1 on /v: sub path \"both\"", libc::ENOTDIR),
        ("sha256:0", "x", "ImageVolumeMountFailed: sha256:0 on /v: sub path \"x\"", libc::ENOENT),
        ("sha256:9", "", "ImageVolumeMountFailed: sha256:9 on /v: find its layers", libc::ENOENT),
    ] {
        let mut spec = shell("true");
        volume(&mut spec, name, "/v", &["ro", &format!("subpath={sub_path}")]);
        let started = agent.start_with(spec, |request| request.images = images());
        let error = started.map(|running| running.end()).unwrap_err();
        assert_eq!(error.to_string(), expected);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, hartpod_container::Errno::from_raw(errno).to_string());
    }
    let escaping = agent.start_with(shell("true"), |request| request.images = vec![image("i", &["../one"])]);
    let error = escaping.map(|running| running.end()).unwrap_err();
    assert_eq!(error.to_string(), "the container's spec: `../one` is not the name of a layer");
}
