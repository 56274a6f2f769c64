use std::sync::{Arc, Mutex};

use super::*;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::test_driver::{Driver, RAM_START, ram};
use crate::virtio::{ActivateError, read_config_space};

/// What a device under test saw.
#[derive(Debug, Default)]
struct Seen {
    active: bool,
    features: u64,
    queues: Vec<bool>,
    interrupt: Option<Arc<Interrupt>>,
    config: Vec<u8>,
    kicks: Vec<EventFd>,
}

#[derive(Debug)]
struct Probe {
    seen: Arc<Mutex<Seen>>,
    refuse: bool,
}

const FEATURE: u64 = 1 << 5;

impl Device for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        RING_FEATURES | FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(b"abcdef", offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().config = [&[u8::try_from(offset).unwrap()], data].concat();
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::MissingQueue(0));
        }
        let mut seen = self.seen.lock().unwrap();
        seen.active = true;
        seen.features = activation.features;
        seen.queues = activation.queues.iter().map(Option::is_some).collect();
        seen.interrupt = Some(activation.interrupt);
        seen.kicks = activation.queues.into_iter().flatten().map(|queue| queue.kick).collect();
        Ok(())
    }

    fn reset(&mut self) {
        self.seen.lock().unwrap().active = false;
    }
}

fn probe() -> (Driver, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut driver = Driver::new(ram(1 << 20));
    driver.slot.fill(Box::new(Probe { seen: Arc::clone(&seen), refuse: false })).unwrap();
    (driver, seen)
}

/// Up to FEATURES_OK.
fn negotiated() -> (Driver, Arc<Mutex<Seen>>) {
    let (mut driver, seen) = probe();
    for (register, value) in [(reg::STATUS, 1), (reg::STATUS, 3), (reg::DRIVER_FEATURES_SELECT, 1)] {
        driver.write32(register, value);
    }
    driver.write32(reg::DRIVER_FEATURES, 1);
    driver.write32(reg::STATUS, 11);
    assert_eq!(driver.read32(reg::STATUS), 11);
    (driver, seen)
}

#[test]
fn an_empty_slot_is_a_placeholder_and_takes_no_writes() {
    let mut driver = Driver::new(ram(1 << 20));
    assert_eq!(driver.read32(0), 0x7472_6976);
    assert_eq!(driver.read32(4), 2);
    assert_eq!(driver.read32(8), 0);
    for offset in (0..0x1000).step_by(4) {
        driver.write32(offset, 0xf);
    }
    assert_eq!(driver.read32(reg::STATUS), 0);
    assert_eq!(driver.read32(reg::QUEUE_NUM_MAX), 0);
}

#[test]
fn a_driver_brings_a_device_up_and_resets_it() {
    let (mut driver, seen) = probe();
    driver.start(u64::MAX, 8);
    assert_eq!(driver.read32(reg::DEVICE_ID), 42);
    {
        let seen = seen.lock().unwrap();
        assert!(seen.active);
        assert_eq!(seen.features, RING_FEATURES | FEATURE);
        assert_eq!(seen.queues, [true, true]);
        assert!(
            seen.kicks.iter().all(|kick| kick.read().is_ok()),
            "queues filled before DRIVER_OK are looked at"
        );
    }
    driver.kick(1);
    assert_eq!(seen.lock().unwrap().kicks[1].read().unwrap(), 1);
    assert!(seen.lock().unwrap().kicks[0].read().is_err());
    driver.write32(reg::STATUS, 0);
    assert!(!seen.lock().unwrap().active);
    assert_eq!(driver.read32(reg::QUEUE_READY), 0);
    driver.kick(1);
    assert!(seen.lock().unwrap().kicks[1].read().is_err(), "a device that is not active is not kicked");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for (select, value) in [(0, 1 << 6), (1, 0), (1, 1 | 1 << 2), (2, 1), (u32::MAX, 1)] {
        let (mut driver, _) = probe();
        driver.write32(reg::STATUS, 3);
        driver.write32(reg::DRIVER_FEATURES_SELECT, 1);
        driver.write32(reg::DRIVER_FEATURES, 1);
        driver.write32(reg::DRIVER_FEATURES_SELECT, select);
        driver.write32(reg::DRIVER_FEATURES, value);
        driver.write32(reg::STATUS, 11);
        assert_eq!(driver.read32(reg::STATUS), 3, "{select} {value:#x}");
        driver.write32(reg::STATUS, 7);
        assert_eq!(driver.read32(reg::STATUS), 3, "DRIVER_OK needs FEATURES_OK");
    }
}

