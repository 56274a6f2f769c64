//! `hartpod check`: can this node run pods? One line for each thing that is needed.

mod guests;
mod kernel;
mod overlay;
mod place;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Config;

/// What a look at one thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// As it should be.
    Ok(String),
    /// Pods run, but something about them does not work, or not yet.
    Warn(String),
    /// No pod can run.
    Fail(String),
    /// Something that this node does not have, and need not.
    Note(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match self {
            Self::Ok(text) => ("ok", text),
            Self::Warn(text) => ("warn", text),
            Self::Fail(text) => ("fail", text),
            Self::Note(text) => ("-", text),
        };
        write!(f, "{word:4}  {text}")
    }
}

/// Everything that is looked at, in the order of the output.
fn look(config: &Config) -> Vec<(&'static str, Finding)> {
    let mut findings = vec![
        ("kernel", kernel::version()),
        ("system calls", kernel::system_calls()),
        ("namespaces", kernel::namespaces()),
        ("capabilities", kernel::capabilities()),
        ("seccomp", kernel::seccomp()),
        ("lsm", kernel::security_modules()),
        ("cgroups", kernel::cgroups(&config.cgroup.root)),
        ("overlayfs", overlay::overlayfs(&config.root)),
        ("user namespaces", place::user_namespaces(&config.root)),
        ("space", place::space(&config.root)),
        ("pod agent", place::pod_agent(config)),
        ("network", place::network(config)),
        ("forwarding", place::forwarding()),
        ("streaming", place::streaming(config)),
    ];
    findings.extend(guests::look(config));
    findings
}

/// Prints the findings and a verdict; exit code 1 when no pod can run.
pub fn check(config: &Config) -> anyhow::Result<ExitCode> {
    let findings = look(config);
    report(&mut io::stdout().lock(), &findings)?;
    let blocked = findings.iter().any(|(_, f)| matches!(f, Finding::Fail(_)));
    Ok(if blocked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(out: &mut impl Write, findings: &[(&str, Finding)]) -> io::Result<()> {
    let width = findings.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, finding) in findings {
        writeln!(out, "{name:width$}  {finding}")?;
    }
    let count = |wanted: fn(&Finding) -> bool| findings.iter().filter(|(_, f)| wanted(f)).count();
    let fails = count(|f| matches!(f, Finding::Fail(_)));
    let warnings = count(|f| matches!(f, Finding::Warn(_)));
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    match (fails, warnings) {
        (0, 0) => writeln!(out, "\nThis node can run pods."),
        (0, n) => writeln!(out, "\nThis node can run pods, with {n} warning{}.", plural(n)),
        (n, _) => writeln!(out, "\nThis node cannot run pods: {n} blocker{}.", plural(n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(findings: &[(&str, Finding)]) -> String {
        let mut out = Vec::new();
        report(&mut out, findings).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_aligned_and_the_verdict_counts() {
        let ok = ("kernel", Finding::Ok("6.12".into()));
        let warn = ("network", Finding::Warn("no configuration".into()));
        let fail = ("cgroups", Finding::Fail("none".into()));
        assert_eq!(
            told(&[ok.clone(), warn.clone()]),
            "kernel   ok    6.12\nnetwork  warn  no configuration\n\nThis node can run pods, with 1 warning.\n"
        );
        assert!(told(std::slice::from_ref(&ok)).ends_with("\n\nThis node can run pods.\n"));
        let note = ("guests", Finding::Note("not here".into()));
        assert_eq!(
            told(&[ok.clone(), note]),
            "kernel  ok    6.12\nguests  -     not here\n\nThis node can run pods.\n"
        );
        assert!(told(&[ok, warn, fail]).ends_with("\n\nThis node cannot run pods: 1 blocker.\n"));
    }

    #[test]
    fn a_look_at_this_machine_says_something_about_everything() {
        for (name, finding) in look(&Config::default()) {
            let (Finding::Ok(text) | Finding::Warn(text) | Finding::Fail(text) | Finding::Note(text)) =
                finding;
            assert!(!text.is_empty() && !text.contains('\n'), "{name}: {text:?}");
        }
    }
}
