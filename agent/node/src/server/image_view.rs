//! An image as CRI shows it.

use hartpod_images::Image;
use hartpod_proto::cri::v1 as cri;

pub(super) fn image(image: &Image) -> cri::Image {
    let user = image.config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
    let (uid, username) = user_of(&user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// The kubelet checks runAsNonRoot with it: a number is a uid, anything else a name; the group does not count. An image
/// without a user runs as root.
fn user_of(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    if name.is_empty() {
        return (Some(0), String::new());
    }
    match name.parse::<i64>() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_an_image_is_a_number_or_a_name() {
        let table = [
            ("", (Some(0), "")),
            ("0", (Some(0), "")),
            ("1000:1000", (Some(1000), "")),
            ("nginx", (None, "nginx")),
            ("nginx:web", (None, "nginx")),
        ];
        for (user, (uid, name)) in table {
            assert_eq!(user_of(user), (uid, name.to_owned()), "{user}");
        }
    }
}