#[test]
fn features_are_settled_at_features_ok() {
    let (mut driver, seen) = negotiated();
    driver.write32(reg::DRIVER_FEATURES_SELECT, 0);
    driver.write32(reg::DRIVER_FEATURES, 1 << 5);
    driver.write32(reg::STATUS, 15);
    assert_eq!(seen.lock().unwrap().features, VERSION_1);
}

#[test]
fn queues_outside_of_guest_ram_keep_the_device_from_starting() {
    let good: [u64; 3] = [RAM_START, RAM_START + 0x1000, RAM_START + 0x2000];
    let bad = [0, RAM_START + 1, RAM_START + (1 << 20) - 16, u64::MAX - 15, 1 << 40, RAM_START - 16];
    let places = [reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW, reg::QUEUE_DEVICE_LOW];
    for (which, address) in (0..3).flat_map(|which| bad.map(|address| (which, address))) {
        let (mut driver, seen) = negotiated();
        for (place, good) in places.iter().zip(good) {
            let address = if *place == places[which] { address } else { good };
            driver.write32(*place, half(address, 0));
            driver.write32(*place + 4, half(address, 1));
        }
        driver.write32(reg::QUEUE_READY, 1);
        driver.write32(reg::STATUS, 15);
        assert_eq!(driver.read32(reg::STATUS), 15 | 64, "{which} {address:#x}");
        assert!(!seen.lock().unwrap().active);
        assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 2, "the driver is told");
    }
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_largest() {
    for (size, works) in [(16, true), (1, true), (0, false), (12, false), (32, false), (0x1_0010, false)] {
        let (mut driver, _) = negotiated();
        driver.write32(reg::QUEUE_NUM, size);
        for (place, at) in [(0x080, 0), (0x090, 0x1000), (0x0a0, 0x2000)] {
            driver.write32(place, half(RAM_START + at, 0));
        }
        driver.write32(reg::QUEUE_READY, 1);
        driver.write32(reg::STATUS, 15);
        assert_eq!(driver.read32(reg::STATUS) & 64 == 0, works, "{size}");
    }
}

#[test]
fn a_ready_queue_cannot_be_moved() {
    let (mut driver, seen) = negotiated();
    for (place, at) in [(0x080, 0), (0x090, 0x1000), (0x0a0, 0x2000)] {
        driver.write32(place, half(RAM_START + at, 0));
    }
    driver.write32(reg::QUEUE_READY, 1);
    driver.write32(reg::QUEUE_DESC_LOW, 0x10);
    driver.write32(reg::QUEUE_NUM, 3);
    driver.write32(reg::STATUS, 15);
    assert_eq!(driver.read32(reg::STATUS), 15);
    assert_eq!(seen.lock().unwrap().queues, [true, false]);
}

