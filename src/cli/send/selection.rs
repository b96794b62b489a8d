//! What `--command` selects.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::vendor::{CallbackKind, OtherCommand};

/// The kinds of callbacks to send, in turn.
#[derive(Debug, Clone)]
pub struct CommandSelection(pub Vec<CallbackKind>);

/// The names of groups of commands, and what they are.
const NAMES: [(&str, &str); 7] = [
    ("group", "A group message was recalled"),
    ("c2c", "A message between two users was recalled"),
    (
        "official-account",
        "A message of an official account was recalled",
    ),
    ("all", "The three above in turn"),
    (
        "before",
        "All callbacks that ask for permission, such as `C2C.CallbackBeforeSendMsg`, in turn",
    ),
    (
        "probe",
        "The console's \"verify\" button: an empty body, no application, no signature",
    ),
    (
        "other",
        "Not a recall: `Group.CallbackBeforeSendMsg`, a group message is about to be sent",
    ),
];

/// Parses one of the names, or the name of any documented command. Those are accepted, but not listed: they are many.
pub fn parser() -> impl TypedValueParser<Value = CommandSelection> {
    let names = NAMES.map(|(name, help)| PossibleValue::new(name).help(help));
    let commands = OtherCommand::all().map(OtherCommand::name);
    let recalls = RECALLS.map(CallbackKind::command);
    let commands = commands
        .chain(recalls)
        .map(|name| PossibleValue::new(name).hide(true));
    let values: Vec<_> = names.into_iter().chain(commands).collect();
    PossibleValuesParser::new(values).map(|name| selected(&name))
}

const RECALLS: [CallbackKind; 3] = [
    CallbackKind::Group,
    CallbackKind::C2c,
    CallbackKind::OfficialAccount,
];

/// What a name that the parser has accepted selects.
fn selected(name: &str) -> CommandSelection {
    let asking = || OtherCommand::all().filter(|command| command.asks_permission());
    CommandSelection(match name {
        "group" => vec![CallbackKind::Group],
        "c2c" => vec![CallbackKind::C2c],
        "official-account" => vec![CallbackKind::OfficialAccount],
        "all" => RECALLS.to_vec(),
        "before" => asking().map(CallbackKind::Named).collect(),
        "probe" => vec![CallbackKind::Probe],
        "other" => vec![CallbackKind::Other],
        name => {
            let recall = RECALLS.into_iter().find(|kind| kind.command() == name);
            let other = OtherCommand::named(name).map(CallbackKind::Named);
            recall.or(other).into_iter().collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accepted_name_selects_something() {
        let parser = parser();
        let values = parser.possible_values().unwrap();
        let mut count = 0;
        for value in values {
            let CommandSelection(kinds) = selected(value.get_name());
            assert!(!kinds.is_empty(), "{value:?}");
            if value.is_hide_set() {
                assert_eq!(kinds[0].command(), value.get_name());
            }
            count += 1;
        }
        assert!(count > 50, "{count}");
        assert_eq!(selected("before").0.len(), 9);
    }
}
