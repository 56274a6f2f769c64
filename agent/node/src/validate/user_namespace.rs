//! The user namespace that a request asks for.

use hartpod_container::{IdMapError, IdMaps, IdRange};
use hartpod_proto::cri::v1::{self as cri, NamespaceMode as Mode};

use super::{InvalidRequest, invalid};

/// The ids of the user namespace that `options` ask for; none with the node's. `parent` is the field of the request that `options` are.
///
/// The kubelet gives each pod one row of ids, the same ones for users and groups, and CRI knows no more.
pub(crate) fn user_namespace(
    parent: &str,
    options: &cri::NamespaceOption,
) -> Result<Option<IdMaps>, InvalidRequest> {
    let Some(users) = &options.userns_options else { return Ok(None) };
    let field = |name: &str| format!("{parent}.userns_options.{name}");
    let lists = [("uids", &users.uids), ("gids", &users.gids)];
    match Mode::try_from(users.mode) {
        Ok(Mode::Pod) => {}
        Ok(Mode::Node) => {
            return match lists.iter().find(|(_, list)| !list.is_empty()) {
                Some((name, _)) => Err(invalid(field(name), "must be empty with mode NODE")),
                None => Ok(None),
            };
        }
        Ok(Mode::Container | Mode::Target) | Err(_) => {
            return Err(invalid(field("mode"), "must be POD or NODE"));
        }
    }
    for (name, list) in lists {
        if list.len() != 1 {
            let problem = format!("{} ranges of ids: a pod has exactly one", list.len());
            return Err(invalid(field(name), problem));
        }
    }
    let maps = id_maps(&users.uids, &users.gids).map_err(|error| not_maps(parent, &error))?;
    for (name, root) in [("uids", maps.host_uid(0)), ("gids", maps.host_gid(0))] {
        if root.is_none() {
            return Err(invalid(field(name), "container_id 0 is not mapped: the pod would have no root"));
        }
    }
    Ok(Some(maps))
}

/// Maps of a request.
pub(crate) fn id_maps(uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> Result<IdMaps, IdMapError> {
    let ranges = |list: &[cri::IdMapping]| -> Vec<IdRange> {
        let range =
            |m: &cri::IdMapping| IdRange { container: m.container_id, host: m.host_id, length: m.length };
        list.iter().map(range).collect()
    };
    IdMaps::new(ranges(uids), ranges(gids))
}

fn not_maps(parent: &str, error: &IdMapError) -> InvalidRequest {
    invalid(format!("{parent}.userns_options"), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping { host_id, container_id, length }
    }

    fn options(mode: Mode, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> cri::NamespaceOption {
        let users = cri::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
        cri::NamespaceOption { userns_options: Some(users), ..Default::default() }
    }

    #[test]
    fn the_kubelets_maps_are_taken() {
        let one = [range(0, 131_072, 65536)];
        let maps = user_namespace("o", &options(Mode::Pod, &one, &one)).unwrap().unwrap();
        assert_eq!((maps.host_uid(0), maps.host_gid(65535)), (Some(131_072), Some(196_607)));
        assert_eq!(user_namespace("o", &options(Mode::Node, &[], &[])).unwrap(), None);
        assert_eq!(user_namespace("o", &cri::NamespaceOption::default()).unwrap(), None);
    }

    #[test]
    fn maps_that_no_pod_can_have_are_refused() {
        let one = [range(0, 131_072, 65536)];
        let two = [one[0], range(70000, 1, 1)];
        for (options, expected) in [
            (options(Mode::Pod, &[], &[]), "uids: 0 ranges of ids: a pod has exactly one"),
            (options(Mode::Pod, &two, &two), "uids: 2 ranges of ids: a pod has exactly one"),
            (options(Mode::Pod, &one, &two), "gids: 2 ranges of ids: a pod has exactly one"),
            (options(Mode::Pod, &one, &[]), "gids: 0 ranges of ids: a pod has exactly one"),
            (
                options(Mode::Pod, &[range(1, 131_072, 65536)], &one),
                "uids: container_id 0 is not mapped: the pod would have no root",
            ),
            (
                options(Mode::Pod, &one, &[range(1, 131_072, 65536)]),
                "gids: container_id 0 is not mapped: the pod would have no root",
            ),
            (options(Mode::Node, &[], &one), "gids: must be empty with mode NODE"),
            (options(Mode::Container, &one, &one), "mode: must be POD or NODE"),
            (options(Mode::Target, &one, &one), "mode: must be POD or NODE"),
        ] {
            let error = user_namespace("o", &options).unwrap_err().to_string();
            assert_eq!(error, format!("o.userns_options.{expected}"));
        }
        for (bad, expected) in [
            (range(0, 1, 0), "uids[0]: the length is 0"),
            (range(0, u32::MAX, 2), "uids[0]: 2 ids from 4294967295 on are more than there are"),
        ] {
            let error = user_namespace("o", &options(Mode::Pod, &[bad], &one)).unwrap_err().to_string();
            assert_eq!(error, format!("o.userns_options: {expected}"));
        }
    }
}
