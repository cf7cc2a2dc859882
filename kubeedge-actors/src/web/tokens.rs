//! Bearer tokens, from a file: one a line, `#` begins a comment.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use ring::digest::{SHA256, digest};
use thiserror::Error;

/// Shortest token that is taken, bytes.
pub const MIN_TOKEN: usize = 16;
/// Tokens of one file at most.
pub const MAX_TOKENS: usize = 1024;

/// The tokens, by their digests: how long a comparison takes says nothing about one.
#[derive(Clone, Default)]
pub struct Tokens(HashSet<Vec<u8>>);

/// Why a file of tokens cannot be used.
#[derive(Debug, Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("{}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its content.
    #[error("{}: {why}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Without the digests.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Tokens {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let text = std::fs::read_to_string(path).map_err(|error| TokensError::Read { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|why| TokensError::Content { path: path.to_owned(), why })
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
            if token.len() < MIN_TOKEN || !visible {
                return Err(format!(
                    "line {}: expected a token of at least {MIN_TOKEN} visible characters without spaces",
                    number + 1
                ));
            }
            tokens.insert(digest(&SHA256, token.as_bytes()).as_ref().to_vec());
        }
        match tokens.len() {
            0 => Err("it holds no token".to_owned()),
            1..=MAX_TOKENS => Ok(Self(tokens)),
            count => Err(format!("it holds {count} tokens, expected at most {MAX_TOKENS}")),
        }
    }

    /// Whether this is one of them.
    pub fn has(&self, token: &str) -> bool {
        self.0.contains(digest(&SHA256, token.as_bytes()).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_token_a_line_and_short_ones_are_an_error() {
        let tokens = Tokens::parse("# of the shop\n  0123456789abcdef \n\nfedcba9876543210\n").unwrap();
        assert!(tokens.has("0123456789abcdef") && tokens.has("fedcba9876543210"));
        assert!(!tokens.has("0123456789abcde") && !tokens.has("") && !tokens.has("# of the shop"));
        assert!(Tokens::parse("\n# none\n").is_err());
        assert!(Tokens::parse("short").unwrap_err().contains("line 1"));
        assert!(Tokens::parse("0123456789 abcdef").is_err());
        assert!(!format!("{tokens:?}").contains("0123"));
    }
}
