//! One example per user story.
