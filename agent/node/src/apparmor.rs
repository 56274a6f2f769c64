//! AppArmor: which profiles the kernel has, and one of our own.
//!
//! A profile is entered by the container's process at its execve (container-backend); here is what has to be there before.

mod profile;

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use hartpod_container::hooks::{Tail, wait_blocking};
use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) use profile::DEFAULT_PROFILE;

/// Where administrators' programs are; not in everybody's PATH.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// For the program to translate and load a profile; a slow machine needs some seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// AppArmor of this node's kernel.
#[derive(Debug)]
pub struct AppArmor {
    /// The list of profiles, in securityfs.
    profiles: PathBuf,
    parsers: Vec<PathBuf>,
    /// Held while the default profile is loaded.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// This daemon has loaded the default profile.
    loaded: bool,
    /// There while a parser is that was killed, and has not ended of it: the kernel holds it.
    stuck: Weak<()>,
}

/// A profile cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    #[error("read {}: is securityfs mounted?", path.display())]
    Profiles { path: PathBuf, source: io::Error },
    #[error(
        "AppArmor is enabled, but there is no apparmor_parser to load {DEFAULT_PROFILE} with: install the package apparmor"
    )]
    NoParser,
    #[error("run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("load {DEFAULT_PROFILE}: an earlier apparmor_parser hangs in the kernel")]
    Stuck,
    #[error("load {DEFAULT_PROFILE}: {} failed ({status}): {said}", program.display())]
    Refused { program: PathBuf, status: ExitStatus, said: String },
}

impl AppArmor {
    /// That of the running kernel, where it is enabled.
    pub(crate) fn detect() -> Option<Self> {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").ok()?;
        enabled.starts_with('Y').then(|| Self {
            profiles: "/sys/kernel/security/apparmor/profiles".into(),
            parsers: PARSERS.map(PathBuf::from).into(),
            state: Mutex::default(),
        })
    }

    /// Whether there is a program that loads profiles.
    pub(crate) fn has_parser(&self) -> bool {
        self.parser().is_some()
    }

    fn parser(&self) -> Option<&Path> {
        self.parsers.iter().map(PathBuf::as_path).find(|path| path.exists())
    }

    /// Whether the kernel knows a profile of this name.
    pub(crate) fn has_blocking(&self, name: &str) -> Result<bool, AppArmorError> {
        let failed = |source| AppArmorError::Profiles { path: self.profiles.clone(), source };
        let list = std::fs::read_to_string(&self.profiles).map_err(failed)?;
        // "NAME (enforce)", and a name may have spaces.
        Ok(list.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name))
    }

    /// Loads [`DEFAULT_PROFILE`], unless this daemon has done so and it is still there. An earlier daemon's is replaced: it may be of
    /// another version.
    pub(crate) fn load_default_blocking(&self) -> Result<(), AppArmorError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.loaded && self.has_blocking(DEFAULT_PROFILE)? {
            return Ok(());
        }
        // Another would hang with it, and everybody who waits for the lock.
        if state.stuck.strong_count() > 0 {
            return Err(AppArmorError::Stuck);
        }
        let parser = self.parser().ok_or(AppArmorError::NoParser)?;
        load_blocking(
            parser,
            &profile::text(own_profile().as_deref(), Path::new(profile::ABI).exists()),
            PATIENCE,
            &mut state.stuck,
        )?;
        tracing::info!(profile = DEFAULT_PROFILE, "AppArmor profile loaded");
        state.loaded = true;
        Ok(())
    }
}

/// What this process runs under, if anything.
fn own_profile() -> Option<String> {
    let read = |path| std::fs::read_to_string(path).ok();
    let own = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"))?;
    let own = own.trim_end_matches(['\n', '\0']);
    let name = own.rsplit_once(" (").map_or(own, |(name, _)| name);
    let plain = !name.is_empty() && !name.contains(['"', '\\', '\n']);
    (plain && name != "unconfined").then(|| name.to_owned())
}

