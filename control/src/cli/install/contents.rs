//! What is installed: the two programs, the names they are to answer to, completions and manual pages.

use std::io;
use std::path::{Path, PathBuf};

use clap_complete::Shell;

use super::super::error::Error;
use super::super::launch::own_executable;
use super::super::manual::{self, Documented};
use super::StandIn;
use super::manifest::{Base, Place};
use crate::program::Program;

/// A file, or a name, and where it goes.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) content: Content,
}

/// What is there then.
#[derive(Debug)]
pub(super) enum Content {
    /// A program, copied from here.
    Program(PathBuf),
    /// A text.
    Text(Vec<u8>),
    /// A symbolic link to a name beside it.
    Link(&'static str),
}

/// Everything, in the order in which it is put in place: a name only after what it leads to.
pub(super) fn contents(names: &[StandIn]) -> Result<Vec<Item>, Error> {
    let daemon = Program::Usernetd.name();
    let own = own_executable();
    let in_dir = |name: &str, content| Item { place: Place::new(Base::Dir, name), content };
    let mut items = vec![
        in_dir(daemon, Content::Program(daemon_beside(&own))),
        in_dir("usernet", Content::Program(own)),
    ];
    items.extend(names.iter().map(|name| in_dir(name.program().name(), Content::Link(daemon))));
    for program in [Documented::Usernet, Documented::Usernetd] {
        items.extend(completions(program));
    }
    items.extend(pages().map_err(Error::system("cannot render the manual pages"))?);
    Ok(items)
}

/// The daemon that came with this executable. One binary is enough: under that name, this one is it too.
fn daemon_beside(own: &Path) -> PathBuf {
    let beside = own.with_file_name(Program::Usernetd.name());
    if beside.is_file() { beside } else { own.to_owned() }
}

fn completions(program: Documented) -> impl Iterator<Item = Item> {
    let name = program.name();
    let files = [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/site-functions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ];
    files.into_iter().map(move |(shell, path)| Item {
        place: Place::new(Base::Share, path),
        content: Content::Text(manual::completion(program, shell)),
    })
}

fn pages() -> io::Result<impl Iterator<Item = Item>> {
    let pages = manual::pages()?.into_iter();
    Ok(pages.map(|page| Item {
        place: Place::new(Base::Share, format!("man/man1/{}", page.file_name)),
        content: Content::Text(page.text),
    }))
}
