use std::collections::HashSet;

use super::*;
use crate::vendor::{OtherCommand, PayloadVersion};

const RECALLS: &[CallbackKind] = &[
    CallbackKind::Group,
    CallbackKind::C2c,
    CallbackKind::OfficialAccount,
];

fn callbacks(kinds: &[CallbackKind]) -> Callbacks {
    Callbacks {
        kinds: kinds.to_vec(),
        format: BodyFormat::default(),
        conversations: 1,
        messages: 1,
        first_seq: 130,
        clock: Clock::Repeatable,
    }
}

fn body(callbacks: &Callbacks, number: u64) -> String {
    callbacks.make(number).unwrap().body
}

#[test]
fn a_probe_is_empty_and_another_command_names_itself() {
    let kinds = &[CallbackKind::Probe, CallbackKind::Other];
    let callbacks = callbacks(kinds);
    assert_eq!(body(&callbacks, 0), "");
    let other: serde_json::Value = serde_json::from_str(&body(&callbacks, 1)).unwrap();
    assert_eq!(other["CallbackCommand"], "Group.CallbackBeforeSendMsg");
    let named = OtherCommand::named("C2C.CallbackBeforeSendMsg").unwrap();
    let callbacks = self::callbacks(&[CallbackKind::Named(named)]);
    let named: serde_json::Value = serde_json::from_str(&body(&callbacks, 1)).unwrap();
    assert_eq!(named["CallbackCommand"], "C2C.CallbackBeforeSendMsg");
    assert_eq!(named["MsgSeq"], 131);
}

#[test]
fn all_recalls_take_turns() {
    let callbacks = callbacks(RECALLS);
    let sent: Vec<_> = (0..4)
        .map(|number| callbacks.make(number).unwrap().kind)
        .collect();
    assert_eq!(
        sent,
        [
            CallbackKind::Group,
            CallbackKind::C2c,
            CallbackKind::OfficialAccount,
            CallbackKind::Group
        ]
    );
}

#[test]
fn the_seq_of_a_conversation_grows_without_gaps() {
    let mut callbacks = callbacks(&[CallbackKind::Group]);
    callbacks.conversations = 3;
    callbacks.messages = 4;
    let mut next = [130; 3];
    for number in 0..100 {
        let sent: serde_json::Value = serde_json::from_str(&body(&callbacks, number)).unwrap();
        let group = sent["GroupId"].as_str().unwrap();
        let conversation: usize = group.strip_prefix("@TGS#send-").unwrap().parse().unwrap();
        for message in sent["MsgSeqList"].as_array().unwrap() {
            assert_eq!(message["MsgSeq"], next[conversation], "{sent}");
            next[conversation] += 1;
        }
    }
}

#[test]
fn no_two_callbacks_are_alike_and_a_repeated_run_is() {
    let make = |number| {
        let mut callbacks = callbacks(RECALLS);
        callbacks.format.version = PayloadVersion::V1;
        callbacks.conversations = 7;
        body(&callbacks, number)
    };
    let first: Vec<_> = (0..5000).map(make).collect();
    let second: Vec<_> = (0..5000).map(make).collect();
    assert_eq!(first, second);
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 5000);
}
