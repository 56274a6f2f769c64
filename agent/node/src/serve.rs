//! The daemon's life from an empty process to the last answered call.
//!
//! Order matters: the socket is bound early, so that callers wait instead of failing, and answers nothing until recovery has
//! made lists and status calls true; an agent that does not answer is not waited for.

mod folder;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hartpod_cni::{Cni, CniConfig, TemplateError};
use hartpod_container::UserNamespace;
use hartpod_container::cgroup::{DetectError, Mode, Tree};
use hartpod_images::{ImageStore, ImagesConfig, OpenError};
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

pub use folder::FolderError;
pub use socket::SocketError;

use crate::backend::{Backends, BackendsError};
use crate::config::{CgroupDriver, Config};
use crate::epoch::{Epoch, EpochError};
use crate::events::Events;
use crate::image_use::ImageUses;
use crate::metrics::{Endpoint, Own};
use crate::network_check::check_adopted;
use crate::network_gc::collect_now_and_then;
use crate::node::{Layout, Node};
use crate::records::{Loaded, RecordError, Records};
use crate::recovery::recover;
use crate::registry::Registry;
use crate::server::{DeadlineLayer, ObserveLayer, Server};
use crate::spec::SpecSettings;
use crate::stats::{self, Book};
use crate::streaming::{Sessions, SettingsError, settings_blocking};
use crate::sweep::{Claimed, sweep};
use crate::sys;
use crate::systemd::{BOOTED, Systemd};
use crate::trace::Exporter;
use crate::trash::Trash;

