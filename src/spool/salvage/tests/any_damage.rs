//! Random damage to the files of a killed spool.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::killed::{Killed, assert_unchanged, overwrite_with_noise};

#[derive(Debug, Clone)]
enum Damage {
    Garble(bool, u16, u16),
    Zero(bool, u16, u16),
    Cut(bool, u16),
    RemoveWal,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<bool>(), any::<u16>(), 1..9000_u16).prop_map(|(wal, at, length)| Damage::Garble(wal, at, length)),
        2 => (any::<bool>(), any::<u16>(), 1..9000_u16).prop_map(|(wal, at, length)| Damage::Zero(wal, at, length)),
        1 => (any::<bool>(), any::<u16>()).prop_map(|(wal, at)| Damage::Cut(wal, at)),
        1 => Just(Damage::RemoveWal),
    ]
}

impl Damage {
    fn inflict(&self, killed: &Killed) {
        let path = |wal: bool| if wal { killed.wal() } else { killed.database() };
        let place = |path: &Path, at: u16| {
            let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
            length * u64::from(at) / u64::from(u16::MAX)
        };
        match *self {
            Self::Garble(wal, at, length) if path(wal).exists() => {
                overwrite_with_noise(&path(wal), place(&path(wal), at), length.into());
            }
            Self::Zero(wal, at, length) if path(wal).exists() => {
                let file = fs::OpenOptions::new().write(true).open(path(wal)).unwrap();
                file.write_all_at(&vec![0; length.into()], place(&path(wal), at))
                    .unwrap();
            }
            Self::Cut(wal, at) if path(wal).exists() => {
                let file = fs::OpenOptions::new().write(true).open(path(wal)).unwrap();
                file.set_len(place(&path(wal), at)).unwrap();
            }
            Self::RemoveWal if path(true).exists() => fs::remove_file(path(true)).unwrap(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens to the files, the start succeeds, and every event that is read equals what was written. Every
    /// other event after the cursor is named as lost or reported as unreadable.
    #[test]
    fn starts_after_any_damage_and_reports_every_loss(
        damages in prop::collection::vec(damage(), 1..4), in_file in 20..60_u64, cursor in 0..20_u64,
    ) {
        Runtime::new().unwrap().block_on(async {
            let killed = Killed::new(in_file, 80, cursor).await;
            for damage in &damages {
                damage.inflict(&killed);
            }
            let (read, lost, start) = killed.restart().await;
            assert_unchanged(&read);
            let missing = (cursor.max(start) + 1..=80)
                .filter(|number| !read.contains_key(number) && !lost.contains(number))
                .collect::<Vec<_>>();
            assert!(missing.is_empty(), "{missing:?} of {damages:?}");
            let both: Vec<_> = lost.iter().filter(|number| read.contains_key(number)).collect();
            assert!(both.is_empty(), "{both:?} are read and named as lost: {damages:?}");
        });
    }
}
