//! Runs tests: lists them for nextest, gives each its namespaces, and says why some are skipped.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};

use crate::eventually::patient;
use crate::isolation;
use crate::lab::Lab;
use crate::skip::Need;

/// What every end-to-end test needs.
const ALWAYS: &[Need] =
    &[Need::Root, Need::Binaries, Need::Registry, Need::Busybox, Need::CniPlugins, Need::Iptables];
/// Below nextest's own limits, so that a test that hangs still tells its story.
const TIME_LIMIT: Duration = Duration::from_secs(160);
/// For tests in `long`.
const LONG_TIME_LIMIT: Duration = Duration::from_secs(570);

/// The body of a test, boxed so that a list of tests can hold it.
pub type Body = for<'a> fn(&'a Lab) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// One end-to-end test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// `module::function`.
    pub name: &'static str,
    /// What it needs besides what all need.
    pub needs: &'static [Need],
    pub body: Body,
}

/// Lists a module's tests: `tests![one_thing, another_thing needs Need::MemoryController]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(needs $need:expr)?),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[$crate::Test] = &[$($crate::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            needs: &[$($need)?],
            body: |lab| Box::pin($name(lab)),
        }),*];
    };
}

impl Test {
    /// `lifecycle::stop_is_idempotent`: the crate's name says nothing.
    fn short_name(&self) -> &'static str {
        self.name.split_once("::").map_or(self.name, |(_, rest)| rest)
    }

    fn missing(&self) -> Option<String> {
        ALWAYS.iter().chain(self.needs).find_map(|need| need.missing())
    }
}

/// The test program's main.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let outcome = match std::env::var(isolation::ROLE).as_deref() {
        Ok("init") => isolation::init(),
        Ok("test") => run_test(&tests),
        _ if std::env::args().any(|argument| argument == "--skips") => {
            print_skips(&tests);
            Ok(ExitCode::SUCCESS)
        }
        _ => return libtest_mimic::run(&Arguments::from_args(), trials(tests)).exit_code(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn trials(tests: Vec<Test>) -> Vec<Trial> {
    let trial = |test: Test| {
        let run = move || isolation::run(test.short_name()).map_err(|error| format!("{error:#}").into());
        Trial::test(test.short_name(), run).with_ignored_flag(test.missing().is_some())
    };
    tests.into_iter().map(trial).collect()
}

fn print_skips(tests: &[Test]) {
    for test in tests {
        if let Some(reason) = test.missing() {
            println!("skipped: {}: {reason}", test.short_name());
        }
    }
}

/// Runs the body of one test, inside its namespaces.
fn run_test(tests: &[Test]) -> Result<ExitCode> {
    let name = std::env::var(isolation::TEST).context(isolation::TEST)?;
    let dir = PathBuf::from(std::env::var(isolation::DIR).context(isolation::DIR)?);
    let test = tests.iter().find(|test| test.short_name() == name).context("no such test")?;
    let limit = patient(if name.starts_with("long::") { LONG_TIME_LIMIT } else { TIME_LIMIT });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let body = test.body;
    let run = std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let lab = Lab::open(&dir)?;
            let in_time = async {
                body(&lab).await?;
                lab.close().await.context("after the test")
            };
            tokio::time::timeout(limit, in_time)
                .await
                .with_context(|| format!("not done within {limit:?}"))?
        })
    });
    let outcome = std::panic::catch_unwind(run);
    runtime.shutdown_background();
    if let Ok(Ok(())) = outcome {
        return Ok(ExitCode::SUCCESS);
    }
    if let Ok(Err(error)) = outcome {
        eprintln!("{name}: {error:#}");
    }
    eprintln!("{}", Lab::logs(&dir));
    Ok(ExitCode::FAILURE)
}
