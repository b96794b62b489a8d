use super::*;

fn disk() -> Disk {
    let mut disk = Disk::default();
    let file = |path: &str| path.to_owned();
    let records = [
        What::MakeFolder { path: file("d") },
        What::Sync {
            path: file(""),
            began: 1,
        },
        What::Create { path: file("d/a") },
        What::Create { path: file("d/b") },
        What::Write {
            path: file("d/a"),
            offset: 0,
            data: Bytes::from_static(&[1; 2000]),
        },
        // This sync began before the write, so it does not cover it.
        What::Sync {
            path: file("d/a"),
            began: 4,
        },
        What::Sync {
            path: file("d"),
            began: 3,
        },
    ];
    for (position, what) in records.into_iter().enumerate() {
        disk.apply(&Record {
            position: position as u64,
            at: 0,
            what,
        });
    }
    disk
}

fn cut(disk: &Disk, fate: Fate, seed: u64) -> Disk {
    let folder = tempfile::TempDir::new().unwrap();
    disk.cut(fate, &mut Rng::with_seed(seed), folder.path());
    Disk::from_folder(folder.path())
}

fn content(disk: &mut Disk, path: &str) -> Vec<u8> {
    disk.file(path).synced.clone()
}

#[test]
fn only_synced_data_is_guaranteed() {
    let mut lost = cut(&disk(), Fate::Lost, 1);
    assert_eq!(lost.names.keys().collect::<Vec<_>>(), ["d", "d/a"]);
    assert_eq!(content(&mut lost, "d/a"), [0; 0]);

    let mut kept = cut(&disk(), Fate::Kept, 1);
    assert_eq!(kept.names.keys().collect::<Vec<_>>(), ["d", "d/a", "d/b"]);
    assert_eq!(content(&mut kept, "d/a"), [1; 2000]);

    let mut synced = disk();
    synced.sync("d/a", 5);
    let mut synced = cut(&synced, Fate::Lost, 1);
    assert_eq!(content(&mut synced, "d/a"), [1; 2000]);
}

#[test]
fn unsynced_writes_are_torn_at_sector_boundaries() {
    let mut torn = 0;
    for seed in 0..100 {
        let content = content(&mut cut(&disk(), Fate::Torn, seed), "d/a");
        let sectors = content.chunks(512);
        assert!(
            sectors
                .clone()
                .all(|sector| sector == &vec![sector[0]; sector.len()][..])
        );
        let written = sectors.clone().filter(|sector| sector[0] == 1).count();
        torn += usize::from(written > 0 && written < 4);
    }
    assert!(torn > 10, "{torn}");
}
