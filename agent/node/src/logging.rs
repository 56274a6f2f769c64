//! Log lines: to stderr, filtered by RUST_LOG, one for each event. A terminal gets colours; the journal gets levels that it understands, and no times, for it
//! has its own (sd-daemon(3)).

use std::fmt;
use std::io::IsTerminal as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging at `level` unless RUST_LOG says otherwise. An unreadable RUST_LOG is told once and `level` used.
pub(crate) fn start(level: LevelFilter) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let parsed = EnvFilter::builder().with_default_directive(level.into()).parse(&wanted);
    let (filter, problem) = match parsed {
        Ok(filter) => (filter, None),
        Err(problem) => (EnvFilter::default().add_directive(level.into()), Some(problem)),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A line that cannot be written would be told where it could not: eprintln panics then.
    let log = log.log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        log.with_ansi(true).with_target(false).init();
    } else {
        log.with_ansi(false).event_format(Lines { reader: reader() }).init();
    }
    if let Some(problem) = problem {
        tracing::warn!(%problem, rust_log = wanted, "RUST_LOG is not understood and was ignored");
    }
}

/// Who reads the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Journal,
    Other,
}

/// Stderr may have been sent elsewhere by someone in between, who left the variable as it was (systemd.exec(5)).
fn reader() -> Reader {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    match rustix::fs::fstat(std::io::stderr()) {
        Ok(stat) if named == format!("{}:{}", stat.st_dev, stat.st_ino) => Reader::Journal,
        Ok(_) | Err(_) => Reader::Other,
    }
}

/// One line for each event, whatever it quotes.
struct Lines {
    reader: Reader,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        let format = Format::default().with_target(false);
        match self.reader {
            Reader::Other => format.format_event(context, Writer::new(&mut line), event)?,
            Reader::Journal => {
                write!(writer, "<{}>", priority(*event.metadata().level()))?;
                let format = format.without_time().with_level(false);
                format.format_event(context, Writer::new(&mut line), event)?;
            }
        }
        let line = line.strip_suffix('\n').unwrap_or(&line);
        writeln!(writer, "{}", line.replace(|c: char| c.is_control(), " "))
    }
}

/// syslog(3)'s numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(reader: Reader, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(Lines { reader })
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_journal_gets_levels_and_no_times() {
        let text = logged(Reader::Journal, || {
            tracing::info!(sandbox = "ab", "sandbox ready");
            tracing::warn!("odd");
            tracing::error!("bad");
        });
        assert_eq!(text, "<6>sandbox ready sandbox=\"ab\"\n<4>odd\n<3>bad\n");
    }

    #[test]
    fn others_get_both() {
        let text = logged(Reader::Other, || tracing::info!(sandbox = "ab", "sandbox ready"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{text}");
        assert_eq!(rest.trim_start(), "INFO sandbox ready sandbox=\"ab\"\n");
    }

    #[test]
    fn nothing_that_is_quoted_makes_a_line_of_its_own() {
        for reader in [Reader::Journal, Reader::Other] {
            let text = logged(reader, || tracing::warn!(error = %"no\n<0>all is lost\r\x1b[2J", "broken"));
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(text.ends_with('\n') && !text.contains(['\r', '\x1b']), "{text:?}");
        }
    }
}
