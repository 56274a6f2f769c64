//! Who a container runs as, by the files of its image. The files are hostile: they are opened below the image's root, must be
//! plain files, and count only up to a size; lines that make no sense are passed over, as the C library does.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::root::Root;
use crate::errno::Errno;
use crate::failure::UserError;
use crate::id_maps::IdMaps;
use crate::request::{GroupPolicy, ResolvedUser};

/// 1 MiB; about 20,000 users.
const MAX_FILE: u64 = 1 << 20;
/// uid_t is 32 bits, and the highest value means "no change" to the kernel.
const MAX_ID: u32 = u32::MAX - 1;
/// The kernel's own limit on additional groups (NGROUPS_MAX).
pub(crate) const MAX_GROUPS: usize = 65536;

/// Who it is to be.
#[derive(Debug, Clone)]
pub(crate) struct UserRequest {
    /// Empty: `fallback`.
    pub(crate) text: String,
    /// `process.user` of the spec; its additional groups count in any case.
    pub(crate) fallback: ResolvedUser,
    pub(crate) groups: GroupPolicy,
}

/// The user, and its home folder (`/` if the image has none for it).
pub(crate) fn resolve(root: &Root, request: &UserRequest) -> Result<(ResolvedUser, String), UserError> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve_in(&passwd, &group, request)
}

