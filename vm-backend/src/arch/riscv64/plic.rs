//! A platform-level interrupt controller (RISC-V PLIC specification 1.0.0, with the register map of SiFive's), in the VMM.
//!
//! All sources are level-triggered. A source's gateway hands on one request when its wire is high: the source becomes *pending*. A hart that
//! *claims* takes the pending source of the highest priority; the gateway then stays shut until the hart *completes* it, and if the wire
//! is still high the source is pending again at once. Each hart has one context, its S-mode one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::SOURCES;
use crate::bus::MmioDevice;
use crate::virtio::Line;

/// Register map (PLIC specification, chapter 3).
const PENDING: u64 = 0x1000;
const ENABLE: u64 = 0x2000;
const ENABLE_STRIDE: u64 = 0x80;
const CONTEXT: u64 = 0x20_0000;
const CONTEXT_STRIDE: u64 = 0x1000;
const THRESHOLD: u64 = 0;
const CLAIM: u64 = 4;
/// Priorities have three bits, as on SiFive's parts; 0 is never.
const PRIORITY_MASK: u8 = 7;
/// Source 0 does not exist.
const ALL_SOURCES: u64 = !1;
const _: () = assert!(SOURCES == 63, "the state below is one bit per source");

/// The state of a PLIC; pure.
#[derive(Debug, Clone)]
pub struct Plic {
    /// By source.
    priority: [u8; SOURCES as usize + 1],
    /// A bit per source: the wire is high.
    level: u64,
    /// A bit per source: a request waits to be claimed.
    pending: u64,
    /// A bit per source: claimed and not completed; its gateway is shut.
    claimed: u64,
    contexts: Vec<Context>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Context {
    enabled: u64,
    threshold: u8,
}

impl Plic {
    /// A PLIC after reset, for `contexts` harts.
    #[must_use]
    pub fn new(contexts: usize) -> Self {
        Self {
            priority: [0; SOURCES as usize + 1],
            level: 0,
            pending: 0,
            claimed: 0,
            contexts: vec![Context::default(); contexts],
        }
    }

    /// The wire of `source` goes high or low. A request that is pending stays so when the wire goes low.
    pub fn set_level(&mut self, source: u32, high: bool) {
        let Some(bit) = source_bit(source) else { return };
        if high {
            self.level |= bit;
        } else {
            self.level &= !bit;
        }
        self.open_gateways();
    }

    /// Whether the interrupt wire of a context is high: a source is pending, enabled, and above its threshold.
    #[must_use]
    pub fn output(&self, context: usize) -> bool {
        self.contexts.get(context).is_some_and(|c| {
            bits(self.pending & c.enabled).any(|source| self.priority_of(source) > c.threshold)
        })
    }

    /// Reads the register at `offset`; reading a claim register claims. What is no register reads 0.
    pub fn read(&mut self, offset: u64) -> u32 {
        match Register::at(offset) {
            Some(Register::Priority(source)) => u32::from(self.priority_of(source)),
            Some(Register::Pending(word)) => half(self.pending, word),
            Some(Register::Enable { context, word }) => {
                self.contexts.get(context).map_or(0, |c| half(c.enabled, word))
            }
            Some(Register::Threshold(context)) => {
                self.contexts.get(context).map_or(0, |c| u32::from(c.threshold))
            }
            Some(Register::Claim(context)) => self.claim(context),
            None => 0,
        }
    }

    /// Writes the register at `offset`; writing a claim register completes. Writes to what is no register are lost.
    pub fn write(&mut self, offset: u64, value: u32) {
        match Register::at(offset) {
            Some(Register::Priority(source)) => {
                if let (Some(_), Some(priority)) =
                    (source_bit(source), self.priority.get_mut(source as usize))
                {
                    *priority = value.to_le_bytes()[0] & PRIORITY_MASK;
                }
            }
            Some(Register::Enable { context, word }) => {
                if let Some(c) = self.contexts.get_mut(context) {
                    let shift = word * 32;
                    c.enabled = (c.enabled & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift)
                        & ALL_SOURCES;
                }
            }
            Some(Register::Threshold(context)) => {
                if let Some(c) = self.contexts.get_mut(context) {
                    c.threshold = value.to_le_bytes()[0] & PRIORITY_MASK;
                }
            }
            Some(Register::Claim(context)) => self.complete(context, value),
            Some(Register::Pending(_)) | None => {}
        }
    }

    /// The pending and enabled source of the highest priority, the lowest number among equals; 0 if there is none. The threshold does not
    /// matter here (PLIC specification, chapter 7).
    fn claim(&mut self, context: usize) -> u32 {
        let Some(c) = self.contexts.get(context) else { return 0 };
        let best = bits(self.pending & c.enabled)
            .filter(|source| self.priority_of(*source) > 0)
            .min_by_key(|source| (PRIORITY_MASK - self.priority_of(*source), *source));
        let Some((source, bit)) = best.and_then(|s| Some((s, source_bit(s)?))) else { return 0 };
        self.pending &= !bit;
        self.claimed |= bit;
        source
    }

