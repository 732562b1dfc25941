//! A virtio network device with one of its queues (VIRTIO 1.3, 5.1), polled.

use core::cell::UnsafeCell;

use guest::machine::ticks;

use crate::registers;
use crate::ring::{Descriptor, Ring, WRITE, address, load, store};

/// The type of the device, and its queues.
const NET: u32 = 1;
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
/// Most frames at once.
const DEPTH_MAX: usize = 128;
/// In front of every frame.
const HEADER: usize = 12;
/// A frame that the host's network takes and drops: to everybody, of a type that nothing knows (IEEE
/// 802, local experiments).
const START: [u8; 14] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5,
];

#[repr(C, align(4096))]
struct Buffers(UnsafeCell<[[u8; 2048]; DEPTH_MAX]>);

// SAFETY: only one vCPU runs.
unsafe impl Sync for Buffers {}

static BUFFERS: Buffers = Buffers(UnsafeCell::new([[0; 2048]; DEPTH_MAX]));

/// Which way the frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

/// Frames that pass in one direction.
pub struct Net {
    ring: Ring,
    way: Way,
    depth: usize,
}

fn buffer(slot: usize) -> *mut [u8; 2048] {
    // SAFETY: only the address is taken, and the index is checked.
    unsafe { &raw mut (*BUFFERS.0.get())[slot] }
}

impl Net {
    /// Starts the device that the command line knows, for frames of so many bytes, so many at once.
    pub fn start(way: Way, frame: usize, depth: usize) -> Self {
        let queue = if way == Way::In { RECEIVE } else { TRANSMIT };
        let ring = Ring::start(registers::find(NET), queue);
        let depth = depth.min(DEPTH_MAX).min(ring.size.into());
        for slot in 0..depth {
            let buffer = buffer(slot);
            let mut content = [0; 2048];
            content[HEADER..][..START.len()].copy_from_slice(&START);
            store(buffer, content);
            let (len, flags) = match way {
                Way::Out => (HEADER + frame, 0),
                Way::In => (content.len(), WRITE),
            };
            let descriptor = Descriptor {
                address: address(buffer),
                len: len as u32,
                flags,
                next: 0,
            };
            ring.describe(slot, descriptor);
        }
        Self { ring, way, depth }
    }

    /// Passes so many frames. Gives the time in ticks, and the number of notifications.
    pub fn run(&mut self, count: usize, frame: usize) -> (u64, u64) {
        let (mut begun, mut ended, mut notifications) = (0, 0, 0);
        let start = ticks();
        while begun < count.min(self.depth) {
            self.ring.push(begun as u16);
            begun += 1;
        }
        notifications += u64::from(self.ring.announce());
        while ended < count {
            let Some(first) = self.ring.ended() else {
                core::hint::spin_loop();
                continue;
            };
            let mut next = Some(first);
            while let Some((slot, len)) = next {
                if self.way == Way::In {
                    self.check(slot, len, frame);
                }
                ended += 1;
                if begun < count {
                    self.ring.push(slot as u16);
                    begun += 1;
                }
                next = self.ring.ended();
            }
            notifications += u64::from(self.ring.announce());
        }
        (ticks() - start, notifications)
    }

    fn check(&self, slot: usize, len: u32, frame: usize) {
        assert_eq!(len as usize, HEADER + frame, "a frame of another length");
        let bytes = load(buffer(slot).cast::<[u8; HEADER + START.len()]>());
        assert_eq!(bytes[HEADER + 12..], START[12..], "another frame");
    }
}
