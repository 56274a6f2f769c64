//! Getting the image, and showing how far it is.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hartpod_images::Reference;
use hartpod_proto::cri::v1 as cri;

use super::super::client::{CallError, Client};
use super::super::units;
use crate::pulls::PullState;

/// How often the line is drawn anew.
const DRAW: Duration = Duration::from_millis(100);

/// Characters of the bar.
const BAR: u64 = 24;

/// The image's id; pulls it unless the daemon has it.
pub(super) async fn pull(client: &Client, image: &str) -> anyhow::Result<String> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    if let Some(present) = find(client, &spec).await.context("look for the image")? {
        return Ok(present.id);
    }
    let request = cri::PullImageRequest { image: Some(spec.clone()), ..Default::default() };
    let pulling = client.pull_image(request);
    tokio::pin!(pulling);
    let line = Line { image, began: Instant::now(), terminal: std::io::stderr().is_terminal() };
    // The daemon calls it by its full name.
    let name = image.parse::<Reference>().map(|r| r.to_string()).unwrap_or_default();
    let pulled = loop {
        tokio::select! {
            pulled = &mut pulling => break pulled,
            state = look(client, &name) => line.draw(state.as_ref()),
        }
    };
    line.clear();
    // The error names the image itself.
    let id = pulled?.image_ref;
    let size = find(client, &spec).await.ok().flatten().map(|i| i.size).unwrap_or_default();
    line.end(size);
    Ok(id)
}

async fn find(client: &Client, spec: &cri::ImageSpec) -> Result<Option<cri::Image>, CallError> {
    let request = cri::ImageStatusRequest { image: Some(spec.clone()), ..Default::default() };
    Ok(client.image_status(request).await?.image)
}

/// How far the pull is, after a while.
async fn look(client: &Client, name: &str) -> Option<PullState> {
    tokio::time::sleep(DRAW).await;
    let info = client.status(cri::StatusRequest { verbose: true }).await.ok()?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    let pulls: Vec<PullState> = serde_json::from_value(info.get("pulls")?.clone()).ok()?;
    pulls.into_iter().find(|p| p.image == name)
}

/// One line on stderr, for terminals only: output in a file is the container's alone.
struct Line<'a> {
    image: &'a str,
    began: Instant,
    terminal: bool,
}

impl Line<'_> {
    fn draw(&self, state: Option<&PullState>) {
        if self.terminal {
            let text = progress(self.image, state, self.began.elapsed());
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn end(&self, size: u64) {
        if self.terminal {
            let (size, took) = (units::bytes(size), units::time(self.began.elapsed()));
            let _ = writeln!(std::io::stderr(), "pulled {}: {size} in {took}", self.image);
        }
    }
}

fn progress(image: &str, state: Option<&PullState>, elapsed: Duration) -> String {
    let took = format!("{:.1} s", elapsed.as_secs_f32());
    match state {
        Some(state) if state.total > 0 => {
            let done = state.done.min(state.total);
            let full = u128::from(done) * u128::from(BAR) / u128::from(state.total);
            let bar: String = (0..u128::from(BAR)).map(|i| if i < full { '#' } else { '.' }).collect();
            format!("pulling {image} [{bar}] {} of {}, {took}", units::bytes(done), units::bytes(state.total))
        }
        _ => format!("pulling {image}, {took}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_as_bytes_come() {
        let at = |done, total| {
            let state = PullState { image: String::new(), done, total };
            progress("busybox", Some(&state), Duration::from_millis(1230))
        };
        assert_eq!(
            at(1 << 20, 4 << 20),
            "pulling busybox [######..................] 1.0 MiB of 4.0 MiB, 1.2 s"
        );
        assert!(at(5 << 20, 4 << 20).contains("[########################] 4.0 MiB of 4.0 MiB"));
        assert!(at(u64::MAX, u64::MAX).contains("[########################]"));
        assert_eq!(at(0, 0), "pulling busybox, 1.2 s");
        assert_eq!(progress("busybox", None, Duration::ZERO), "pulling busybox, 0.0 s");
    }
}
