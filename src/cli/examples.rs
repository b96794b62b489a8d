//! The examples in the long help of each command, and in the manual page.

use clap::{Command, CommandFactory as _};

use super::Cli;

/// An example: what it does, and the command line.
type Example = (&'static str, &'static str);

/// The examples of each command; the name of the program's own is empty. They stand here, and not beside the arguments,
/// so that a test can parse them.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            (
                "Run the relay with settings from a file",
                "recall-relay --config relay.toml",
            ),
            (
                "Check everything that it needs before a start",
                "recall-relay check --config relay.toml",
            ),
        ],
    ),
    (
        "run",
        &[(
            "Run the relay with settings from a file",
            "recall-relay run --config relay.toml",
        )],
    ),
    (
        "ready",
        &[(
            "Ask the relay with these settings; the exit code is 0 if it is ready",
            "recall-relay ready --config relay.toml",
        )],
    ),
    (
        "config",
        &[
            (
                "Print the settings of a file and of the environment",
                "recall-relay config --config relay.toml",
            ),
            (
                "Print only those of Kafka",
                "recall-relay config | grep kafka",
            ),
        ],
    ),
    (
        "check",
        &[
            (
                "Check everything that the relay needs",
                "recall-relay check --config relay.toml",
            ),
            (
                "Also send the console's probe to the callback URL",
                "recall-relay check --url https://im.example/recall",
            ),
        ],
    ),
    (
        "send",
        &[
            (
                "Send a recall of a group message to the relay on this machine",
                "recall-relay send --sdk-app-id 1400000001",
            ),
            (
                "Send 500 callbacks per second for 30 seconds",
                "recall-relay send --sdk-app-id 1400000001 --rate 500 --duration 30s",
            ),
            (
                "Print curl commands that send one recall of each kind",
                "recall-relay send --sdk-app-id 1400000001 --command all --count 3 --print",
            ),
        ],
    ),
    (
        "tail",
        &[
            ("Print all events from now on", "recall-relay tail"),
            (
                "Print those of a group",
                "recall-relay tail --group @TGS#2J4SZEAEL",
            ),
        ],
    ),
    (
        "where",
        &[
            (
                "Tell whether an event has reached each broker",
                "recall-relay where e623ed2b-c5ef-5b1b-a59b-1584672e69fa",
            ),
            (
                "The same for the recall of message 130 of a group",
                "recall-relay where --group @TGS#2J4SZEAEL --message 130",
            ),
            (
                "The same for a message between two users, as JSON",
                "recall-relay where --from jared --to Jonh --message 4_2_1557481126 --json",
            ),
        ],
    ),
    (
        "spool",
        &[
            (
                "Print what the spool holds, and how far each sink is",
                "recall-relay spool status",
            ),
            ("List the newest events", "recall-relay spool list"),
        ],
    ),
    (
        "spool status",
        &[
            (
                "Print what the spool holds, and how far each sink is",
                "recall-relay spool status",
            ),
            (
                "The same as one line of JSON",
                "recall-relay spool status --json",
            ),
        ],
    ),
    (
        "spool list",
        &[
            (
                "List the newest events of a group that were stored in the last two hours",
                "recall-relay spool list --since 2h --group @TGS#2J4SZEAEL",
            ),
            (
                "List the newest events that Kafka has not confirmed",
                "recall-relay spool list --waiting --sink kafka",
            ),
            (
                "Print all callbacks that could not be parsed as lines of JSON",
                "recall-relay spool list --kind rejected --json",
            ),
        ],
    ),
    (
        "spool show",
        &[
            (
                "Print an event by its number",
                "recall-relay spool show 1042",
            ),
            (
                "Print an event by its id as a line of JSON",
                "recall-relay spool show e623ed2b-c5ef-5b1b-a59b-1584672e69fa --json",
            ),
        ],
    ),
    (
        "spool dead-letters",
        &[
            (
                "List the dead letters that the spool keeps",
                "recall-relay spool dead-letters list",
            ),
            (
                "Publish all of them again",
                "recall-relay spool dead-letters retry --all",
            ),
        ],
    ),
    (
        "spool dead-letters list",
        &[
            (
                "List the dead letters that the spool keeps",
                "recall-relay spool dead-letters list",
            ),
            (
                "Print those of Kafka as lines of JSON",
                "recall-relay spool dead-letters list --sink kafka --json",
            ),
        ],
    ),
    (
        "spool dead-letters show",
        &[
            (
                "Print a dead letter by its event's number",
                "recall-relay spool dead-letters show 1207",
            ),
            (
                "Print a dead letter by its event's id",
                "recall-relay spool dead-letters show e623ed2b-c5ef-5b1b-a59b-1584672e69fa",
            ),
        ],
    ),
    (
        "spool dead-letters retry",
        &[
            (
                "Publish two dead letters again",
                "recall-relay spool dead-letters retry 1207 1209",
            ),
            (
                "Publish all dead letters of RabbitMQ again",
                "recall-relay spool dead-letters retry --all --sink rabbitmq",
            ),
        ],
    ),
    (
        "spool dead-letters drop",
        &[
            (
                "Delete a dead letter, after a question",
                "recall-relay spool dead-letters drop 1207",
            ),
            (
                "Delete all dead letters of Kafka without a question",
                "recall-relay spool dead-letters drop --all --sink kafka --yes",
            ),
        ],
    ),
    (
        "spool replay",
        &[
            (
                "Print what would be sent, and send nothing",
                "recall-relay spool replay kafka --since 2h --dry-run",
            ),
            (
                "Send the events of the last two hours again",
                "recall-relay spool replay kafka --since 2h",
            ),
        ],
    ),
    (
        "spool forget",
        &[(
            "Stop pinning events for Kafka, which was removed from the settings",
            "recall-relay spool forget kafka",
        )],
    ),
    (
        "completions",
        &[
            (
                "Install the completions of bash, as root",
                "recall-relay completions bash > /etc/bash_completion.d/recall-relay",
            ),
            (
                "Install the completions of zsh, if $fpath contains this folder",
                "recall-relay completions zsh > ~/.zfunc/_recall-relay",
            ),
        ],
    ),
    (
        "man",
        &[
            ("Read the manual page", "recall-relay man | man -l -"),
            (
                "Install it, as root",
                "recall-relay man > /usr/local/share/man/man1/recall-relay.1",
            ),
        ],
    ),
];

