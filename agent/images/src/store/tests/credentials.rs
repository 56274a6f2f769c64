//! Who is asked for which credentials, and who never sees them.

use super::*;
use crate::auth::AuthFields;
use crate::testing::registry::{Reply, Request};

const BASIC_ME: &str = "Basic bWU6aHVudGVyMg==";

fn me() -> Auth {
    Auth::password("me", "hunter2")
}

/// Tokens from the registry's own `/token`, for whoever shows `authorization` there.
fn token_server(authorization: &'static str, address: String) -> impl Fn(&Request) -> Option<Reply> + Send {
    move |request| {
        if request.target.starts_with("/token") {
            let fits = request.header("authorization") == authorization;
            return Some(match fits {
                true => Reply::new(200, r#"{"token":"t0ken"}"#),
                false => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#),
            });
        }
        let challenge =
            format!(r#"Bearer realm="http://{address}/token",service="reg",scope="repository:app:pull""#);
        let unauthorized =
            Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"token please"}]}"#);
        (request.header("authorization") != "Bearer t0ken")
            .then(|| unauthorized.header("WWW-Authenticate", challenge))
    }
}

async fn world_with_image() -> World {
    let world = World::new().await;
    world.registry.push("app", "latest", &TestImage::new(vec![layer("a", b"one"), layer("b", b"two")]));
    world
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let world = world_with_image().await;
    world.registry.hook(token_server("", world.registry.address().to_owned()));
    world.pull("app").await.unwrap();
    let tokens = world.registry.requests().into_iter().filter(|request| request.target.starts_with("/token"));
    let targets: Vec<_> = tokens.map(|request| request.target).collect();
    assert_eq!(targets, ["/token?service=reg&scope=repository%3Aapp%3Apull"]);
}

#[tokio::test]
async fn a_password_gets_a_token() {
    let world = world_with_image().await;
    world.registry.hook(token_server(BASIC_ME, world.registry.address().to_owned()));
    let error = world.pull("app").await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("token server: 401 Unauthorized: who are you"), "{error}");
    let wrong = Auth::password("me", "wrong");
    let error = world.store.pull(&world.reference("app"), Some(wrong), None).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    assert!(!chain(&error).contains("wrong"), "{error}");
    world.store.pull(&world.reference("app"), Some(me()), None).await.unwrap();
    // The registry itself never saw the password.
    let leaked = |request: &Request| {
        !request.target.starts_with("/token") && request.header("authorization").contains("Basic")
    };
    assert!(!world.registry.requests().iter().any(leaked));
}

#[tokio::test]
async fn basic_authentication_is_answered_with_a_password() {
    let world = world_with_image().await;
    world.registry.hook(|request| {
        let denied = Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="reg""#);
        (request.header("authorization") != BASIC_ME).then_some(denied)
    });
    let error = world.pull("app").await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    world.store.pull(&world.reference("app"), Some(me()), None).await.unwrap();
}

#[tokio::test]
async fn tokens_of_the_kubelet_are_used() {
    let world = world_with_image().await;
    world.registry.hook(token_server("nobody gets one here", world.registry.address().to_owned()));
    let auth =
        Auth::from_fields(AuthFields { registry_token: "t0ken".into(), ..Default::default() }).unwrap();
    world.store.pull(&world.reference("app"), auth, None).await.unwrap();
    assert_eq!(world.registry.count("/token"), 0);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let world = world_with_image().await;
    let address = world.registry.address().to_owned();
    let usual = token_server("", address);
    world.registry.hook(move |request| {
        if request.target == "/token" {
            assert_eq!(
                (request.method.as_str(), request.body.as_str()),
                ("POST", "grant_type=refresh_token&service=reg&scope=repository%3Aapp%3Apull&client_id=hartpod&refresh_token=r%2F1")
            );
            return Some(Reply::new(200, r#"{"access_token":"t0ken"}"#));
        }
        usual(request)
    });
    let auth = Auth::from_fields(AuthFields { identity_token: "r/1".into(), ..Default::default() }).unwrap();
    world.store.pull(&world.reference("app"), auth, None).await.unwrap();
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let world = world_with_image().await;
    let address = world.registry.address().to_owned();
    let count = std::sync::atomic::AtomicUsize::new(0);
    world.registry.hook(move |request| {
        let given = count.load(std::sync::atomic::Ordering::SeqCst);
        if request.target.starts_with("/token") {
            count.store(given + 1, std::sync::atomic::Ordering::SeqCst);
            return Some(Reply::new(200, format!(r#"{{"token":"t{}"}}"#, given + 1)));
        }
        // The first token is good for manifests only.
        let good = match request.target.contains("/blobs/") {
            true => request.header("authorization") == "Bearer t2",
            false => request.header("authorization").starts_with("Bearer t"),
        };
        let challenge = format!(r#"Bearer realm="http://{address}/token""#);
        (!good).then(|| Reply::new(401, "").header("WWW-Authenticate", challenge))
    });
    world.pull("app").await.unwrap();
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let world = world_with_image().await;
    let elsewhere = FakeRegistry::start().await;
    let image = TestImage::new(vec![layer("a", b"one"), layer("b", b"two")]);
    elsewhere.push("app", "latest", &image);
    let (here, there) = (world.registry.address().to_owned(), elsewhere.address().to_owned());
    let usual = token_server(BASIC_ME, here);
    world.registry.hook(move |request| {
        usual(request).or_else(|| {
            let is_blob = request.target.contains("/blobs/");
            is_blob
                .then(|| Reply::new(307, "").header("Location", format!("http://{there}{}", request.target)))
        })
    });
    world.store.pull(&world.reference("app"), Some(me()), None).await.unwrap();
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("authorization").is_empty()));
}

#[tokio::test]
async fn an_image_that_is_here_is_still_the_registrys_to_give() {
    let world = world_with_image().await;
    world.registry.hook(token_server(BASIC_ME, world.registry.address().to_owned()));
    world.store.pull(&world.reference("app"), Some(me()), None).await.unwrap();
    let error = world.pull("app").await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
}
