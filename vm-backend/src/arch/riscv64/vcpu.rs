//! A vCPU's thread: it enters the guest, and answers what the guest leaves for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_EXIT_RISCV_CSR, KVM_EXIT_RISCV_SBI, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::plic::Outputs;
use super::vm::{KvmError, Tried as _};
use super::{sbi, sys};
use crate::bus::Bus;
use crate::console::Console;
use crate::counts::VcpuCounters;
use crate::jail::{self, JailError};
use crate::memory::GuestRam;
use crate::stop::{Stop, StopSignal};

/// How long a vCPU that was told to stop may take: it may be in the middle of a write to a slow console.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// What a guest sees beside its RAM; all vCPUs share it.
#[derive(Debug)]
pub struct Surroundings {
    pub bus: Bus,
    pub memory: GuestRam,
    pub console: Console,
    pub stop: StopSignal,
    /// Held until every thread of the VMM is confined: no vCPU begins before.
    pub gate: Mutex<()>,
}

/// A vCPU could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("a vCPU's thread")]
    Thread(#[from] JailError),
}

/// A running vCPU.
#[derive(Debug)]
pub struct Vcpu {
    thread: JoinHandle<()>,
    exit: sys::ImmediateExit,
}

impl Vcpu {
    /// Starts the thread of vCPU `id`.
    ///
    /// # Errors
    /// There is no memory or thread for it, or the thread could not be confined.
    pub fn start(
        id: usize,
        vcpu: VcpuFd,
        surroundings: &Arc<Surroundings>,
        counters: Arc<VcpuCounters>,
    ) -> Result<Self, VcpuError> {
        let fd = sys::duplicate(&vcpu).tried("duplicate a vCPU's descriptor")?;
        let exit = sys::ImmediateExit::new(&fd).tried("map a vCPU's state")?;
        let surroundings = Arc::clone(surroundings);
        let thread = jail::start_thread(
            jail::Thread::Vcpu,
            thread::Builder::new().name(format!("vcpu{id}")),
            move || {
                let ended = Ended(&surroundings.stop);
                drop(surroundings.gate.lock());
                let stop = run(vcpu, &surroundings, &counters);
                if let Some(stop) = stop {
                    surroundings.stop.request(stop);
                }
                drop(ended);
            },
        );
        Ok(Self { thread: thread?, exit })
    }

    /// Tells it to leave the guest for good.
    fn kick(&self) {
        // If it is on its way into the guest it sees the byte; if it is inside, the signal gets it out.
        self.exit.set();
        // An error says that it has ended already.
        let _ = self.thread.kill(SIGRTMIN());
    }
}

/// A thread that ends in a panic must not leave a guest without a vCPU that nobody stops.
struct Ended<'a>(&'a StopSignal);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // Nothing, if there is a reason already.
        self.0.request(Stop::Failure("a vCPU's thread has ended".to_owned()));
    }
}

/// A handler must be there, or the signal would end the process; interrupting KVM_RUN is all that is wanted of it.
///
/// # Errors
/// The kernel refuses.
pub fn prepare_kicks() -> Result<(), KvmError> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).tried("handle the signal that stops vCPUs")
}

/// Stops all vCPUs. After the deadline one that does not stop is left to the end of the process.
pub fn stop(vcpus: Vec<Vcpu>) {
    vcpus.iter().for_each(Vcpu::kick);
    let deadline = Instant::now() + STOP_DEADLINE;
    for vcpu in vcpus {
        while !vcpu.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if vcpu.thread.is_finished() {
            // Its panic was printed, and reported as a failure.
            let _ = vcpu.thread.join();
        }
    }
}

/// Until there is a reason to stop; `None` if another one gave it.
fn run(mut vcpu: VcpuFd, surroundings: &Surroundings, counters: &VcpuCounters) -> Option<Stop> {
    enum Left {
        Nothing,
        Sbi,
        Csr,
    }
    while !surroundings.stop.is_requested() {
        let left = match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.mmio_read.add(1);
                surroundings.bus.read(address, data);
                Left::Nothing
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.mmio_write.add(1);
                surroundings.bus.write(address, data);
                Left::Nothing
            }
            Ok(VcpuExit::SystemEvent(event, _)) => return Some(system_event(event)),
            Ok(VcpuExit::Unsupported(KVM_EXIT_RISCV_SBI)) => Left::Sbi,
            Ok(VcpuExit::Unsupported(KVM_EXIT_RISCV_CSR)) => Left::Csr,
            Ok(VcpuExit::Intr) => {
                counters.interrupted.add(1);
                Left::Nothing
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Some(Stop::Failure(format!(
                    "KVM could not enter the guest on CPU {cpu}: {reason:#x}"
                )));
            }
            Ok(other) => {
                return Some(Stop::Failure(format!("a vCPU left KVM for no known reason: {other:?}")));
            }
            Err(error) => match io::Error::from(error) {
                e if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    counters.interrupted.add(1);
                    Left::Nothing
                }
                e => return Some(Stop::Failure(format!("run a vCPU: {e}"))),
            },
        };
        match left {
            Left::Nothing => {}
            Left::Sbi => {
                counters.sbi.add(1);
                let call = sys::sbi_call(vcpu.get_kvm_run());
                let answer = sbi::answer(&call, &surroundings.memory, &surroundings.console);
                sys::answer_sbi(vcpu.get_kvm_run(), answer);
            }
            // A process in the guest that pokes at a register which only an AIA has must not be able to end the guest.
            Left::Csr => {
                counters.csr.add(1);
                sys::answer_csr(vcpu.get_kvm_run());
            }
        }
    }
    None
}

fn system_event(event: u32) -> Stop {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN => Stop::PowerOff,
        KVM_SYSTEM_EVENT_RESET => Stop::Reset,
        other => Stop::Failure(format!("system event {other}")),
    }
}

/// From the PLIC to the vCPUs.
#[derive(Debug)]
pub struct ExternalInterrupts {
    vcpus: Vec<OwnedFd>,
}

impl ExternalInterrupts {
    /// One wire per vCPU, in their order.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(vcpus: &[VcpuFd]) -> Result<Self, KvmError> {
        let duplicate = |vcpu| sys::duplicate(vcpu).tried("duplicate a vCPU's descriptor");
        Ok(Self { vcpus: vcpus.iter().map(duplicate).collect::<Result<_, _>>()? })
    }
}

impl Outputs for ExternalInterrupts {
    fn set(&mut self, context: usize, high: bool) {
        let Some(vcpu) = self.vcpus.get(context) else { return };
        if let Err(error) = sys::set_external_interrupt(vcpu, high) {
            eprintln!("hartpod-vmm: set the external interrupt of vCPU {context} to {high}: {error}");
        }
    }
}
