//! Commands over the streaming server, in the shapes that clients know: what `kubectl exec` and `kubectl cp` rely on.

use anyhow::{Context, Result};
use hartpod_tests::streaming::{Channel, Exec};
use hartpod_tests::{Lab, cri, emulated, eventually, tests};

use crate::streaming::{COMMANDS, exec};

tests![
    exit_codes_and_both_outputs_arrive,
    megabytes_go_both_ways_unchanged,
    input_that_nobody_reads_waits_and_is_not_lost,
    a_command_may_end_while_its_input_is_open,
    a_child_that_keeps_the_output_does_not_keep_the_client,
    pings_are_answered_meanwhile,
    a_terminal_has_its_clients_size,
    a_client_that_does_not_read_stops_the_command_alone,
    a_session_ends_with_its_container,
    a_session_ends_with_its_daemon,
];

/// Bytes of every value, whose pattern no block of a power of two repeats.
fn pattern(length: usize) -> Vec<u8> {
    (0..65_521_u32).map(|at| at.to_le_bytes()[0]).cycle().take(length).collect()
}

async fn exit_codes_and_both_outputs_arrive(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        for (end, code) in [("exit 0", 0), ("exit 1", 1), ("exit 137", 137), ("kill -9 $$", 137)] {
            let request = cri::ExecRequest {
                stdin: false,
                ..exec(&main.id, &format!("echo said; echo cried >&2; {end}"))
            };
            let done = Exec::start(node.client(), request, protocol).await?.finish().await?;
            let outputs = (&*done.stdout, &*done.stderr);
            assert_eq!(outputs, (&b"said\n"[..], &b"cried\n"[..]), "{end} over {protocol:?}");
            assert_eq!(done.exit_code()?, code, "{end} over {protocol:?}");
        }
        let request = cri::ExecRequest { cmd: vec!["/no/such/program".to_owned()], ..exec(&main.id, "") };
        let done = Exec::start(node.client(), request, protocol).await?.finish().await?;
        let status = done.status()?;
        assert_eq!(status["status"], "Failure", "{protocol:?}: {status}");
        let message = status["message"].as_str().unwrap_or_default();
        assert!(message.contains("/no/such/program"), "{protocol:?}: {status}");
    }
    Ok(())
}

async fn megabytes_go_both_ways_unchanged(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let sent = pattern(if emulated() { 5_000_000 } else { 20_000_000 });
    for protocol in COMMANDS {
        let client = Exec::start(node.client(), exec(&main.id, "cat"), protocol).await?;
        let (mut input, output) = client.split();
        let writing = async {
            for piece in sent.chunks(100_000) {
                input.write(piece).await?;
            }
            input.end_stdin().await
        };
        let (wrote, done) = tokio::join!(writing, output.finish());
        wrote.with_context(|| format!("write over {protocol:?}"))?;
        let done = done?;
        assert_eq!(done.exit_code()?, 0, "{protocol:?}");
        assert!(done.stdout == sent, "{} bytes came, or others, over {protocol:?}", done.stdout.len());
    }
    Ok(())
}

async fn input_that_nobody_reads_waits_and_is_not_lost(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    // More than a pipe, what the daemon keeps for a client, and the ten megabytes that a connection may hold.
    let sent = pattern(24_000_000);
    for protocol in COMMANDS {
        main.sh("rm -f /tmp/go").await?;
        let script = "until [ -e /tmp/go ]; do sleep 0.1; done; md5sum; exit 3";
        let client = Exec::start(node.client(), exec(&main.id, script), protocol).await?;
        let (mut input, output) = client.split();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                for piece in sent.chunks(100_000) {
                    input.write(piece).await?;
                }
                input.end_stdin().await?;
                anyhow::Ok(input)
            }
        });
        // The session is stuck, and nothing else is.
        assert_eq!(main.sh("echo free").await?, "free\n");
        assert!(!writing.is_finished(), "24 MB went nowhere over {protocol:?}");
        main.sh("touch /tmp/go").await?;
        let done = output.finish().await?;
        let _input = writing.await??;
        assert_eq!(done.exit_code()?, 3, "{protocol:?}");
        assert_eq!(done.text().split_whitespace().next(), Some(MD5_OF_24_MB), "{protocol:?}");
    }
    Ok(())
}

/// Of the first 24,000,000 bytes of [`pattern`].
const MD5_OF_24_MB: &str = "242bef6eee8c992c1e4a4b370d131dfe";

async fn a_command_may_end_while_its_input_is_open(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        let mut client = Exec::start(node.client(), exec(&main.id, "head -c 5; exit 4"), protocol).await?;
        client.write(b"hello and much more that nobody reads").await?;
        let done = client.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?), ("hello", 4), "{protocol:?}");
    }
    Ok(())
}

