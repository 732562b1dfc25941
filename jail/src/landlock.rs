//! Landlock: what is left of files, TCP and signals.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

use crate::report::{Part, Report};
use crate::root::Folder;

/// The newest version that was read and found to take nothing that is needed; older kernels take what they can.
const KNOWN: ABI = ABI::V10;

/// Nothing is allowed any more, but to make, remove and connect to sockets in these folders.
pub(crate) fn enter(folders: &[Folder], report: &mut Report) {
    let why = match restrict(folders) {
        Ok(LandlockStatus::Available { effective_abi, .. }) => {
            if effective_abi < ABI::V6 {
                let why = format!(
                    "Landlock of this kernel has ABI {effective_abi}, signals need 6 (Linux 6.12)"
                );
                report.miss(Part::Signals, why);
            }
            return;
        }
        Ok(LandlockStatus::NotEnabled) => {
            "Landlock is not enabled on this host (boot parameter lsm=)".to_owned()
        }
        Ok(LandlockStatus::NotImplemented) => {
            "this kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK)".to_owned()
        }
        Err(error) => format!("cannot restrict the process with Landlock: {error}"),
    };
    report.miss(Part::Files, &why);
    report.miss(Part::Signals, &why);
}

fn restrict(folders: &[Folder]) -> Result<LandlockStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for folder in folders {
        let sockets = AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::ResolveUnix;
        rules = rules.add_rule(PathBeneath::new(&folder.fd, sockets))?;
    }
    Ok(rules.restrict_self()?.landlock)
}
