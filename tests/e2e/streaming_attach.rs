//! Attachments to a container's own streams: with a terminal, with `stdin_once`, at its end, and beside its log.

use anyhow::Result;
use hartpod_tests::container::Container;
use hartpod_tests::streaming::{Exec, Protocol};
use hartpod_tests::{Lab, cri, eventually, tests};

use crate::streaming::{COMMANDS, attachment, hears};

tests![
    a_terminal_is_attached_to_and_left_and_attached_to_again,
    the_end_of_input_that_is_open_once_is_the_containers,
    input_that_stays_open_outlives_its_client,
    an_attachment_ends_with_its_container,
    a_client_that_does_not_read_loses_nothing_of_the_log,
];

async fn attach(container: &Container, protocol: Protocol) -> Result<Exec> {
    let config = &container.config;
    let request = cri::AttachRequest {
        container_id: container.id.clone(),
        stdin: config.stdin,
        tty: config.tty,
        stdout: true,
        stderr: !config.tty,
    };
    Exec::attach(container.pod().node().client(), request, protocol).await
}

async fn a_terminal_is_attached_to_and_left_and_attached_to_again(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web").run().await?.container("main").command(["sh", "-i"]).with(|config| {
        config.stdin = true;
        config.tty = true;
    });
    let main = builder.run().await?;
    for protocol in COMMANDS {
        for (width, height) in [(101, 33), (80, 25)] {
            let mut client = attach(&main, protocol).await?;
            client.resize(width, height).await?;
            let size = format!("until stty size | grep '^{height} {width}$'; do sleep 0.1; done\r");
            client.write(size.as_bytes()).await?;
            hears(&mut client, &format!("{height} {width}\r\n")).await?;
            client.write(b"echo $((40 + 2))\r").await?;
            hears(&mut client, "\n42\r\n").await?;
        }
    }
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    // A client without a terminal has no sizes to tell.
    let mut client = Exec::attach(node.client(), attachment(&main.id), Protocol::SPDY).await?;
    client.write(b"echo $((40 + 3))\r").await?;
    hears(&mut client, "\n43\r\n").await?;
    client.write(b"exit 9\r").await?;
    client.finish().await?;
    assert_eq!(main.exited().await?.exit_code, 9);
    Ok(())
}

async fn the_end_of_input_that_is_open_once_is_the_containers(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (number, protocol) in COMMANDS.into_iter().enumerate() {
        let builder = pod.container(&format!("main-{number}")).sh("cat; exit 6").with(|config| {
            config.stdin = true;
            config.stdin_once = true;
        });
        let main = builder.run().await?;
        let mut client = attach(&main, protocol).await?;
        client.write(b"a line\n").await?;
        hears(&mut client, "a line\n").await?;
        client.end_stdin().await?;
        client.finish().await?;
        assert_eq!(main.exited().await?.exit_code, 6, "{protocol:?}");
    }
    Ok(())
}

async fn input_that_stays_open_outlives_its_client(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web").run().await?.container("main");
    let main = builder.sh("while read line; do echo got $line; done").with(|config| config.stdin = true);
    let main = main.run().await?;
    for (number, protocol) in COMMANDS.into_iter().enumerate() {
        let mut client = attach(&main, protocol).await?;
        client.write(format!("line {number}\n").as_bytes()).await?;
        hears(&mut client, &format!("got line {number}\n")).await?;
        if number == 0 {
            client.end_stdin().await?;
        }
    }
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    Ok(())
}

async fn an_attachment_ends_with_its_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (number, protocol) in COMMANDS.into_iter().enumerate() {
        let builder = pod.container(&format!("main-{number}"));
        let builder = builder.sh("read line; echo last words; exit 8").with(|config| config.stdin = true);
        let main = builder.run().await?;
        let mut client = attach(&main, protocol).await?;
        client.write(b"go\n").await?;
        let done = client.finish().await?;
        assert_eq!(done.text(), "last words\n", "{protocol:?}");
        // As the kubelet's other runtimes: the container's exit code is in its status.
        assert_eq!(done.exit_code()?, 0, "{protocol:?}");
        assert_eq!(main.exited().await?.exit_code, 8, "{protocol:?}");
    }
    Ok(())
}

async fn a_client_that_does_not_read_loses_nothing_of_the_log(lab: &Lab) -> Result<()> {
    // More than the pipe of an attachment and all that follows it hold.
    const LINES: usize = 200_000;
    let node = lab.node().await?;
    let builder = node.pod("web").run().await?.container("main");
    let script = format!("read line; seq {LINES}; echo that was all; exec sleep 98765");
    let main = builder.sh(&script).with(|config| config.stdin = true).run().await?;
    let mut clients = Vec::new();
    for protocol in COMMANDS {
        clients.push(attach(&main, protocol).await?);
    }
    clients[0].write(b"go\n").await?;
    let lines = main.logged("that was all").await?;
    assert_eq!(lines.len(), LINES + 1);
    for (number, line) in (1..).zip(&lines[..LINES]) {
        assert_eq!(line.text, number.to_string());
    }
    drop(clients);
    let free = async || Ok(main.exec(["true"]).await?.exit_code);
    eventually("the container to be free", free, |code| *code == 0).await?;
    Ok(())
}
