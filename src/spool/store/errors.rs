//! Maps SQLite's errors to the spool's.

use rusqlite::{ErrorCode, ffi};

use crate::spool::append::AppendError;

/// Whether an error says that the file is damaged: its structure, its tables or the types in them are not what was
/// written.
pub(in crate::spool) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            // A part of a page is missing: the file was truncated.
            let is_cut_off = failure.extended_code == ffi::SQLITE_IOERR_SHORT_READ;
            let of_structure = matches!(
                failure.code,
                ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::Unknown
                    | ErrorCode::TypeMismatch
            );
            is_cut_off || of_structure
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Classifies a failed transaction. A failed fsync is final: the kernel may have dropped the pages that it could not
/// write, so this process no longer knows what is in the file.
pub(super) fn classify(error: &rusqlite::Error) -> AppendError {
    let text = error.to_string();
    if is_damage(error) {
        return AppendError::Damaged(text);
    }
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return AppendError::Failed(text);
    };
    match (failure.code, failure.extended_code) {
        (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => AppendError::Failed(text),
        // The index of the WAL could not grow: SQLite has no code of its own for a full disk there.
        (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => AppendError::Full(text),
        _ => AppendError::Io(text),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Error::{ExecuteReturnedResults, QueryReturnedNoRows, SqliteFailure};

    use super::*;

    #[test]
    fn classifies_sqlite_errors() {
        let what = |error: rusqlite::Error| match classify(&error) {
            AppendError::Full(_) => "full",
            AppendError::Io(_) => "passes",
            AppendError::Failed(_) => "failed",
            AppendError::Damaged(_) => "damaged",
            AppendError::Busy | AppendError::DeadLettersFull(_) => "other",
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, "full"),
            (ffi::SQLITE_IOERR_SHMSIZE, "full"),
            (ffi::SQLITE_BUSY, "passes"),
            (ffi::SQLITE_CANTOPEN, "passes"),
            (ffi::SQLITE_IOERR, "passes"),
            (ffi::SQLITE_IOERR_READ, "passes"),
            (ffi::SQLITE_IOERR_WRITE, "passes"),
            (ffi::SQLITE_IOERR_FSYNC, "failed"),
            (ffi::SQLITE_IOERR_DIR_FSYNC, "failed"),
            (ffi::SQLITE_IOERR_SHORT_READ, "damaged"),
            (ffi::SQLITE_CORRUPT, "damaged"),
            (ffi::SQLITE_NOTADB, "damaged"),
            (ffi::SQLITE_ERROR, "damaged"),
            (ffi::SQLITE_MISMATCH, "damaged"),
        ] {
            let error = ffi::Error::new(code);
            assert_eq!(what(SqliteFailure(error, None)), expected, "{error}");
        }
        assert_eq!(what(QueryReturnedNoRows), "damaged");
        assert_eq!(what(ExecuteReturnedResults), "failed");
    }
}
