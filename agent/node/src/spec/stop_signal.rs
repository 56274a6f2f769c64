//! The signal that asks a container to stop.

use hartpod_proto::cri::v1 as cri;
use oci_spec::image::Config as ImageConfig;

use super::SpecError;

/// Number of SIGRTMIN as programs see it: two below are the C library's own (signal(7)).
const RTMIN: i32 = 34;
/// Number of SIGRTMAX.
const RTMAX: i32 = 64;

/// Numbers on every architecture but alpha, mips, parisc and sparc (signal(7)).
const NAMES: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// The request's signal, else the image's, else SIGTERM. An image's that means nothing is told and SIGTERM used.
pub(super) fn stop_signal(
    container: &cri::ContainerConfig,
    image: &ImageConfig,
    warnings: &mut Vec<String>,
) -> Result<i32, SpecError> {
    let asked = cri::Signal::try_from(container.stop_signal).ok();
    let invalid =
        || SpecError::invalid("config.stop_signal", format!("{} is not known", container.stop_signal));
    if asked != Some(cri::Signal::RuntimeDefault) {
        return asked.and_then(of_enum).ok_or_else(invalid);
    }
    let of_image = image.stop_signal().as_deref().unwrap_or_default();
    if of_image.is_empty() {
        return Ok(libc::SIGTERM);
    }
    Ok(parse(of_image).unwrap_or_else(|| {
        warnings.push(format!("the image's stop signal {of_image:?} is not known: SIGTERM is used"));
        libc::SIGTERM
    }))
}

/// CRI writes SIGRTMIN+1 as SIGNAL_SIGRTMINPLUS1.
fn of_enum(signal: cri::Signal) -> Option<i32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The first name that CRI has for a signal.
pub fn to_cri(number: i32) -> cri::Signal {
    let named = (1..).map_while(|value| cri::Signal::try_from(value).ok());
    named.into_iter().find(|signal| of_enum(*signal) == Some(number)).unwrap_or_default()
}

/// SIGTERM, TERM, 15, SIGRTMIN+3.
fn parse(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(n, _)| *n == name) {
        return Some(*number);
    }
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? })?
    } else {
        let offset = name.strip_prefix("RTMAX")?;
        RTMAX.checked_sub(if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? })?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    #[test]
    fn every_signal_of_cri_comes_back() {
        for number in 1..=RTMAX {
            let signal = to_cri(number);
            let known = !matches!(number, 32 | 33);
            assert_eq!(of_enum(signal), known.then_some(number), "{number}: {signal:?}");
        }
    }

    #[test]
    fn names_and_numbers_by_table() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-2", Some(62)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("RTMIN+2147483647", None),
            ("RTMAX--2147483648", None),
            ("0", None),
            ("65", None),
            ("SIGFOO", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number() {
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).unwrap();
            assert!(of_enum(signal).is_some(), "{}", signal.as_str_name());
        }
        assert_eq!(of_enum(cri::Signal::Sigrtminplus15), Some(49));
        assert_eq!(of_enum(cri::Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(of_enum(cri::Signal::Sigusr2), Some(libc::SIGUSR2));
    }

    #[test]
    fn the_names_agree_with_this_architecture() {
        for (name, number) in [
            ("BUS", libc::SIGBUS),
            ("CHLD", libc::SIGCHLD),
            ("STKFLT", libc::SIGSTKFLT),
            ("PWR", libc::SIGPWR),
            ("SYS", libc::SIGSYS),
            ("URG", libc::SIGURG),
            ("WINCH", libc::SIGWINCH),
            ("XFSZ", libc::SIGXFSZ),
        ] {
            assert_eq!(parse(name), Some(number), "{name}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let image = ConfigBuilder::default().stop_signal("SIGQUIT").build().unwrap();
        let mut config = cri::ContainerConfig::default();
        assert_eq!(stop_signal(&config, &image, &mut vec![]).unwrap(), libc::SIGQUIT);
        config.stop_signal = cri::Signal::Sigusr1.into();
        assert_eq!(stop_signal(&config, &image, &mut vec![]).unwrap(), libc::SIGUSR1);
        config.stop_signal = 99;
        assert!(stop_signal(&config, &image, &mut vec![]).is_err());
    }

    #[test]
    fn an_odd_stop_signal_of_the_image_is_told() {
        let image = ConfigBuilder::default().stop_signal("SIGNALLY").build().unwrap();
        let mut warnings = vec![];
        let found = stop_signal(&cri::ContainerConfig::default(), &image, &mut warnings).unwrap();
        assert_eq!((found, warnings.len()), (libc::SIGTERM, 1));
    }
}
