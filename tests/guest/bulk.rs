//! Much data over vsock, both ways at once.

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, tests};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::container::{SPARE, pod, shut_down};
use crate::disk::Layers;
use crate::guest::image;

tests![a_gibibyte_comes_and_goes_unchanged needs Need::Kvm];

const BYTES: usize = 1 << 30;
/// Bytes until the pattern begins again: a prime, so that no buffer's size divides it and a lost or repeated buffer shows.
const PERIOD: usize = 1_048_573;

/// Numbers without a pattern, the same each time.
pub(crate) fn noise() -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// The pattern twice, so that a piece of it can begin anywhere.
fn pattern() -> Vec<u8> {
    let mut bytes: Vec<u8> = noise().map(|number| number.to_be_bytes()[0]).take(PERIOD).collect();
    bytes.extend_from_within(..);
    bytes
}

async fn a_gibibyte_comes_and_goes_unchanged(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image).await?;
    layers.fill(&guest.control()?, &image, SPARE)?;
    let (id, _out, _err) = pod.start(SPARE, Layers::COUNT, "sleep 100000").await?;
    let mut exec = pod.exec(&id, &["cat"]).await?;

    let pattern = pattern();
    let mut stdin = exec.stdin;
    let there = async {
        let mut at = 0;
        let mut left = BYTES;
        while left > 0 {
            let piece = left.min(PERIOD / 4);
            stdin.write_all(&pattern[at..at + piece]).await.context("write")?;
            at = (at + piece) % PERIOD;
            left -= piece;
        }
        stdin.shutdown().await.context("half-close")
    };
    let stdout = &mut exec.stdout;
    let back = async {
        let mut buffer = vec![0; 256 << 10];
        let mut read = 0;
        loop {
            let count = stdout.read(&mut buffer).await.context("read")?;
            if count == 0 {
                return Ok::<_, anyhow::Error>(read);
            }
            let at = read % PERIOD;
            ensure!(buffer[..count] == pattern[at..at + count], "other bytes come back after {read}");
            read += count;
        }
    };
    let ((), read) = tokio::try_join!(there, back)?;
    ensure!(read == BYTES, "{read} bytes came back");
    shut_down(guest, pod).await
}