    /// Silently ignored if the source is not enabled for the context; not compared with what was claimed (chapter 8).
    fn complete(&mut self, context: usize, source: u32) {
        let (Some(c), Some(bit)) = (self.contexts.get(context), source_bit(source)) else { return };
        if c.enabled & bit != 0 {
            self.claimed &= !bit;
            self.open_gateways();
        }
    }

    fn open_gateways(&mut self) {
        self.pending |= self.level & !self.claimed;
    }

    fn priority_of(&self, source: u32) -> u8 {
        self.priority.get(source as usize).copied().unwrap_or(0)
    }
}

enum Register {
    Priority(u32),
    Pending(usize),
    Enable { context: usize, word: usize },
    Threshold(usize),
    Claim(usize),
}

impl Register {
    fn at(offset: u64) -> Option<Self> {
        if offset % 4 != 0 {
            return None;
        }
        let index = |bytes: u64| usize::try_from(bytes).ok();
        match offset {
            ..PENDING => Some(Self::Priority(u32::try_from(offset / 4).ok()?)),
            PENDING..ENABLE => words(index((offset - PENDING) / 4)?).map(Self::Pending),
            ENABLE..CONTEXT => {
                let at = offset - ENABLE;
                let word = words(index(at % ENABLE_STRIDE / 4)?)?;
                Some(Self::Enable { context: index(at / ENABLE_STRIDE)?, word })
            }
            CONTEXT.. => {
                let at = offset - CONTEXT;
                let context = index(at / CONTEXT_STRIDE)?;
                match at % CONTEXT_STRIDE {
                    THRESHOLD => Some(Self::Threshold(context)),
                    CLAIM => Some(Self::Claim(context)),
                    _ => None,
                }
            }
        }
    }
}

/// Two words hold all sources; the others read 0.
fn words(word: usize) -> Option<usize> {
    (word < 2).then_some(word)
}

fn half(bits: u64, word: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // the half that is asked for
    let half = (bits >> (word * 32)) as u32;
    half
}

fn source_bit(source: u32) -> Option<u64> {
    (1..=SOURCES).contains(&source).then(|| 1 << source)
}

fn bits(mut set: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lowest = set.trailing_zeros();
        (set != 0).then(|| {
            set &= set - 1;
            lowest
        })
    })
}

/// The wires from a PLIC to the harts.
pub trait Outputs: Send + std::fmt::Debug {
    /// The external interrupt of `context` goes high or low.
    fn set(&mut self, context: usize, high: bool);
}

/// A PLIC on the bus, with its wires on both sides.
#[derive(Debug)]
pub struct PlicDevice {
    state: Mutex<Wired>,
}

/// Outputs follow the state under the same lock, so a late change never overtakes an earlier one.
#[derive(Debug)]
struct Wired {
    plic: Plic,
    /// What the outputs were last set to.
    driven: Vec<bool>,
    outputs: Box<dyn Outputs>,
}

impl PlicDevice {
    /// A PLIC for `contexts` harts.
    #[must_use]
    pub fn new(contexts: usize, outputs: Box<dyn Outputs>) -> Arc<Self> {
        let wired = Wired { plic: Plic::new(contexts), driven: vec![false; contexts], outputs };
        Arc::new(Self { state: Mutex::new(wired) })
    }

    /// The wire of `source`.
    #[must_use]
    pub fn line(self: &Arc<Self>, source: u32) -> Box<dyn Line> {
        Box::new(PlicLine { plic: Arc::clone(self), source })
    }

    fn with<R>(&self, change: impl FnOnce(&mut Plic) -> R) -> R {
        let mut guard: MutexGuard<'_, Wired> = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Wired { plic, driven, outputs } = &mut *guard;
        let result = change(plic);
        for (context, was) in driven.iter_mut().enumerate() {
            let now = plic.output(context);
            if now != *was {
                *was = now;
                outputs.set(context, now);
            }
        }
        result
    }
}

/// Registers are 32 bits wide; other accesses read 0 and write nothing.
impl MmioDevice for PlicDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.with(|plic| plic.read(offset)).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.with(|plic| plic.write(offset, u32::from_le_bytes(word)));
        }
    }
}

#[derive(Debug)]
struct PlicLine {
    plic: Arc<PlicDevice>,
    source: u32,
}

impl Line for PlicLine {
    fn set(&self, high: bool) {
        self.plic.with(|plic| plic.set_level(self.source, high));
    }
}

#[cfg(test)]
mod tests;
