//! Command lines by the rules of `getopt_long(3)`, for the tools that we stand in for.
//!
//! clap reads a command line by rules of its own: it knows no abbreviations beside its own, and its messages are not those
//! that callers look for. So a line is first brought into a form that can be read in one way only, with the
//! options that clap's [`Command`] declares: `--long` or `--long=value`, then `--`, then the operands. What is
//! wrong up to there is told in the words of the C library, which scripts know.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Command;

/// Where options may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before the first operand only: what follows it is somebody else's command line.
    OptionsFirst,
    /// Anywhere before `--`.
    Any,
}

/// A line that is none, in the words of the C library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GetoptError {
    /// There is no such long option.
    #[error("unrecognized option '--{0}'")]
    Unrecognized(String),
    /// There is no such short option.
    #[error("invalid option -- '{0}'")]
    Invalid(char),
    /// An abbreviation of several.
    #[error("option '--{given}' is ambiguous; possibilities:{}", Quoted(.possible))]
    Ambiguous {
        /// What was given.
        given: String,
        /// What it may stand for.
        possible: Vec<String>,
    },
    /// A long option without its value.
    #[error("option '--{0}' requires an argument")]
    LongValueMissing(String),
    /// A short option without its value.
    #[error("option requires an argument -- '{0}'")]
    ShortValueMissing(char),
    /// A switch with a value.
    #[error("option '--{0}' doesn't allow an argument")]
    ValueNotAllowed(String),
}

struct Quoted<'a>(&'a [String]);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, " '--{name}'"))
    }
}

/// An option as it is declared.
#[derive(Clone, Debug)]
struct Declared {
    short: Option<char>,
    long: String,
    takes_value: bool,
}

/// Brings a line, without the program's name, into the form that clap reads: see the [module](self).
pub(crate) fn canonical(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
    order: Order,
) -> Result<Vec<OsString>, GetoptError> {
    let declared = declared(command);
    let mut args = args.into_iter();
    let (mut options, mut operands) = (Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            operands.extend(args.by_ref());
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            options.push(long_option(&declared, long, &mut args)?);
        } else if let (true, Some(shorts)) = (bytes.len() > 1, bytes.strip_prefix(b"-")) {
            short_options(&declared, shorts, &mut args, &mut options)?;
        } else {
            operands.push(arg);
            if order == Order::OptionsFirst {
                operands.extend(args.by_ref());
            }
        }
    }
    options.push(OsString::from("--"));
    options.append(&mut operands);
    Ok(options)
}

/// The options of a command, by all their names.
fn declared(command: &Command) -> Vec<Declared> {
    let mut declared = Vec::new();
    for arg in command.get_arguments() {
        let takes_value = arg.get_action().takes_values();
        let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        for (index, long) in names.enumerate() {
            let short = arg.get_short().filter(|_| index == 0);
            declared.push(Declared { short, long: long.to_owned(), takes_value });
        }
    }
    declared
}

