//! The library itself: whether it fits, and what it says without a context.

use std::sync::OnceLock;

use crate::docs::c_doc;
use crate::error::Error;
use crate::{
    sys, AttentionDesc, Capabilities, ContextConfig, MachineRates, MemoryRequirements, Result,
    Status, TimeEstimate,
};

/// Version of the linked library: major, minor, patch.
pub fn version() -> (u32, u32, u32) {
    // SAFETY: it has no requirements.
    let version = unsafe { sys::ra_get_version() }.unsigned_abs();
    (version / 10000, version / 100 % 100, version % 100)
}

/// What this build can do on this machine.
///
/// ```
/// use ringattn::{Context, ContextConfig};
///
/// let engines = ringattn::capabilities()?.engines;
/// let fastest = engines.split(',').next().unwrap();
/// let context = Context::new(&ContextConfig::new().engine(fastest))?;
/// assert_eq!(context.info()?.engine, fastest);
/// # Ok::<(), ringattn::Error>(())
/// ```
pub fn capabilities() -> Result<Capabilities> {
    // SAFETY: the record is one that its function initialised.
    Capabilities::filled(|record, error| unsafe { sys::ra_get_capabilities(record, error) })
}

#[doc = c_doc!(ra_estimate_memory)]
///
/// ```
/// use ringattn::{estimate_memory, AttentionDesc, ContextConfig};
///
/// let desc = AttentionDesc::new().seqlen_q(1 << 20).num_heads_q(32).head_dim(128).num_chunks(32);
/// let of = |world_size| estimate_memory(&ContextConfig::new().world_size(world_size), &desc);
/// assert!(of(16)?.forward_tensors * 8 == of(2)?.forward_tensors);
/// # Ok::<(), ringattn::Error>(())
/// ```
pub fn estimate_memory(config: &ContextConfig, desc: &AttentionDesc) -> Result<MemoryRequirements> {
    config.with_raw(|config| {
        desc.with_raw(|desc| {
            // SAFETY: all three are records of C, and live as long as the call.
            MemoryRequirements::filled(|record, error| unsafe {
                sys::ra_estimate_memory(config, desc, record, error)
            })
        })
    })
}

#[doc = c_doc!(ra_estimate_time)]
///
/// ```
/// use ringattn::{estimate_time, AttentionDesc, ContextConfig, MachineRates};
///
/// let desc = AttentionDesc::new().seqlen_q(1 << 20).num_heads_q(32).head_dim(128);
/// let rates = MachineRates::new().forward_flops(4e14).backward_flops(3e14);
/// let of = |link_bytes| estimate_time(&ContextConfig::new().world_size(16), &desc, &rates.clone().link_bytes(link_bytes));
/// assert!(of(50e9)?.forward_seconds < of(1e9)?.forward_seconds);
/// # Ok::<(), ringattn::Error>(())
/// ```
pub fn estimate_time(
    config: &ContextConfig,
    desc: &AttentionDesc,
    rates: &MachineRates,
) -> Result<TimeEstimate> {
    config.with_raw(|config| {
        desc.with_raw(|desc| {
            rates.with_raw(|rates| {
                // SAFETY: all four are records of C, and live as long as the call.
                TimeEstimate::filled(|record, error| unsafe {
                    sys::ra_estimate_time(config, desc, rates, record, error)
                })
            })
        })
    })
}

/// Whether the library is one that these bindings fit, which is found out once.
pub(crate) fn check() -> Result<()> {
    static FITS: OnceLock<Result<()>> = OnceLock::new();
    FITS.get_or_init(|| check_version(version())).clone()
}

/// Another major version than the bindings', before 1.0 another minor one, and an older one, are
/// refused.
fn check_version(library: (u32, u32, u32)) -> Result<()> {
    let (major, minor, patch) = (
        sys::RA_VERSION_MAJOR,
        sys::RA_VERSION_MINOR,
        sys::RA_VERSION_PATCH,
    );
    let end = if major == 0 {
        (0, minor + 1, 0)
    } else {
        (major + 1, 0, 0)
    };
    if (major, minor, patch) <= library && library < end {
        return Ok(());
    }
    Err(Error::new(
        Status::NotSupported,
        format!(
            "libringattn is version {}.{}.{}; the crate ringattn {major}.{minor}.{patch} needs at \
             least that, and less than {}.{}.{}",
            library.0, library.1, library.2, end.0, end.1, end.2
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_refused_with_both_numbers() {
        let ours = (
            sys::RA_VERSION_MAJOR,
            sys::RA_VERSION_MINOR,
            sys::RA_VERSION_PATCH,
        );
        assert_eq!(
            ours,
            version(),
            "the library is not the one that the header is of"
        );
        assert!(check_version(ours).is_ok());
        assert!(check_version((ours.0, ours.1, ours.2 + 1)).is_ok());
        assert_eq!(ours.0 > 0, check_version((ours.0, ours.1 + 1, 0)).is_ok());
        let error = check_version((ours.0 + 1, ours.1, ours.2)).unwrap_err();
        assert_eq!(error.status(), Status::NotSupported);
        for version in [
            format!("{}.{}.{}", ours.0 + 1, ours.1, ours.2),
            env!("CARGO_PKG_VERSION").into(),
        ] {
            assert!(error.message().contains(&version), "{error}");
        }
        let older = if ours.1 > 0 {
            (ours.0, ours.1 - 1, 99)
        } else {
            (ours.0.wrapping_sub(1), 0, 0)
        };
        assert!(check_version(older).is_err());
    }
}
