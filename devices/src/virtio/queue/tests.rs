use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{
    AVAILABLE, DATA, Driver, INDIRECT as IND, RAM, SIZE, USED, queue, ram,
};

fn ring() -> (Ring, Driver) {
    let ram = ram();
    let ring = Ring::new(&queue(), ram.clone()).unwrap();
    (ring, Driver::new(&ram))
}

fn event_ring() -> (Ring, Driver) {
    let ram = ram();
    let mut queue = queue();
    queue.set_event_idx(true);
    (Ring::new(&queue, ram.clone()).unwrap(), Driver::new(&ram))
}

fn pop(ring: &mut Ring) -> Result<Option<Chain>, QueueError> {
    let mut chain = Chain::default();
    Ok(ring.pop(&mut chain)?.then_some(chain))
}

fn lens(buffers: &[Buffer]) -> Vec<u32> {
    buffers.iter().map(|buffer| buffer.len).collect()
}

#[test]
fn a_chain_is_split_into_what_is_read_and_what_is_written() {
    let (mut ring, mut driver) = ring();
    assert!(pop(&mut ring).unwrap().is_none());
    driver.request(&[
        (DATA, 16, false),
        (DATA + 16, 0, false),
        (DATA + 64, 512, true),
    ]);
    let chain = pop(&mut ring).unwrap().unwrap();
    assert_eq!(
        lens(chain.readable()),
        [16, 0],
        "r38: empty buffers are legal"
    );
    assert_eq!(lens(chain.writable()), [512]);
    ring.complete(chain.head(), 512).unwrap();
    assert!(driver.used().is_empty(), "not before it is published");
    assert!(ring.publish().unwrap());
    assert_eq!(driver.used(), [(0, 512)]);
    assert!(!ring.publish().unwrap(), "nothing new");
}

#[test]
fn an_indirect_table_is_followed_once() {
    let (mut ring, mut driver) = ring();
    let table = DATA + 0x1000;
    driver.descriptor_at(table, 0, DATA, 1, NEXT, 1);
    driver.descriptor_at(table, 1, DATA, 2, WRITE, 0);
    driver.descriptor(3, table, 32, IND, 0);
    driver.offer(3);
    let chain = pop(&mut ring).unwrap().unwrap();
    assert_eq!(
        (lens(chain.readable()), lens(chain.writable())),
        (vec![1], vec![2])
    );
    assert_eq!(chain.head(), 3);

    for (len, flags, inner) in [
        (0, IND, 0),
        (24, IND, 0),
        (32, IND | NEXT, 0),
        (32, IND, IND),
    ] {
        driver.descriptor_at(table, 0, table, 32, inner, 0);
        driver.descriptor(3, table, len, flags, 0);
        let (mut ring, mut driver) = (
            Ring::new(&queue(), driver.ram.clone()).unwrap(),
            driver.clone(),
        );
        driver.offer(3);
        let wrong = pop(&mut ring);
        assert!(
            matches!(wrong, Err(QueueError::Indirect(_))),
            "{len} {flags} {wrong:?}"
        );
    }
}

#[test]
fn r19_loops_and_giant_chains_end() {
    let (mut ring, mut driver) = ring();
    driver.descriptor(0, DATA, 1, NEXT, 1);
    driver.descriptor(1, DATA, 1, NEXT, 0);
    driver.offer(0);
    assert!(matches!(pop(&mut ring), Err(QueueError::TooLong)));

    let (mut ring, mut driver) = self::ring();
    let table = DATA;
    for index in 0..2000 {
        driver.descriptor_at(table, index, DATA, 1, NEXT, index + 1);
    }
    driver.descriptor(0, table, 2000 * 16, IND, 0);
    driver.offer(0);
    assert!(matches!(pop(&mut ring), Err(QueueError::TooLong)));
}

#[test]
fn r40_more_entries_than_the_queue_has_are_an_error() {
    for index in [SIZE + 1, u16::MAX] {
        let (mut ring, driver) = ring();
        driver.put(AVAILABLE + 2, index);
        assert!(matches!(pop(&mut ring), Err(QueueError::Overrun(n)) if n == index));
    }
}

#[test]
fn r1_r14_descriptors_and_buffers_outside_their_bounds_are_errors() {
    let ram_end = RAM as u64;
    let (mut ring, mut driver) = ring();
    driver.offer(SIZE);
    assert!(matches!(pop(&mut ring), Err(QueueError::Index(SIZE))));
    for (address, len) in [(ram_end - 1, 2), (ram_end, 1), (u64::MAX, 1), (0, u32::MAX)] {
        let (mut ring, mut driver) = self::ring();
        driver.request(&[(address, len, true)]);
        assert!(
            matches!(pop(&mut ring), Err(QueueError::Outside { .. })),
            "{address:#x}"
        );
    }
    let (mut ring, mut driver) = self::ring();
    driver.request(&[(DATA, 1, true), (DATA, 1, false)]);
    assert!(matches!(pop(&mut ring), Err(QueueError::Order)));
}