/// The examples of a command, such as `spool list`.
pub(super) fn of(command: &str) -> &'static [Example] {
    EXAMPLES
        .iter()
        .find(|(name, _)| *name == command)
        .map_or(&[], |(_, examples)| examples)
}

/// The command line with examples in its long help.
pub(super) fn command() -> Command {
    add(Cli::command(), "")
}

/// Adds the examples to this command and to those below it.
fn add(command: Command, name: &str) -> Command {
    let heading = *command.get_styles().get_header();
    let examples = of(name)
        .iter()
        .map(|(does, line)| format!("\n  {does}:\n    {line}"));
    let examples: String = examples.collect();
    let command = match examples.as_str() {
        "" => command,
        examples => command.after_long_help(format!("{heading}Examples:{heading:#}{examples}")),
    };
    command.mut_subcommands(|command| {
        let name = below(name, command.get_name());
        add(command, &name)
    })
}

/// The name of a command below another one.
pub(super) fn below(parent: &str, name: &str) -> String {
    format!("{parent} {name}").trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::{ArgMatches, FromArgMatches as _};

    use super::*;

    /// The names of this command and of those below it.
    fn names(command: &Command, name: &str) -> Vec<String> {
        let mut all = vec![name.to_owned()];
        for command in command.get_subcommands() {
            all.extend(names(command, &below(name, command.get_name())));
        }
        all
    }

    #[test]
    fn every_command_has_examples_and_every_example_is_of_a_command() {
        let mut names = names(&Cli::command(), "");
        let mut known: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
        names.sort();
        known.sort_unstable();
        assert_eq!(names, known);
        for (name, examples) in EXAMPLES {
            assert!((1..=3).contains(&examples.len()), "{name}");
        }
    }

    /// The name of the command that was parsed.
    fn parsed_name(matches: &ArgMatches) -> String {
        matches
            .subcommand()
            .map_or_else(String::new, |(name, matches)| {
                below(name, &parsed_name(matches)).trim_end().to_owned()
            })
    }

    #[test]
    fn every_example_is_accepted_and_is_of_its_command() {
        for (name, examples) in EXAMPLES {
            for (_, line) in *examples {
                assert!(!line.contains(['\'', '"', '\\', '$']), "quoted: {line}");
                assert!(line.len() + 4 <= 80, "wrapped on a terminal: {line}");
                // The rest is for the shell.
                let words = line
                    .split(' ')
                    .take_while(|word| !matches!(*word, "|" | ">"));
                let matches = command().try_get_matches_from(words.clone());
                let matches = matches.unwrap_or_else(|error| panic!("{line}: {error}"));
                assert!(parsed_name(&matches).starts_with(name), "{line}");
                // clap does not check the program's name.
                assert_eq!(words.clone().next(), Some("recall-relay"), "{line}");
                Cli::from_arg_matches(&matches).unwrap();
            }
        }
    }

    /// Checks the help of a command and of those below it.
    fn check_help(command: &mut Command, name: &str) {
        let (short, long) = (command.render_help(), command.render_long_help());
        let (short, long) = (short.to_string(), long.to_string());
        let has_examples = |help: &str| help.contains("\nExamples:\n  ");
        assert!(!has_examples(&short), "{short}");
        assert_eq!(has_examples(&long), !of(name).is_empty(), "{long}");
        for line in short.lines().chain(long.lines()) {
            assert!(line.chars().count() <= 100, "{line}");
        }
        for command in command.get_subcommands_mut() {
            let name = below(name, command.get_name());
            check_help(command, &name);
        }
    }

    #[test]
    fn help_fits_100_columns_and_only_long_help_has_examples() {
        let mut command = command();
        command.build();
        check_help(&mut command, "");
    }
}
