//! Registry credentials out of `imagePullSecrets`.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kubeedge_proto::cri::AuthConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

use super::image_name::ImageName;

/// Names that Docker Hub goes by in old configurations.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A pull secret that cannot be read.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// Neither of the two types that hold registry credentials.
    #[error("secret {0:?} has neither \".dockerconfigjson\" nor \".dockercfg\"")]
    NotAPullSecret(String),
    /// Not the JSON it should be.
    #[error("secret {name:?} is not a docker configuration: {source}")]
    Json {
        /// Name of the secret.
        name: String,
        /// Where and what.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// The credentials in `secret` that fit `image`, the most specific first.
pub fn matching(secret: &Secret, image: &ImageName) -> Result<Vec<AuthConfig>, CredentialsError> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let json = |source| CredentialsError::Json { name: name.clone(), source };
    let entries = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(config), _) => serde_json::from_slice::<DockerConfig>(config).map_err(json)?.auths,
        (None, Some(config)) => serde_json::from_slice(config).map_err(json)?,
        (None, None) => return Err(CredentialsError::NotAPullSecret(name)),
    };
    let mut found: Vec<(usize, AuthConfig)> = entries
        .into_iter()
        .filter_map(|(server, entry)| specificity(&server, image).map(|rank| (rank, entry.into_auth())))
        .collect();
    found.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    Ok(found.into_iter().map(|(_, auth)| auth).collect())
}

impl Entry {
    /// Without the server: containerd reads that as a URL, keeps the credentials to itself when the host in it is another
    /// one or, without a scheme, none, and refuses an address with a port. Whose they are was judged here.
    fn into_auth(self) -> AuthConfig {
        let (mut username, mut password) = (self.username, self.password);
        if username.is_empty()
            && let Ok(decoded) = STANDARD.decode(self.auth.trim())
            && let Some((user, pass)) = String::from_utf8_lossy(&decoded).split_once(':')
        {
            (username, password) = (user.to_owned(), pass.to_owned());
        }
        AuthConfig {
            username,
            password,
            auth: self.auth,
            server_address: String::new(),
            identity_token: self.identity_token,
            registry_token: self.registry_token,
        }
    }
}

/// How exactly an entry's key names the image's place; `None` when it is another one.
fn specificity(server: &str, image: &ImageName) -> Option<usize> {
    let key = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let hub = DOCKER_HUB.contains(&host) && DOCKER_HUB.contains(&image.registry.as_str());
    let wildcard = host.strip_prefix("*.").is_some_and(|rest| {
        image.registry.split_once('.').is_some_and(|(first, tail)| !first.is_empty() && tail == rest)
    });
    if !(host == image.registry || hub || wildcard) {
        return None;
    }
    let inside = path.is_empty()
        || image.repository == path
        || image.repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    inside.then_some(path.len())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn secret(auths: serde_json::Value) -> Secret {
        let config = json!({"auths": auths}).to_string().into_bytes();
        Secret { data: Some([(".dockerconfigjson".to_owned(), ByteString(config))].into()), ..Secret::default() }
    }

    fn users(auths: serde_json::Value, image: &str) -> Vec<String> {
        let found = matching(&secret(auths), &ImageName::parse(image).unwrap()).unwrap();
        found.into_iter().map(|auth| format!("{}:{}", auth.username, auth.password)).collect()
    }

    #[test]
    fn the_most_specific_credential_comes_first_and_others_stay_home() {
        let auths = json!({
            "reg.example": {"username": "wide", "password": "p"},
            "reg.example/team": {"auth": STANDARD.encode("team:secret")},
            "reg.example/tea": {"username": "no", "password": "p"},
            "https://other.example/v1/": {"username": "other", "password": "p"},
        });
        assert_eq!(users(auths.clone(), "reg.example/team/app"), ["team:secret", "wide:p"]);
        assert_eq!(users(auths.clone(), "other.example/x"), ["other:p"]);
        assert!(users(auths, "elsewhere.example/x").is_empty());
    }

    #[test]
    fn docker_hub_is_known_by_its_old_name() {
        let auths = json!({"https://index.docker.io/v1/": {"username": "hub", "password": "p"}});
        assert_eq!(users(auths, "busybox"), ["hub:p"]);
    }

    #[test]
    fn a_runtime_is_not_told_the_server_which_it_would_take_for_a_url() {
        let auths = json!({"127.0.0.1:5000": {"username": "u", "password": "p"}});
        let found = matching(&secret(auths), &ImageName::parse("127.0.0.1:5000/a:1").unwrap()).unwrap();
        assert_eq!((found.len(), found[0].server_address.as_str()), (1, ""));
    }

    #[test]
    fn what_is_no_pull_secret_is_said() {
        let image = ImageName::parse("a").unwrap();
        assert!(matches!(matching(&Secret::default(), &image), Err(CredentialsError::NotAPullSecret(_))));
        let broken = Secret {
            data: Some([(".dockerconfigjson".to_owned(), ByteString(b"{".to_vec()))].into()),
            ..Secret::default()
        };
        assert!(matches!(matching(&broken, &image), Err(CredentialsError::Json { .. })));
    }
}
