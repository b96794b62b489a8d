//! Why a callback has no answer from the backend.

/// Why a callback has no answer from the backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It did not answer in time.
    #[error("backend did not answer within upstream.timeout")]
    Late,
    /// No connection could be opened.
    #[error("backend cannot be reached: {0}")]
    Unreachable(String),
    /// The answer is not HTTP, is too large, or ended too early.
    #[error("backend gave no usable answer: {0}")]
    BadAnswer(String),
    /// `upstream.max_in_flight` exchanges are under way, or callbacks use up their half of `http.max_buffered_bytes`,
    /// or those without authentication `http.max_unauthenticated_bytes`.
    #[error(
        "too many callbacks are under way (upstream.max_in_flight), \
         or the memory for them is used up"
    )]
    TooMany,
    /// The breaker is open.
    #[error("backend does not answer")]
    Down,
    /// The query cannot follow that of `upstream.url`.
    #[error("query is too long to follow that of upstream.url")]
    QueryTooLong,
}

impl UpstreamError {
    /// The names of all errors.
    pub(crate) const NAMES: [&str; 6] = [
        "late",
        "unreachable",
        "bad_answer",
        "too_many",
        "down",
        "query_too_long",
    ];

    /// The error in one word, for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Late => Self::NAMES[0],
            Self::Unreachable(_) => Self::NAMES[1],
            Self::BadAnswer(_) => Self::NAMES[2],
            Self::TooMany => Self::NAMES[3],
            Self::Down => Self::NAMES[4],
            Self::QueryTooLong => Self::NAMES[5],
        }
    }
}