async fn a_child_that_keeps_the_output_does_not_keep_the_client(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        let request = exec(&main.id, "sleep 98765 & echo begun; exit 5");
        let done = Exec::start(node.client(), request, protocol).await?.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?), ("begun\n", 5), "{protocol:?}");
    }
    Ok(())
}

async fn pings_are_answered_meanwhile(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        let mut client = Exec::start(node.client(), exec(&main.id, "cat"), protocol).await?;
        client.ping().await?;
        client.write(b"between ").await?;
        client.ping().await?;
        client.write(b"pings").await?;
        client.end_stdin().await?;
        let done = client.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?, done.pongs), ("between pings", 0, 2), "{protocol:?}");
    }
    Ok(())
}

async fn a_terminal_has_its_clients_size(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    // Busybox complains as long as there is none.
    let script = "sized() { stty size 2>/dev/null | grep -q \"^$1$\"; }; until sized '33 101'; do sleep 0.1; done; tty; echo first >&2;
                  until sized '25 80'; do sleep 0.1; done; echo second";
    for protocol in COMMANDS {
        let request = cri::ExecRequest { tty: true, stderr: false, ..exec(&main.id, script) };
        let mut client = Exec::start(node.client(), request, protocol).await?;
        client.resize(101, 33).await?;
        let mut said = String::new();
        while !said.contains("first\r\n") {
            let (channel, bytes) = client.read().await?.context("it ended before it had a size")?;
            assert_eq!(channel, Channel::Stdout, "a terminal's errors come with its output");
            said.push_str(&String::from_utf8_lossy(&bytes));
        }
        assert!(said.starts_with("/dev/pts/"), "{said}");
        client.resize(80, 25).await?;
        let done = client.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?), ("second\r\n", 0), "{protocol:?}");
    }
    Ok(())
}

async fn a_client_that_does_not_read_stops_the_command_alone(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let script =
        "n=0; while dd if=/dev/zero bs=1000000 count=1 2>/dev/null; do n=$((n + 1)); echo $n >/tmp/n; done";
    for protocol in COMMANDS {
        main.sh("echo 0 >/tmp/n").await?;
        let client = Exec::start(node.client(), exec(&main.id, script), protocol).await?;
        let mut before = String::new();
        let stuck = async || {
            // A second of the container's between two looks.
            let now = main.sh("sleep 1; cat /tmp/n").await?;
            let same = now == before && now != "0\n";
            before.clone_from(&now);
            Ok((same, now))
        };
        let (_, megabytes) =
            eventually("the command to wait for its client", stuck, |(same, _)| *same).await?;
        let megabytes: u32 = megabytes.trim().parse()?;
        assert!(megabytes < 40, "{megabytes} MB for a client that reads nothing, over {protocol:?}");
        drop(client);
        let gone = async || Ok(main.sh("ps | grep 'dd if=/dev/zero' | grep -cv grep || true").await?);
        eventually("the command to be gone", gone, |count| count == "0\n").await?;
    }
    Ok(())
}

async fn a_session_ends_with_its_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (number, protocol) in COMMANDS.into_iter().enumerate() {
        let main = pod.container(&format!("main-{number}")).idle().run().await?;
        let mut client =
            Exec::start(node.client(), exec(&main.id, "echo begun; sleep 98765"), protocol).await?;
        let first = client.read().await?.context("it ended")?;
        assert_eq!((first.0, &*first.1), (Channel::Stdout, &b"begun\n"[..]), "{protocol:?}");
        main.stop(std::time::Duration::ZERO).await?;
        let done = client.finish().await?;
        assert_eq!(done.exit_code()?, 137, "{protocol:?}: {}", done.status);
    }
    Ok(())
}

async fn a_session_ends_with_its_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let begin = async |protocol| {
        let request = exec(&main.id, "trap '' HUP PIPE; echo begun; sleep 98765 & wait; sleep 98765");
        let mut client = Exec::start(node.client(), request, protocol).await?;
        let first = client.read().await?.context("it ended")?;
        assert_eq!((first.0, &*first.1), (Channel::Stdout, &b"begun\n"[..]), "{protocol:?}");
        anyhow::Ok(client)
    };
    let left = async || Ok(main.sh("ps | grep 'sleep 98765' | grep -cv grep || true").await?);
    for protocol in COMMANDS {
        let client = begin(protocol).await?;
        node.stop().await?;
        drop(client.finish().await);
        node.start().await?;
        eventually("what a stopped daemon's clients ran to be gone", left, |count| count == "0\n").await?;
        let client = begin(protocol).await?;
        node.kill().await?;
        drop(client.finish().await);
        node.start().await?;
        eventually("what a killed daemon's clients ran to be gone", left, |count| count == "0\n").await?;
    }
    Ok(())
}
