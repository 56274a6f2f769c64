//! Exec and attach over SPDY.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::spdy_client::{Client, Frame, VERSIONS, control, request, upgrade};
use super::{ALL, Lab, OUTPUT, TERMINAL, eventually, noise};
use crate::Config;

#[tokio::test]
async fn an_exit_code_comes_as_a_status() {
    let lab = Lab::new().await;
    for code in [0, 1, 137] {
        let url = lab.exec(&["exit", &code.to_string()], OUTPUT);
        let mut client = Client::connect(&url, VERSIONS).await;
        let ids = client.open_all(&["error", "stdout"]).await;
        let received = client.reader.rest().await;
        assert_eq!(received.exit_code(ids[0]), code);
        assert_eq!(received.go_away, Some(0));
        assert!(received.fins.contains(&ids[0]) && received.fins.contains(&ids[1]));
    }
}

#[tokio::test]
async fn outputs_are_apart_and_every_byte_is_as_it_was() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["both"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let received = client.reader.rest().await;
    assert_eq!(received.data[&ids[2]], b"\x00out\xff");
    assert_eq!(received.data[&ids[3]], b"\xfeerr\x00");
    assert_eq!(received.exit_code(ids[0]), 3);
    // It was still open, and nobody reads it any more.
    assert_eq!(received.resets.get(&ids[1]), Some(&5));
}

#[tokio::test]
async fn the_end_of_input_is_passed_on_and_what_follows_it_is_not() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let input = noise(300_000);
    for piece in input.chunks(32 * 1024) {
        client.writer.data(ids[1], piece, false).await;
    }
    client.writer.data(ids[1], b"", true).await;
    let received = client.reader.rest().await;
    assert!(received.data[&ids[2]] == input);
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test]
async fn the_version_is_the_first_that_both_know() {
    let lab = Lab::new().await;
    for (offered, chosen) in [
        (VERSIONS, "v5.channel.k8s.io"),
        ("v9.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io", "v4.channel.k8s.io"),
        ("channel.k8s.io,v4.channel.k8s.io", "channel.k8s.io"),
    ] {
        let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &upgrade(offered)).await;
        assert!(head.contains(&format!("\r\nx-stream-protocol-version: {chosen}\r\n")), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: spdy/3.1\r\n"), "{head}");
    }
}

#[tokio::test]
async fn old_versions_are_told_in_words_and_of_failures_only() {
    let lab = Lab::new().await;
    for version in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"] {
        for (code, told) in [(0, ""), (7, "command terminated with non-zero exit code: exit status 7")] {
            let url = lab.exec(&["exit", &code.to_string()], OUTPUT);
            let mut client = Client::connect(&url, version).await;
            let ids = client.open_all(&["error", "stdout"]).await;
            assert_eq!(client.reader.rest().await.text(ids[0]), told);
        }
    }
}

#[tokio::test]
async fn a_terminal_begins_with_its_size_and_is_told_each_other() {
    let lab = Lab::new().await;
    for (url, first) in [
        (lab.exec(&["sizes"], TERMINAL), "begins 80x24\n"),
        // One that is there already is told.
        (lab.attach("sizes", TERMINAL), "80x24\n"),
    ] {
        let mut client = Client::connect(&url, VERSIONS).await;
        let error = client.writer.open(&[("streamtype", "error")]).await;
        let resize = client.writer.open(&[("streamtype", "resize")]).await;
        client.writer.data(resize, b"{\"Width\":80,\"Height\":24}\n", false).await;
        let stdin = client.writer.open(&[("streamtype", "stdin")]).await;
        let stdout = client.writer.open(&[("streamtype", "stdout")]).await;
        for id in [error, resize, stdin, stdout] {
            assert_eq!(client.reader.frame().await, Some(Frame::Reply(id)));
        }
        let said = Frame::Data { id: stdout, bytes: first.into(), fin: false };
        assert_eq!(client.reader.frame().await, Some(said));
        client.writer.data(resize, b"{\"Width\":132,\"Height\":43}\n", false).await;
        let said = Frame::Data { id: stdout, bytes: b"132x43\n".to_vec(), fin: false };
        assert_eq!(client.reader.frame().await, Some(said));
        client.writer.data(stdin, b"", true).await;
        assert_eq!(client.reader.rest().await.exit_code(error), 0);
    }
}

#[tokio::test]
async fn terminals_of_old_versions_have_no_size() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], TERMINAL), "v2.channel.k8s.io").await;
    let ids = client.open_all(&["error", "stdin", "stdout"]).await;
    client.writer.data(ids[1], b"typed", true).await;
    assert_eq!(client.reader.rest().await.text(ids[2]), "typed");
}

