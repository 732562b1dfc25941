//! Which work on frames (checksums, cutting) is left to the other side: what the host's tap device can leave, what the
//! driver may take, and what that means for the tap.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MQ,
};

use super::frame::LARGE_QUEUE;
use super::tap::{Tap, offload};

/// Feature bits of a driver that takes frames as they are, and what each means for the tap.
pub(super) const GUEST_OFFLOADS: [(u32, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, offload::CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, offload::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, offload::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, offload::ECN),
    (VIRTIO_NET_F_GUEST_UFO, offload::UFO),
    (VIRTIO_NET_F_GUEST_USO4, offload::USO4),
    (VIRTIO_NET_F_GUEST_USO6, offload::USO6),
];

const GUEST_CSUM: &[u32] = &[VIRTIO_NET_F_GUEST_CSUM];
const CSUM: &[u32] = &[VIRTIO_NET_F_CSUM];
/// Features that make sense only with one of others (5.1.3.1).
pub(super) const DEPENDENCIES: &[(u32, &[u32])] = &[
    (VIRTIO_NET_F_GUEST_TSO4, GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_TSO6, GUEST_CSUM),
    (
        VIRTIO_NET_F_GUEST_ECN,
        &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (VIRTIO_NET_F_GUEST_UFO, GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_USO4, GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_USO6, GUEST_CSUM),
    (VIRTIO_NET_F_HOST_TSO4, CSUM),
    (VIRTIO_NET_F_HOST_TSO6, CSUM),
    (
        VIRTIO_NET_F_HOST_ECN,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
    ),
    (VIRTIO_NET_F_HOST_UFO, CSUM),
    (VIRTIO_NET_F_HOST_USO, CSUM),
    (VIRTIO_NET_F_MQ, &[VIRTIO_NET_F_CTRL_VQ]),
];

/// The feature bits of a device whose tap can leave this, with queues of this size.
pub(super) fn uncut(host: u32, queue_size: u16) -> u64 {
    let mut features = 0;
    for (bit, offload) in GUEST_OFFLOADS {
        // What comes uncut needs room.
        let has_room = offload == offload::CSUM || queue_size >= LARGE_QUEUE;
        if host & offload != 0 && has_room {
            features |= 1 << bit;
        }
    }
    // A tap takes from the driver what it can leave to it.
    for (bit, offload) in [
        (VIRTIO_NET_F_HOST_TSO4, offload::TSO4),
        (VIRTIO_NET_F_HOST_TSO6, offload::TSO6),
        (VIRTIO_NET_F_HOST_ECN, offload::ECN),
        (VIRTIO_NET_F_HOST_UFO, offload::UFO),
        (VIRTIO_NET_F_HOST_USO, offload::USO4),
    ] {
        if host & offload != 0 {
            features |= 1 << bit;
        }
    }
    features
}

/// Which kinds of frames the tap may leave uncut, as the driver agreed.
pub(super) fn negotiate(features: u64) -> u32 {
    let uso = offload::USO4 | offload::USO6;
    let agreed = GUEST_OFFLOADS
        .iter()
        .filter(|(bit, _)| features & 1 << bit != 0)
        .fold(0, |all, (_, offload)| all | offload);
    // A tap has both or none.
    if agreed & uso == uso {
        agreed
    } else {
        agreed & !uso
    }
}

/// The most that this host can leave to a receiver.
pub(super) fn host_offload(tap: &Tap) -> u32 {
    use offload::{CSUM, ECN, TSO4, TSO6, UFO, USO4, USO6};
    let tso = CSUM | TSO4 | TSO6 | ECN;
    // USO is new in Linux 6.2; the tap of a macvtap may have less still.
    let best = [tso | UFO | USO4 | USO6, tso | UFO, tso, CSUM];
    best.into_iter()
        .find(|offload| tap.set_offload(*offload).is_ok())
        .unwrap_or(0)
}
