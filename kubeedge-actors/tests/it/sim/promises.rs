//! How a promise that is not kept shows: by a panic that begins with its id. `docs/link.md` says each as a sentence.

/// Fails with the promise's id when it is not kept.
macro_rules! promise {
    ($kept:expr, $id:literal, $($why:tt)+) => {
        if !$kept {
            panic!("{}: {}", $id, format!($($why)+));
        }
    };
}
