//! Capabilities: what root may, in pieces. They belong to a thread.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Forwards that are added later may be on ports below 1024.
pub(super) const OF_DAEMON: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Root's control socket may lie in another user's directory.
pub(crate) const OF_KEEPER: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// Keeps of this thread's capabilities no others than these, in whichever set.
pub(crate) fn give_up(kept: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    let left = now.permitted & kept;
    // Without CAP_SETPCAP the bounding set stays as it is; without `execve` it says nothing.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(left).iter() {
            // EINVAL: this kernel does not know it.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    clear_ambient_capability_set()?;
    let sets =
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// The names of those that are left, in small letters.
pub(super) fn left() -> Vec<String> {
    let Ok(now) = capabilities(None) else { return Vec::new() };
    now.permitted.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
}

/// Whether a capability is in force.
pub(super) fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|now| now.effective.contains(capability))
}