/// Whether all of its ids are in the pod's user namespace.
pub(crate) fn check_mapped(user: &ResolvedUser, maps: &IdMaps) -> Result<(), UserError> {
    let unmapped = |which: &str, id| UserError::Unmapped { which: which.to_owned(), id };
    if maps.host_uid(user.uid).is_none() {
        return Err(unmapped("user", user.uid));
    }
    let mut groups = [user.gid].into_iter().chain(user.additional_gids.iter().copied());
    match groups.find(|gid| maps.host_gid(*gid).is_none()) {
        Some(gid) => Err(unmapped("group", gid)),
        None => Ok(()),
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn resolve_in(passwd: &str, group: &str, request: &UserRequest) -> Result<(ResolvedUser, String), UserError> {
    let fallback = &request.fallback;
    let home_of = |uid| find_user(passwd, |entry| entry.uid == uid).map_or("/", |entry| entry.home);
    if request.text.is_empty() {
        let additional_gids = without_duplicates(fallback.additional_gids.iter().copied());
        return Ok((ResolvedUser { additional_gids, ..fallback.clone() }, home_of(fallback.uid).to_owned()));
    }
    let malformed = || UserError::Malformed { text: request.text.clone() };
    let (user, group_text) = match request.text.split_once(':') {
        Some((_, "")) | Some(("", _)) => return Err(malformed()),
        Some((user, group)) => (user, Some(group)),
        None => (request.text.as_str(), None),
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let id = |text: &str| text.parse().ok().filter(|id| *id <= MAX_ID).ok_or_else(malformed);
    let (uid, entry) = if number(user) {
        let uid = id(user)?;
        (uid, find_user(passwd, |entry| entry.uid == uid))
    } else {
        let entry = find_user(passwd, |entry| entry.name == user);
        let entry = entry.ok_or_else(|| UserError::NoUser { name: user.to_owned() })?;
        (entry.uid, Some(entry))
    };
    let gid = match group_text {
        Some(text) if number(text) => id(text)?,
        Some(text) => find_group(group, text).ok_or_else(|| UserError::NoGroup { name: text.to_owned() })?,
        // A number that the image does not know gets group 0, as in containerd.
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let listed = match (request.groups, &entry) {
        (GroupPolicy::Merge, Some(entry)) => groups_of(group, entry.name),
        _ => Vec::new(),
    };
    let groups = [gid].into_iter().chain(listed).chain(fallback.additional_gids.iter().copied());
    let additional_gids = without_duplicates(groups);
    let home = entry.map_or("/", |entry| entry.home).to_owned();
    Ok((ResolvedUser { uid, gid, additional_gids }, home))
}

fn without_duplicates(gids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut seen = std::collections::HashSet::new();
    gids.filter(|gid| seen.insert(*gid)).take(MAX_GROUPS).collect()
}

fn find_user(passwd: &str, is_it: impl Fn(&Entry<'_>) -> bool) -> Option<Entry<'_>> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
        Some(Entry { name, uid, gid, home }).filter(|entry| !name.is_empty() && is_it(entry))
    })
}

fn group_fields(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or_default()))
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    group.lines().filter_map(group_fields).find_map(|(name, gid, _)| (name == wanted).then_some(gid))
}

fn groups_of(group: &str, user: &str) -> Vec<u32> {
    let lists = |members: &str| members.split(',').any(|member| member == user);
    group.lines().filter_map(group_fields).filter(|(_, _, m)| lists(m)).map(|(_, gid, _)| gid).collect()
}

/// The text of a file; empty when the image has none.
fn read(root: &Root, path: &str) -> Result<String, UserError> {
    let bad = |why: String| UserError::BadFile { file: path.to_owned(), why };
    let file = match root.open_file(Path::new(path)) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(Errno::INVAL) => return Err(bad("not a plain file".into())),
        Err(e) => return Err(bad(e.to_string())),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| bad(Errno::from(e).to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(bad(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7:7::/:\nweb:x:33:34::/srv/www:/bin/false\nnohome:x:50:51\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:mail,web\ndev:x:41:web,root\nbad:x:y:web\n";

    fn who(text: &str, groups: GroupPolicy, extra: &[u32]) -> Result<(ResolvedUser, String), UserError> {
        let fallback = ResolvedUser { uid: 9, gid: 9, additional_gids: extra.to_vec() };
        resolve_in(PASSWD, GROUP, &UserRequest { text: text.into(), fallback, groups })
    }

    #[test]
    fn names_and_numbers_find_the_same_user() {
        for text in ["web", "33", "web:www", "33:34", "web:34"] {
            let (user, home) = who(text, GroupPolicy::Merge, &[40, 2000]).unwrap();
            let expected = ResolvedUser { uid: 33, gid: 34, additional_gids: vec![34, 40, 41, 2000] };
            assert_eq!((user, home.as_str()), (expected, "/srv/www"), "{text}");
        }
    }

    #[test]
    fn strict_groups_leave_out_what_the_image_lists() {
        let (user, _) = who("web", GroupPolicy::Strict, &[2000]).unwrap();
        assert_eq!(user.additional_gids, [34, 2000]);
    }

    #[test]
    fn a_number_needs_no_entry() {
        let (user, home) = who("4242", GroupPolicy::Merge, &[]).unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids, home.as_str()), (4242, 0, vec![0], "/"));
        assert_eq!(who("", GroupPolicy::Merge, &[5]).unwrap().0.uid, 9);
        assert_eq!(who("nohome", GroupPolicy::Merge, &[]).unwrap().1, "/");
    }

    #[test]
    fn unknown_names_and_nonsense_are_told_apart() {
        let nobody = UserError::NoUser { name: "eve".into() };
        assert_eq!(who("eve", GroupPolicy::Merge, &[]).unwrap_err(), nobody);
        assert_eq!(nobody.to_string(), "user `eve` is not in the image's /etc/passwd");
        assert_eq!(
            who("web:eve", GroupPolicy::Merge, &[]).unwrap_err(),
            UserError::NoGroup { name: "eve".into() }
        );
        for text in [":", "web:", ":www", "4294967295", "99999999999999999999"] {
            assert!(matches!(who(text, GroupPolicy::Merge, &[]), Err(UserError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn a_hostile_passwd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let file = dir.path().join("etc/passwd");
        std::fs::File::create(&file).unwrap().set_len(MAX_FILE + 1).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(matches!(read(&root, "/etc/passwd"), Err(UserError::BadFile { .. })));
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        // Below this root there is no /dev.
        assert_eq!(read(&root, "/etc/passwd"), Ok(String::new()));
    }
}
