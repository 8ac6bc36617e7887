//! Landlock: which files may be opened from here on (`landlock(7)`, Linux 5.13). What is open stays open.

use std::path::PathBuf;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What may be done with the files below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileRights {
    /// Read them, and list the directory.
    Read,
    /// Remove them.
    Remove,
}

impl FileRights {
    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::Remove => AccessFs::RemoveFile.into(),
        }
    }
}

/// Gives up all files but those below `kept`, and (Linux 6.12) signals to other processes. Directories that are
/// not there are passed over. The error says why it could not be had.
pub(crate) fn give_up_files(kept: &[(PathBuf, FileRights)]) -> Result<(), String> {
    let status = restrict(kept).map_err(|error| format!("no Landlock: {error}"))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced, _) => Ok(()),
        (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
            Err("no Landlock: this kernel was built without it (Linux 5.13)".to_owned())
        }
        (RulesetStatus::NotEnforced, _) => {
            Err("no Landlock: it is switched off (the kernel's parameter lsm=)".to_owned())
        }
    }
}

fn restrict(kept: &[(PathBuf, FileRights)]) -> Result<RestrictionStatus, RulesetError> {
    // As far as the kernel knows them: what it does not know it cannot take away.
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    for (path, rights) in kept {
        if let Ok(directory) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(directory, rights.access()))?;
        }
    }
    rules.restrict_self()
}
