//! Which device answers an access to guest-physical memory that is not RAM.

use std::sync::Arc;

/// Registers in guest-physical memory. Calls come from any vCPU's thread; none may block.
pub trait MmioDevice: Send + Sync + std::fmt::Debug {
    /// Fills `data` (1, 2, 4 or 8 bytes) from the registers at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1, 2, 4 or 8 bytes) to the registers at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// All devices of a guest. What belongs to none reads 0, and writes to it are lost.
#[derive(Debug, Default)]
pub struct Bus {
    /// Sorted by start, without overlap.
    windows: Vec<Window>,
}

#[derive(Debug)]
struct Window {
    start: u64,
    size: u64,
    device: Arc<dyn MmioDevice>,
}

/// Two devices at one place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{size:#x} bytes at {start:#x} are empty, too many or taken")]
pub struct BusError {
    start: u64,
    size: u64,
}

impl Bus {
    /// Gives `size` bytes from `start` to a device.
    ///
    /// # Errors
    /// They are empty, end past the address space, or another device has some of them.
    pub fn insert(&mut self, start: u64, size: u64, device: Arc<dyn MmioDevice>) -> Result<(), BusError> {
        let refused = BusError { start, size };
        let end = start.checked_add(size).filter(|_| size > 0).ok_or(refused)?;
        let at = self.windows.partition_point(|w| w.start < start);
        let before = at.checked_sub(1).and_then(|i| self.windows.get(i));
        let free = before.is_none_or(|w| w.start + w.size <= start)
            && self.windows.get(at).is_none_or(|w| end <= w.start);
        if !free {
            return Err(BusError { start, size });
        }
        self.windows.insert(at, Window { start, size, device });
        Ok(())
    }

    /// A load by the guest.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0),
        }
    }

    /// A store by the guest.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that has all `len` bytes.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn MmioDevice, u64)> {
        let at = self.windows.partition_point(|w| w.start <= address).checked_sub(1)?;
        let window = self.windows.get(at)?;
        let offset = address - window.start;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= window.size).then_some((&*window.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl MmioDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(0x5a);
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn one(start: u64, size: u64) -> (Bus, Arc<Recorder>) {
        let (mut bus, device) = (Bus::default(), Arc::new(Recorder::default()));
        bus.insert(start, size, Arc::clone(&device) as _).unwrap();
        (bus, device)
    }

    #[test]
    fn an_access_reaches_the_device_that_has_all_its_bytes() {
        let (bus, device) = one(0x1000, 0x100);
        bus.write(0x1000, &[1]);
        bus.write(0x10fc, &[1, 2, 3, 4]);
        let mut data = [0; 8];
        bus.read(0x10f8, &mut data);
        assert_eq!(data, [0x5a; 8]);
        let calls = device.0.lock().unwrap();
        assert_eq!(*calls, [(0, vec![1]), (0xfc, vec![1, 2, 3, 4]), (0xf8, vec![0x5a; 8])]);
    }

    #[test]
    fn what_belongs_to_nobody_reads_zero_and_swallows_writes() {
        let (bus, device) = one(0x1000, 0x100);
        for address in [0, 0xfff, 0x10fd, 0x1100, u64::MAX - 1, u64::MAX] {
            let mut data = [0xff; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0; 4], "at {address:#x}");
            bus.write(address, &[9; 4]);
        }
        assert!(device.0.lock().unwrap().is_empty());
        let mut data = [0xff; 1];
        Bus::default().read(0x1000, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn windows_do_not_overlap() {
        let (mut bus, device) = one(0x1000, 0x1000);
        for (start, size) in
            [(0x1000, 1), (0x1fff, 1), (0x800, 0x801), (0x0, 0x8000), (0x3000, 0), (u64::MAX, 2)]
        {
            let refused = bus.insert(start, size, Arc::clone(&device) as _);
            assert_eq!(refused, Err(BusError { start, size }), "{start:#x}+{size:#x}");
        }
        bus.insert(0x2000, 0x1000, Arc::clone(&device) as _).unwrap();
        bus.insert(0, 0x1000, device).unwrap();
    }
}
