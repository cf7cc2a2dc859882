//! Resources that are written to and hold nothing: `bindings`, and the reviews, whose answer is all there is.

pub use crate::kubeapi::discovery::WriteOnly;

const fn review(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> WriteOnly {
    WriteOnly { group, version: "v1", plural, singular, kind, namespaced }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// All of them, by group and plural name.
pub static WRITE_ONLY: &[WriteOnly] = &[
    review("", "bindings", "binding", "Binding", true),
    review(AUTHENTICATION, "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", false),
    review(AUTHENTICATION, "tokenreviews", "tokenreview", "TokenReview", false),
    review(AUTHORIZATION, "localsubjectaccessreviews", "localsubjectaccessreview", "LocalSubjectAccessReview", true),
    review(AUTHORIZATION, "selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview", false),
    review(AUTHORIZATION, "selfsubjectrulesreviews", "selfsubjectrulesreview", "SelfSubjectRulesReview", false),
    review(AUTHORIZATION, "subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview", false),
];

/// Those of a group version.
pub(crate) fn of(group: &str, version: &str) -> impl Iterator<Item = &'static WriteOnly> {
    WRITE_ONLY.iter().filter(move |one| one.group == group && one.version == version)
}
