//! These run as root, as the daemon does: owners, whiteouts and trusted attributes need it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::*;
use crate::layer::file_list::read_list;
use crate::testing::archive::{Layer, Tar};

const LIMITS: Limits = Limits { bytes: 10 << 20, entries: 5000 };

/// A folder deep in others, so that what escapes from it is seen, and lands nowhere else: the code under test runs as root, and a
/// fault in it must not hurt the machine. For the same reason no archive here names anything that exists outside of the test.
struct Place {
    outer: tempfile::TempDir,
    target: Target,
}

/// Folders between the outer one and the layer: more than any archive here climbs.
const NEST: &str = "1/2/3/4/5";

impl Place {
    fn new() -> Place {
        let outer = tempfile::tempdir().unwrap();
        let nest = outer.path().join(NEST);
        std::fs::create_dir_all(&nest).unwrap();
        for folder in nest.ancestors().take(6) {
            std::fs::write(folder.join("victim"), "untouched").unwrap();
        }
        let target = Target { folder: nest.join("layer"), list: nest.join("list") };
        std::fs::create_dir(&target.folder).unwrap();
        Place { outer, target }
    }

    /// An absolute path outside of the layer, for links to it.
    fn outside(&self) -> String {
        self.outer.path().to_str().unwrap().to_owned()
    }

    fn unpack(&self, layer: &Layer) -> Result<LayerFacts, LayerError> {
        self.unpack_with(layer, LIMITS)
    }

