//! `recall-relay completions` and `recall-relay man`: generated from the command line's definition.
//!
//! There is one manual page with all commands: it can be read from a pipe, searched, and installed as one file.

use std::io::{self, Write as _};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, examples, output};

/// The exit codes, for the manual page.
const EXIT_CODES: [(&str, &str); 4] = [
    (
        "0",
        "The command succeeded, or the relay was stopped in order.",
    ),
    ("1", "It failed; standard error says why."),
    ("2", "Bad usage of the command line."),
    (
        "78",
        "Bad configuration, or a spool of a newer version: a restart does not help.",
    ),
];

/// Print a script that completes commands and options in a shell
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page with all commands, in the format of man(1)
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // The crate panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let mut script = String::from_utf8(script)?;
    if args.shell == Shell::Bash {
        // The crate replaces the dash of the program's name in two ways, so that no subcommand would be completed:
        // clap's issue 6421.
        script = script.replace("recall__subcmd__relay", "recall__relay");
    }
    Ok(output::stdout().write_all(script.as_bytes())?)
}

pub(super) fn man(_: &ManArgs) -> anyhow::Result<()> {
    Ok(output::stdout().write_all(page()?.as_bytes())?)
}

/// The manual page.
fn page() -> io::Result<String> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let program = Man::new(command.clone());
    let mut page = Vec::new();
    program.render_title(&mut page)?;
    program.render_name_section(&mut page)?;
    program.render_synopsis_section(&mut page)?;
    program.render_description_section(&mut page)?;
    program.render_options_section(&mut page)?;
    let mut page = String::from_utf8(page).map_err(io::Error::other)?;
    page += &example_section("SH", "");
    add_commands(&mut page, &command, "")?;
    page += &exit_status();
    // The crate writes its definitions before each section; once is enough.
    Ok(match page.split_once(".TH ") {
        Some((definitions, rest)) => {
            format!("{definitions}.TH {}", rest.replace(definitions, ""))
        }
        None => page,
    })
}

/// Adds a section for each command below this one that does something itself.
fn add_commands(page: &mut String, command: &Command, name: &str) -> io::Result<()> {
    for command in command.get_subcommands() {
        let name = examples::below(name, command.get_name());
        if command.has_subcommands() {
            add_commands(page, command, &name)?;
        } else {
            *page += &command_section(command, &name)?;
        }
    }
    Ok(())
}

/// The section of a command.
fn command_section(command: &Command, name: &str) -> io::Result<String> {
    // The options that every command has are described once.
    let hide = |arg: clap::Arg| arg.hide(true);
    let command = command
        .clone()
        .mut_arg("config", hide)
        .mut_arg("help", hide);
    let has_arguments = command.get_arguments().any(|arg| !arg.is_hide_set());
    let man = Man::new(command);
    let mut text = Vec::new();
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if has_arguments {
        man.render_options_section(&mut text)?;
    }
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let mut heading = Roff::new();
    heading.control("SH", [name.to_uppercase().as_str()]);
    // The crate would make a page of each command: sections of that page become subsections here. A line that begins
    // with a dot is never text.
    Ok(heading.to_roff() + &text.replace("\n.SH ", "\n.SS ") + &example_section("SS", name))
}

/// The examples of a command in a section of this kind; empty if there are none.
fn example_section(kind: &str, name: &str) -> String {
    let mut roff = Roff::new();
    let examples = examples::of(name);
    if !examples.is_empty() {
        roff.control(kind, ["EXAMPLES"]);
    }
    for (does, line) in examples {
        roff.control("TP", []);
        roff.text([roman(format!("{does}:"))]);
        // It must stay one line.
        roff.control("nf", []);
        roff.text([bold(*line)]);
        roff.control("fi", []);
    }
    roff.to_roff()
}

fn exit_status() -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_CODES {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(meaning)]);
    }
    roff.to_roff()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_title_and_a_section_for_each_command() {
        let page = page().unwrap();
        let count = |text: &str| page.matches(text).count();
        assert_eq!(count(".TH recall-relay 1 "), 1);
        assert_eq!(count("\n.SH NAME\n"), 1);
        assert_eq!(count(".ds Aq"), 2, "for groff and for others");
        for heading in ["SEND", "\"SPOOL LIST\"", "\"SPOOL DEAD-LETTERS RETRY\""] {
            assert_eq!(count(&format!("\n.SH {heading}\n")), 1, "{heading}");
        }
        assert_eq!(count("\n.SH SPOOL\n"), 0, "it does nothing itself");
        let example = r"\fBrecall\-relay spool dead\-letters retry 1207 1209\fR";
        assert_eq!(count(example), 1, "{page}");
        assert_eq!(count(r"\fB\-\-config\fR \fI<FILE>\fR"), 1, "{page}");
    }
}