/// Calls are short; two threads keep the memory small and one of them free while the other is busy.
const WORKERS: usize = 2;
/// File work, namespaces and plugins' input; each may wait for a disk.
const BLOCKING_THREADS: usize = 48;
/// Idle threads keep their stacks and their share of the allocator.
const IDLE_THREAD: Duration = Duration::from_secs(5);
/// For calls in flight when the daemon is told to end. Pods run on, and the kubelet repeats what it got no answer to.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The daemon could not start, or its socket broke.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the node's epoch")]
    Epoch(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("control groups")]
    Cgroups(#[from] DetectError),
    #[error("cgroup.driver is \"systemd\": {0}")]
    NoSystemd(&'static str),
    #[error(transparent)]
    Backends(#[from] BackendsError),
    #[error("streaming server")]
    Streaming(#[from] hartpod_streaming::BindError),
    #[error("TLS of the streaming server")]
    StreamingTls(#[from] SettingsError),
    #[error("cni.conf_template")]
    ConfTemplate(#[from] TemplateError),
    #[error("metrics on {at}: set another metrics.listen, or metrics.enabled = false")]
    Metrics { at: SocketAddr, source: io::Error },
    #[error("tracing.otlp_endpoint")]
    Tracing(#[source] tonic::transport::Error),
    #[error("metrics")]
    OwnMetrics(#[from] prometheus::Error),
    #[error("image store")]
    Images(#[from] OpenError),
    #[error("records of pods")]
    Records(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("start broke off")]
    BrokenOff(#[from] tokio::task::JoinError),
    #[error("wait for signals")]
    Signals(#[source] io::Error),
    #[error("serve on {}", path.display())]
    Serve { path: PathBuf, source: tonic::transport::Error },
}

impl From<EpochError> for ServeError {
    fn from(error: EpochError) -> Self {
        Self::Epoch(Box::new(error))
    }
}

impl From<RecordError> for ServeError {
    fn from(error: RecordError) -> Self {
        Self::Records(Box::new(error))
    }
}

/// The runtime that the daemon is made for.
///
/// # Errors
/// Threads or descriptors are short.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    sys::limit_heaps();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .enable_all()
        .build()
}

/// Serves until SIGTERM or SIGINT ends it; pods run on.
///
/// # Errors
/// See [`ServeError`]; nothing was changed on the node but folders made and leftovers cleared away.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let end = end_signal().map_err(ServeError::Signals)?;
    answer_hangups().map_err(ServeError::Signals)?;
    let collects_garbage = config.cni.gc;
    let (socket, metrics, tracing) = (config.socket.clone(), config.metrics.clone(), config.tracing.clone());
    // Held until the end: no two daemons share a root or a state folder.
    let (_locks, listener, node, loaded, streaming) = {
        let opened = tokio::task::spawn_blocking(move || open_blocking(&config)).await??;
        (opened.locks, opened.listener, Arc::new(opened.node), opened.loaded, opened.streaming)
    };
    tokio::spawn(node.records.clone().keep_flushed());
    tokio::spawn(node.trash.clone().keep_empty());
    take_over(&node, loaded).await;
    tokio::spawn(stats::keep(node.clone()));
    tokio::spawn(stats::keep_layers(node.clone()));
    tokio::spawn(check_adopted(node.clone()));
    if collects_garbage {
        tokio::spawn(collect_now_and_then(node.clone()));
    }
    let listener = UnixListener::from_std(listener)
        .map_err(|source| SocketError::Bind { path: socket.clone(), source })?;

    let opens = Arc::new(Sessions::new(node.clone()));
    let streaming = hartpod_streaming::Server::bind(streaming, opens).await;
    let streaming = Arc::new(streaming.inspect_err(|_| socket::unlink(&socket))?);
    let own_metrics = node.own_metrics.clone();
    let exporter = Exporter::start(&tracing, &own_metrics).map_err(ServeError::Tracing);
    let exporter = exporter.inspect_err(|_| socket::unlink(&socket))?;
    if metrics.enabled {
        let endpoint = Endpoint::bind(metrics.listen)
            .await
            .map_err(|source| ServeError::Metrics { at: metrics.listen, source });
        let endpoint = endpoint.inspect_err(|_| socket::unlink(&socket))?;
        tracing::info!(at = %endpoint.address(), "metrics");
        tokio::spawn(endpoint.serve(node.clone()));
    }
    let server = Server::new(node, streaming.clone());
    let (told, mut ending) = tokio::sync::watch::channel(false);
    let mut sessions_end = ending.clone();
    let sessions = tokio::spawn(async move {
        let _ = sessions_end.wait_for(|ending| *ending).await;
        // Clients are told, and what they ran is killed; it would have nobody to talk to.
        let _ = tokio::time::timeout(LAST_CALLS, streaming.stop()).await;
    });
    let serving = tonic::transport::Server::builder()
        .layer(ObserveLayer { own: own_metrics, tracer: exporter.as_ref().map(Exporter::tracer) })
        .layer(DeadlineLayer)
        .add_service(server.runtime_service())
        .add_service(server.image_service())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            end.await;
            let _ = told.send(true);
        });
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    notify(NotifyState::Ready);
    let served = tokio::select! {
        served = serving => served,
        () = async {
            let _ = ending.wait_for(|ending| *ending).await;
            notify(NotifyState::Stopping);
            tokio::time::sleep(LAST_CALLS).await;
        } => {
            tracing::warn!("calls in flight are cut off");
            Ok(())
        }
    };
    let _ = sessions.await;
    if let Some(exporter) = exporter {
        exporter.end().await;
    }
    socket::unlink(&socket);
    served.map_err(|source| ServeError::Serve { path: socket, source })
}

struct Opened {
    locks: [folder::Lock; 2],
    listener: std::os::unix::net::UnixListener,
    node: Node,
    loaded: Loaded,
    streaming: hartpod_streaming::Config,
}

fn open_blocking(config: &Config) -> Result<Opened, ServeError> {
    let streaming = settings_blocking(&config.streaming)?;
    let conf_template = config.cni.template_blocking()?.map(Arc::new);
    let layout = Layout {
        root: config.root.clone(),
        state: config.state.clone(),
        netns: config.pod.netns_dir.clone(),
        cgroups: config.cgroup.root.clone(),
    };
    folder::make(&layout.root, 0o711)?;
    folder::make(&layout.state, 0o711)?;
    let locks = [folder::lock(&layout.root)?, folder::lock(&layout.state)?];
    for private in [layout.pods(), layout.containers(), layout.trash(), layout.agents(), layout.cni_cache()] {
        folder::make(&private, 0o700)?;
    }
    let listener = socket::bind(&config.socket)?;
    let (records, loaded) = Records::open_blocking(&layout.pods())?;
    let cgroups = Tree::detect(&config.cgroup.root)?;
    let node = Node {
        systemd: systemd_of(config.cgroup.driver, cgroups.mode())?,
        epoch: Epoch::read_blocking(&layout.state)?,
        cgroups,
        backends: Backends::open_blocking(config)?,
        images: ImageStore::open_blocking(images(config, &layout))?,
        cni: Cni::new(CniConfig {
            conf_dir: config.cni.conf_dir.clone(),
            bin_dirs: config.cni.bin_dirs.clone(),
            cache_dir: layout.cni_cache(),
            plugin_timeout: config.cni.plugin_timeout(),
            foreign_caches: config.cni.foreign_caches.clone(),
        }),
        conf_template,
        image_uses: Arc::new(ImageUses::default()),
        pulls: crate::pulls::Pulls::default(),
        registry: Registry::default(),
        events: Events::default(),
        stats: Book::default(),
        own_metrics: Own::new()?,
        trash: Arc::new(Trash::new(layout.trash())),
        warned: Mutex::default(),
        spec_settings: SpecSettings::detect(config),
        user_namespaces: UserNamespace::probe_blocking(&config.root).map_err(Arc::new),
        guest_spec_settings: SpecSettings::of_guests(),
        records,
        layout,
    };
    Ok(Opened { locks, listener, node, loaded, streaming })
}

/// The systemd whose units pods' cgroups are, if they are.
fn systemd_of(driver: CgroupDriver, mode: Mode) -> Result<Option<Systemd>, ServeError> {
    let runs = Path::new(BOOTED).is_dir();
    match (driver, mode) {
        (CgroupDriver::Auto, Mode::Unified) if runs => Ok(Some(Systemd::default())),
        (CgroupDriver::Auto | CgroupDriver::Cgroupfs, _) => Ok(None),
        (CgroupDriver::Systemd, _) if !runs => Err(ServeError::NoSystemd("systemd does not run here")),
        (CgroupDriver::Systemd, Mode::Hybrid) => Err(ServeError::NoSystemd("it needs cgroup v2 alone")),
        (CgroupDriver::Systemd, Mode::Unified) => Ok(Some(Systemd::default())),
    }
}

fn images(config: &Config, layout: &Layout) -> ImagesConfig {
    ImagesConfig {
        root: layout.images(),
        hosts_dir: config.images.hosts_dir.clone(),
        max_layer_bytes: config.images.max_layer_bytes(),
        parallel_layers: config.images.parallel_layers(),
        progress_timeout: config.images.progress_timeout(),
        pinned: config.images.pinned.clone(),
    }
}

async fn take_over(node: &Arc<Node>, loaded: Loaded) {
    let mut claimed = Claimed::default();
    for pod in &loaded.pods {
        claimed.pods.insert(pod.record.id.clone());
        claimed.containers.extend(pod.containers.iter().map(|c| c.id.clone()));
    }
    recover(node, loaded.pods).await;
    sweep(node, loaded.lost_pods, claimed).await;
}

/// SIGHUP asks for new settings. Those of registries and networks are read anew at each use; the rest only by a new daemon.
fn answer_hangups() -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::warn!(
                "SIGHUP: config.toml is read at the start only; restart for new settings, pods run on"
            );
        }
    });
    Ok(())
}

/// Resolves at the first of the signals. Listening begins at once.
fn end_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "ending, pods run on");
    })
}

/// Without systemd this does nothing.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "service manager not told");
    }
}

/// A node in `dir` that starts nothing.
#[cfg(test)]
pub(crate) fn test_node(dir: &std::path::Path) -> Node {
    let mut config = Config {
        root: dir.join("root"),
        state: dir.join("state"),
        socket: dir.join("socket"),
        ..Config::default()
    };
    config.cni.conf_dir = dir.join("cni");
    config.pod.netns_dir = dir.join("netns");
    config.pod.agent = "/bin/true".into();
    open_blocking(&config).unwrap().node
}
