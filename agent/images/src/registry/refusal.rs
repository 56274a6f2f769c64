//! Why a host did not give what it was asked for.

use crate::digest::shorten;
use crate::pull::error::{Attempt, Attempts};

/// What kind of no it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It has no such thing.
    NotFound,
    /// It wants other credentials.
    Unauthorized,
    /// It could not be reached, was too slow, or has a fault.
    Unavailable,
    /// It sent something else than what it was asked for.
    Wrong,
}

/// One host's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) class: Class,
    /// In words.
    pub(super) said: String,
    /// It is not worth another question during this pull.
    pub(super) dead: bool,
}

impl Refusal {
    pub(super) fn unavailable(said: impl Into<String>) -> Refusal {
        Refusal { class: Class::Unavailable, said: said.into(), dead: false }
    }

    pub(super) fn wrong(said: impl Into<String>) -> Refusal {
        Refusal { class: Class::Wrong, said: said.into(), dead: true }
    }

    pub(super) fn dead(said: impl Into<String>) -> Refusal {
        Refusal { dead: true, ..Refusal::unavailable(said) }
    }
}

/// The noes of all hosts that were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    all: Vec<(Class, Attempt)>,
}

impl Refusals {
    pub(super) fn add(&mut self, host: String, refusal: Refusal) {
        self.all.push((refusal.class, Attempt { host, said: refusal.said }));
    }

    /// The registry itself, which is asked last, knows best. A mirror that is down tells nothing of the image.
    pub(crate) fn class(&self) -> Class {
        self.all.last().map_or(Class::Unavailable, |(class, _)| *class)
    }

    pub(crate) fn into_attempts(self) -> Attempts {
        Attempts(self.all.into_iter().map(|(_, attempt)| attempt).collect())
    }
}

/// Text of a registry, fit for a message: one line, no control characters, not endless.
pub(super) fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten(clean.trim())
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    printable(&text)
}