#[tokio::test]
async fn pings_are_answered_at_any_time() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    client.writer.ping(1).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Ping(1)));
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.writer.ping(3).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Ping(3)));
    // An answer to a ping of the server's, which it never sent.
    client.writer.ping(2).await;
    client.writer.data(ids[1], b"x", true).await;
    let received = client.reader.rest().await;
    assert!(received.pings.is_empty());
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test]
async fn a_session_that_cannot_begin_is_an_error_with_its_causes() {
    let lab = Lab::new().await;
    for (url, verb) in [
        (lab.exec(&["missing"], OUTPUT), "error executing command in container"),
        (lab.attach("missing", OUTPUT), "error attaching to container"),
    ] {
        let mut client = Client::connect(&url, VERSIONS).await;
        let ids = client.open_all(&["error", "stdout"]).await;
        let status = client.reader.rest().await.text(ids[0]);
        let status = serde_json::from_str::<serde_json::Value>(&status).unwrap();
        let message =
            format!("Internal error occurred: {verb}: start missing: No such file or directory (os error 2)");
        assert_eq!(status["message"], message);
        assert_eq!((&status["reason"], &status["code"]), (&"InternalError".into(), &500.into()));
    }
}

#[tokio::test]
async fn whoever_watches_a_container_is_not_told_its_exit_code() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.attach("both", ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let received = client.reader.rest().await;
    assert_eq!(received.exit_code(ids[0]), 0);
    assert_eq!(received.data[&ids[2]], b"\x00out\xff");
}

#[tokio::test]
async fn outputs_that_end_early_are_told_of_at_once() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["mute"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    for _ in 0..2 {
        let Some(Frame::Data { id, bytes, fin: true }) = client.reader.frame().await else { panic!() };
        assert!((id == ids[2] || id == ids[3]) && bytes.is_empty());
    }
    lab.machine.seen.release.notify_one();
    assert_eq!(client.reader.rest().await.exit_code(ids[0]), 4);
}

#[tokio::test]
async fn a_client_that_no_longer_wants_an_output_gets_the_rest() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.writer.reset(ids[3]).await;
    client.writer.data(ids[1], b"still here", true).await;
    let received = client.reader.rest().await;
    assert_eq!(received.text(ids[2]), "still here");
    assert!(!received.fins.contains(&ids[3]));
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_session() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
    client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    eventually("it runs", || lab.machine.seen.started.load(Ordering::Relaxed) == 1).await;
    drop(client);
    eventually("its client is gone", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_client_that_says_goodbye_is_served_until_it_has_no_streams() {
    let lab = Lab::new().await;
    let goodbye = control(7, 0, &[0; 8]);
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.writer.raw(&goodbye).await;
    client.writer.data(ids[1], b"still here", true).await;
    let received = client.reader.rest().await;
    assert_eq!((received.text(ids[2]).as_str(), received.exit_code(ids[0])), ("still here", 0));

    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.writer.raw(&goodbye).await;
    for id in ids {
        client.writer.reset(id).await;
    }
    // It has not closed its connection.
    assert_eq!(client.reader.rest().await.go_away, Some(0));
    assert_eq!(lab.machine.seen.abandoned.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn streams_that_never_come_are_given_up() {
    let config = Config { creation_timeout: Duration::from_secs(1), ..Config::default() };
    let lab = Lab::with(config).await;
    let mut client = Client::connect(&lab.exec(&["exit", "0"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin"]).await;
    let received = client.reader.rest().await;
    assert!(received.text(ids[0]).contains("did not make its streams in time"), "{received:?}");
    assert_eq!(received.go_away, Some(0));
    assert_eq!(lab.machine.seen.started.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_connection_without_life_is_closed() {
    let config = Config { idle_timeout: Duration::from_secs(2), ..Config::default() };
    let lab = Lab::with(config).await;
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
    client.open_all(&["error", "stdout"]).await;
    let received = client.reader.rest().await;
    assert_eq!(received.go_away, Some(0));
    eventually("its client is gone", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
    client.open_all(&["error", "stdout"]).await;
    let address = lab.server.address();
    let told = async {
        let received = client.reader.rest().await;
        client.writer.wire.shutdown().await.unwrap();
        received
    };
    let (received, ()) = tokio::join!(told, lab.server.stop());
    assert_eq!(received.go_away, Some(0));
    assert_eq!(lab.machine.seen.abandoned.load(Ordering::Relaxed), 1);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
