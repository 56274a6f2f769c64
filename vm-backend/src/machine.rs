//! From a boot message to a running guest, and to its end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use crate::arch::riscv64::aia::Aia;
use crate::arch::riscv64::fdt::{self, Controller, Cpus, FdtError, Platform, SEED};
use crate::arch::riscv64::image::{HEADER_SIZE, ImageError, ImageHeader};
use crate::arch::riscv64::isa;
use crate::arch::riscv64::layout::{
    FDT_BASE, PLIC_BASE, PLIC_SIZE, Placement, PlacementError, RAM_BASE, SLOT_SIZE, place, slot_base,
    slot_source,
};
use crate::arch::riscv64::plic::PlicDevice;
use crate::arch::riscv64::registers::{self, Abilities};
use crate::arch::riscv64::vcpu::{self, ExternalInterrupts, Surroundings, Vcpu, VcpuError};
use crate::arch::riscv64::vm::{KvmError, Vm};
use crate::boot::{BootFiles, Guest, Interrupts};
use crate::bus::{Bus, BusError};
use crate::console::Console;
use crate::control::{self, Services, chain};
use crate::counts::Counters;
use crate::devices::{Devices, DevicesError, Ready};
use crate::jail::{self, Jail, JailError};
use crate::log::{Logs, MAX_LOGS};
use crate::memory::{self, GuestMemory, GuestRam, MemoryError};
use crate::status::{Event, Exit, ExitReason, StatusWriter};
use crate::stop::{Stop, StopSignal};
use crate::virtio::Line;