#[test]
fn a_stopped_queue_stops_the_device_before_it_reads_as_stopped() {
    let (mut driver, seen) = probe();
    driver.start(u64::MAX, 8);
    driver.write32(reg::QUEUE_SELECT, 1);
    driver.write32(reg::QUEUE_READY, 0);
    assert_eq!(driver.read32(reg::QUEUE_READY), 0);
    assert!(!seen.lock().unwrap().active);
    assert_eq!(driver.read32(reg::STATUS), 15 | 64);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset_and_can_be_reset() {
    let mut driver = Driver::new(ram(1 << 20));
    driver.slot.fill(Box::new(Probe { seen: Arc::default(), refuse: true })).unwrap();
    driver.start(u64::MAX, 8);
    assert_eq!(driver.read32(reg::STATUS), 15 | 64);
    driver.write32(reg::STATUS, 0);
    assert_eq!(driver.read32(reg::STATUS), 0);
    assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_failed_driver_gets_nothing_but_a_reset() {
    let (mut driver, _) = negotiated();
    driver.write32(reg::STATUS, 11 | 128);
    driver.write32(reg::STATUS, 15 | 128);
    assert_eq!(driver.read32(reg::STATUS), 11 | 128);
    driver.write32(reg::STATUS, 0);
    assert_eq!(driver.read32(reg::STATUS), 0);
}

#[test]
fn status_bits_cannot_be_taken_back_or_made_up() {
    let (mut driver, _) = negotiated();
    for value in [1, 3, 10, 1 | 4, 11 | 16, 1 << 31 | 11] {
        driver.write32(reg::STATUS, value);
        assert_eq!(driver.read32(reg::STATUS), 11, "{value:#x}");
    }
}

#[test]
fn interrupts_stay_until_they_are_acknowledged() {
    let (mut driver, seen) = probe();
    driver.start(u64::MAX, 8);
    let interrupt = seen.lock().unwrap().interrupt.clone().unwrap();
    interrupt.used_buffer();
    interrupt.config_changed();
    assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 3);
    driver.write32(reg::INTERRUPT_ACK, 1);
    assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 2);
    driver.write32(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_space_has_any_width_and_an_end() {
    let (mut driver, seen) = probe();
    let mut data = [0xff; 8];
    driver.slot.read(0x102, &mut data);
    assert_eq!(&data, b"cdef\0\0\0\0");
    let mut byte = [0xff];
    driver.slot.read(0x105, &mut byte);
    assert_eq!(&byte, b"f");
    driver.slot.read(u64::MAX, &mut byte);
    assert_eq!(&byte, &[0]);
    driver.slot.write(0x103, b"xy");
    assert!(seen.lock().unwrap().config.is_empty(), "no driver yet");
    driver.write32(reg::STATUS, 3);
    driver.slot.write(0x103, b"xy");
    assert_eq!(seen.lock().unwrap().config, b"\x03xy");
}

#[test]
fn registers_are_read_and_written_whole() {
    let (mut driver, _) = probe();
    for width in [1, 2, 8] {
        let mut data = vec![0xff; width];
        driver.slot.read(0, &mut data);
        assert_eq!(data, vec![0; width]);
        driver.slot.write(reg::STATUS, &vec![1; width]);
    }
    driver.slot.write(reg::STATUS + 2, &[1, 0, 0, 0]);
    assert_eq!(driver.read32(reg::STATUS), 0);
}

#[test]
fn a_slot_is_filled_once_and_emptied_when_no_driver_is_bound() {
    let (mut driver, seen) = probe();
    let another = || Box::new(Probe { seen: Arc::default(), refuse: false });
    assert_eq!(driver.slot.fill(another()), Err(SlotError::Taken));
    driver.start(u64::MAX, 8);
    assert_eq!(driver.slot.empty(Removal::Unbound), Err(SlotError::Bound));
    // What Linux does when a driver is unbound.
    driver.write32(reg::STATUS, 0);
    driver.write32(reg::STATUS, 1);
    let generation = driver.read32(reg::CONFIG_GENERATION);
    driver.slot.empty(Removal::Unbound).unwrap();
    assert_eq!(Arc::strong_count(&seen), 1, "the device is gone");
    assert_eq!(driver.read32(reg::DEVICE_ID), 0);
    assert_eq!(driver.slot.empty(Removal::Unbound), Err(SlotError::Empty));
    driver.slot.fill(another()).unwrap();
    assert_ne!(driver.read32(reg::CONFIG_GENERATION), generation);
    driver.start(u64::MAX, 8);
    driver.slot.empty(Removal::Forced).unwrap();
    assert_eq!(driver.read32(reg::STATUS), 0);
}
