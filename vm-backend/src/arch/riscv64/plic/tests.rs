use super::*;

const HART0: u64 = CONTEXT;
const HART1: u64 = CONTEXT + CONTEXT_STRIDE;

fn enable(plic: &mut Plic, context: u64, sources: &[u32]) {
    let set = sources.iter().fold(0_u64, |set, s| set | 1 << s);
    plic.write(ENABLE + context * ENABLE_STRIDE, half(set, 0));
    plic.write(ENABLE + context * ENABLE_STRIDE + 4, half(set, 1));
}

fn priority(plic: &mut Plic, source: u32, priority: u32) {
    plic.write(u64::from(source) * 4, priority);
}

#[test]
fn a_source_interrupts_is_claimed_and_comes_again_while_its_wire_is_high() {
    let mut plic = Plic::new(1);
    priority(&mut plic, 8, 1);
    enable(&mut plic, 0, &[8]);
    plic.set_level(8, true);
    assert!(plic.output(0));
    assert_eq!(plic.read(HART0 + CLAIM), 8);
    assert!(!plic.output(0), "claimed: its gateway is shut though the wire is high");
    assert_eq!(plic.read(HART0 + CLAIM), 0);
    plic.write(HART0 + CLAIM, 8);
    assert!(plic.output(0), "still high after completion: pending at once");
    assert_eq!(plic.read(HART0 + CLAIM), 8);
    plic.set_level(8, false);
    plic.write(HART0 + CLAIM, 8);
    assert!(!plic.output(0));
}

#[test]
fn a_request_stays_pending_when_the_wire_goes_low_before_it_is_claimed() {
    let mut plic = Plic::new(1);
    plic.set_level(40, true);
    plic.set_level(40, false);
    assert_eq!((plic.read(PENDING), plic.read(PENDING + 4)), (0, 1 << 8));
    plic.write(PENDING + 4, 0);
    assert_eq!(plic.read(PENDING + 4), 1 << 8, "pending bits are read-only");
}

#[test]
fn higher_priority_wins_and_among_equals_the_lower_number() {
    let mut plic = Plic::new(1);
    enable(&mut plic, 0, &[3, 5, 9, 63]);
    for (source, p) in [(3, 2), (5, 7), (9, 7), (63, 1)] {
        priority(&mut plic, source, p);
        plic.set_level(source, true);
    }
    let order: Vec<u32> = (0..5).map(|_| plic.read(HART0 + CLAIM)).collect();
    assert_eq!(order, [5, 9, 3, 63, 0]);
}

#[test]
fn the_threshold_masks_the_wire_but_not_the_claim() {
    let mut plic = Plic::new(1);
    enable(&mut plic, 0, &[4]);
    priority(&mut plic, 4, 3);
    plic.set_level(4, true);
    plic.write(HART0 + THRESHOLD, 3);
    assert!(!plic.output(0), "3 is not above 3");
    plic.write(HART0 + THRESHOLD, 2);
    assert!(plic.output(0));
    plic.write(HART0 + THRESHOLD, 7);
    assert_eq!(plic.read(HART0 + CLAIM), 4);
}

#[test]
fn priority_zero_never_interrupts() {
    let mut plic = Plic::new(1);
    enable(&mut plic, 0, &[4]);
    plic.set_level(4, true);
    assert!(!plic.output(0));
    assert_eq!(plic.read(HART0 + CLAIM), 0);
}

#[test]
fn one_hart_claims_what_both_were_told_of() {
    let mut plic = Plic::new(2);
    priority(&mut plic, 8, 1);
    enable(&mut plic, 0, &[8]);
    enable(&mut plic, 1, &[8]);
    plic.set_level(8, true);
    assert!(plic.output(0) && plic.output(1));
    assert_eq!(plic.read(HART1 + CLAIM), 8);
    assert_eq!(plic.read(HART0 + CLAIM), 0);
    assert!(!plic.output(0) && !plic.output(1));
}

