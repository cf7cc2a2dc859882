//! Who asks, and what that one may do.
//!
//! There is one administrator, who holds a bearer token and may do everything, and there are service accounts, whose
//! signed tokens say who they are. A service account may read what the API offers and ask about itself; nothing else,
//! as in a cluster where nobody gave it a role.

use serde_json::{Value, json};

use super::object::text;
use super::request::Path;
use super::status::Status;
use super::verbs::Method;

/// The one behind a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) admin: bool,
}

impl User {
    /// The holder of the administrator's token.
    pub(crate) fn admin() -> Self {
        Self {
            name: "kubernetes-admin".into(),
            uid: String::new(),
            groups: vec![MASTERS.into(), AUTHENTICATED.into()],
            admin: true,
        }
    }

    /// A service account.
    pub(crate) fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.into(),
            ],
            admin: false,
        }
    }
}

/// The administrator's token, kept as its hash: comparing hashes takes the same time for every wrong token.
#[derive(Clone)]
pub(crate) struct AdminToken([u8; 32]);

impl AdminToken {
    pub(crate) fn new(token: &str) -> Self {
        Self(hash(token))
    }

    pub(crate) fn is(&self, token: &str) -> bool {
        !token.is_empty() && self.0 == hash(token)
    }
}

fn hash(text: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// The token of an `Authorization` header.
pub(crate) fn bearer(header: Option<&str>) -> Option<&str> {
    let (scheme, token) = header?.trim().split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim()).filter(|token| !token.is_empty())
}

/// Who a request is made as: `user` itself, or another whom the administrator names (`kubectl --as`). Nobody else may,
/// and a header that is not understood is refused, so that nothing is answered with more rights than were asked with.
pub(crate) fn impersonate(user: User, name: &str, groups: &[&str], others: bool) -> Result<User, Status> {
    if name.is_empty() && groups.is_empty() && !others {
        return Ok(user);
    }
    if name.is_empty() {
        return Err(Status::bad_request("groups cannot be impersonated without a user: send Impersonate-User, too"));
    }
    if !user.admin {
        let message = format!(
            "users \"{name}\" is forbidden: User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope",
            user.name
        );
        let details = json!({"name": name, "kind": "users"});
        return Err(Status { details: Some(details), ..Status::new(403, "Forbidden", message) });
    }
    if others {
        return Err(Status::bad_request("this API server impersonates users and groups, not uids and extra fields"));
    }
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    if let Some((namespace, account)) = account.filter(|_| groups.is_empty()) {
        return Ok(User::service_account(namespace, account, ""));
    }
    if !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.into());
    }
    let admin = groups.iter().any(|group| group == MASTERS);
    Ok(User { name: name.to_owned(), uid: String::new(), groups, admin })
}

/// Refuses what this user may not do, in Kubernetes' words.
pub(crate) fn authorize(user: &User, method: Method, path: &Path, watch: bool) -> Result<(), Status> {
    if user.admin {
        return Ok(());
    }
    let Path::Resource(resource) = path else { return Ok(()) };
    if method == Method::Post && asks_about_itself(&resource.group, &resource.resource) {
        return Ok(());
    }
    let verb = match (method, &resource.name) {
        (Method::Get, Some(_)) => "get",
        (Method::Get, None) if watch => "watch",
        (Method::Get, None) => "list",
        (Method::Post, _) => "create",
        (Method::Put, _) => "update",
        (Method::Patch, _) => "patch",
        (Method::Delete, Some(_)) => "delete",
        (Method::Delete, None) => "deletecollection",
    };
    let what = match &resource.subresource {
        Some(subresource) => format!("{}/{subresource}", resource.resource),
        None => resource.resource.clone(),
    };
    let place = match &resource.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".into(),
    };
    let name = resource.name.as_deref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let qualified =
        if resource.group.is_empty() { what.clone() } else { format!("{}.{}", resource.resource, resource.group) };
    let message = format!(
        "{qualified}{name} is forbidden: User \"{}\" cannot {verb} resource \"{what}\" in API group \"{}\" {place}",
        user.name, resource.group
    );
    let mut details = json!({"kind": resource.resource});
    for (key, value) in [("name", resource.name.as_deref()), ("group", Some(resource.group.as_str()))] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            details[key] = value.into();
        }
    }
    Err(Status { details: Some(details), ..Status::new(403, "Forbidden", message) })
}

