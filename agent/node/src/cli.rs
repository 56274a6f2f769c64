//! The command line: what it accepts, and how its end becomes an exit code.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hartpod_container::hooks::be_hook;
use tracing_subscriber::filter::LevelFilter;

use crate::commands;
use crate::config::{Config, Overrides};
use crate::serve::runtime;
use crate::{logging, open_files, serve};

/// As a shell's, of a hook that is not there, and of one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTED: u8 = 126;

/// A Kubernetes node runtime: pods as namespace containers, one small agent per pod.
#[derive(Debug, Parser)]
#[command(name = "hartpod", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: CRI over a unix socket, logs to stderr (filtered by RUST_LOG).
    Serve(ServeArgs),
    /// Run a whole pod in a temporary folder from an image inside this program, and show what happened.
    Demo,
    /// Tell whether this node can run pods, one line for each thing needed; exit code 1 on a blocker.
    Check(ConfigArg),
    /// Run one pod by hand through the daemon's socket, show its output, and pass on its exit code.
    Run(commands::run::RunArgs),
    /// Build what guest pods boot.
    Guest(commands::guest::GuestArgs),
    /// The first process of a systemd scope, until its input ends. For the daemon alone.
    #[command(hide = true)]
    Placeholder,
    /// Becomes a poststop hook of a container: its path, its variables and their number, its name and its arguments. For the daemon alone.
    #[command(hide = true)]
    Hook {
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Print the configuration in effect, or the sample file, or check a file.
    Config(ConfigArgs),
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// Configuration file [default: /etc/hartpod/config.toml when it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    file: ConfigArg,
    /// What outlives a reboot [default: /var/lib/hartpod]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What a reboot clears [default: /run/hartpod]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The CRI socket [default: hartpod.sock in the state folder]
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(flatten)]
    file: ConfigArg,
    /// Print the sample file: every key with its default and what it means
    #[arg(long, conflicts_with_all = ["check", "config"])]
    default: bool,
    /// Report every problem of this file; exit code 1 when there is one
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<PathBuf>,
}

/// The whole program.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hartpod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            logging::start(LevelFilter::INFO);
            open_files::raise();
            let overrides = Overrides { root: args.root, state: args.state, socket: args.socket };
            let config = Config::load(args.file.config.as_deref(), overrides)?;
            let runtime = runtime()?;
            let served = runtime.block_on(serve::serve(config));
            // Work in flight is the next daemon's to finish or undo; a thread that waits for a disk must not hold this one.
            runtime.shutdown_background();
            served?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo => {
            logging::start(LevelFilter::WARN);
            runtime()?.block_on(commands::demo::demo())
        }
        Command::Check(args) => {
            logging::start(LevelFilter::WARN);
            commands::check::check(&Config::load(args.config.as_deref(), Overrides::default())?)
        }
        Command::Run(args) => {
            logging::start(LevelFilter::WARN);
            let runtime = runtime()?;
            let ended = runtime.block_on(commands::run::run(args));
            // A terminal that takes no more output must not hold the process.
            runtime.shutdown_background();
            ended
        }
        Command::Guest(args) => commands::guest::guest(args),
        Command::Placeholder => {
            crate::systemd::be_placeholder();
            Ok(ExitCode::SUCCESS)
        }
        Command::Hook { command } => match be_hook(&command) {
            Ok(never) => match never {},
            Err(error) => {
                let path = command.get(1).map(Path::new).unwrap_or(Path::new(""));
                eprintln!("execute {}: {error}", path.display());
                Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTED }))
            }
        },
        Command::Config(args) => commands::config::config(&args.into()),
    }
}

impl From<ConfigArgs> for commands::config::Ask {
    fn from(args: ConfigArgs) -> Self {
        match (args.default, args.check) {
            (true, _) => Self::Sample,
            (false, Some(file)) => Self::Check(file),
            (false, None) => Self::InEffect(args.file.config),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_command_with_flags_of_its_own() {
        let cli = Cli::try_parse_from(["hartpod", "run", "busybox", "ls", "-l", "--color"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.image, "busybox");
        assert_eq!(args.command, ["ls", "-l", "--color"]);
        let cli = Cli::try_parse_from(["hartpod", "run", "-it", "busybox", "sh", "-i"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.command, ["sh", "-i"]);
    }

    #[test]
    fn the_daemons_placeholder_is_a_command() {
        let cli = Cli::try_parse_from(["hartpod", crate::systemd::PLACEHOLDER]).unwrap();
        assert!(matches!(cli.command, Command::Placeholder), "{cli:?}");
    }

    #[test]
    fn a_hook_has_its_arguments_to_itself() {
        let line =
            ["hartpod", crate::poststop::ROLE, "--", "/bin/sh", "1", "--A=b", "sh", "--help", "--", "-c"];
        let cli = Cli::try_parse_from(line).unwrap();
        let Command::Hook { command } = cli.command else { panic!("{cli:?}") };
        assert_eq!(command, ["/bin/sh", "1", "--A=b", "sh", "--help", "--", "-c"]);
    }

    #[test]
    fn config_asks_for_one_thing() {
        for line in [&["--default", "--check", "f"][..], &["--config", "f", "--check", "g"]] {
            let all = ["hartpod", "config"].iter().chain(line);
            assert!(Cli::try_parse_from(all).is_err(), "{line:?}");
        }
    }
}