#[test]
fn completion_is_ignored_where_the_source_is_not_enabled() {
    let mut plic = Plic::new(2);
    priority(&mut plic, 8, 1);
    enable(&mut plic, 0, &[8]);
    plic.set_level(8, true);
    assert_eq!(plic.read(HART0 + CLAIM), 8);
    plic.write(HART1 + CLAIM, 8);
    assert_eq!(plic.read(PENDING), 0, "hart 1 has it not enabled");
    for nonsense in [0, 7, 64, u32::MAX] {
        plic.write(HART0 + CLAIM, nonsense);
    }
    assert_eq!(plic.read(PENDING), 0);
    plic.write(HART0 + CLAIM, 8);
    assert_eq!(plic.read(PENDING), 1 << 8);
}

#[test]
fn source_zero_and_sources_that_do_not_exist_are_wired_to_nothing() {
    let mut plic = Plic::new(1);
    plic.write(0, 7);
    plic.write(64 * 4, 7);
    plic.write(ENABLE, u32::MAX);
    assert_eq!((plic.read(0), plic.read(64 * 4), plic.read(ENABLE)), (0, 0, u32::MAX - 1));
    plic.set_level(0, true);
    plic.set_level(64, true);
    plic.set_level(u32::MAX, true);
    assert_eq!((plic.read(PENDING), plic.read(PENDING + 4), plic.output(0)), (0, 0, false));
}

#[test]
fn priorities_and_thresholds_have_three_bits() {
    let mut plic = Plic::new(1);
    priority(&mut plic, 1, 0xffff_ffff);
    plic.write(HART0 + THRESHOLD, 0xffff_fff9);
    assert_eq!((plic.read(4), plic.read(HART0)), (7, 1));
}

#[derive(Debug, Default, Clone)]
struct Wires(Arc<Mutex<Vec<(usize, bool)>>>);

impl Outputs for Wires {
    fn set(&mut self, context: usize, high: bool) {
        self.0.lock().unwrap().push((context, high));
    }
}

#[test]
fn outputs_are_driven_when_they_change_and_only_then() {
    let wires = Wires::default();
    let plic = PlicDevice::new(1, Box::new(wires.clone()));
    let line = plic.line(8);
    plic.write(8 * 4, &1_u32.to_le_bytes());
    line.set(true);
    assert!(wires.0.lock().unwrap().is_empty(), "not enabled yet");
    plic.write(ENABLE, &(1_u32 << 8).to_le_bytes());
    line.set(true);
    let mut claimed = [0; 4];
    plic.read(HART0 + CLAIM, &mut claimed);
    assert_eq!(u32::from_le_bytes(claimed), 8);
    line.set(false);
    plic.write(HART0 + CLAIM, &claimed);
    assert_eq!(*wires.0.lock().unwrap(), [(0, true), (0, false)]);
}

#[test]
fn odd_accesses_read_zero_and_write_nothing() {
    let plic = PlicDevice::new(1, Box::new(Wires::default()));
    plic.write(8 * 4, &[7]);
    plic.write(8 * 4, &[7; 8]);
    plic.write(8 * 4 + 2, &[7; 4]);
    let mut word = [0xff; 4];
    plic.read(8 * 4, &mut word);
    assert_eq!(word, [0; 4]);
    plic.write(8 * 4, &[5, 0, 0, 0]);
    for (offset, len) in
        [(8 * 4, 1), (8 * 4, 2), (8 * 4, 8), (8 * 4 + 1, 4), (u64::MAX - 3, 4), (0x30_0000, 4)]
    {
        let mut data = vec![0xff; len];
        plic.read(offset, &mut data);
        assert!(data.iter().all(|b| *b == 0), "{len} bytes at {offset:#x}");
    }
}