/// The reviews that everybody may send.
fn asks_about_itself(group: &str, resource: &str) -> bool {
    matches!(
        (group, resource),
        ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
            | ("authentication.k8s.io", "selfsubjectreviews")
    )
}

/// The group whose members may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The group of everyone who is known.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// What everyone who is known may read beside resources.
pub(crate) const OPEN_PATHS: [&str; 10] =
    ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version"];

/// Whether a member of `groups` may do this, by the rules of [`authorize`]; the attributes are those of a review.
pub(crate) fn may(groups: &[&str], resource: &Value, path: &Value) -> bool {
    if groups.contains(&MASTERS) {
        return true;
    }
    if !groups.contains(&AUTHENTICATED) {
        return false;
    }
    if resource.is_object() {
        return text(resource, "verb") == "create"
            && asks_about_itself(text(resource, "group"), text(resource, "resource"));
    }
    let asked = text(path, "path");
    text(path, "verb") == "get"
        && OPEN_PATHS.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => asked.starts_with(prefix),
            None => asked == *open,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = AdminToken::new("secret");
        assert!(token.is("secret"));
        assert!(!token.is("secre") && !token.is("") && !AdminToken::new("").is(""));
        assert_eq!(bearer(Some("Bearer  x ")), Some("x"));
        assert_eq!(bearer(Some("bearer x")), Some("x"));
        assert_eq!(bearer(Some("Basic x")), None);
        assert_eq!(bearer(Some("Bearer ")), None);
    }

    #[test]
    fn what_a_review_says_is_what_a_request_meets() {
        let known = [AUTHENTICATED, "system:serviceaccounts"];
        let resource = |verb: &str, group: &str, name: &str| json!({"verb": verb, "group": group, "resource": name});
        assert!(may(&[MASTERS], &resource("delete", "", "nodes"), &Value::Null));
        assert!(!may(&known, &resource("list", "", "pods"), &Value::Null));
        let own = resource("create", "authorization.k8s.io", "selfsubjectrulesreviews");
        assert!(may(&known, &own, &Value::Null) && !may(&["a"], &own, &Value::Null));
        let read = |path: &str| may(&known, &Value::Null, &json!({"verb": "get", "path": path}));
        assert!(read("/apis/apps/v1") && read("/version") && !read("/metrics"));
    }

    #[test]
    fn only_the_administrator_speaks_for_others_and_then_with_their_rights_alone() {
        let as_ = |user: User, name, groups: &[&str]| impersonate(user, name, groups, false);
        let account = User::service_account("a", "default", "u");
        assert_eq!(as_(account.clone(), "", &[]).unwrap(), account);
        assert_eq!(as_(account, "root", &[]).unwrap_err().code, 403);
        let somebody = as_(User::admin(), "jane", &["dev"]).unwrap();
        assert_eq!((somebody.admin, somebody.groups), (false, vec!["dev".to_owned(), AUTHENTICATED.to_owned()]));
        assert!(as_(User::admin(), "jane", &[MASTERS]).unwrap().admin);
        let bot = as_(User::admin(), "system:serviceaccount:a:bot", &[]).unwrap();
        assert!(bot.groups.contains(&"system:serviceaccounts:a".to_owned()) && !bot.admin);
        assert_eq!(as_(User::admin(), "", &[MASTERS]).unwrap_err().code, 400);
        assert_eq!(impersonate(User::admin(), "jane", &[], true).unwrap_err().code, 400);
    }

    #[test]
    fn a_service_account_sees_the_offer_and_not_the_objects() {
        let user = User::service_account("a", "default", "u");
        let path = |text| Path::parse(text).unwrap();
        assert!(authorize(&user, Method::Get, &path("/api/v1"), false).is_ok());
        let refused = authorize(&user, Method::Get, &path("/api/v1/namespaces/a/pods"), false).unwrap_err();
        assert_eq!(
            refused.message,
            "pods is forbidden: User \"system:serviceaccount:a:default\" cannot list resource \"pods\" in API group \
             \"\" in the namespace \"a\""
        );
        assert!(authorize(&User::admin(), Method::Delete, &path("/api/v1/nodes/x"), false).is_ok());
    }
}
