//! Getting the image, and showing that it takes its time.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hartpod_proto::cri::v1 as cri;

use super::super::client::{CallError, Client};
use super::super::units;

/// How often the line is drawn anew.
const DRAW: Duration = Duration::from_millis(100);

/// The image's id; pulls it unless the daemon has it.
pub(super) async fn pull(client: &Client, image: &str) -> anyhow::Result<String> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    if let Some(present) = find(client, &spec).await.context("look for the image")? {
        return Ok(present.id);
    }
    let began = Instant::now();
    let request = cri::PullImageRequest { image: Some(spec.clone()), ..Default::default() };
    let pulling = client.pull_image(request);
    tokio::pin!(pulling);
    let mut line = Line::new(image, began);
    let pulled = loop {
        tokio::select! {
            pulled = &mut pulling => break pulled,
            () = tokio::time::sleep(DRAW) => line.draw(),
        }
    };
    line.clear();
    // The daemon names the image itself.
    let id = pulled?.image_ref;
    let size = find(client, &spec).await.ok().flatten().map(|i| i.size).unwrap_or_default();
    line.say(&format!("pulled {image}: {} in {}", units::bytes(size), units::time(began.elapsed())));
    Ok(id)
}

async fn find(client: &Client, spec: &cri::ImageSpec) -> Result<Option<cri::Image>, CallError> {
    let request = cri::ImageStatusRequest { image: Some(spec.clone()), ..Default::default() };
    Ok(client.image_status(request).await?.image)
}

/// One line on stderr, drawn only for a terminal.
struct Line<'a> {
    image: &'a str,
    began: Instant,
    terminal: bool,
}

impl<'a> Line<'a> {
    fn new(image: &'a str, began: Instant) -> Self {
        Self { image, began, terminal: std::io::stderr().is_terminal() }
    }

    fn draw(&mut self) {
        if self.terminal {
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[Kpulling {} .. {:.1} s",
                self.image,
                self.began.elapsed().as_secs_f32()
            );
        }
    }

    fn clear(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    /// A line that stays; for people only, so that output in a file is the container's alone.
    fn say(&self, text: &str) {
        if self.terminal {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}
