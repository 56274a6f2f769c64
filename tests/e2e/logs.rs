//! Container logs: CRI's format, rotation, and who may stand in the way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use hartpod_tests::log_file::{self, text};
use hartpod_tests::{Lab, Refused, tests};

tests![
    every_line_has_time_stream_and_tag,
    a_long_line_is_split_and_marked,
    a_last_line_without_an_end_is_logged,
    reopening_under_load_loses_no_line,
    reopening_without_a_folder_keeps_the_old_file,
    a_container_without_a_log_path_runs,
    a_link_in_place_of_the_log_is_not_followed,
];

async fn every_line_has_time_stream_and_tag(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("echo one; echo two >&2; echo; printf 'a b  c\\n'").run().await?;
    main.exited().await?;
    // When a container is reported as exited, its output is in the log.
    let lines = main.log()?;
    assert_eq!(text(&lines, "stdout"), "one\n\na b  c\n");
    assert_eq!(text(&lines, "stderr"), "two\n");
    assert!(lines.iter().all(|line| line.tag == "F"), "{lines:#?}");
    let times: Vec<&str> =
        lines.iter().filter(|line| line.stream == "stdout").map(|line| line.time.as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let mode = fs::metadata(main.log_path())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o640, "mode {mode:o} of the log");
    Ok(())
}

async fn a_long_line_is_split_and_marked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    // 40000 characters in one line: parts of 16 KiB.
    let main =
        pod.container("main").sh("head -c 40000 /dev/zero | tr '\\0' x; echo; echo short").run().await?;
    main.exited().await?;
    let lines = main.log()?;
    assert_eq!(text(&lines, "stdout"), format!("{}\nshort\n", "x".repeat(40000)));
    let lengths: Vec<(usize, &str)> = lines.iter().map(|line| (line.text.len(), line.tag.as_str())).collect();
    assert!(lengths.iter().all(|(length, _)| *length <= 16 << 10), "{lengths:?}");
    assert_eq!(lengths.iter().filter(|(_, tag)| *tag == "F").count(), 2, "{lengths:?}");
    assert!(lengths.len() <= 4 + 1, "{lengths:?}");
    Ok(())
}

async fn a_last_line_without_an_end_is_logged(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("printf last").run().await?;
    main.exited().await?;
    let lines = main.log()?;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!(lines[0].text, "last");
    Ok(())
}

async fn reopening_under_load_loses_no_line(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; [ $((i % 10)) = 0 ] && echo error $i >&2; i=$((i+1)); done";
    let main = pod.container("main").sh(script).run().await?;
    let mut parts = Vec::new();
    let mut rotations = 0;
    // As the kubelet rotates: rename, then ask for a new file.
    while main.state().await? == hartpod_tests::cri::ContainerState::ContainerRunning && rotations < 30 {
        let old = main.log_path().with_extension(format!("log.{rotations}"));
        fs::rename(main.log_path(), &old)?;
        match main.reopen_log().await {
            Ok(()) => assert!(main.log_path().exists(), "no new log after ReopenContainerLog"),
            // It is ending, and its output is written to the end: there is nothing to reopen.
            Err(_) => drop(main.exited().await?),
        }
        parts.push(old);
        rotations += 1;
    }
    main.exited().await?;
    if main.log_path().exists() {
        parts.push(main.log_path());
    }
    // Each file ends with a whole line (read checks it), and together they hold every line once, in order.
    let mut lines = Vec::new();
    for part in &parts {
        let read = log_file::read(part)?;
        assert!(read.last().is_none_or(|line| line.tag == "F"), "{} ends within a line", part.display());
        lines.extend(read);
    }
    assert_eq!(text(&lines, "stdout"), (0..20000).map(|i| format!("line {i}\n")).collect::<String>());
    assert_eq!(
        text(&lines, "stderr"),
        (0..20000).step_by(10).map(|i| format!("error {i}\n")).collect::<String>()
    );
    assert!(rotations > 2, "the container ended before its log was rotated");
    Ok(())
}

async fn reopening_without_a_folder_keeps_the_old_file(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod
        .container("main")
        .sh("trap 'exit 0' TERM; trap 'echo again' USR1; echo once; while :; do sleep 0.05; done");
    let main = main.run().await?;
    main.logged("once").await?;
    let moved = lab.dir().join("moved");
    fs::rename(pod.log_directory(), &moved)?;
    main.reopen_log().await.refused("reopening a log whose folder is gone")?;
    main.exec(["kill", "-USR1", "1"]).await?;
    let old = moved.join("main.log");
    let lines = async || Ok(log_file::read(&old).unwrap_or_default());
    hartpod_tests::eventually("the old log to go on", lines, |lines| {
        lines.iter().any(|line| line.text == "again")
    })
    .await?;
    Ok(())
}

async fn a_container_without_a_log_path_runs(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").with(|config| config.log_directory.clear()).run().await?;
    let main =
        pod.container("main").sh("echo lost; echo lost >&2; exit 5").with(|config| config.log_path.clear());
    let main = main.run().await?;
    let status = main.exited().await?;
    assert_eq!((status.exit_code, status.log_path.as_str()), (5, ""));
    Ok(())
}

async fn a_link_in_place_of_the_log_is_not_followed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let victim = lab.dir().join("victim");
    fs::write(&victim, "mine")?;
    std::os::unix::fs::symlink(&victim, pod.log_directory().join("main.log"))?;
    if let Ok(main) = pod.container("main").sh("echo overwritten").run().await {
        main.exited().await?;
    }
    assert_eq!(fs::read_to_string(&victim)?, "mine");
    Ok(())
}