#[test]
fn r23_rings_outside_ram_are_refused() {
    let mut queue = queue();
    queue.set_used_ring_address(Some(0x7fff_f000), Some(0));
    assert!(matches!(
        Ring::new(&queue, ram()),
        Err(QueueError::NotReady)
    ));
}

#[test]
fn the_driver_s_wishes_about_interrupts_are_kept() {
    let (mut ring, driver) = ring();
    driver.put(AVAILABLE, NO_INTERRUPT);
    ring.complete(0, 0).unwrap();
    assert!(!ring.publish().unwrap());
    driver.put(AVAILABLE, 0u16);
    ring.complete(0, 0).unwrap();
    assert!(ring.publish().unwrap());

    // The event index: tell me when the third one is used.
    let (mut ring, driver) = event_ring();
    driver.put(AVAILABLE + 4 + 2 * u64::from(SIZE), 2u16);
    let told: Vec<_> = (0..4)
        .map(|_| {
            ring.complete(0, 0).unwrap();
            ring.publish().unwrap()
        })
        .collect();
    assert_eq!(told, [false, false, true, false]);
}

#[test]
fn notifications_are_asked_for_again_and_what_came_meanwhile_is_seen() {
    let (mut ring, mut driver) = ring();
    driver.request(&[(DATA, 1, false)]);
    pop(&mut ring).unwrap().unwrap();
    assert_eq!(driver.get::<u16>(USED), NO_NOTIFY, "the device is looking");
    assert!(!ring.rearm().unwrap());
    assert_eq!(driver.get::<u16>(USED), NO_NOTIFY, "more may be there");
    assert!(pop(&mut ring).unwrap().is_none());
    assert!(!ring.rearm().unwrap());
    assert_eq!(driver.get::<u16>(USED), 0, "nothing was there");
    assert!(pop(&mut ring).unwrap().is_none());
    driver.request(&[(DATA, 1, false)]);
    assert!(ring.rearm().unwrap());

    let (mut ring, mut driver) = event_ring();
    driver.request(&[(DATA, 1, false)]);
    pop(&mut ring).unwrap().unwrap();
    assert!(!ring.rearm().unwrap());
    let wish = |driver: &Driver| driver.get::<u16>(USED + 4 + 8 * u64::from(SIZE));
    assert_eq!(wish(&driver), 0, "none");
    assert!(pop(&mut ring).unwrap().is_none());
    assert!(!ring.rearm().unwrap());
    assert_eq!(wish(&driver), 1, "the next one");
}

#[test]
fn a_chain_that_was_given_back_comes_again() {
    let (mut ring, mut driver) = ring();
    driver.request(&[(DATA, 1, false)]);
    assert_eq!(pop(&mut ring).unwrap().unwrap().head(), 0);
    ring.undo_pop(1);
    assert_eq!(pop(&mut ring).unwrap().unwrap().head(), 0);
    assert!(pop(&mut ring).unwrap().is_none());
}

#[test]
fn indices_wrap_around() {
    let (mut ring, mut driver) = ring();
    for round in 0..70_000u32 {
        driver.request(&[(DATA, 1, false)]);
        let chain = pop(&mut ring).unwrap().unwrap();
        ring.complete(chain.head(), round).unwrap();
        assert!(ring.publish().unwrap());
        assert_eq!(driver.used(), [(0, round)]);
    }
}

proptest! {
    /// Whatever lies in the table: an error or a chain whose buffers are RAM, in bounded time. Where
    /// virtio-queue finds a chain that ours takes, both find the same one.
    #[test]
    fn r19_any_table_gives_an_error_or_the_chain_that_virtio_queue_finds(
        table in prop::collection::vec(
            (0u64..RAM as u64 + 0x1000, 0u32..0x2000, 0u16..8, 0u16..SIZE + 2), SIZE as usize),
        head in 0u16..SIZE + 1,
    ) {
        let (mut ring, mut driver) = ring();
        for (index, (address, len, flags, next)) in (0u16..).zip(table) {
            // Indirect tables have tests of their own: virtio-queue reads them differently.
            driver.descriptor(index, address, len, flags & (NEXT | WRITE), next);
        }
        driver.offer(head);
        let ours = pop(&mut ring);
        if let Ok(Some(chain)) = ours {
            let mut theirs = queue();
            let found: Vec<_> = theirs
                .pop_descriptor_chain(&driver.ram)
                .unwrap()
                .map(|descriptor| (descriptor.addr(), descriptor.len(), descriptor.is_write_only()))
                .collect();
            let read = chain.readable().iter().map(|buffer| (buffer.address, buffer.len, false));
            let write = chain.writable().iter().map(|buffer| (buffer.address, buffer.len, true));
            prop_assert_eq!(read.chain(write).collect::<Vec<_>>(), found);
        }
    }
}
