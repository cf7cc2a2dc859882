//! `$(NAME)` references, as Kubernetes expands them in env values, command, args and `subPathExpr`.

/// Expands the references in `text`. `lookup` gives the value of a name; a reference without one stays as it is.
///
/// `$$` is an escaped `$`; a `$` that begins no reference stays; values are not expanded again.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[at..rest.len() - tail.len()]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The names that `text` refers to, in order.
pub(crate) fn references(text: &str) -> Vec<String> {
    let names = std::cell::RefCell::new(Vec::new());
    expand(text, |name| {
        names.borrow_mut().push(name.to_owned());
        None
    });
    names.into_inner()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vars(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("a"),
            "B" => Some("$(A)"),
            "EMPTY" => Some(""),
            _ => None,
        }
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        for (text, expanded) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("x-$(A)-y-$(A)", "x-a-y-a"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)|", "|"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$$", "$"),
            ("$", "$"),
            ("a$", "a$"),
            ("$A", "$A"),
            ("$é", "$é"),
            ("$(A", "$(A"),
            ("$(", "$("),
            ("$()", "$()"),
            ("$(A)$", "a$"),
            ("$($(A))", "$($(A))"),
            ("$(foo$(A)", "$(foo$(A)"),
            ("${A}", "${A}"),
        ] {
            assert_eq!(expand(text, vars), expanded, "{text:?}");
        }
        assert_eq!(references("$(A)$$(B)$(C)"), ["A", "C"]);
    }

    proptest! {
        #[test]
        fn escaped_text_comes_out_as_it_was(text in "[$()A-Ba-b é]{0,40}") {
            prop_assert_eq!(expand(&text.replace('$', "$$"), vars), text);
        }

        #[test]
        fn text_without_a_dollar_is_not_touched(text in "[^$]{0,60}") {
            prop_assert_eq!(expand(&text, vars), text);
        }

        #[test]
        fn an_unknown_reference_is_kept_whole(before in "[^$]{0,10}", name in "[^$)]{0,10}", after in "[^$]{0,10}") {
            let text = format!("{before}$({name}){after}");
            prop_assert_eq!(expand(&text, |_| None), text);
        }
    }
}
