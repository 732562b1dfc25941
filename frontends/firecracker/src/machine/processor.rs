//! A template of processor features in the library's words.

use vmm_reference::FeatureBits;

use crate::api::template::{CustomCpuTemplate, KvmCapability};
use crate::texts::Fault;

/// What a template changes of what a guest is told of its processor.
pub(super) fn features(template: &CustomCpuTemplate) -> Result<Vec<FeatureBits>, Fault> {
    let missing = |what: &str| {
        Err(Fault::Cpu(format!(
            "{what} are not in this version: leave them away"
        )))
    };
    let mut capabilities = template.kvm_capabilities.iter();
    // Those that are not to be looked for are not: what the library needs of KVM it looks for itself.
    if capabilities.any(|capability| matches!(capability, KvmCapability::Add(_))) {
        return missing("capabilities of KVM");
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        if !template.reg_modifiers.is_empty() {
            return missing("changes of registers");
        }
        if !template.vcpu_features.is_empty() {
            return missing("features of vCPUs");
        }
        Ok(Vec::new())
    }
    #[cfg(target_arch = "x86_64")]
    {
        if !template.msr_modifiers.is_empty() {
            return missing("changes of MSRs");
        }
        let leaves = template.cpuid_modifiers.iter();
        let registers = leaves.flat_map(|leaf| {
            leaf.modifiers.iter().map(|modifier| {
                let (leaf, subleaf, register) = (leaf.leaf, leaf.subleaf, modifier.register.0);
                let mut bits = FeatureBits::of(format!("cpuid:{leaf:#x}.{subleaf:#x}:{register}"));
                bits.clear = modifier.bitmap.clear.into();
                bits.set = modifier.bitmap.set.into();
                bits
            })
        });
        Ok(registers.collect())
    }
}
