//! Traffic control (tc(8)): all that arrives at one interface leaves by another.

use std::io;

use hartpod_netlink::{NetlinkError, Request, Socket, flag};
use rustix::io::Errno;

use super::{TapError, netlink};

/// Kinds of requests (linux/rtnetlink.h).
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;

/// Attributes of both.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

/// The ingress qdisc's handle, where it hangs, and where filters hang on it; also on the ingress side of clsact, which stands in the
/// same place (linux/pkt_sched.h).
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_ROOT: u32 = 0xffff_fff1;
const INGRESS_FILTERS: u32 = 0xffff_fff2;

/// Of our filter; those of a plugin (tc gives them 49152 and down, tools small numbers) come first or never. The other one is for a moment.
const PRIORITY: u32 = 0xff00;
const PRIORITY_MEANWHILE: u32 = 0xff01;

/// Every protocol (linux/if_ether.h).
const EVERYTHING: u16 = 3;

/// Classifiers that match everything, and their attributes with actions: the one that is made for it, and the one that older and smaller
/// kernels have.
const MATCHALL: &str = "matchall";
const MATCHALL_ACTION: u16 = 2;
const U32: &str = "u32";
const U32_ACTION: u16 = 7;

/// Redirects all that arrives at the interface `from` to the interface `to`. A redirection that is there is replaced without a moment in
/// which a packet would reach the namespace's kernel, which would refuse the connection that it belongs to.
pub(super) fn ingress(socket: &mut Socket, from: u32, to: u32) -> Result<(), TapError> {
    match socket.request(qdisc(from)) {
        // Made by an earlier call, or a plugin.
        Err(error) if error.refused() == Some(Errno::EXIST) => {
            match add(socket, from, to, PRIORITY_MEANWHILE) {
                // An earlier call did not come to its end.
                Err(TapError::Netlink { source, .. }) if source.refused() == Some(Errno::EXIST) => {}
                added => added?,
            }
            delete(socket, from, PRIORITY)?;
            add(socket, from, to, PRIORITY)?;
            delete(socket, from, PRIORITY_MEANWHILE)
        }
        made => {
            made.map_err(|error| lacking("make an ingress qdisc", "sch_ingress", error))?;
            add(socket, from, to, PRIORITY)
        }
    }
}

fn add(socket: &mut Socket, from: u32, to: u32, priority: u32) -> Result<(), TapError> {
    let mut add = |classifier, action| socket.request(filter(from, to, priority, classifier, action));
    let added = match add(MATCHALL, MATCHALL_ACTION) {
        // It, or the action.
        Err(error) if error.refused() == Some(Errno::NOENT) => add(U32, U32_ACTION),
        added => added,
    };
    added.map_err(|error| lacking("redirect packets", "act_mirred, and cls_matchall or cls_u32", error))
}

fn delete(socket: &mut Socket, from: u32, priority: u32) -> Result<(), TapError> {
    match socket.request(Request::change(DELETE_FILTER, 0, &place(from, 0, INGRESS_FILTERS, priority))) {
        Err(error) if error.refused() == Some(Errno::NOENT) => Ok(()),
        deleted => deleted.map_err(netlink("remove a filter")),
    }
}

fn lacking(what: &'static str, name: &'static str, error: NetlinkError) -> TapError {
    match error.refused() {
        Some(Errno::NOENT | Errno::OPNOTSUPP) => {
            TapError::Module { what, module: name, source: io::Error::other(error) }
        }
        _ => netlink(what)(error),
    }
}

fn qdisc(interface: u32) -> Request {
    let body = place(interface, INGRESS_HANDLE, INGRESS_ROOT, 0);
    let mut request = Request::change(NEW_QDISC, flag::CREATE | flag::EXCL, &body);
    request.put(KIND, b"ingress\0");
    request
}

fn filter(from: u32, to: u32, priority: u32, classifier: &str, action: u16) -> Request {
    let body = place(from, 0, INGRESS_FILTERS, priority);
    let mut request = Request::change(NEW_FILTER, flag::CREATE | flag::EXCL, &body);
    request.put(KIND, &[classifier.as_bytes(), &[0]].concat());
    request.nest(OPTIONS, |options| {
        if classifier == U32 {
            options.put(U32_SELECTOR, &match_everything());
        }
        options.nest(action, |actions| actions.nest(1, |first| redirect(first, to)));
    });
    request
}

/// struct tcmsg: family, interface, handle, parent, and of a filter its priority and protocol.
fn place(interface: u32, handle: u32, parent: u32, priority: u32) -> Vec<u8> {
    let info = if priority == 0 { 0 } else { priority << 16 | u32::from(EVERYTHING.to_be()) };
    [0, interface, handle, parent, info].map(u32::to_ne_bytes).concat()
}

/// TCA_U32_SEL.
const U32_SELECTOR: u16 = 5;

/// struct tc_u32_sel with one key of which no bit counts; the flag says that nothing comes after it (linux/pkt_cls.h).
fn match_everything() -> [u8; 32] {
    const TERMINAL: u8 = 1;
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (TERMINAL, 1);
    selector
}

/// An action mirred (linux/tc_act/tc_mirred.h): the packet leaves by the interface `to`, and is over here.
fn redirect(action: &mut Request, to: u32) {
    const PARAMETERS: u16 = 2;
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    action.put(KIND, b"mirred\0");
    action.nest(OPTIONS, |options| {
        // struct tc_mirred: index, capabilities, verdict, two counts, what to do, the interface
        let parameters = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to];
        options.put(PARAMETERS, &parameters.map(u32::to_ne_bytes).concat());
    });
}
