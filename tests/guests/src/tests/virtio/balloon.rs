//! A balloon: gives pages to the host as it is asked, and finds zeros in them when it is asked to take all of them back.

use core::cell::UnsafeCell;
use core::ptr;

use guest::println;
use virtio_drivers::PAGE_SIZE;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::client::{VERSION_1, begin};
use super::{BALLOON, Carrier, GuestHal, device};

/// VIRTIO 1.3, 5.5.2 and 5.5.4: queues, and the configuration's fields.
pub const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
pub const WANTED: usize = 0;
pub const ACTUAL: usize = 4;
const QUEUE: usize = 4;

/// The pages that it can give.
const PAGES: usize = 64;
const WORDS: usize = PAGE_SIZE / 8;

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[[u64; WORDS]; PAGES]>);

// SAFETY: one vCPU runs, and looks at it by volatile accesses.
unsafe impl Sync for Pages {}

static CONTENT: Pages = Pages(UnsafeCell::new([[0; WORDS]; PAGES]));

impl Pages {
    fn word(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < PAGES && word < WORDS);
        self.0.get().cast::<u64>().wrapping_add(page * WORDS + word)
    }

    /// The number by which the host knows a page.
    fn number(&self, page: usize) -> u32 {
        (self.word(page, 0).addr() / PAGE_SIZE) as u32
    }
}

/// What a page's words are at first.
fn mark(page: usize, word: usize) -> u64 {
    (page << 16 | word) as u64 + 1
}

/// Which page is given as which: neighbours are not.
fn given_as(number: usize) -> usize {
    number * 5 % PAGES
}

type Queue = VirtQueue<GuestHal, QUEUE>;

/// Tells the host of some pages.
fn tell(queue: &mut Queue, transport: &mut Carrier, numbers: core::ops::Range<usize>) {
    for number in numbers {
        let bytes = CONTENT.number(given_as(number)).to_le_bytes();
        queue
            .add_notify_wait_pop(&[&bytes], &mut [], transport)
            .expect("the device takes it");
    }
}

pub fn run() {
    let mut transport = device(BALLOON).transport();
    begin(&mut transport, VERSION_1);
    let mut queue = |number| {
        Queue::new(&mut transport, number, false, false).expect("the device has the queue")
    };
    let (mut inflate, mut deflate) = (queue(INFLATE), queue(DEFLATE));
    transport.finish_init();
    let words = || (0..PAGES).flat_map(|page| (0..WORDS).map(move |word| (page, word)));
    for (page, word) in words() {
        // SAFETY: a word of the static.
        unsafe { ptr::write_volatile(CONTENT.word(page, word), mark(page, word)) };
    }
    println!("filled");
    let mut given = 0;
    loop {
        let wanted: u32 = transport
            .read_config_space(WANTED)
            .expect("the configuration");
        let wanted = (wanted as usize).min(PAGES);
        if wanted > given {
            tell(&mut inflate, &mut transport, given..wanted);
            given = wanted;
            let actual = given as u32;
            transport
                .write_config_space(ACTUAL, actual)
                .expect("the configuration");
            println!("given {given}");
        } else if wanted == 0 && given > 0 {
            break;
        }
    }
    for (page, word) in words() {
        let is_given = (0..given).any(|number| given_as(number) == page);
        let expected = if is_given { 0 } else { mark(page, word) };
        // SAFETY: as above.
        let found = unsafe { ptr::read_volatile(CONTENT.word(page, word)) };
        assert_eq!(found, expected, "page {page}, word {word}");
    }
    tell(&mut deflate, &mut transport, 0..given);
    println!("zeros in {given} pages");
}
