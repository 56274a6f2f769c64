//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1) of a registry.

/// What a registry wants before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm` (distribution spec, "token authentication").
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of a header's value; schemes that are not known are passed over.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let scheme = &rest[..end];
        let (parameters, after) = parameters(&rest[end..]);
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                challenges.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        }
        // Progress even on garbage.
        rest = if after.len() < rest.len() { after } else { "" };
    }
    challenges
}

/// `key=value` and `key="value"`, separated by commas, up to the next scheme.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(['=', ' ', ',']).unwrap_or(rest.len());
        if end == 0 || !rest[end..].starts_with('=') {
            return (found, rest);
        }
        let key = rest[..end].to_owned();
        let (value, after) = value(&rest[end + 1..]);
        found.push((key, value));
        rest = after;
    }
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/busybox:pull,push"),
        );
        assert_eq!(parse(hub), [expected]);
        assert_eq!(parse("Basic realm=\"a \\\"b\\\" c\""), [Challenge::Basic]);
        assert_eq!(parse("bearer realm=https://a/b , service=x"), [bearer("https://a/b", Some("x"), None)]);
        let both = r#"Negotiate, Basic realm="x", Bearer realm="y""#;
        assert_eq!(parse(both), [Challenge::Basic, bearer("y", None, None)]);
    }

    #[test]
    fn garbage_yields_nothing_and_ends() {
        for garbage in
            ["", ",", "=", "\"", "Bearer", "Bearer realm", "Bearer =x", "Digest a=\"b", ", , =,=\"\\"]
        {
            assert_eq!(parse(garbage), [], "{garbage}");
        }
    }
}