    fn unpack_with(&self, layer: &Layer, limits: Limits) -> Result<LayerFacts, LayerError> {
        let facts = StreamFacts {
            digest: layer.digest.clone(),
            size: layer.blob.len() as u64,
            diff_id: layer.diff_id.clone(),
        };
        let source = Box::new(std::io::Cursor::new(layer.blob.clone()));
        unpack_blocking(source, PathBuf::from("test"), facts, limits, &self.target)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.target.folder.join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Nothing outside of the layer's folder was touched.
    fn is_contained(&self) -> bool {
        let nest = self.outer.path().join(NEST);
        nest.ancestors().take(6).all(|folder| {
            let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
            let strange = |name: &std::ffi::OsString| {
                let name = name.to_str().unwrap();
                !matches!(name, "victim" | "1" | "2" | "3" | "4" | "5")
                    && (folder != nest || !matches!(name, "layer" | "list"))
            };
            let victim = folder.join("victim");
            names.filter(strange).count() == 0
                && std::fs::read_to_string(&victim).unwrap() == "untouched"
                && std::fs::metadata(&victim).unwrap().nlink() == 1
        })
    }
}

fn unpack(tar: Tar) -> Place {
    let place = Place::new();
    place.unpack(&Layer::plain(&tar.finish())).unwrap();
    place
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    let stat = std::fs::symlink_metadata(path).unwrap();
    stat.file_type().is_char_device() && stat.rdev() == 0
}

#[test]
fn files_keep_mode_owner_time_and_attributes() {
    let capability: &[u8] =
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let tar = Tar::new()
        .entry(b'5', "bin", b"", |header| {
            header.set_mode(0o1777);
            header.set_uid(5);
            header.set_mtime(1234);
        })
        .pax(&[
            ("mtime", b"987654321.123456789"),
            ("uid", b"70000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.user.overlay.redirect", b"/x"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/x"),
        ])
        .entry(b'0', "bin/ping", b"#!", |header| {
            header.set_mode(0o4755);
            header.set_gid(7);
        })
        .symlink("bin/sh", "/bin/../busybox")
        .hard_link("ping", "/bin/ping")
        .entry(b'6', "fifo", b"", |header| header.set_mode(0o622));
    let place = Place::new();
    let facts = place.unpack(&Layer::gzip(&tar.finish())).unwrap();

    let bin = std::fs::metadata(place.at("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.uid(), bin.gid(), bin.mtime()), (0o1777, 5, 0, 1234));
    let ping = std::fs::metadata(place.at("bin/ping")).unwrap();
    assert_eq!((ping.mode() & 0o7777, ping.uid(), ping.gid()), (0o4755, 70000, 7));
    assert_eq!((ping.mtime(), ping.mtime_nsec()), (987_654_321, 123_456_789));
    assert_eq!(ping.ino(), std::fs::metadata(place.at("ping")).unwrap().ino());
    assert_eq!(xattr(&place.at("bin/ping"), "security.capability").as_deref(), Some(capability));
    assert_eq!(xattr(&place.at("bin/ping"), "user.note").as_deref(), Some(&b"hello"[..]));
    assert_eq!(xattr(&place.at("bin/ping"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&place.at("bin/ping"), "user.overlay.redirect"), None);
    assert_eq!(std::fs::read_link(place.at("bin/sh")).unwrap(), Path::new("/bin/../busybox"));
    let fifo = std::fs::symlink_metadata(place.at("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o7777 == 0o622);
    assert_eq!(facts.skipped_xattrs, 2);
    // Root, bin, ping, sh, fifo, and the list.
    assert_eq!((facts.inodes, facts.implied_folders), (6, 0));
}

#[test]
fn every_compression_of_the_specification_is_read() {
    let tar = Tar::new().file("a", &[7; 100_000]).finish();
    // Two gzip members, as parallel compressors write.
    let (one, two) = (Layer::gzip(&tar[..5000]).blob, Layer::gzip(&tar[5000..]).blob);
    let members = [one, two].concat();
    let members = Layer { digest: Digest::of(&members), diff_id: Digest::of(&tar), blob: members };
    for layer in [Layer::plain(&tar), Layer::gzip(&tar), Layer::zstd(&tar), members] {
        let place = Place::new();
        place.unpack(&layer).unwrap();
        assert_eq!(std::fs::read(place.at("a")).unwrap(), [7; 100_000]);
    }
}

#[test]
fn long_names_and_odd_names_are_kept() {
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(255));
    let tar = Tar::new()
        .pax(&[("path", long.as_bytes())])
        .file("short", b"pax")
        .entry(b'L', "././@LongLink", format!("{}\0", "g".repeat(150)).as_bytes(), |_| {})
        .file("short", b"gnu")
        .pax(&[("path", b"new\nline \xff\xfe")])
        .file("short", b"odd");
    let place = unpack(tar);
    assert_eq!(place.read(&long), "pax");
    assert_eq!(place.read(&"g".repeat(150)), "gnu");
    let odd = place.target.folder.join(OsStr::from_bytes(b"new\nline \xff\xfe"));
    assert_eq!(std::fs::read_to_string(odd).unwrap(), "odd");
}

#[test]
fn the_list_says_what_was_unpacked() {
    let tar = Tar::new()
        .folder("d/")
        .file("d/f", b"abc")
        .symlink("l", "x y")
        .hard_link("h", "d/f")
        .file("d/.wh.gone", b"")
        .file("new/f", b"");
    let place = unpack(tar);
    let mut lines = Vec::new();
    read_list(&place.target.list, |path, fields| {
        lines.push(format!("{} {}", fields.join(" "), String::from_utf8(path).unwrap()));
    })
    .unwrap();
    assert_eq!(
        lines,
        [
            "d 0755 0 0 d",
            "f 0644 0 0 3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad d/f",
            "l 0 0 x\\x20y l",
            "h d/f h",
            "w d/gone",
            "f 0644 0 0 0 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 new/f",
            "i new",
        ]
    );
}

#[test]
fn whiteouts_become_overlay_whiteouts_in_any_order() {
    let tar = Tar::new()
        .file(".wh.gone", b"")
        .file("dir/.wh.x", b"")
        .folder("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"")
        // Removed and made anew, either way round.
        .file(".wh.after", b"")
        .folder("after/")
        .folder("before/")
        .file(".wh.before", b"")
        .file(".wh.implied", b"")
        .file("implied/f", b"")
        .file(".wh.file", b"")
        .file("file", b"new")
        .file("file2", b"new")
        .file(".wh.file2", b"")
        .folder(".wh..wh.plnk")
        .file(".wh..wh.plnk/12.34", b"")
        .file(".wh..wh.aufs", b"");
    let place = unpack(tar);
    assert!(is_whiteout(&place.at("gone")) && is_whiteout(&place.at("dir/x")));
    for name in ["opaque", "after", "before", "implied"] {
        assert!(place.at(name).is_dir(), "{name}");
        assert_eq!(xattr(&place.at(name), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert_eq!(xattr(&place.at("dir"), "trusted.overlay.opaque"), None);
    assert_eq!((place.read("file"), place.read("file2")), ("new".to_owned(), "new".to_owned()));
    let mut names: Vec<_> =
        std::fs::read_dir(&place.target.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["after", "before", "dir", "file", "file2", "gone", "implied", "opaque"]);
}

#[test]
fn an_opaque_root_is_told_to_the_store() {
    let place = Place::new();
    let tar = Tar::new().file(".wh..wh..opq", b"").file("a", b"");
    assert!(place.unpack(&Layer::plain(&tar.finish())).unwrap().opaque_root);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tar = Tar::new()
        .file("file", b"one")
        .file("file", b"two")
        .folder("dir")
        .file("dir/a/b", b"")
        .file("dir", b"now a file")
        .symlink("link", "../victim")
        .file("link", b"now a file")
        .symlink("link2", "..")
        .folder("link2")
        .file("link2/a", b"")
        .file("keep/a", b"")
        .entry(b'5', "keep", b"", |header| header.set_mode(0o700))
        .file("x", b"")
        .hard_link("x", "x");
    let place = unpack(tar);
    assert_eq!(place.read("file"), "two");
    assert_eq!(place.read("dir"), "now a file");
    assert_eq!(place.read("link"), "now a file");
    assert!(place.at("link2/a").is_file() && !place.at("link2").is_symlink());
    assert!(place.at("keep/a").is_file());
    assert_eq!(std::fs::metadata(place.at("keep")).unwrap().mode() & 0o777, 0o700);
    assert!(place.is_contained());
}

#[test]
fn links_in_a_path_are_followed_inside_of_the_layer_only() {
    let place = Place::new();
    let outside = place.outside();
    let inside = outside.trim_start_matches('/');
    let tar = Tar::new()
        .symlink("absolute", &outside)
        .file("absolute/new", b"1")
        .symlink("relative", "a/../etc/x")
        .folder("a")
        .file("relative/new", b"2")
        .symlink("etc/up", "../../a/..")
        .symlink("chain", "absolute/x")
        .file("chain/other", b"3")
        .symlink("p", &format!("/proc/self/root{outside}"))
        .file("p/victim", b"4")
        .file("absolute/victim", b"5");
    place.unpack(&Layer::plain(&tar.finish())).unwrap();
    assert_eq!(place.read(&format!("{inside}/new")), "1");
    assert_eq!(place.read("etc/x/new"), "2");
    assert_eq!(place.read(&format!("{inside}/x/other")), "3");
    // A path like others here: nothing of the real /proc is involved.
    assert_eq!(place.read(&format!("proc/self/root{outside}/victim")), "4");
    assert_eq!(place.read(&format!("{inside}/victim")), "5");
    assert!(place.is_contained());
}

#[test]
fn devices_are_passed_over_and_counted() {
    let device = |header: &mut tar::Header| {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    };
    let none = |header: &mut tar::Header| {
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
    };
    let tar = Tar::new()
        .entry(b'3', "dev/null", b"", device)
        .entry(b'4', "dev/sda", b"", device)
        // A whiteout by the back door.
        .entry(b'3', "dev/zero", b"", none)
        .file("dev/file", b"");
    let place = Place::new();
    assert_eq!(place.unpack(&Layer::plain(&tar.finish())).unwrap().skipped_devices, 3);
    let names = std::fs::read_dir(place.at("dev")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["file"]);
}

#[test]
fn hostile_entries_are_errors_and_touch_nothing_outside() {
    let long = "x".repeat(64 << 10);
    let too_long = "x".repeat((1 << 20) + 1);
    let deep = "d/".repeat(200);
    let links = |mut tar: Tar| {
        for n in 0..50 {
            tar = tar.symlink(&format!("l{n}"), &format!("l{}", n + 1));
        }
        tar.folder("l50").file("l0/x", b"")
    };
    for (name, part, tar) in [
        ("dot dot", "has .. in its name", Tar::new().file("../victim", b"")),
        ("dot dot inside", "has .. in its name", Tar::new().file("a/../../victim", b"")),
        ("absolute dot dot", "has .. in its name", Tar::new().file("/../victim", b"")),
        ("folder dot dot", "has .. in its name", Tar::new().folder("..")),
        ("through a link up", "leads out", Tar::new().symlink("a", "..").file("a/victim", b"")),
        ("through a link far up", "leads out", Tar::new().symlink("a/b", "../../..").file("a/b/victim", b"")),
        (
            "through two links",
            "leads out",
            Tar::new().symlink("a", "b/..").symlink("b", "..").file("a/victim", b""),
        ),
        ("folder through a link", "leads out", Tar::new().symlink("a", "..").folder("a/new")),
        ("symlink through a link", "leads out", Tar::new().symlink("a", "..").symlink("a/new", "x")),
        ("whiteout through a link", "leads out", Tar::new().symlink("a", "..").file("a/.wh.victim", b"")),
        ("opaque through a link", "leads out", Tar::new().symlink("a", "..").file("a/.wh..wh..opq", b"")),
        ("hard link outside", "has .. in it", Tar::new().hard_link("a", "../victim")),
        ("hard link through a link", "leads out", Tar::new().symlink("a", "..").hard_link("b", "a/victim")),
        ("hard link to nothing", "not in this layer", Tar::new().hard_link("a", "/nonexistent/victim")),
        ("hard link to a folder", "cannot be linked", Tar::new().folder("d").hard_link("a", "d")),
        ("hard link to the root", "cannot be linked", Tar::new().hard_link("a", "/")),
        ("hard link to a whiteout", "cannot be linked", Tar::new().file(".wh.d", b"").hard_link("a", "d")),
        ("hard link into itself", "not in this layer", Tar::new().file("a/b", b"").hard_link("a", "a/b")),
        ("endless links", "too many links", Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"")),
        ("many links", "too many links", links(Tar::new())),
        ("below a file", "no folder", Tar::new().file("a", b"").file("a/b", b"")),
        ("below a fifo", "no folder", Tar::new().entry(b'6', "a", b"", |_| {}).file("a/b", b"")),
        ("file as root", "has no name", Tar::new().file("./", b"").entry(b'0', ".", b"", |_| {})),
        ("NUL", "has a NUL", Tar::new().pax(&[("path", b"a\0b")]).file("a", b"")),
        ("NUL in a link", "has a NUL", Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("a", "b")),
        (
            "long name",
            "the limit is 255",
            Tar::new().pax(&[("path", &long.as_bytes()[..256])]).file("a", b""),
        ),
        ("long path", "the limit is 4095", Tar::new().pax(&[("path", long.as_bytes())]).file("a", b"")),
        (
            "long link",
            "target of 65536 bytes",
            Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink("a", ""),
        ),
        ("empty link", "target of 0 bytes", Tar::new().symlink("a", "")),
        (
            "long header",
            "more than 1048576 bytes",
            Tar::new().pax(&[("comment", too_long.as_bytes())]).file("a", b""),
        ),
        (
            "long GNU name",
            "more than 1048576 bytes",
            Tar::new().entry(b'L', "x", too_long.as_bytes(), |_| {}),
        ),
        (
            "deeper by a link",
            "deeper than 256",
            Tar::new()
                .pax(&[("path", format!("{deep}f").as_bytes())])
                .file("a", b"")
                .pax(&[("linkpath", deep.as_bytes())])
                .symlink("s", "")
                .pax(&[("path", format!("s/{}f", "e/".repeat(100)).as_bytes())])
                .file("a", b""),
        ),
        ("GNU sparse", "sparse file", Tar::new().entry(b'S', "a", b"", |_| {})),
        ("PAX sparse", "sparse file", Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("a", b"")),
        ("unknown type", "unsupported type M", Tar::new().entry(b'M', "a", b"", |_| {})),
        ("owner", "owner that is out of range", Tar::new().pax(&[("uid", b"4294967296")]).file("a", b"")),
        ("owner -1", "owner that is out of range", Tar::new().pax(&[("gid", b"4294967295")]).file("a", b"")),
        ("no whiteout", "whiteout of nothing", Tar::new().file("a/.wh.", b"")),
        ("whiteout of ..", "whiteout of nothing", Tar::new().file("a/.wh...", b"")),
        ("bad capability", "the kernel refuses", {
            Tar::new().pax(&[("SCHILY.xattr.security.capability", b"x")]).file("a", b"")
        }),
    ] {
        let place = Place::new();
        let error = place.unpack(&Layer::gzip(&tar.finish())).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert!(place.is_contained(), "{name}");
        assert!(error.len() < 700, "{name}: {error}");
    }
}

#[test]
fn a_bomb_of_zeros_fails_before_it_is_written() {
    // 1 GiB of zeros says so in its header: nothing of it is read.
    let declared = Tar::new().entry(b'0', "zeros", b"", |header| header.set_size(1 << 30)).cut();
    let place = Place::new();
    let error = place.unpack(&Layer::gzip(&declared)).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { limit: 10_485_760, .. }), "{error}");
    assert!(!place.at("zeros").exists());

    // Many that are small: at the limit.
    let mut many = Tar::new();
    for n in 0..12 {
        many = many.file(&format!("{n}"), &vec![0; 1 << 20]);
    }
    let place = Place::new();
    let error = place.unpack(&Layer::zstd(&many.finish())).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");

    // Behind the archive's end.
    let mut padded = Tar::new().file("a", b"").finish();
    padded.resize(11 << 20, 0);
    let error = Place::new().unpack(&Layer::gzip(&padded)).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");
}

#[test]
fn a_layer_that_fills_the_limit_exactly_fits() {
    let tar = Tar::new().file("a", &vec![1; 100_000]).finish();
    let limits = Limits { bytes: tar.len() as u64, ..LIMITS };
    assert!(Place::new().unpack_with(&Layer::gzip(&tar), limits).is_ok());
    let limits = Limits { bytes: tar.len() as u64 - 1, ..LIMITS };
    assert!(Place::new().unpack_with(&Layer::gzip(&tar), limits).is_err());
}

#[test]
fn entries_and_the_folders_made_for_them_are_limited() {
    let limits = Limits { entries: 100, ..LIMITS };
    let mut many = Tar::new();
    for n in 0..101 {
        many = many.file(&format!("{n}"), b"");
    }
    let error = Place::new().unpack_with(&Layer::plain(&many.finish()), limits).unwrap_err();
    assert!(matches!(error, LayerError::TooManyEntries { limit: 100, .. }), "{error}");

    let deep = format!("{}f", "d/".repeat(120));
    let deep = Tar::new().pax(&[("path", deep.as_bytes())]).file("a", b"");
    let error = Place::new().unpack_with(&Layer::plain(&deep.finish()), limits).unwrap_err();
    assert!(matches!(error, LayerError::TooManyEntries { limit: 100, .. }), "{error}");
}

#[test]
fn wrong_bytes_are_told_apart() {
    let tar = Tar::new().file("a", &[3; 50_000]).finish();
    let layer = Layer::gzip(&tar);
    let check = |change: &dyn Fn(&mut Layer)| {
        let mut changed = layer.clone();
        change(&mut changed);
        Place::new().unpack(&changed).unwrap_err()
    };
    let error = check(&|layer| layer.diff_id = Digest::of(b"x"));
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    let error = check(&|layer| layer.digest = Digest::of(b"x"));
    assert!(matches!(error, LayerError::Digest { .. }), "{error}");
    // Garbage that is not what was asked for is reported as that.
    let error = check(&|layer| layer.blob[100] ^= 0xff);
    assert!(matches!(error, LayerError::Digest { .. }), "{error}");
    // Garbage that is exactly what was asked for is the image's fault.
    let mut garbage = layer.blob.clone();
    let middle = garbage.len() / 2;
    garbage.truncate(middle);
    let garbage = Layer { digest: Digest::of(&garbage), diff_id: layer.diff_id.clone(), blob: garbage };
    let error = Place::new().unpack(&garbage).unwrap_err();
    assert!(matches!(error, LayerError::Decompress { method: "gzip", .. }), "{error}");
    for (blob, part) in [
        (b"\xfd7zXZ\0rest".to_vec(), "compressed with xz"),
        (vec![b'x'; 1000], "a header with a wrong checksum"),
        (tar[..700].to_vec(), "it ends within a file"),
        (tar[..100].to_vec(), "it ends within a header"),
        (b"\x28\xb5\x2f\xfdgarbage".to_vec(), "decompress zstd"),
    ] {
        let layer = Layer::plain(&blob);
        let error = Place::new().unpack(&layer).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_wrong_size_is_an_error_either_way() {
    let layer = Layer::gzip(&Tar::new().file("a", &[3; 50_000]).finish());
    let unpack = |size: u64| {
        let facts = StreamFacts { digest: layer.digest.clone(), size, diff_id: layer.diff_id.clone() };
        let source = Box::new(std::io::Cursor::new(layer.blob.clone()));
        unpack_blocking(source, PathBuf::from("test"), facts, LIMITS, &Place::new().target).unwrap_err()
    };
    let size = layer.blob.len() as u64;
    assert!(matches!(unpack(size + 1), LayerError::Truncated { .. }));
    assert!(matches!(unpack(size - 1), LayerError::TooLong { .. }));
}

#[test]
fn an_empty_layer_is_an_empty_folder() {
    for tar in [Tar::new().finish(), Vec::new()] {
        let place = Place::new();
        place.unpack(&Layer::gzip(&tar)).unwrap();
        assert_eq!(std::fs::read_dir(&place.target.folder).unwrap().count(), 0);
    }
}

#[test]
fn damaged_archives_never_panic_nor_escape() {
    let sound = Tar::new()
        .pax(&[("path", b"long/name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("a", &[1; 600])
        .folder("d")
        .symlink("d/up", "../..")
        .symlink("link", "d")
        .file("link/file", b"x")
        .hard_link("hard", "d/file")
        .file("d/.wh.gone", b"")
        .entry(b'L', "long", b"a/long/gnu/name\0", |_| {})
        .file("short", b"y")
        .entry(b'6', "fifo", b"", |_| {})
        .finish();
    // A linear congruential generator: the same damage in every run.
    let mut state = 1u64;
    let mut next = move |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut unpacked = 0;
    for _ in 0..1500 {
        let mut damaged = sound.clone();
        for _ in 0..=next(4) {
            let block = next(damaged.len() / 512);
            // Most damage goes where it is looked at: names, types, sizes, link names.
            let field = [0, 1, 2, 100, 124, 134, 135, 156, 157, 158, 345][next(11)];
            damaged[block * 512 + if next(3) == 0 { next(512) } else { field }] =
                b"./\0\x800123456LKxgS\xff"[next(17)];
        }
        for block in damaged.chunks_exact_mut(512) {
            if block[148..156].iter().any(|&byte| byte != 0) {
                let header: &mut [u8; 512] = block.try_into().unwrap();
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Place::new();
        unpacked += u32::from(place.unpack(&Layer::plain(&damaged)).is_ok());
        assert!(place.is_contained());
    }
    assert!(
        (100..1400).contains(&unpacked),
        "{unpacked} of 1500 were unpacked: the damage is too little or too much"
    );
}
