//! The three programs that answer to `pasta`: two originals, and ours.
//!
//! Debian 12 has pasta of 2023, Debian 13 one of 2025; they differ in options and in what they give up on. A behaviour is
//! stated once, for all three, and what an original is known not to do is said as data.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use usernet_lab::{Lab, skip};

use crate::tool::{Kind, Known, Tool, reference};
use crate::trixie;

/// Whose pasta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pasta {
    /// That of Debian 12, as it is installed.
    Of2023,
    /// That of Debian 13, with that system's own libraries.
    Of2025,
    /// `usernetd`.
    Ours,
}

/// What is known of an original in one test.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// Who.
    pub who: Pasta,
    /// That it fails, always or at times.
    pub known: Known,
}

impl Pasta {
    /// A program to call in this lab.
    pub fn program(self, lab: &Lab) -> String {
        match self {
            Self::Of2023 => Tool { name: "pasta", kind: Kind::Reference }.path(lab),
            Self::Ours => Tool { name: "pasta", kind: Kind::Ours }.path(lab),
            Self::Of2025 => of_debian_13(lab),
        }
    }

    /// Why it cannot be tested here, if so.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Of2023 => Tool { name: "pasta", kind: Kind::Reference }.missing(),
            Self::Of2025 => trixie::missing().map(str::to_owned),
            Self::Ours => None,
        }
    }
}

/// A script that calls the program with the loader and the libraries that it was built for.
fn of_debian_13(lab: &Lab) -> String {
    let path = lab.dir().join("pasta-of-2025");
    if !path.exists() {
        let root = trixie::root().expect("a test says what it needs");
        let root = root.display();
        let libraries = format!("{root}/usr/lib/x86_64-linux-gnu");
        let script = format!(
            "#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2 --library-path {libraries} --argv0 pasta \
             {root}/usr/bin/pasta.avx2 \"$@\"\n"
        );
        fs::write(&path, script).expect("a file in the lab's folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    }
    path.to_string_lossy().into_owned()
}

/// Runs one test for one program. [`pastas!`](crate::pastas) calls it.
pub fn run(name: &str, pasta: Pasta, needs: &[&str], of: &[Of], body: fn(Pasta)) {
    let name = format!("{name} ({pasta:?})");
    if let Some(reason) = skip::missing(needs).or_else(|| pasta.missing()) {
        return skip::skip(&name, &reason);
    }
    if pasta == Pasta::Ours {
        return body(pasta);
    }
    let known = of.iter().find(|of| of.who == pasta).map_or(Known::Same, |of| of.known);
    reference(&format!("{pasta:?}"), known, || body(pasta));
}

/// Makes of each function three tests, one per [`Pasta`]:
///
/// ```text
/// pastas! {
///     fn a_page_is_fetched(pasta) needs ["curl"] lacks [] { … }
///     fn it_comes_up_without_routes(pasta) needs [] lacks [Of2023: "it gives up", says "External interface"] { … }
///     fn a_page_is_sent(pasta) needs [] lacks [] races [Of2025: "its end comes first", says "short"] { … }
/// }
/// ```
#[macro_export]
macro_rules! pastas {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($argument:ident) needs [$($program:literal),*]
        lacks [$($who:ident: $why:literal, says $says:literal);*]
        $(races [$($racer:ident: $race:literal, says $told:literal);*])? $body:block
    )+) => {$(
        $(#[$attribute])*
        fn $name($argument: $crate::pasta::Pasta) $body

        mod $name {
            fn run(pasta: $crate::pasta::Pasta) {
                let of: &[$crate::pasta::Of] = &[
                    $($crate::pasta::Of {
                        who: $crate::pasta::Pasta::$who,
                        known: $crate::tool::Known::Fails { why: $why, says: $says },
                    },)*
                    $($($crate::pasta::Of {
                        who: $crate::pasta::Pasta::$racer,
                        known: $crate::tool::Known::Races { why: $race, says: $told },
                    },)*)?
                ];
                $crate::pasta::run(stringify!($name), pasta, &[$($program),*], of, super::$name);
            }

            #[test]
            fn of_2023() {
                run($crate::pasta::Pasta::Of2023);
            }

            #[test]
            fn of_2025() {
                run($crate::pasta::Pasta::Of2025);
            }

            #[test]
            fn ours() {
                run($crate::pasta::Pasta::Ours);
            }
        }
    )+};
}