/// What the logs of a guest that has ended may hold up the word of it.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Why a guest never ran.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("the jail")]
    Jail(#[from] JailError),
    #[error("read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel")]
    Image(#[from] ImageError),
    #[error("place the boot files")]
    Placement(#[from] PlacementError),
    #[error("guest RAM")]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("the guest's address space")]
    Bus(#[from] BusError),
    #[error("devices")]
    Devices(#[from] DevicesError),
    #[error("the devicetree")]
    Fdt(#[from] FdtError),
    #[error("put the devicetree into guest RAM")]
    PutFdt {
        #[source]
        source: GuestMemoryError,
    },
    #[error("make an event")]
    Event {
        #[source]
        source: io::Error,
    },
    #[error("get random bytes")]
    Random {
        #[source]
        source: io::Error,
    },
    #[error("the thread that loads the boot files has ended")]
    Loader,
}

/// Runs a guest to its end, and says on its status descriptor how that came.
pub fn run(guest: Guest) -> ExitReason {
    let jail = Jail { user: guest.user, threads: threads(&guest) };
    let Guest { memory, vcpus, interrupts, kvm, boot, reports, control, devices, .. } = guest;
    let status = Arc::new(StatusWriter::new(reports.status));
    let ready = Arc::clone(&status);
    let ready: Ready = Box::new(move || ready.write(&Event::Ready));
    let console = Console::new(reports.console, reports.console_limit);
    let jailed = jail.enter().and_then(|()| jail::confine(jail::Thread::SetUp));
    let started = jailed.map_err(MachineError::from).and_then(|()| {
        let plan = Plan::make(memory, &boot)?;
        let ram = memory::map(RAM_BASE, memory)?;
        // The loader touches RAM only, the rest KVM only.
        let hardware = thread::scope(|scope| {
            let loader = scope.spawn(|| plan.load(&boot, &ram));
            let vm = Vm::new(kvm, Arc::clone(&ram))?;
            let hardware =
                Hardware::new(vm, vcpus, interrupts, |line| Devices::new(devices, &ram, ready, line))?;
            loader.join().map_err(|_| MachineError::Loader)??;
            Ok::<_, MachineError>(hardware)
        })?;
        hardware.tell(&plan, &boot, &ram)?;
        // Nobody needs the files any more.
        drop(boot);
        hardware.start(&plan, ram, console)
    });
    // What runs is dropped after the last word: a device that hangs on a dead disk must not hold it back.
    let (exit, _running) = match started {
        Ok(mut running) => (running.serve(&control, &status), Some(running)),
        Err(error) => (not_started(&error), None),
    };
    let reason = exit.reason;
    status.write(&Event::Exited(exit));
    reason
}

/// The first one, one per vCPU, per device and per log.
fn threads(guest: &Guest) -> u32 {
    1 + guest.vcpus + guest.devices.slots + u32::try_from(MAX_LOGS).unwrap_or(u32::MAX)
}

fn not_started(error: &MachineError) -> Exit {
    let reason = match error {
        MachineError::Kvm(_) | MachineError::Vcpu(VcpuError::Kvm(_)) => ExitReason::KvmFailure,
        _ => ExitReason::SetUpFailure,
    };
    Exit::new(reason, &chain(error))
}

/// Where in RAM everything goes.
struct Plan {
    ram: u64,
    /// Bytes of the files.
    kernel: u64,
    initramfs: u64,
    place: Placement,
}

impl Plan {
    fn make(ram: u64, boot: &BootFiles) -> Result<Self, MachineError> {
        let kernel = size(&boot.kernel, "the kernel's size")?;
        let initramfs = size(&boot.initramfs, "the initramfs' size")?;
        let mut header = [0; HEADER_SIZE];
        if kernel >= HEADER_SIZE as u64 {
            let what = "the kernel's header";
            boot.kernel
                .read_exact_at(&mut header, 0)
                .map_err(|source| MachineError::Read { what, source })?;
        }
        let header = ImageHeader::parse(&header, kernel)?;
        Ok(Self { ram, kernel, initramfs, place: place(ram, &header, initramfs)? })
    }

    fn load(&self, boot: &BootFiles, ram: &GuestMemory) -> Result<(), MemoryError> {
        memory::load(ram, self.place.kernel.start, &boot.kernel, self.kernel, "the kernel")?;
        memory::load(ram, self.place.initramfs.start, &boot.initramfs, self.initramfs, "the initramfs")
    }
}

fn size(file: &File, what: &'static str) -> Result<u64, MachineError> {
    file.metadata().map(|m| m.len()).map_err(|source| MachineError::Read { what, source })
}

/// A VM with its vCPUs, interrupt controller and devices.
struct Hardware {
    /// The VM is there as long as a descriptor of it or of a vCPU is open.
    _vm: Vm,
    vcpus: Vec<VcpuFd>,
    abilities: Abilities,
    controller: Controller,
    devices: Devices,
    bus: Bus,
}

impl Hardware {
    fn new(
        vm: Vm,
        count: u32,
        interrupts: Interrupts,
        devices: impl FnOnce(&dyn Fn(u32) -> Box<dyn Line>) -> Result<Devices, DevicesError>,
    ) -> Result<Self, MachineError> {
        let vcpus = vm.create_vcpus(count)?;
        let shown = match interrupts {
            Interrupts::Plic => isa::Aia::Hidden,
            Interrupts::Aia => isa::Aia::Shown,
        };
        let abilities = registers::prepare(&vcpus, shown)?;
        let mut bus = Bus::default();
        let (controller, devices) = match interrupts {
            Interrupts::Plic => {
                let outputs = ExternalInterrupts::new(&vcpus)?;
                let plic = PlicDevice::new(vcpus.len(), Box::new(outputs));
                bus.insert(PLIC_BASE, PLIC_SIZE, Arc::clone(&plic) as _)?;
                let line = |slot| plic.line(slot_source(slot));
                (Controller::Plic, devices(&line)?)
            }
            Interrupts::Aia => {
                let aia = Aia::new(&vm, count)?;
                let line = |slot| aia.line(slot_source(slot));
                (Controller::Aia { identities: aia.identities }, devices(&line)?)
            }
        };
        for (slot, device) in (0..).zip(devices.on_bus()) {
            bus.insert(slot_base(slot), SLOT_SIZE, device)?;
        }
        devices.each_kick(|slot, queue, kick| vm.notify(slot, queue, kick))?;
        Ok(Self { _vm: vm, vcpus, abilities, controller, devices, bus })
    }

    /// Tells the guest what it runs on.
    fn tell(&self, plan: &Plan, boot: &BootFiles, ram: &GuestMemory) -> Result<(), MachineError> {
        let mut seed = [0; SEED];
        getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|e| MachineError::Random { source: e.into() })?;
        let Abilities { isa, mmu, timebase, cbom, cboz } = &self.abilities;
        let tree = fdt::build(&Platform {
            ram: plan.ram,
            cpus: Cpus {
                count: u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX),
                isa,
                mmu: *mmu,
                timebase: *timebase,
                cbom: *cbom,
                cboz: *cboz,
            },
            slots: self.devices.count(),
            controller: self.controller,
            initramfs: plan.place.initramfs.clone(),
            command_line: &boot.command_line,
            seed: &seed,
        })?;
        ram.write_slice(&tree, GuestAddress(FDT_BASE)).map_err(|source| MachineError::PutFdt { source })
    }

    /// Lets the vCPUs run.
    fn start(self, plan: &Plan, memory: GuestRam, console: Console) -> Result<Running, MachineError> {
        if let Some(first) = self.vcpus.first() {
            registers::set_entry(first, plan.place.kernel.start, FDT_BASE)?;
        }
        vcpu::prepare_kicks()?;
        let stop = StopSignal::new().map_err(|source| MachineError::Event { source })?;
        let gate = Mutex::new(());
        let surroundings = Arc::new(Surroundings { bus: self.bus, memory, console, stop, gate });
        let logs = Logs::new(self.devices.dialer());
        let mut running = Running {
            vcpus: Vec::new(),
            counters: self.devices.counters(),
            devices: self.devices,
            logs,
            surroundings: Arc::clone(&surroundings),
            _vm: self._vm,
        };
        let closed = surroundings.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let started = running.start_vcpus(self.vcpus).and_then(|()| Ok(jail::confine(jail::Thread::Main)?));
        if let Err(error) = &started {
            surroundings.stop.request(Stop::Failure(chain(error)));
        }
        drop(closed);
        match started {
            Ok(()) => Ok(running),
            Err(error) => {
                vcpu::stop(running.vcpus);
                Err(error)
            }
        }
    }
}

/// A guest that runs.
struct Running {
    vcpus: Vec<Vcpu>,
    devices: Devices,
    logs: Logs,
    counters: Counters,
    surroundings: Arc<Surroundings>,
    _vm: Vm,
}

impl Running {
    /// They wait at the gate.
    fn start_vcpus(&mut self, vcpus: Vec<VcpuFd>) -> Result<(), MachineError> {
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            self.vcpus.push(Vcpu::start(id, vcpu, &self.surroundings, self.counters.vcpu())?);
        }
        Ok(())
    }

    /// Serves requests until the guest is to stop, and stops it.
    fn serve(&mut self, control: &OwnedFd, status: &StatusWriter) -> Exit {
        status.write(&Event::Running);
        let Surroundings { stop, console, .. } = &*self.surroundings;
        let mut services =
            Services { stop, slots: &mut self.devices, logs: &mut self.logs, counters: &self.counters };
        if let Err(error) = control::serve(control, &mut services) {
            stop.request(Stop::Failure(format!("serve the control socket: {error}")));
        }
        vcpu::stop(std::mem::take(&mut self.vcpus));
        // Before the last word: who hears that finds the logs complete.
        self.logs.finish_blocking(LAST_LINES);
        let reason = stop.reason().unwrap_or_else(|| Stop::Failure("no reason".to_owned()));
        reason.exit(console)
    }
}
