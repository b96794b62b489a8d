//! Reads a file that has settings, a secret or certificates.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The largest file that is read, in bytes. Without a limit, the path of a device or a database would fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file of at most 1 MiB.
///
/// # Errors
/// Says why it cannot be read, without its path and its content.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("cannot be read: it is larger than 1 MiB".to_owned());
    }
    Ok(bytes)
}

/// [`read_bytes`] for text.
///
/// # Errors
/// As [`read_bytes`], or names the line that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let valid = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = valid.filter(|byte| **byte == b'\n').count() + 1;
        format!("cannot be read: line {line} is not UTF-8; save it as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_text_or_never_ends_is_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        let read = |content: &[u8]| {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            read_text(&path)
        };
        assert_eq!(read(b"a\n"), Ok("a\n".to_owned()));
        let error = read(b"a\n\xe9").unwrap_err();
        assert!(error.contains("line 2 is not UTF-8"), "{error}");
        assert!(read(&vec![b'a'; 1 << 20]).is_ok());
        let error = read_text(Path::new("/dev/zero")).unwrap_err();
        assert!(error.contains("larger than 1 MiB"), "{error}");
        read_text(folder.path()).unwrap_err();
    }
}