fn long_option(
    declared: &[Declared],
    text: &[u8],
    args: &mut impl Iterator<Item = OsString>,
) -> Result<OsString, GetoptError> {
    let mut parts = text.splitn(2, |&b| b == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let value = parts.next();
    let option = find(declared, name)?;
    let long = || option.long.clone();
    match (value, option.takes_value) {
        (None, false) => Ok(joined(&option.long, None)),
        (Some(value), true) => Ok(joined(&option.long, Some(value))),
        (Some(_), false) => Err(GetoptError::ValueNotAllowed(long())),
        (None, true) => {
            let value = args.next().ok_or_else(|| GetoptError::LongValueMissing(long()))?;
            Ok(joined(&option.long, Some(value.as_bytes())))
        }
    }
}

/// The option of that name, or the only one that it abbreviates.
fn find(declared: &[Declared], name: String) -> Result<&Declared, GetoptError> {
    if let Some(exact) = declared.iter().find(|option| option.long == name) {
        return Ok(exact);
    }
    let meant: Vec<_> = declared.iter().filter(|o| o.long.starts_with(&name)).collect();
    match meant.as_slice() {
        [] => Err(GetoptError::Unrecognized(name)),
        [option] => Ok(option),
        [..] => {
            let possible = meant.iter().map(|option| option.long.clone()).collect();
            Err(GetoptError::Ambiguous { given: name, possible })
        }
    }
}

/// A word of short options: switches, and at its end perhaps one with a value.
fn short_options(
    declared: &[Declared],
    word: &[u8],
    args: &mut impl Iterator<Item = OsString>,
    options: &mut Vec<OsString>,
) -> Result<(), GetoptError> {
    let mut rest = word;
    while let Some((&byte, behind)) = rest.split_first() {
        let name = char::from(byte);
        let option = declared.iter().find(|option| option.short == Some(name));
        let option = option.ok_or(GetoptError::Invalid(name))?;
        if !option.takes_value {
            options.push(joined(&option.long, None));
            rest = behind;
            continue;
        }
        let value = match behind {
            [] => args.next().ok_or(GetoptError::ShortValueMissing(name))?,
            [..] => OsStr::from_bytes(behind).to_owned(),
        };
        options.push(joined(&option.long, Some(value.as_bytes())));
        return Ok(());
    }
    Ok(())
}

fn joined(long: &str, value: Option<&[u8]>) -> OsString {
    let mut bytes = [b"--", long.as_bytes()].concat();
    if let Some(value) = value {
        bytes.push(b'=');
        bytes.extend_from_slice(value);
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    fn command() -> Command {
        let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Set);
        Command::new("tool")
            .disable_help_flag(true)
            .arg(switch("quiet").short('q'))
            .arg(switch("foreground").short('f'))
            .arg(value("mtu").short('m'))
            .arg(value("outbound").short('o'))
            .arg(value("outbound-if4"))
            .arg(value("socket").alias("socket-path"))
    }

    fn read(line: &str, order: Order) -> Result<String, String> {
        let args = line.split_whitespace().map(OsString::from);
        let words = canonical(&command(), args, order).map_err(|error| error.to_string())?;
        Ok(words.join(OsStr::new(" ")).into_string().unwrap())
    }

    #[test]
    fn all_ways_to_give_an_option_become_one() {
        for (line, canonical) in [
            ("--mtu=1500", "--mtu=1500 --"),
            ("--mtu 1500", "--mtu=1500 --"),
            ("-m1500", "--mtu=1500 --"),
            ("-m 1500", "--mtu=1500 --"),
            ("-qfm 1500", "--quiet --foreground --mtu=1500 --"),
            ("--mt -q", "--mtu=-q --"),
            ("--mtu= -q", "--mtu= --quiet --"),
            ("--outbound 1", "--outbound=1 --"),
            ("--outbound- 1", "--outbound-if4=1 --"),
            ("--socket-p x", "--socket-path=x --"),
            ("- -q", "-- - -q"),
            ("-q -- -f", "--quiet -- -f"),
            ("", "--"),
        ] {
            assert_eq!(read(line, Order::OptionsFirst).as_deref(), Ok(canonical), "{line}");
        }
    }

    #[test]
    fn options_behind_an_operand_are_ours_or_the_commands() {
        let line = "sh -c -q";
        assert_eq!(read(line, Order::OptionsFirst).as_deref(), Ok("-- sh -c -q"));
        assert_eq!(read("1 tap0 -q", Order::Any).as_deref(), Ok("--quiet -- 1 tap0"));
    }

    #[test]
    fn what_is_wrong_is_told_in_the_c_librarys_words() {
        for (line, told) in [
            ("--bogus", "unrecognized option '--bogus'"),
            ("--bogus=1", "unrecognized option '--bogus'"),
            ("-qZ", "invalid option -- 'Z'"),
            ("--mtu", "option '--mtu' requires an argument"),
            ("-m", "option requires an argument -- 'm'"),
            ("--quiet=1", "option '--quiet' doesn't allow an argument"),
            (
                "--out 1",
                "option '--out' is ambiguous; possibilities: '--outbound' '--outbound-if4'",
            ),
        ] {
            assert_eq!(read(line, Order::Any), Err(told.to_owned()), "{line}");
        }
    }
}