/// Replaces the profile in the kernel, without a look at the cache.
fn load_blocking(
    parser: &Path,
    text: &str,
    patience: Duration,
    stuck: &mut Weak<()>,
) -> Result<(), AppArmorError> {
    let run = |source| AppArmorError::Run { program: parser.to_owned(), source };
    // Not a pipe: a program that does not read must hold up nobody.
    let profile = memfd_create("profile", MemfdFlags::CLOEXEC).map_err(|error| run(error.into()))?;
    let mut profile = File::from(profile);
    profile.write_all(text.as_bytes()).and_then(|()| profile.rewind()).map_err(run)?;
    let mut command = Command::new(parser);
    command.arg("-Kr").stdin(profile).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(run)?;
    let (stderr, mut tail) = (child.stderr.take(), Tail::default());
    let ended = wait_blocking(&mut child, stderr, &mut tail, Instant::now() + patience);
    if !matches!(ended, Ok(Some(_))) {
        let _ = child.kill();
        let there = Arc::new(());
        *stuck = Arc::downgrade(&there);
        // What then waits for the kernel is nobody's to wait for but a thread's. Without one, it is not reaped.
        let reaper = Builder::new().name("apparmor".to_owned());
        let _ = reaper.spawn(move || {
            let _ = child.wait();
            drop(there);
        });
    }
    let status = ended.and_then(|status| status.ok_or(io::ErrorKind::TimedOut.into())).map_err(run)?;
    if status.success() {
        return Ok(());
    }
    Err(AppArmorError::Refused { program: parser.to_owned(), status, said: tail.text() })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// AppArmor whose files are in `dir`: a list of profiles, and a parser that writes what it is given beside it.
    pub(crate) fn fake(dir: &Path, profiles: &str) -> AppArmor {
        let list = dir.join("profiles");
        std::fs::write(&list, profiles).unwrap();
        let parser = dir.join("parser");
        let script = format!(
            "#!/bin/sh\n[ \"$*\" = -Kr ] || exit 2\ncat >{0}/loaded\necho x >>{0}/count\necho 'hartpod-default (enforce)' >>{0}/profiles\n",
            dir.display()
        );
        std::fs::write(&parser, script).unwrap();
        std::fs::set_permissions(&parser, PermissionsExt::from_mode(0o755)).unwrap();
        AppArmor { profiles: list, parsers: vec![dir.join("none"), parser], state: Mutex::default() }
    }

    #[test]
    fn profiles_are_known_by_their_whole_names() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path(), "one (enforce)\n/usr/bin/two words (complain)\nthree (x) (enforce)\n");
        for (name, known) in [
            ("one", true),
            ("/usr/bin/two words", true),
            ("three (x)", true),
            ("on", false),
            ("two words", false),
            ("", false),
        ] {
            assert_eq!(kernel.has_blocking(name).unwrap(), known, "{name}");
        }
        std::fs::remove_file(dir.path().join("profiles")).unwrap();
        assert!(kernel.has_blocking("one").unwrap_err().to_string().contains("is securityfs mounted?"));
    }

    #[test]
    fn the_default_profile_is_loaded_once_and_again_when_it_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        // One of an earlier daemon is there.
        let kernel = fake(dir.path(), "hartpod-default (enforce)\n");
        let times = || std::fs::read_to_string(dir.path().join("count")).unwrap_or_default().len() / 2;
        for expected in [1, 1] {
            kernel.load_default_blocking().unwrap();
            assert_eq!(times(), expected);
        }
        let text = std::fs::read_to_string(dir.path().join("loaded")).unwrap();
        assert!(text.contains("profile hartpod-default ") && text.contains("deny mount,"), "{text}");
        std::fs::write(dir.path().join("profiles"), "").unwrap();
        kernel.load_default_blocking().unwrap();
        assert_eq!(times(), 2);
    }

    #[test]
    fn what_the_parser_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = fake(dir.path(), "");
        std::fs::write(dir.path().join("parser"), "#!/bin/sh\necho no room >&2; exit 3\n").unwrap();
        let error = kernel.load_default_blocking().unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 3): no room"), "{error}");
        std::fs::write(dir.path().join("parser"), "#!/bin/sh\nexec sleep 1000\n").unwrap();
        let began = Instant::now();
        let mut stuck = Weak::new();
        let late = load_blocking(&dir.path().join("parser"), "", Duration::from_millis(100), &mut stuck);
        let late = late.unwrap_err();
        assert!(crate::chain(&late).ends_with("timed out"), "{late:?}");
        while stuck.strong_count() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        kernel.parsers.clear();
        assert!(matches!(kernel.load_default_blocking(), Err(AppArmorError::NoParser)));
    }

    #[test]
    fn nobody_waits_for_a_second_parser_while_one_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, there) = (fake(dir.path(), ""), Arc::new(()));
        kernel.state.lock().unwrap().stuck = Arc::downgrade(&there);
        assert!(matches!(kernel.load_default_blocking(), Err(AppArmorError::Stuck)));
        drop(there);
        kernel.load_default_blocking().unwrap();
    }

    #[test]
    fn the_daemon_may_be_confined_itself() {
        let text = profile::text(Some("/usr/bin/hartpod"), true);
        assert!(text.starts_with("abi <abi/3.0>,\nprofile hartpod-default"), "{text}");
        assert!(text.contains("signal (receive) peer=\"/usr/bin/hartpod\",\n"), "{text}");
        assert!(!profile::text(None, false).contains("abi/"));
    }
}
