//! Random bytes: two reads give bytes, and not the same.

use guest::println;
use virtio_drivers::device::rng::VirtIORng;

use super::{GuestHal, RNG, device};

const BYTES: usize = 64;

pub fn run() {
    let device = device(RNG);
    let mut rng = VirtIORng::<GuestHal, _>::new(device.transport()).expect("the driver finds it");
    let mut read = || {
        let mut bytes = [0; BYTES];
        // A device may give less than it is asked for.
        let len = rng.request_entropy(&mut bytes).expect("random bytes");
        assert!((1..=BYTES).contains(&len), "{len} bytes");
        assert!(bytes[len..].iter().all(|byte| *byte == 0));
        assert!(bytes.iter().any(|byte| *byte != 0));
        bytes
    };
    let (first, second) = (read(), read());
    assert_ne!(first, second);
    println!("random bytes, twice");
}
