//! The files: locks, permissions, links, and damage that is found after they were opened.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use tokio::runtime::Runtime;

use super::*;

#[test]
fn opening_a_locked_spool_fails() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let first = Spool::open(&config, &["sink"]).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    drop(first);
}

#[test]
fn newer_and_foreign_files_are_refused_unchanged() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    Runtime::new().unwrap().block_on(open(&config).close());
    let sql = |statement: &str| {
        Connection::open(&config.path)
            .unwrap()
            .execute_batch(statement)
            .unwrap();
    };
    sql("PRAGMA user_version = 99");
    let before = fs::read(&config.path).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );
    assert_eq!(fs::read(&config.path).unwrap(), before);

    let config = Config {
        path: folder.path().join("other.db"),
        ..config
    };
    let other = Connection::open(&config.path).unwrap();
    other.execute_batch("CREATE TABLE notes (text)").unwrap();
    other.close().unwrap();
    let before = fs::read(&config.path).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error}");
    assert_eq!(fs::read(&config.path).unwrap(), before);

    let text = "this is text, not a database";
    fs::write(&config.path, text).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error}");
    assert_eq!(fs::read_to_string(&config.path).unwrap(), text);
}

#[test]
fn the_files_are_readable_only_by_their_owner() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a/b/spool.db");
    let spool = open(&Config {
        path: path.clone(),
        ..config(&folder)
    });
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in fs::read_dir(path.parent().unwrap()).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    drop(spool);
}

#[tokio::test]
async fn a_damaged_row_is_reported_and_counted_once() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=3).await;
    spool.close().await;
    Connection::open(&config(&folder).path)
        .unwrap()
        .execute("UPDATE events SET body = '' WHERE seq = 2", [])
        .unwrap();
    let spool = open(&config(&folder));
    assert_eq!(spool.unreadable(), 0);
    let texts = || async {
        let rows = read_all(&spool, 0).await;
        rows.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    assert_eq!(texts().await, ["event 1", "lost", "event 3"]);
    assert_eq!(texts().await, ["event 1", "lost", "event 3"]);
    assert_eq!(spool.unreadable(), 1);
}

/// SQLite opens the file without reading these tables: `Spool::open` finds the damage when it queries them.
#[tokio::test]
async fn damage_found_after_opening_triggers_a_salvage() {
    for table in ["gaps", "cursors"] {
        let folder = TempDir::new().unwrap();
        let config = config(&folder);
        let spool = open(&config);
        append_all(&spool, 1..=3).await;
        spool.close().await;
        let connection = Connection::open(&config.path).unwrap();
        let root = format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'");
        let root: u64 = connection.query_row(&root, [], |row| row.get(0)).unwrap();
        drop(connection);
        let file = fs::OpenOptions::new().write(true).open(&config.path);
        let page = [0xff; 4096];
        file.unwrap()
            .write_all_at(&page, (root - 1) * 4096)
            .unwrap();

        let spool = open(&config);
        assert!(spool.report().quarantined.is_some(), "{table}");
        let rows = read_all(&spool, 0).await;
        assert_eq!(rows.len(), 3, "{table}: {rows:?}");
        spool.close().await;
    }
}

/// SQLite puts its WAL beside the target of a link, so all other files must be there, too.
#[tokio::test]
async fn links_to_one_spool_share_its_lock() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let linked = |name: &str| {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(&config.path, &path).unwrap();
        Config {
            path,
            ..config.clone()
        }
    };
    let (one, other) = (linked("one.db"), linked("other.db"));
    let spool = open(&one);
    append_all(&spool, 1..=3).await;
    let error = Spool::open(&other, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    spool.close().await;
    assert_eq!(open(&other).status().rows(), 3);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with("spool.db") || !name.contains("db-") && !name.contains(".lock"),
            "{name}"
        );
    }
}

/// Such a link could lead to another user's files.
#[test]
fn symbolic_links_at_our_file_names_are_not_followed() {
    for name in ["spool.db.lock", "spool.db-wal", "spool.db-shm"] {
        let folder = TempDir::new().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "diary").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(name)).unwrap();
        // SQLite deletes the WAL of an empty file: then the start succeeds.
        let _ = Spool::open(&config(&folder), &["sink"]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "diary", "{name}");
    }
    let folder = TempDir::new().unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "diary").unwrap();
    files::lock(&config(&folder).path, Duration::ZERO)
        .unwrap()
        .mark_damaged()
        .unwrap();
    fs::write(folder.path().join("spool.db"), "a damaged file").unwrap();
    let watermark = watermark::Watermark::default();
    files::lock(&config(&folder).path, Duration::ZERO)
        .unwrap()
        .write_watermark(watermark)
        .unwrap();
    std::os::unix::fs::symlink(&victim, folder.path().join("spool.db.salvaged")).unwrap();
    Spool::open(&config(&folder), &["sink"]).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "diary");
}