/// The rules once more, source by source and as slow as can be.
struct Model {
    level: [bool; 64],
    pending: [bool; 64],
    in_service: [bool; 64],
    priority: [u32; 64],
    enabled: Vec<[bool; 64]>,
    threshold: Vec<u32>,
}

impl Model {
    fn new(contexts: usize) -> Self {
        Self {
            level: [false; 64],
            pending: [false; 64],
            in_service: [false; 64],
            priority: [0; 64],
            enabled: vec![[false; 64]; contexts],
            threshold: vec![0; contexts],
        }
    }

    fn gateways(&mut self) {
        for s in 1..64 {
            if self.level[s] && !self.in_service[s] {
                self.pending[s] = true;
            }
        }
    }

    fn claim(&mut self, context: usize) -> u32 {
        let mut best = 0;
        for s in 1..64 {
            let higher = best == 0 || self.priority[s] > self.priority[best];
            if self.pending[s] && self.enabled[context][s] && self.priority[s] > 0 && higher {
                best = s;
            }
        }
        if best > 0 {
            self.pending[best] = false;
            self.in_service[best] = true;
        }
        u32::try_from(best).unwrap()
    }

    fn output(&self, context: usize) -> bool {
        (1..64).any(|s| {
            self.pending[s] && self.enabled[context][s] && self.priority[s] > self.threshold[context]
        })
    }
}

/// Xorshift64*: the same walk on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % n
    }
}

#[test]
fn random_walks_agree_with_the_model() {
    const CONTEXTS: u32 = 3;
    for seed in 1..=20 {
        let mut random = Random(seed * 0x9e37_79b9);
        let (mut plic, mut model) = (Plic::new(CONTEXTS as usize), Model::new(CONTEXTS as usize));
        for step in 0..3000 {
            // Few sources, so that they meet.
            let source = random.below(6) * 12 + 1;
            let (s, context) = (source as usize, random.below(CONTEXTS));
            let (c, base) = (context as usize, CONTEXT + u64::from(context) * CONTEXT_STRIDE);
            match random.below(6) {
                0 => {
                    let high = random.below(2) == 1;
                    plic.set_level(source, high);
                    model.level[s] = high;
                }
                1 => {
                    let p = random.below(8);
                    priority(&mut plic, source, p);
                    model.priority[s] = p;
                }
                2 => {
                    let sources: Vec<u32> =
                        (0..6).map(|i| i * 12 + 1).filter(|_| random.below(3) > 0).collect();
                    enable(&mut plic, u64::from(context), &sources);
                    model.enabled[c] = [false; 64];
                    sources.iter().for_each(|s| model.enabled[c][*s as usize] = true);
                }
                3 => {
                    let t = random.below(8);
                    plic.write(base + THRESHOLD, t);
                    model.threshold[c] = t;
                }
                4 => assert_eq!(plic.read(base + CLAIM), model.claim(c), "seed {seed}, step {step}"),
                _ => {
                    plic.write(base + CLAIM, source);
                    if model.enabled[c][s] {
                        model.in_service[s] = false;
                    }
                }
            }
            model.gateways();
            let pending = u64::from(plic.read(PENDING + 4)) << 32 | u64::from(plic.read(PENDING));
            assert_eq!(pending, (1..64).filter(|s| model.pending[*s]).fold(0, |set, s| set | 1 << s));
            for c in 0..CONTEXTS as usize {
                assert_eq!(plic.output(c), model.output(c), "seed {seed}, step {step}, hart {c}");
            }
        }
    }
}

#[test]
fn any_access_anywhere_is_harmless() {
    let plic = PlicDevice::new(2, Box::new(Wires::default()));
    let mut random = Random(7);
    for _ in 0..20_000 {
        let offset = u64::from(random.below(0x40_0000));
        let len = [1, 2, 4, 8][random.below(4) as usize];
        let mut data = vec![0xff; len];
        if random.below(2) == 0 {
            plic.read(offset, &mut data);
        } else {
            plic.write(offset, &data);
        }
    }
}
