//! Random histories, compared with a `Vec`.

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

#[derive(Debug, Clone)]
enum SpoolStep {
    Append(u8),
    Advance(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<SpoolStep>> {
    let step = prop_oneof![
        4 => any::<u8>().prop_map(SpoolStep::Append),
        2 => any::<u8>().prop_map(SpoolStep::Advance),
        1 => Just(SpoolStep::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Compares random histories with a `Vec`: unconfirmed events are always kept, in order and intact.
    #[test]
    fn unconfirmed_events_are_kept_in_any_history(steps in steps(), keep in any::<bool>()) {
        let runtime = Runtime::new().unwrap();
        let folder = TempDir::new().unwrap();
        let config = Config {
            retention: Period(if keep { Duration::from_secs(3600) } else { Duration::ZERO }),
            ..config(&folder)
        };
        runtime.block_on(async {
            let mut spool = open(&config);
            let mut model: Vec<(u64, String)> = Vec::new();
            let mut confirmed = 0;
            for step in steps {
                match step {
                    SpoolStep::Append(number) => {
                        let number = u128::from(number);
                        let text = format!("event {number}");
                        let known = model.iter().any(|(_, known)| *known == text);
                        match spool.append(event(number)).await.unwrap() {
                            Appended::New(seq) => {
                                assert!(!known);
                                assert_eq!(seq.0, model.len() as u64 + 1);
                                model.push((seq.0, text));
                            }
                            Appended::Repeated(_) => assert!(known),
                        }
                    }
                    SpoolStep::Advance(by) => {
                        confirmed = (confirmed + u64::from(by % 5)).min(model.len() as u64);
                        spool.cursor("sink").unwrap().advance(Seq(confirmed));
                    }
                    SpoolStep::Reopen => {
                        spool.close().await;
                        spool = open(&config);
                        assert_eq!(spool.cursor("sink").unwrap().position(), Seq(confirmed));
                    }
                }
                let unconfirmed = &model[usize::try_from(confirmed).unwrap()..];
                assert_eq!(read_all(&spool, confirmed).await, unconfirmed);
            }
            spool.close().await;
        });
    }
}
